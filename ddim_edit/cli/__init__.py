"""The command line. Answers `--help` without importing torch: heavy imports live inside the commands."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

import click

from ddim_edit.cli.about import doctor, info
from ddim_edit.cli.demo import demo
from ddim_edit.cli.experiment import experiment
from ddim_edit.cli.interpolate import interpolate
from ddim_edit.cli.photos import decode, encode, roundtrip
from ddim_edit.cli.pictures import sample
from ddim_edit.errors import DdimEditError

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def _kebab(token: str) -> str:
    """Both spellings of an option are accepted: --batch-size and --batch_size."""
    return token.replace("_", "-")


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "DDIM_EDIT",
        "token_normalize_func": _kebab,
        "max_content_width": 110,
    }
)
@click.version_option(version("ddim-edit"), prog_name="ddim-edit")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def cli(debug: bool) -> None:
    """Encode real photos into DDIM latents, decode them back, and morph between them.

    Every option can also be set by an environment variable: DDIM_EDIT_ENCODE_DEVICE=cpu, and so on.
    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some files failed, 130 interrupted.
    """


for command in (demo, encode, decode, roundtrip, interpolate, sample, experiment, info, doctor):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # Threads that spin while they wait are many times slower on a busy machine; must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(given))


def _run(arguments: list[str]) -> int:
    try:
        code = cli.main(arguments, prog_name="ddim-edit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; finished files are kept, nothing is half-written", err=True)
        return INTERRUPTED
    except (DdimEditError, MemoryError) as error:
        if "--debug" in arguments:
            raise
        click.echo(f"error: {error or 'out of memory; lower --batch-size'}", err=True)
        return FAILED
    return code if isinstance(code, int) else 0
