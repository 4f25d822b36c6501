"""`decode`: latents to pictures."""

from collections.abc import Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ddim_edit.cli import options, run
from ddim_edit.cli.method import fitted

if TYPE_CHECKING:
    from ddim_edit.batch import Failure
    from ddim_edit.grid import Grid
    from ddim_edit.latents import Latents
    from ddim_edit.recipe import Recipe


@click.command()
@click.argument("latents", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.output_option("decoded", "Folder for the pictures.")
@options.grid_options
@options.condition_options
@options.eta_options
@click.option("--seed", type=click.IntRange(0), help="Of noise, at eta > 0.  [default: 0, or what the latents carry]")
@options.batch_option
@click.option("--force", is_flag=True, help="Decode although the latents come from another model.")
@options.resume_option
@options.metadata_option
@options.model_options
@options.running_options
@click.pass_context
def decode(  # noqa: PLR0913
    ctx: click.Context,
    *,
    latents: tuple[Path, ...],
    output: Path,
    choice: options.ModelChoice,
    grid: options.GridChoice,
    condition: options.Condition,
    randomness: options.Randomness,
    seed: int | None,
    batch_size: int,
    force: bool,
    resume: bool,
    metadata: bool,
    running: options.Running,
) -> int:
    """Decode LATENTS (files or folders that encode wrote) into PNGs, by default the way they were encoded."""
    from ddim_edit.batch import decode_in_batches
    from ddim_edit.files import prepare_output, unique_names
    from ddim_edit.images import write_image
    from ddim_edit.recipe import Recipe

    options.check_resume(resume, metadata)
    loaded, failures = _loaded(latents)
    names = unique_names([name for part in loaded for name in part.names])
    paths = [output / f"{name}.png" for name in names]
    prepare_output(*(() if resume else paths), overwrite=running.overwrite)
    model = choice.load()
    for part in loaded if not force else ():
        part.require_same(model.space, of=f"model {model.name}")
    model = fitted(model, [part.solver for part in loaded])
    only_steps = grid == options.GridChoice(grid.num_inference_steps, None, None, None)  # in the latents' own spacing
    levels = grid.num_inference_steps if only_steps else grid.build(model.schedule)
    denoiser = condition.denoiser(model) if condition.given else None
    recipes = [Recipe.of(part, model, grid=levels, solver=randomness.solver(), denoiser=denoiser) for part in loaded]
    record = run.Record(run.describe_run(ctx, model, _common_grid(recipes)), outputs=paths)
    text = run.picture_metadata(record.description) if metadata else None
    remaining = iter(paths)
    jobs = [
        Job(part, recipe, own, list(islice(remaining, len(part))))
        for part, recipe, own in zip(loaded, recipes, _seeds_of(loaded, seed, randomness), strict=True)
    ]
    if resume and text:
        jobs = [job.left(text) for job in jobs]
        prepare_output(*(path for job in jobs for path in job.paths), overwrite=running.overwrite)
    with run.Progress("decode", sum(job.steps for job in jobs), shown=running.progress) as bar:
        for job in jobs:
            for rows, pictures in decode_in_batches(
                model, job.latents, job.recipe, batch_size=batch_size, seeds=job.seeds, on_step=bar
            ):
                for row, picture in zip(rows, pictures, strict=True):
                    write_image(picture, job.paths[row], metadata=text)
    done = sum(len(job.paths) for job in jobs)
    return run.finish(record, output, failures, done=done, before=len(paths) - done, running=running)


class Job(NamedTuple):
    """Latents to decode, how, the seeds of noise to draw (none, or one each), and where their pictures go."""

    latents: "Latents"
    recipe: "Recipe"
    seeds: list[int]
    paths: list[Path]

    @property
    def steps(self) -> int:
        """Of all pictures."""
        return len(self.paths) * self.recipe.grid.steps

    def left(self, text: Mapping[str, str]) -> "Job":
        """What is left of it: pictures that are not there yet, or that were made in another way than this text says."""
        rows = [row for row, path in enumerate(self.paths) if not run.is_made(path, text)]
        paths, seeds = [self.paths[row] for row in rows], [self.seeds[row] for row in rows] if self.seeds else []
        return Job(self.latents.select(rows), self.recipe, seeds, paths)


def _loaded(arguments: "Sequence[Path]") -> "tuple[list[Latents], list[Failure]]":
    """What the files hold, with a name for every photo, and why some cannot be read; at least one can."""
    from ddim_edit.batch import Failure
    from ddim_edit.errors import LatentsError
    from ddim_edit.files import find_latents
    from ddim_edit.latents import Latents

    loaded: list[Latents] = []
    failures: list[Failure] = []
    for path in find_latents(arguments):
        try:
            loaded.append(Latents.load(path).named(path.stem))
        except LatentsError as error:
            failures.append(Failure(str(path), str(error)))
    if not loaded:
        raise LatentsError(failures[0].error)
    return loaded, failures


def _common_grid(recipes: "Sequence[Recipe]") -> "Grid | None":
    """The levels, where all are decoded on the same."""
    first = recipes[0].grid
    return first if all(recipe.grid.timesteps == first.timesteps for recipe in recipes) else None


def _seeds_of(loaded: "Sequence[Latents]", seed: int | None, randomness: options.Randomness) -> list[list[int]]:
    """Of the noise to draw: one a picture, however the pictures are spread over files; none for noise they carry."""
    seeds = count(seed or 0)
    own = [list(islice(seeds, len(part))) for part in loaded]
    drawn = [bool(randomness.eta) and (seed is not None or part.noises is None) for part in loaded]
    return [numbers if needed else [] for numbers, needed in zip(own, drawn, strict=True)]
