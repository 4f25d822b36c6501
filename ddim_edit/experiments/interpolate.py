"""The DDIM paper's Figures 6 and 11 to 13: paths between latents, decoded, on a line and on a grid."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ddim_edit.batch import decode_in_batches
from ddim_edit.experiments.base import Array, Cell, Experiment, Measure, Results, Sheet, Unit, Value, units_of
from ddim_edit.experiments.store import Store, picture_path
from ddim_edit.files import unique_names
from ddim_edit.images import read_picture, visible_scale
from ddim_edit.interpolation import How, along, segments
from ddim_edit.inversion import round_trip
from ddim_edit.latents import Latents
from ddim_edit.metrics import mse
from ddim_edit.mixing import corner_grid
from ddim_edit.models.base import Model
from ddim_edit.ode import OnStep
from ddim_edit.pacing import even_pace, gini, paced_positions
from ddim_edit.plots import Chart, Curve
from ddim_edit.recipe import Recipe
from ddim_edit.sheets import sheet

CORNERS = 4


Take = Callable[[Sequence[int], OnStep], Tensor]  # the latents (N, C, h, w) of these keys


@dataclass(frozen=True)
class Plan:
    """Which paths to decode.

    Args:
        groups: the keys that each path leads through, by number.
        take: gives their latents.
        paths: the ways to lead through them.
        frames: of each.
        recipe: how they are decoded.
        photos: (N, 3, H, W) in [-1, 1], what keys should decode to, where they are encoded photos.
    """

    groups: Mapping[str, Sequence[int]]
    take: Take
    paths: Sequence[How]
    frames: int
    recipe: Recipe
    photos: Tensor | None = None

    @property
    def pictures(self) -> int:
        """How many are decoded for one path: where there are no photos to compare with, its ends twice."""
        return self.frames + (2 if self.photos is None else 0)


@dataclass(frozen=True)
class Encoder:
    """A `Take` of photos (N, 3, H, W), which are encoded in batches, each when one of its photos is first needed."""

    model: Model
    recipe: Recipe
    photos: Tensor
    batch_size: int
    done: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def __call__(self, rows: Sequence[int], on_step: OnStep) -> Tensor:
        """The latents of these photos."""
        return torch.stack([self._batch(row // self.batch_size, on_step)[row % self.batch_size] for row in rows])

    def _batch(self, number: int, on_step: OnStep) -> Tensor:
        if number not in self.done:
            photos = self.photos[number * self.batch_size :][: self.batch_size]
            self.done[number] = round_trip(self.model, photos, self.recipe, check=False, on_step=on_step)[0].x
        return self.done[number]


def groups_of(names: Sequence[str], keys: int) -> dict[str, range]:
    """Cut keys into groups of so many, named after their members; what is left over is in none."""
    groups = [range(start, start + keys) for start in range(0, len(names) - keys + 1, keys)]
    return dict(zip(unique_names(["-".join(names[key] for key in group) for group in groups]), groups, strict=True))


def units(model: Model, plan: Plan, store: Store, show: int, batch: int) -> list[Unit]:
    """The work: every group by every path."""
    hows: Mapping[str, How] = {how: how for how in plan.paths}

    def measure(cell: Cell, names: Sequence[str], on_step: OnStep) -> list[Mapping[str, Value]]:
        (name,) = names
        group = plan.groups[name]
        keys = plan.take(group, on_step)
        evenly = paced_positions(even_pace(segments(len(keys))), plan.frames, over="segment")
        x = along(keys, evenly, hows[cell.setting["path"]])
        frames = _decoded(model, x, plan.recipe, batch, on_step)
        if plan.photos is None:
            ends = _decoded(model, keys[[0, -1]], plan.recipe, batch, on_step)
        else:
            ends = plan.photos[[group[0], group[-1]]]
        if name in list(plan.groups)[:show]:
            store.keep({**cell.setting, "group": name}, {f"{number:04d}": frame for number, frame in enumerate(frames)})
        norms = x.double().square().mean((1, 2, 3)).sqrt() / keys.double().square().mean((1, 2, 3)).sqrt().mean()
        return [path_numbers(frames, ends, norms)]

    cells = [Cell({"path": path}, plan.pictures * plan.recipe.grid.steps) for path in plan.paths]
    return units_of(cells, list(plan.groups), 1, measure)


def path_numbers(frames: Tensor, ends: Tensor, norms: Tensor) -> dict[str, Value]:
    """What a decoded path (F, 3, H, W) looks like in numbers; `ends` (2, 3, H, W) is what its ends should be."""
    distances = mse(frames[:-1], frames[1:]).sqrt().numpy()
    contrast = frames.double().std((1, 2, 3))
    median = float(np.median(distances))
    return {
        "path_length": float(distances.sum()),
        "directness": float(mse(frames[:1], frames[-1:]).sqrt() / distances.sum()) if distances.any() else 1.0,
        "smoothness": 1 - gini(distances.tolist()),
        "largest_step": float(distances.max()) / median if median else float("inf"),
        "end_error": float((frames[[0, -1]] - ends).abs().max()),
        "norm_low": float(norms.min()),
        "contrast_low": float(contrast.min() / ((contrast[0] + contrast[-1]) / 2)),
        "distances": distances.tolist(),
        "norms": norms.tolist(),
    }


def decode_grid(model: Model, plan: Plan, side: int, store: Store, on_step: OnStep) -> None:
    """Decode the grid between the first four keys into the folder's pictures."""
    names = [f"{row:02d}-{column:02d}" for row in range(side) for column in range(side)]

    def make() -> Tensor:
        corners = plan.take(range(CORNERS), on_step)
        return _decoded(model, corner_grid(corners, side, side).flatten(0, 1), plan.recipe, side, on_step)

    store.pictures({"grid": str(side)}, names, make)


