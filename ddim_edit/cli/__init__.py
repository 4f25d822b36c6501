"""The command line. Answers `--help` without importing torch: heavy imports live inside the commands."""

import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version

import click

from ddim_edit.cli.about import doctor, info
from ddim_edit.cli.corners import grid
from ddim_edit.cli.decoding import decode
from ddim_edit.cli.demo import demo
from ddim_edit.cli.evaluation import evaluate_model
from ddim_edit.cli.experiment import experiment
from ddim_edit.cli.interpolate import interpolate
from ddim_edit.cli.mix import mix
from ddim_edit.cli.photos import encode, roundtrip
from ddim_edit.cli.pictures import sample
from ddim_edit.cli.training import train
from ddim_edit.errors import ConfigError, DdimEditError

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def _kebab(token: str) -> str:
    """Both spellings of an option are accepted: --batch-size and --batch_size."""
    return token.replace("_", "-")


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": _kebab,
        "max_content_width": 110,
    }
)
@click.version_option(version("ddim-edit"), prog_name="ddim-edit")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def cli(debug: bool) -> None:
    """Encode real photos into DDIM latents, decode them back, and morph between them.

    Every option of a command can also be set by an environment variable: DDIM_EDIT, the command and the
    option's long name, as in DDIM_EDIT_ENCODE_BATCH_SIZE=4 for encode --batch-size 4, DDIM_EDIT_INFO_JSON=1, or
    DDIM_EDIT_ENCODE_CHECK=0 for --no-check.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some files failed, 130 interrupted.
    """


def _name_variables(command: click.Command, prefix: str) -> None:
    """Name the environment variables of a command's options as `cli` promises; click's own follow parameter names."""
    if isinstance(command, click.Group):
        for name, member in command.commands.items():
            _name_variables(member, f"{prefix}_{_variable(name)}")
        return
    for option in command.params:
        if isinstance(option, click.Option):
            option.envvar = [f"{prefix}_{_variable(name[2:])}" for name in option.opts if name.startswith("--")]


def _variable(name: str) -> str:
    return name.replace("-", "_").upper()


for command in (
    demo,
    encode,
    decode,
    roundtrip,
    interpolate,
    grid,
    mix,
    sample,
    experiment,
    train,
    evaluate_model,
    info,
    doctor,
):
    cli.add_command(command)
_name_variables(cli, "DDIM_EDIT")


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
    except (DdimEditError, MemoryError, RuntimeError, OSError) as error:
        message = _message(error)
        if message is None or "--debug" in arguments or os.environ.get("DDIM_EDIT_DEBUG", "0") != "0":
            raise
        click.echo(f"error: {message}", err=True)
        return USAGE if isinstance(error, ConfigError) else FAILED
    return code if isinstance(code, int) else 0


def _message(error: Exception) -> str | None:
    """One line, if this is an error that users can do something about."""
    if isinstance(error, DdimEditError):
        return str(error)
    if isinstance(error, OSError):
        place = error.filename
        return f"{place}: {error.strerror}; check who may read and write there" if place and error.strerror else None
    return _out_of_memory(error)


def _out_of_memory(error: Exception) -> str | None:
    """One line, if this is what it means; torch says so in its own words on every device, always as a RuntimeError."""
    text = str(error)
    if not (isinstance(error, MemoryError) or re.search("(out of|not enough|can't allocate) memory", text)):
        return None
    size = re.search(r"allocate ([\d.]+ ?[A-Za-z]+)", text)
    wanted = f" ({size[1]} more were needed)" if size else ""
    return f"out of memory{wanted}; lower --batch-size or --size, or choose --device cpu"
