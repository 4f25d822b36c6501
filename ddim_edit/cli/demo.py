"""`demo`: five pictures that show what the tool does, offline and in a minute."""

from pathlib import Path

import click

from ddim_edit.cli import options


@click.command()
@options.output_option("demo", "Folder for the pictures.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def demo(output: Path, overwrite: bool) -> int:
    """Encode, decode and morph photos with the bundled model; writes five pictures and says what each shows."""
    from ddim_edit.demo import outputs, run_demo
    from ddim_edit.files import prepare_output

    prepare_output(*outputs(output), overwrite=overwrite)
    for path, meaning in run_demo(output):
        click.echo(f"{path}: {meaning}")
    return 0
