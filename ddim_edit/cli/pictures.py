"""`sample`: new pictures."""

from collections.abc import Mapping, Sequence
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


@click.command()
@click.option("--seeds", "--seed", type=values.seeds, default="0-7", show_default=True, help="One picture a seed.")
@options.output_option("samples", "A folder for PNGs and a sheet, or X.npz for an OpenAI-style array 'arr_0'.")
@options.grid_options
@options.condition_options
@options.eta_options
@click.option("--clip", type=float, help="Clamp predicted photos to [-CLIP, CLIP]; 1 is what many samplers do.")
@click.option("--watch", type=click.IntRange(1), metavar="K", help="Also draw x_t and predicted x0 every K steps.")
@options.batch_option
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
    metadata: bool,
    running: options.Running,
) -> int:
    """Draw pictures from seeds, at any number of steps and any eta.

    \b
    ddim-edit sample --seeds 0-15 -n 20
    ddim-edit sample --seeds 0-99 --label Dress --guidance 2 -o dresses.npz
    """
    from ddim_edit.decoding import sample as draw
    from ddim_edit.files import prepare_output
    from ddim_edit.solvers import Ddim

    album = Archive(output) if output.suffix.lower() == ".npz" else Album(output, seeds)
    watching = Watching(watch, batch_size) if watch else None
    prepare_output(*album.paths, *([_watch_path(output)] if watching else []), overwrite=running.overwrite)
    model = choice.load()
    levels = grid.build(model.schedule)
    denoiser = model.denoiser(condition.label, guidance=condition.guidance, clip_x0=clip)
    solver = randomness.solver() or Ddim()
    record = run.Record(run.describe_run(ctx, model, levels), outputs=album.paths)
    text = run.picture_metadata(record.description) if metadata else None
    with run.Progress("sample", len(seeds) * levels.steps, shown=running.progress) as bar:
        for start in range(0, len(seeds), batch_size):
            on_step = run.both(bar, watching) if watching and start == 0 else bar
            batch = seeds[start : start + batch_size]
            album.add(draw(model, batch, grid=levels, solver=solver, denoiser=denoiser, on_step=on_step), text)
    album.close(text)
    if watching:
        record.outputs.append(_watch_path(output))
        watching.write(record.outputs[-1])
    return run.finish(record, output, (), done=len(seeds), running=running)


class Archive:
    """Pictures on their way into one `.npz`, as 8-bit values in memory."""

    def __init__(self, output: Path) -> None:
        """Write to this file when all are there."""
        self.paths = [output]
        self._parts: list[NDArray[np.uint8]] = []

    def add(self, pictures: "Tensor", _text: Mapping[str, str] | None) -> None:
        """Take the next (B, 3, H, W)."""
        from ddim_edit.images import to_uint8

        self._parts.append(to_uint8(pictures))

    def close(self, _text: Mapping[str, str] | None) -> None:
        """Write the file."""
        import numpy as np

        from ddim_edit.files import atomic

        with atomic(self.paths[0]) as temporary:
            np.savez(temporary, arr_0=np.concatenate(self._parts))


class Album:
    """Pictures on their way into a folder: a PNG each, and a sheet of the first of them."""

    def __init__(self, output: Path, seeds: Sequence[int]) -> None:
        """The files that will be written; the sheet is the last."""
        from ddim_edit.noise import seed_name

        self.paths = [*(output / f"{seed_name(seed)}.png" for seed in seeds), output / "sheet.png"]
        self._seeds = seeds
        self._written = 0
        self._shown: list[Tensor] = []

    def add(self, pictures: "Tensor", text: Mapping[str, str] | None) -> None:
        """Write the next (B, 3, H, W), with this metadata."""
        from ddim_edit.images import write_image

        for picture in pictures:
            write_image(picture, self.paths[self._written], metadata=text)
            self._written += 1
        self._shown += pictures[: SHEET - len(self._shown)]

    def close(self, text: Mapping[str, str] | None, columns: int = 8) -> None:
        """Write the sheet."""
        from ddim_edit.images import visible_scale, write_image
        from ddim_edit.sheets import sheet

        names = [f"seed {seed}" for seed in self._seeds[: len(self._shown)]]
        starts = range(0, len(self._shown), columns)
        rows = [self._shown[start : start + columns] for start in starts]
        captions = [names[start : start + columns] for start in starts]
        picture = sheet(rows, captions=captions, scale=visible_scale(self._shown[0].shape[-1]))
        write_image(picture, self.paths[-1], metadata=text)
        if len(self._shown) < len(self._seeds):
            click.echo(f"note: the sheet shows the first {SHEET} of {len(self._seeds)} pictures", err=True)


def _watch_path(output: Path) -> Path:
    return output.with_suffix(".steps.png") if output.suffix == ".npz" else output / "steps.png"


class Watching:
    """Collects "current x" and "predicted x0" of the first batch every K steps, as one picture."""

    def __init__(self, every: int, rows: int) -> None:
        """Watch at most `rows` pictures, at most four of them drawn."""
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

    def write(self, path: Path) -> None:
        """Draw two rows a picture: x_t above, predicted x0 below."""
        from ddim_edit.images import visible_scale, write_image
        from ddim_edit.sheets import sheet

        first = self._tiles[0][0]
        rows = [[pair[kind][row] for pair in self._tiles] for row in range(len(first)) for kind in (0, 1)]
        names = ["current x", "predicted x0"] * len(first)
        scale = visible_scale(first.shape[-1])
        write_image(sheet(rows, row_titles=names, column_titles=self._titles, scale=scale), path)
