"""The DDIM paper's Figure 5: the same x_T decoded with different numbers of steps, eta and spacing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ddim_edit.decoding import sample
from ddim_edit.denoiser import Denoiser
from ddim_edit.experiments.attributes import ATTRIBUTES, attributes
from ddim_edit.experiments.base import (
    Cell,
    Experiment,
    Measure,
    Results,
    Setting,
    Sheet,
    Unit,
    Value,
    batches,
    units_of,
)
from ddim_edit.experiments.charts import against, blocks, picture_sheet
from ddim_edit.experiments.statistics import correlation, psnr_of_mean, ratio_of_means
from ddim_edit.experiments.store import Store
from ddim_edit.grid import Grid
from ddim_edit.metrics import mse, ssim
from ddim_edit.models.base import Model
from ddim_edit.noise import seed_name
from ddim_edit.ode import OnStep
from ddim_edit.plots import Chart
from ddim_edit.solvers import Solver


@dataclass(frozen=True)
class Plan:
    """What to decode every x_T with; the first of `etas` and the last of `grids` are the reference of a spacing.

    Args:
        grids: spacing -> number of steps -> grid, rising.
        etas: name -> solver; eta = 0 first.
        seeds: one x_T each; two or more, or there is nothing to compare with.
    """

    grids: Mapping[str, Mapping[int, Grid]]
    etas: Mapping[str, Solver]
    seeds: Sequence[int]


def units(model: Model, denoiser: Denoiser, plan: Plan, store: Store, batch: int) -> list[Unit]:
    """The work: every x_T by every eta, spacing and number of steps, the reference of each spacing first."""
    seed_of = {seed_name(seed): seed for seed in plan.seeds}

    def pictures(setting: Setting, names: Sequence[str], on_step: OnStep) -> Tensor:
        grid, solver = plan.grids[setting["spacing"]][int(setting["steps"])], plan.etas[setting["eta"]]
        seeds = [seed_of[name] for name in names]
        return store.pictures(
            setting,
            names,
            lambda: sample(model, seeds, grid=grid, solver=solver, denoiser=denoiser, on_step=on_step),
        )

    @cache
    def reference(spacing: str, on_step: OnStep) -> tuple[Tensor, Tensor]:
        """The pictures that the others are compared with, and how far each is from the other seeds' on average."""
        setting = {"eta": next(iter(plan.etas)), "spacing": spacing, "steps": str(max(plan.grids[spacing]))}
        found = torch.cat([pictures(setting, names, on_step) for names in batches(list(seed_of), batch)])
        apart = torch.stack([mse(found, one.expand_as(found)) for one in found])
        return found, apart.sum(1) / (len(found) - 1)

    def measure(cell: Cell, names: Sequence[str], on_step: OnStep) -> list[Mapping[str, Value]]:
        chosen = [list(seed_of).index(name) for name in names]
        targets, apart = (value[chosen] for value in reference(cell.setting["spacing"], on_step))
        found = pictures(cell.setting, names, on_step)
        return _compared(targets, apart, found)

    cells = [
        Cell({"eta": eta, "spacing": spacing, "steps": str(steps)}, grid.steps)
        for spacing, grids in plan.grids.items()
        for eta in plan.etas
        for steps, grid in grids.items()
    ]
    return units_of(cells, list(seed_of), batch, measure)


def _compared(targets: Tensor, apart: Tensor, found: Tensor) -> list[Mapping[str, Value]]:
    """What is measured of pictures (B, 3, H, W), given their references and how far those are from the other seeds'."""
    columns = {
        "distance": mse(targets, found),
        "between": apart,
        "ssim": ssim(targets, found),
        **attributes(found),
        **{f"{name}_reference": values for name, values in attributes(targets).items()},
    }
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _references(rows: Sequence[Mapping[str, str]]) -> list[Setting]:
    """As in `units`: the first eta, which all rows begin with, at the most steps of each spacing."""
    steps: dict[str, list[str]] = {}
    for row in rows:
        steps.setdefault(row["spacing"], []).append(row["steps"])
    eta = rows[0]["eta"]
    return [{"eta": eta, "spacing": spacing, "steps": max(found, key=int)} for spacing, found in steps.items()]


def _charts(results: Results) -> Iterator[Chart]:
    yield Chart(
        "ratio_against_steps",
        "Distance to the reference of the same x_T, as a share of the distance between different x_T",
        "steps S",
        "same x_T / different x_T",
        against(results, "ratio"),
        log="xy",
    )


def _sheets(results: Results) -> Iterator[Sheet]:
    for common, block in blocks(results, "steps"):
        columns = {f"S = {found.setting['steps']}": found.setting for found in block}
        caption = f"The same x_T in each row, more steps from left to right: eta {common['eta']}, {common['spacing']}."
        yield Sheet("_".join(["same_noise", *common.values()]), caption, picture_sheet(results, columns))


EXPERIMENT = Experiment(
    name="consistency",
    title="The same noise, decoded with different numbers of steps",
    text=(
        "Every x_T is decoded at each number of steps, eta and spacing (DDIM, arXiv 2010.02502, section 5.2 and Figure "
        "5). At eta = 0 all of them approximate one ODE, so the picture should be the same. The reference of a spacing "
        "is its picture at eta = 0 and the largest number of steps; the paper gives no number for this figure. "
        "Distances are between the 8-bit pictures in pictures/."
    ),
    settings=("eta", "spacing", "steps"),
    columns=("distance", "between", "ssim", *ATTRIBUTES, *(f"{name}_reference" for name in ATTRIBUTES)),
    measures=(
        Measure(
            "ratio",
            "same / different x_T",
            "mean squared distance to the reference of the same x_T over that between references of different x_T",
            columns=("distance", "between"),
            statistic=ratio_of_means,
            better="lower",
        ),
        Measure("distance", "MSE", "mean squared distance to the reference on [0, 1]", better="lower"),
        Measure(
            "psnr",
            "PSNR of it",
            "PSNR in dB of that mean",
            columns=("distance",),
            statistic=psnr_of_mean,
            better="higher",
            shown=False,
        ),
        Measure("ssim", "SSIM", "structural similarity to the reference", better="higher"),
        *(
            Measure(
                f"{name}_correlation",
                f"r of {name}",
                f"Pearson's correlation over x_T of {name} with that of the reference; see attributes.py",
                columns=(name, f"{name}_reference"),
                statistic=correlation,
                better="higher",
            )
            for name in ATTRIBUTES
        ),
    ),
    charts=_charts,
    sheets=_sheets,
    method=("eta",),
    tested="distance",
    references=_references,
)
