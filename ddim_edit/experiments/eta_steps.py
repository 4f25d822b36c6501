"""The DDIM paper's Table 1 and Figure 3: samples by eta and number of steps, and files for FID tools."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

from ddim_edit.decoding import sample
from ddim_edit.denoiser import Denoiser, label_of
from ddim_edit.experiments.attributes import roughness
from ddim_edit.experiments.base import Cell, Experiment, Measure, Results, Sheet, Unit, Value, units_of
from ddim_edit.experiments.charts import against, blocks, picture_sheet
from ddim_edit.experiments.features import Whitening, encoder_features, frechet_from_reference, names_of, require_enough
from ddim_edit.experiments.store import Store
from ddim_edit.files import atomic
from ddim_edit.grid import Grid
from ddim_edit.images import to_uint8
from ddim_edit.models.base import Model
from ddim_edit.noise import seed_name
from ddim_edit.ode import OnStep
from ddim_edit.plots import Chart
from ddim_edit.solvers import Solver

# DDIM paper (arXiv 2010.02502), Table 1: CIFAR-10, FID by eta and steps.
PAPER_STEPS = (10, 20, 50, 100, 1000)
PAPER_TABLE_1 = {
    "0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "sigma-hat": (367.43, 133.37, 32.72, 9.99, 3.17),
}
PART = 512  # samples in a part of an export: what a killed run loses at most


@dataclass(frozen=True)
class Plan:
    """What to sample: numbers of steps -> grids, names of eta -> solvers, and one seed a picture."""

    grids: Mapping[int, Grid]
    etas: Mapping[str, Solver]
    seeds: Sequence[int]

    @property
    def cells(self) -> list[Cell]:
        """The settings, eta by eta."""
        return [
            Cell({"eta": eta, "steps": str(steps)}, grid.steps)
            for eta in self.etas
            for steps, grid in self.grids.items()
        ]


def units(
    model: Model, denoiser: Denoiser, plan: Plan, photos: Tensor, store: Store, *, show: int, batch: int
) -> list[Unit]:
    """The work: every seed at every eta and number of steps; `photos` (N, 3, H, W) are the reference."""
    seed_of = {seed_name(seed): seed for seed in plan.seeds}
    shown = list(seed_of)[:show]
    require_enough(len(photos))
    condition = model.condition(label_of(denoiser))

    @cache
    def whitening() -> Whitening:
        return Whitening.of(np.concatenate([encoder_features(model, part, condition) for part in photos.split(batch)]))

    def measure(cell: Cell, names: Sequence[str], on_step: OnStep) -> list[Mapping[str, Value]]:
        grid, solver = plan.grids[int(cell.setting["steps"])], plan.etas[cell.setting["eta"]]
        seeds = [seed_of[name] for name in names]
        found = sample(model, seeds, grid=grid, solver=solver, denoiser=denoiser, on_step=on_step).clamp(-1, 1)
        store.keep(cell.setting, {n: picture for n, picture in zip(names, found, strict=True) if n in shown})
        features = whitening()(encoder_features(model, found, condition))
        rough, contrast = roughness(found), found.double().std((1, 2, 3))
        return [
            {"roughness": float(r), "contrast": float(c), **dict(zip(names_of(), map(float, row), strict=True))}
            for r, c, row in zip(rough, contrast, features, strict=True)
        ]

    return units_of(plan.cells, list(seed_of), batch, measure)


def export_samples(
    model: Model, denoiser: Denoiser, plan: Plan, folder: Path, *, count: int, batch: int, on_step: OnStep
) -> list[Path]:
    """Write the samples of seeds 0 to count - 1 at every setting as an .npz with `arr_0`, uint8 (count, H, W, 3).

    That is what guided-diffusion's evaluator, clean-fid and torch-fidelity read. Finished parts and files are not
    made again.
    """
    paths: list[Path] = []
    for cell in plan.cells:
        grid, solver = plan.grids[int(cell.setting["steps"])], plan.etas[cell.setting["eta"]]
        paths.append(folder / f"eta-{cell.setting['eta']}_steps-{cell.setting['steps']}_{count}.npz")
        unfinished = paths[-1].with_suffix(".parts")
        if paths[-1].exists():  # and a run may have been killed before it tidied up
            shutil.rmtree(unfinished, ignore_errors=True)
            continue
        parts: list[Path] = []
        for start in range(0, count, PART):
            parts.append(unfinished / f"{start:07d}.npy")
            if not parts[-1].exists():
                seeds = range(start, min(start + PART, count))
                made = [
                    to_uint8(
                        sample(
                            model, seeds[s : s + batch], grid=grid, solver=solver, denoiser=denoiser, on_step=on_step
                        )
                    )
                    for s in range(0, len(seeds), batch)
                ]
                with atomic(parts[-1]) as temporary:
                    np.save(temporary, np.concatenate(made))
        with atomic(paths[-1]) as temporary:
            np.savez(temporary, arr_0=np.concatenate([np.load(part) for part in parts]))
        shutil.rmtree(unfinished)
    return paths


def _paper(setting: Mapping[str, str]) -> float | None:
    row = PAPER_TABLE_1.get(setting["eta"])
    return row[PAPER_STEPS.index(int(setting["steps"]))] if row and int(setting["steps"]) in PAPER_STEPS else None


def _charts(results: Results) -> Iterator[Chart]:
    for name, label in (("feature_distance", "feature distance (not FID)"), ("roughness", "roughness")):
        title = f"{label[0].upper()}{label[1:]} against steps, one curve for each eta"
        yield Chart(f"{name}_against_steps", title, "steps S", label, against(results, name), log="xy")


def _sheets(results: Results) -> Iterator[Sheet]:
    for common, block in blocks(results, "eta"):
        columns = {f"eta {found.setting['eta']}": found.setting for found in block}
        caption = f"One seed in each row, one eta in each column, {common['steps']} steps."
        yield Sheet(f"etas_at_{common['steps']}_steps", caption, picture_sheet(results, columns))


EXPERIMENT = Experiment(
    name="eta-steps",
    title="Samples by eta and number of steps",
    text=(
        "Pictures are sampled at every eta and number of steps (DDIM, arXiv 2010.02502, Table 1 and Figure 3). The "
        "paper gives FID of 50,000 samples, which needs Inception weights: use --export and a tool for it. What is "
        "printed here needs no download and is not FID: the Frechet distance between reference photos and samples in "
        "16 whitened principal components of the model's own encoder features. It is biased upward where samples are "
        "few, so compare only numbers of equal counts, within one model."
    ),
    settings=("eta", "steps"),
    columns=("roughness", "contrast", *names_of()),
    measures=(
        Measure(
            "feature_distance",
            "feature distance (not FID)",
            "Frechet distance from the reference photos in whitened features of the model's own down blocks at "
            "t = 0.05 T; without an interval, because resampling repeats samples, which raises such a distance",
            columns=tuple(names_of()),
            statistic=frechet_from_reference,
            better="lower",
            resampled=False,
        ),
        Measure(
            "roughness", "roughness", "mean absolute difference of neighbouring pixels on [-1, 1]; noise raises it"
        ),
        Measure("contrast", "contrast", "standard deviation of a picture's values on [-1, 1]"),
    ),
    charts=_charts,
    sheets=_sheets,
    method=("eta",),
    tested="roughness",
    published=("paper's FID (CIFAR-10, another model)", _paper),
)
