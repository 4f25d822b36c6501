"""`sample`: new pictures."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddim_edit.cli import options, run, values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ddim_edit.ode import Step

SHEET = 256  # pictures on a sheet, at most
Told = Callable[[Sequence[int]], Mapping[str, str]]  # what a picture of these seeds says of how it was made


@click.command()
@click.option("--seeds", "--seed", type=values.seeds, default="0-7", show_default=True, help="One picture a seed.")
@options.output_option("samples", "A folder for PNGs and a sheet, or X.npz for an OpenAI-style array 'arr_0'.")
@options.grid_options
@options.condition_options
@options.eta_options
@click.option("--clip", type=float, help="Clamp predicted photos to [-CLIP, CLIP]; 1 is what many samplers do.")
@click.option("--watch", type=click.IntRange(1), metavar="K", help="Also draw x_t and predicted x0 every K steps.")
@options.batch_option
@options.resume_option
@options.metadata_option
@options.model_options
@options.running_options
@click.pass_context
def sample(  # noqa: PLR0913
    ctx: click.Context,
    *,
    seeds: list[int],
    output: Path,
    choice: options.ModelChoice,
    grid: options.GridChoice,
    condition: options.Condition,
    randomness: options.Randomness,
    clip: float | None,
    watch: int | None,
    batch_size: int,
    resume: bool,
    metadata: bool,
    running: options.Running,
) -> int:
    """Draw pictures from seeds, at any number of steps and any eta.

    \b
    ddim-edit sample --seeds 0-15 -n 20
    ddim-edit sample --seeds 0-9999 --eta 1 -n 100 --resume
    ddim-edit sample --seeds 0-99 --label Dress --guidance 2 -o dresses.npz
    """
    from ddim_edit.decoding import sample as draw
    from ddim_edit.files import prepare_output
    from ddim_edit.solvers import Ddim

    album = Archive(output) if output.suffix.lower() == ".npz" else Album(output, seeds)
    options.check_resume(resume, metadata)
    _check_resume(resume, album, watch)
    watching = Watching(watch, batch_size, _watch_path(output)) if watch else None
    outputs = [*album.shows, *([watching.path] if watching else [])]
    prepare_output(*(() if resume else outputs), overwrite=running.overwrite)
    model = choice.load()
    levels = grid.build(model.schedule)
    denoiser = model.denoiser(condition.label, guidance=condition.guidance, clip_x0=clip)
    solver = randomness.solver() or Ddim()
    record = run.Record(run.describe_run(ctx, model, levels), outputs=outputs)
    told = partial(_told, record.description) if metadata else _nothing
    batches = [seeds[start : start + batch_size] for start in range(0, len(seeds), batch_size)]
    left = batches
    if resume and isinstance(album, Album):
        left = album.left(batches, told, overwrite=running.overwrite)
    done = sum(map(len, left))
    with run.Progress("sample", done * levels.steps, shown=running.progress) as bar:
        for number, batch in enumerate(left):
            on_step = run.both(bar, watching) if watching and number == 0 else bar
            album.add(batch, draw(model, batch, grid=levels, solver=solver, denoiser=denoiser, on_step=on_step), told)
    album.close(model.image_size, told)
    if watching:
        watching.write()
    return run.finish(record, output, (), done=done, before=len(seeds) - done, running=running)


def _told(description: Mapping[str, object], seeds: Sequence[int]) -> dict[str, str]:
    """What a picture of these seeds says of itself, and not of the thousands of others of its run."""
    return run.picture_metadata(description, seeds=list(seeds))


def _nothing(_seeds: Sequence[int]) -> dict[str, str]:
    return {}


def _check_resume(resume: bool, album: "Album | Archive", watch: int | None) -> None:
    if resume and isinstance(album, Archive):
        raise click.UsageError("--resume needs a folder as --output; an .npz is written at the end.")
    if resume and watch:
        raise click.UsageError("--resume may leave out the pictures that --watch draws; give one of the two.")


class Archive:
    """Pictures on their way into one `.npz`, as 8-bit values in memory."""

    def __init__(self, output: Path) -> None:
        """Write to this file when all are there."""
        self.shows: dict[Path, Sequence[int]] = {output: ()}
        self._parts: list[NDArray[np.uint8]] = []

    def add(self, _seeds: Sequence[int], pictures: "Tensor", _told: Told) -> None:
        """Take the next (B, 3, H, W)."""
        from ddim_edit.images import to_uint8

        self._parts.append(to_uint8(pictures))

    def close(self, _size: tuple[int, int], _told: Told) -> None:
        """Write the file."""
        import numpy as np

        from ddim_edit.files import atomic

        (path,) = self.shows
        with atomic(path) as temporary:
            np.savez(temporary, arr_0=np.concatenate(self._parts))


class Album:
    """Pictures in a folder: a PNG each, and a sheet of the first of them."""

    def __init__(self, output: Path, seeds: Sequence[int]) -> None:
        """The files that will be there, and the seeds that each shows."""
        from ddim_edit.noise import seed_name

        self._paths = {seed: output / f"{seed_name(seed)}.png" for seed in seeds}
        self._sheet = output / "sheet.png"
        self._on_sheet = seeds[:SHEET]
        self.shows = {path: [seed] for seed, path in self._paths.items()} | {self._sheet: self._on_sheet}

    def left(self, batches: Sequence[list[int]], told: Told, *, overwrite: bool) -> list[list[int]]:
        """Batches of which a picture is missing, or was made in another way than it would say.

        Whole batches: only in the same company has a picture the same bytes.
        """
        from ddim_edit.files import prepare_output

        made = {path for path, seeds in self.shows.items() if run.is_made(path, told(seeds))}
        prepare_output(*(path for path in self.shows if path not in made), overwrite=overwrite)
        return [batch for batch in batches if any(self._paths[seed] not in made for seed in batch)]

    def add(self, seeds: Sequence[int], pictures: "Tensor", told: Told) -> None:
        """Write the pictures of these seeds, (B, 3, H, W)."""
        from ddim_edit.images import write_image

        for seed, picture in zip(seeds, pictures, strict=True):
            write_image(picture, self._paths[seed], metadata=told([seed]))

    def close(self, size: tuple[int, int], told: Told, columns: int = 8) -> None:
        """Write the sheet of what lies there, pictures of (height, width)."""
        from ddim_edit.images import read_image, visible_scale, write_image
        from ddim_edit.sheets import sheet

        shown = [read_image(self._paths[seed], size) for seed in self._on_sheet]
        names = [f"seed {seed}" for seed in self._on_sheet]
        starts = range(0, len(shown), columns)
        rows = [shown[start : start + columns] for start in starts]
        captions = [names[start : start + columns] for start in starts]
        picture = sheet(rows, captions=captions, scale=visible_scale(size[-1]))
        write_image(picture, self._sheet, metadata=told(self._on_sheet))
        if len(shown) < len(self._paths):
            click.echo(f"note: the sheet shows the first {SHEET} of {len(self._paths)} pictures", err=True)


def _watch_path(output: Path) -> Path:
    return output.with_suffix(".steps.png") if output.suffix == ".npz" else output / "steps.png"


class Watching:
    """Collects "current x" and "predicted x0" of the first batch every K steps, as one picture."""

    def __init__(self, every: int, rows: int, path: Path) -> None:
        """Watch at most `rows` pictures, at most four of them drawn."""
        self.path = path
        self._every = every
        self._rows = min(rows, 4)
        self._titles: list[str] = []
        self._tiles: list[tuple[Tensor, Tensor]] = []

    def __call__(self, step: "Step") -> None:
        """Keep this step if its turn has come; the last is always kept."""
        if step.index % self._every == 0 or step.index == step.of:
            x, x0 = (value[: self._rows].float().cpu().clamp(-1, 1) for value in (step.state.x, step.prediction.x0))
            self._titles.append(f"step {step.index}")
            self._tiles.append((x, x0))

    def write(self) -> None:
        """Draw two rows a picture: x_t above, predicted x0 below."""
        from ddim_edit.images import visible_scale, write_image
        from ddim_edit.sheets import sheet

        first = self._tiles[0][0]
        rows = [[pair[kind][row] for pair in self._tiles] for row in range(len(first)) for kind in (0, 1)]
        names = ["current x", "predicted x0"] * len(first)
        scale = visible_scale(first.shape[-1])
        write_image(sheet(rows, row_titles=names, column_titles=self._titles, scale=scale), self.path)
