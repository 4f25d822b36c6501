"""`encode` and `roundtrip`: photos to latents, and back."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ddim_edit.cli import options, run
from ddim_edit.cli.method import Method, fitted, method_options

if TYPE_CHECKING:
    from ddim_edit.batch import RoundTrip
    from ddim_edit.images import Fit, Photo
    from ddim_edit.latents import Latents, PhotoRecord
    from ddim_edit.recipe import Recipe


@click.command()
@options.photo_options
@options.output_option("latents", "A folder (one file a photo), or X.safetensors (one file for all).")
@options.grid_options
@options.condition_options
@method_options
@options.eta_options
@click.option("--until", type=float, metavar="T", help="Encode part of the way, up to this timestep.")
@click.option("--save-trajectory", type=click.IntRange(1), metavar="K", help="Keep every K-th x_t in the file.")
@click.option("--check/--no-check", default=True, help="Decode once more and say how well each photo comes back.")
@click.option("--resume", is_flag=True, help="Leave out photos that an earlier run with these settings finished.")
@options.json_option
@options.model_options
@options.running_options
@click.pass_context
def encode(  # noqa: PLR0913
    ctx: click.Context,
    *,
    source: options.Source,
    output: Path,
    choice: options.ModelChoice,
    grid: options.GridChoice,
    condition: options.Condition,
    method: Method,
    randomness: options.Randomness,
    until: float | None,
    save_trajectory: int | None,
    check: bool,
    resume: bool,
    as_json: bool,
    running: options.Running,
) -> int:
    """Encode PHOTOS (files, folders, or an .npz with 'images') into latents, and check that they come back.

    \b
    ddim-edit encode photo.jpg -o photo.safetensors
    ddim-edit encode folder/ -o latents -n 100
    ddim-edit encode folder/ -o latents -n 100 --resume
    """
    from ddim_edit.batch import encode_photos
    from ddim_edit.files import prepare_output
    from ddim_edit.latents import Latents

    single = output if output.suffix.lower() == ".safetensors" else None
    if single and resume:
        raise click.UsageError("--resume needs a folder as --output; one file for all is written at the end.")
    found = source.find()
    targets = {photo.name: single or output / f"{photo.name}.safetensors" for photo in found}
    prepare_output(*(() if resume else targets.values()), overwrite=running.overwrite)
    model = fitted(choice.load(), [method.solver])
    recipe = method.recipe(model, grid, condition, randomness=randomness, until=until)
    if resume:
        before = _done(source, found, targets, model, recipe, checked=check, trajectory_every=save_trajectory or 0)
        found = [photo for photo in found if photo.name not in before]
        prepare_output(*(targets[photo.name] for photo in found), overwrite=running.overwrite)
    record = run.Record(run.describe_run(ctx, model, recipe.grid), sources=run.sources_of(found))
    batches = source.batches(found, model)
    parts: list[Latents] = []
    with run.Progress("encode", len(found) * recipe.grid.steps * (1 + check), shown=running.progress) as bar:
        for encoded in encode_photos(
            model,
            batches,
            recipe,
            trajectory_every=save_trajectory or 0,
            check=check,
            on_step=bar,
            failures=batches.failures,
        ):
            parts.append(encoded.latents)
            if not single:
                record.outputs += _save_each(parts.pop(), targets)
            bar.write(*(_encoded_line(photo, recipe.grid.steps, as_json) for photo in encoded.latents.photos))
    if single and parts:
        Latents.join(parts).save(single)
        record.outputs.append(single)
    done = len(found) - len(batches.failures)
    return run.finish(record, output, batches.failures, done=done, before=len(targets) - len(found), running=running)


def _done(source: options.Source, found: "list[Photo]", targets: dict[str, Path], *made: Any, **asked: Any) -> set[str]:
    """The photos whose latents are in their target files already, as they are asked for now; says how many are."""
    from ddim_edit.batch import is_encoded

    fit = cast("Fit", source.fit)
    done = {photo.name for photo in found if is_encoded(photo, fit, targets[photo.name], *made, **asked)}
    click.echo(f"{len(done)} of {len(found)} photos were encoded before", err=True)
    return done


def _save_each(latents: "Latents", targets: dict[str, Path]) -> list[Path]:
    for row, name in enumerate(latents.names):
        latents.select([row]).save(targets[name])
    return [targets[name] for name in latents.names]


def _encoded_line(photo: "PhotoRecord", steps: int, as_json: bool) -> str:
    from ddim_edit.inversion import advice

    if as_json:
        return json.dumps({"image": photo.name, "steps": steps} | photo.to_json())
    quality = f"comes back with {photo.quality.psnr:.1f} dB; " if photo.quality else ""
    health = f"latent rms {photo.health.rms:.3f}" if photo.health else "encoded part of the way"
    return "\n".join([f"{photo.name}: {quality}{health}", *(f"  advice: {line}" for line in advice(photo))])


@click.command()
@options.photo_options
@click.option("--output", "-o", "--outdir", type=click.Path(path_type=Path), help="Also write the pictures there.")
@options.grid_options
@options.condition_options
@method_options
@options.eta_options
@options.json_option
@options.model_options
@options.running_options
@click.pass_context
def roundtrip(  # noqa: PLR0913
    ctx: click.Context,
    *,
    source: options.Source,
    output: Path | None,
    choice: options.ModelChoice,
    grid: options.GridChoice,
    condition: options.Condition,
    method: Method,
    randomness: options.Randomness,
    as_json: bool,
    running: options.Running,
) -> int:
    """Encode PHOTOS, decode them again, and print how well each comes back.

    \b
    ddim-edit roundtrip photo.jpg -n 100
    ddim-edit roundtrip photos.npz --json > rows.jsonl
    """
    from ddim_edit.batch import roundtrip_photos
    from ddim_edit.files import prepare_output
    from ddim_edit.images import write_image

    found = source.find()
    paths = {photo.name: output / f"{photo.name}_recon.png" for photo in found} if output else {}
    prepare_output(*paths.values(), overwrite=running.overwrite)
    model = fitted(choice.load(), [method.solver])
    recipe = method.recipe(model, grid, condition, randomness=randomness)
    record = run.Record(run.describe_run(ctx, model, recipe.grid), sources=run.sources_of(found))
    batches = source.batches(found, model)
    rows: list[dict[str, object]] = []
    with run.Progress("roundtrip", len(found) * recipe.grid.steps * 2, shown=running.progress) as bar:
        for result in roundtrip_photos(model, batches, recipe, on_step=bar, failures=batches.failures):
            rows.append(_row(result, recipe, method))
            bar.write(json.dumps(rows[-1]) if as_json else _line(result))
            if paths:
                record.outputs.append(paths[result.photo.name])
                write_image(result.picture, paths[result.photo.name])
    if rows:
        click.echo(_summary([cast(float, row["mse"]) for row in rows], recipe), err=as_json)
    return run.finish(record, output, batches.failures, done=len(rows), running=running)


def _row(result: "RoundTrip", recipe: "Recipe", method: Method) -> dict[str, object]:
    """One JSON line; the keys are part of the interface."""
    record = result.photo.to_json()
    latent = cast(dict[str, object], record["health"])
    if "second_health" in record:
        latent["second"] = record["second_health"]  # the other half of a pair
    return {
        "image": result.photo.name,
        "steps": recipe.grid.steps,
        "solver": method.solver,
        "inverse": recipe.inverse.name,
        "spacing": recipe.grid.spacing,
        **cast(dict[str, object], record["quality"]),
        "evaluations": {"encode": result.photo.evaluations, "decode": result.decode_evaluations},
        "latent": latent,
        "inversion": record["inversion"],
        "seconds": round(result.seconds, 4),
    }


def _line(result: "RoundTrip") -> str:
    quality = result.photo.quality
    assert quality is not None
    return (
        f"{result.photo.name}: {quality.psnr:.1f} dB, mse {quality.mse:.2e}, ssim {quality.ssim:.3f}, "
        f"largest error {quality.max_error:.3f}, {quality.changed_8bit:.0%} of 8-bit values changed; "
        f"{result.photo.evaluations} evaluations to encode"
    )


def _summary(errors: list[float], recipe: "Recipe") -> str:
    from ddim_edit.metrics import psnr_of_mean

    grid = recipe.grid
    return (
        f"mean of {len(errors)}: mse {sum(errors) / len(errors):.2e} ({psnr_of_mean(errors):.1f} dB); "
        f"{grid.steps} steps, {grid.spacing}, top t = {grid.timesteps[-1]:g}"
    )