def _decoded(model: Model, x: Tensor, recipe: Recipe, batch: int, on_step: OnStep) -> Tensor:
    latents = Latents(x, recipe.grid[recipe.grid.steps], model.space, recipe.to_json())
    parts = decode_in_batches(model, latents, recipe, batch_size=batch, on_step=on_step)
    return torch.cat([pictures for _, pictures in parts])


def _series(results: Results, name: str) -> Iterator[tuple[str, Array]]:
    """Give each path with the mean over groups of a column that holds one number per frame."""
    for path in results.values("path"):
        rows = [row[name].split() for row in results.rows if row["path"] == path]
        yield path, np.array(rows, dtype=np.float64).mean(0)


def _charts(results: Results) -> Iterator[Chart]:
    for name, label in (("norms", "norm of the latent / norm of the keys"), ("distances", "rms step between frames")):
        curves = [Curve(path, _positions(len(y), name), y.tolist()) for path, y in _series(results, name)]
        yield Chart(f"{name}_along_the_path", f"{label.capitalize()}, along the path", "position", label, curves)


def _positions(count: int, name: str) -> list[float]:
    """Where on the path these are: frames from end to end, steps halfway between two of them."""
    at = (np.arange(count) + 0.5) / count if name == "distances" else np.linspace(0, 1, count)
    return at.tolist()


def _sheets(results: Results) -> Iterator[Sheet]:
    paths = results.values("path")
    for group in results.shown:
        folders = {path: picture_path(results.root, {"path": path, "group": group}, "").parent for path in paths}
        rows = [[read_picture(file) for file in sorted(folder.glob("*.png"))] for folder in folders.values()]
        chosen = sorted({round(place) for place in np.linspace(0, len(rows[0]) - 1, 11)})  # as many as the paper shows
        tiles = [[row[number] for number in chosen] for row in rows]
        titles = [f"{number / (len(rows[0]) - 1):.2f}" for number in chosen]
        picture = sheet(tiles, row_titles=paths, column_titles=titles, scale=visible_scale(tiles[0][0].shape[-1], 96))
        yield Sheet(f"line_{group}", f"{group}: one path in each row.", picture)
    yield from _grid_sheet(results)


def _grid_sheet(results: Results) -> Iterator[Sheet]:
    for folder in sorted((results.root / "pictures").glob("grid-*")):
        files = sorted(folder.glob("*.png"))
        side = int(folder.name.removeprefix("grid-"))
        tiles = [[read_picture(file) for file in files[row * side : (row + 1) * side]] for row in range(side)]
        picture = sheet(tiles, scale=visible_scale(tiles[0][0].shape[-1], 96))
        yield Sheet("grid", "Between four latents, which are the corners: slerp along the rows, then across.", picture)


EXPERIMENT = Experiment(
    name="interpolate",
    title="Paths between latents",
    text=(
        "Frames at equal steps along a path between x_T's are decoded at eta = 0 (DDIM, arXiv 2010.02502, section 5.3, "
        "Figures 6 and 11 to 13; 50 steps there). The x_T are drawn from seeds, as in the paper, or are those of "
        "photos, encoded exactly. No pacing and no corrections: the path itself is measured, on frames as they are "
        "decoded, unclamped. The paper gives no number for these figures."
    ),
    settings=("path",),
    columns=(
        *("path_length", "directness", "smoothness", "largest_step", "end_error", "norm_low", "contrast_low"),
        *("distances", "norms"),
    ),
    measures=(
        Measure("smoothness", "1 - Gini", "1 - Gini's coefficient of the steps between frames", better="higher"),
        Measure("largest_step", "largest / median step", "the largest step over the median one", better="lower"),
        Measure("path_length", "path length", "sum of the steps, each the rms difference of frames on [0, 1]"),
        Measure("directness", "directness", "distance of the first and last frame over the path length", shown=False),
        Measure(
            "end_error",
            "end-point error",
            "largest difference of the ends from the photos, or from the decoded keys of seeds, on [-1, 1]",
            better="lower",
        ),
        Measure("norm_low", "lowest norm", "the lowest norm of the latent, over the mean norm of the keys"),
        Measure(
            "contrast_low",
            "lowest contrast",
            "the lowest standard deviation of a frame, over the mean of the ends'",
            better="higher",
        ),
    ),
    charts=_charts,
    sheets=_sheets,
    method=("path",),
    tested="smoothness",
)
