"""What a run looks like on its way: "current x" beside "predicted x0", as panels and as an animation."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddim_edit.decoding import sample
from ddim_edit.denoiser import Denoiser
from ddim_edit.experiments.base import Experiment, Measure, Results, Sheet, Unit, Value
from ddim_edit.experiments.charts import against
from ddim_edit.experiments.store import Store, picture_path
from ddim_edit.grid import Grid
from ddim_edit.images import read_picture, visible_scale
from ddim_edit.metrics import mse
from ddim_edit.models.base import Model
from ddim_edit.noise import seed_name
from ddim_edit.ode import OnStep, Step
from ddim_edit.plots import Chart
from ddim_edit.sheets import sheet
from ddim_edit.solvers import Solver
from ddim_edit.video import write_video

KINDS = ("current x", "predicted x0")
PANELS = 10
ANIMATION, FPS = "trajectory.webp", 8


def units(
    model: Model,
    denoiser: Denoiser,
    seeds: Sequence[int],
    grid: Grid,
    solver: Solver,
    store: Store,
    *,
    show: int,
    batch: int,
) -> list[Unit]:
    """The work: batches of seeds, each with a row for every step."""
    names = [seed_name(seed) for seed in seeds]
    digits = len(str(grid.steps))

    def unit(start: int) -> Unit:
        own = range(start, min(start + batch, len(names)))

        def make(on_step: OnStep) -> list[Mapping[str, Value]]:
            steps: list[Step] = []

            def watch(step: Step) -> None:
                on_step(step)
                steps.append(step)

            last = sample(model, [seeds[i] for i in own], grid=grid, solver=solver, denoiser=denoiser, on_step=watch)
            rows: list[Mapping[str, Value]] = []
            for step in steps:
                x, x0 = (model.codec.decode(value).cpu() for value in (step.state.x, step.prediction.x0))
                number = f"{step.index:0{digits}d}"
                for kind, values in zip(KINDS, (x, x0), strict=True):
                    shown = {names[i]: value for i, value in zip(own, values, strict=True) if i < show}
                    store.keep({"step": number, "kind": kind.replace(" ", "-")}, shown)
                rows += _rows([names[i] for i in own], number, step, x0, last)
            return rows

        keys = [(names[i], f"{step:0{digits}d}") for step in range(1, grid.steps + 1) for i in own]
        return Unit(tuple(keys), grid.steps * len(own), make)

    return [unit(start) for start in range(0, len(names), batch)]


def _rows(names: Sequence[str], number: str, step: Step, x0: Tensor, last: Tensor) -> list[Mapping[str, Value]]:
    distance = mse(last, x0)
    rms = step.state.x.double().square().mean((1, 2, 3)).sqrt().cpu()
    return [
        {"image": name, "step": number, "t": step.level.t, "distance": float(distance[row]), "rms": float(rms[row])}
        for row, name in enumerate(names)
    ]


def _panel(results: Results, step: str, name: str) -> list[Tensor]:
    places = [{"step": step, "kind": kind.replace(" ", "-")} for kind in KINDS]
    return [read_picture(picture_path(results.root, place, name)) for place in places]


def _charts(results: Results) -> Iterator[Chart]:
    curve = against(results, "distance", along="step")
    title = "How soon the predicted x0 is the final picture"
    yield Chart("prediction_error", title, "step", "MSE to the final picture, on [0, 1]", curve, log="y")


def _sheets(results: Results) -> Iterator[Sheet]:
    steps = results.values("step")
    chosen = [
        steps[round(k * (len(steps) - 1) / (min(PANELS, len(steps)) - 1 or 1))] for k in range(min(PANELS, len(steps)))
    ]
    tiles: list[list[Tensor]] = []
    for name in results.shown:
        tiles += map(list, zip(*(_panel(results, step, name) for step in chosen), strict=True))
    titles = [f"{name} {kind}" for name in results.shown for kind in KINDS]
    columns = [f"step {int(step)}" for step in chosen]
    picture = sheet(tiles, row_titles=titles, column_titles=columns, scale=visible_scale(tiles[0][0].shape[-1], 96))
    yield Sheet("panels", "Current x above, predicted x0 beneath it, from noise to the picture.", picture)


def _animate(results: Results) -> list[Path]:
    def frame(step: str) -> Tensor:
        panels = [_panel(results, step, name) for name in results.shown]
        return torch.cat([torch.cat(row, dim=-1) for row in zip(*panels, strict=True)], dim=-2)

    steps = results.values("step")
    frames = [frame(step) for step in steps] + [frame(steps[-1])] * FPS  # stays for a second
    path = results.root / ANIMATION
    write_video(frames, path, fps=FPS, scale=visible_scale(_panel(results, steps[0], results.shown[0])[0].shape[-1]))
    return [path]


EXPERIMENT = Experiment(
    name="trajectory",
    title="The predicted picture along the way",
    text=(
        "Pictures are decoded while x_t and the predicted x0 are watched after every step (DDIM, arXiv 2010.02502, "
        f"equation 12), and measured unclamped. {ANIMATION} shows current x in the upper row and predicted x0 beneath."
    ),
    settings=("step",),
    columns=("t", "distance", "rms"),
    measures=(
        Measure("t", "t", "the timestep arrived at; -1 is clean"),
        Measure("distance", "distance to the end", "MSE on [0, 1] between predicted x0 and the final picture"),
        Measure("rms", "rms of x", "root mean square of x_t"),
    ),
    charts=_charts,
    sheets=_sheets,
    animate=_animate,
)
