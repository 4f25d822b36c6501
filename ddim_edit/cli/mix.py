"""`mix`: one picture out of several photos, latents or seeds."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddim_edit.cli import options, run, values
from ddim_edit.cli.keys import Asked, Keys, Ready, keys_options

if TYPE_CHECKING:
    from torch import Tensor

    from ddim_edit.latents import Latents

MEANS = ("lol", "karcher")


@click.command()
@keys_options
@options.output_option("mix.png", "The picture, a .png; or the latent, a .safetensors, to decode or to lead through.")
@click.option(
    "--weights",
    type=values.weights,
    help="A number for each, as 2,1,1; below 0 takes away, so 1,-1,1 is a - b + c.  [default: all alike]",
)
@click.option(
    "--mean",
    type=click.Choice(MEANS),
    help="karcher stays on the sphere, lol keeps independent noise Gaussian.  [default: karcher; lol where a weight "
    "is below 0]",
)
@options.metadata_option
@options.model_options
@options.running_options
@click.pass_context
def mix(
    ctx: click.Context,
    *,
    asked: Asked,
    output: Path,
    weights: list[float] | None,
    mean: str | None,
    metadata: bool,
    choice: options.ModelChoice,
    running: options.Running,
) -> int:
    """Mix PHOTOS (or latents, or --seeds) into one picture: a mean of all, or what is to c as a is to b.

    \b
    ddim-edit mix a.jpg b.jpg c.jpg --weights 2,1,1 -o mix.png
    ddim-edit mix a.jpg b.jpg c.jpg --weights 1,-1,1 -o analogy.png
    """
    from ddim_edit.files import prepare_output
    from ddim_edit.images import write_image

    decodes = output.suffix.lower() == ".png"
    if not decodes and output.suffix.lower() != ".safetensors":
        raise click.UsageError(f"--output {output} is no .png and no .safetensors; name it {output.stem}.png.")
    prepare_output(output, overwrite=running.overwrite)
    keys = asked.find()
    shares = _shares(weights, mean, len(keys))
    mean = mean or ("lol" if min(shares) < 0 else "karcher")
    ready = keys.ready(choice.load())
    if mean == "lol":
        ready.require_independent()
    record = run.Record(run.describe_run(ctx, ready.model, ready.recipe.grid), outputs=[output])
    latents, picture = _mixed(keys, ready, shares, mean, decodes=decodes, shown=running.progress)
    if picture is None:
        latents.save(output)
    else:
        about = run.picture_metadata(record.description)
        write_image(picture, output, metadata=about if metadata else None)
    return run.finish(record, output, (), done=1, running=running)


def _shares(weights: list[float] | None, mean: str | None, count: int) -> list[float]:
    """The weights, once they fit to the keys and to the mean."""
    shares = weights or [1.0] * count
    if count < 2:
        raise click.UsageError(f"{count} is given, and a mix needs two or more.")
    if len(shares) != count:
        raise click.UsageError(f"--weights has {len(shares)} numbers and {count} are given; give one for each.")
    if not any(shares):
        raise click.UsageError("--weights are all 0, which mixes nothing; give one of them more.")
    if min(shares) < 0 and mean == "karcher":
        raise click.UsageError("--mean karcher takes nothing away; use --mean lol, or weights of 0 or more.")
    return shares


def _mixed(
    keys: Keys, ready: Ready, shares: list[float], mean: str, *, decodes: bool, shown: bool
) -> "tuple[Latents, Tensor | None]":
    """The mix as latents of one, and its picture (3, H, W) if it is to be decoded; warns of odd ones."""
    import torch

    from ddim_edit.decoding import decode
    from ddim_edit.inversion import with_health
    from ddim_edit.latents import PhotoRecord
    from ddim_edit.mixing import karcher_mean, lol

    weights = torch.tensor([shares], dtype=torch.float64)
    model, recipe, decoding, _ = ready

    def move(given: "Tensor") -> "Tensor":
        return (lol if mean == "lol" else karcher_mean)(given, weights)

    total = len(keys.photos) * recipe.grid.steps + decodes * decoding.grid.steps
    with run.Progress("mix", total, shown=shown) as bar:
        latents, _ = keys.make(model, recipe, bar)
        mixed = replace(latents.moved(move(latents.x), move), photos=(PhotoRecord("mix"),))
        _warn(with_health(latents), with_health(mixed) if mean == "lol" else None)
        return mixed, decode(model, mixed, grid=decoding.grid, on_step=bar)[0] if decodes else None


def _warn(latents: "Latents", mixed: "Latents | None") -> None:
    """Name what is odd about the latents, and a mix by lol whose size shows that they were not independent."""
    from ddim_edit.inversion import named_advice
    from ddim_edit.metrics import RMS_RANGE

    for line in named_advice(latents):
        click.echo(f"warning: {line}", err=True)
    health, (low, high) = mixed.photos[0].health if mixed else None, RMS_RANGE
    if health and not low <= health.rms <= high:
        click.echo(
            f"warning: the mix has rms {health.rms:.2f} (a Gaussian has 1), as lol gives latents that are alike; use "
            "--mean karcher, and weights of 0 or more",
            err=True,
        )
