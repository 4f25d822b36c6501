"""The other round trip: x_T to a picture and back to x_T."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from ddim_edit.batch import PhotoBatch, encode_photos
from ddim_edit.decoding import sample
from ddim_edit.experiments.base import Cell, Experiment, Measure, Results, Unit, Value, units_of
from ddim_edit.experiments.charts import against
from ddim_edit.experiments.reconstruct import Method
from ddim_edit.inversion import OVERSHOOT
from ddim_edit.latents import PhotoRecord
from ddim_edit.metrics import latent_health
from ddim_edit.models.base import Model
from ddim_edit.noise import gaussian, seed_name
from ddim_edit.ode import OnStep
from ddim_edit.plots import Chart

LIMIT = OVERSHOOT  # what `encode` takes at most; pictures beyond are cut off, and not rounded


def units(model: Model, seeds: Sequence[int], methods: Sequence[Method], batch: int) -> list[Unit]:
    """The work: every seed by every method."""
    seed_of = {seed_name(seed): seed for seed in seeds}
    recipes = {tuple(method.setting.values()): method.recipe for method in methods}

    def measure(cell: Cell, names: Sequence[str], on_step: OnStep) -> list[Mapping[str, Value]]:
        recipe = recipes[tuple(cell.setting.values())]
        start = gaussian([seed_of[name] for name in names], model.shape)
        made = sample(model, start, grid=recipe.grid, solver=recipe.solver, denoiser=recipe.denoiser, on_step=on_step)
        part = PhotoBatch([PhotoRecord(name) for name in names], made.clamp(-LIMIT, LIMIT))
        (encoded,) = encode_photos(model, [part], recipe, check=False, on_step=on_step)
        x, y = (value.double().flatten(1) for value in (start, encoded.latents.x))
        error = (y - x).norm(dim=1) / x.norm(dim=1)
        cosine = torch.nn.functional.cosine_similarity(x, y)
        clipped = (made.abs() > LIMIT).double().mean((1, 2, 3))
        return [
            {
                "relative_error": float(error[row]),
                "cosine": float(cosine[row]),
                "clipped": float(clipped[row]),
                "rms": health.rms,
                "neighbour_correlation": health.neighbour_correlation,
            }
            for row, health in enumerate(latent_health(encoded.latents.x))
        ]

    cells = [Cell(method.setting, 2 * method.recipe.grid.steps) for method in methods]
    return units_of(cells, list(seed_of), batch, measure)


def _charts(results: Results) -> Iterator[Chart]:
    curves = against(results, "relative_error")
    title = "Error of x_T after decoding and encoding again"
    yield Chart("error_against_steps", title, "steps S", "|x_T' - x_T| / |x_T|", curves, log="xy")


EXPERIMENT = Experiment(
    name="cycle",
    title="From noise to a picture and back to noise",
    text=(
        "Each x_T is decoded in S steps and the picture encoded again in S steps. An exact inverse would return the "
        "same x_T; what is lost here never shows in the error of a photo's round trip. Pictures are cut off at "
        f"{LIMIT:g} in between, and not rounded: read the errors beside the share that was clipped."
    ),
    settings=("solver", "inverse", "spacing", "steps"),
    columns=("relative_error", "cosine", "clipped", "rms", "neighbour_correlation"),
    measures=(
        Measure("relative_error", "relative error", "norm of x_T' - x_T over the norm of x_T", better="lower"),
        Measure("cosine", "cosine", "cosine of the angle between x_T and x_T'", better="higher"),
        Measure("rms", "rms of x_T'", "root mean square of x_T'; a Gaussian has 1"),
        Measure(
            "neighbour_correlation", "neighbour r", "correlation of neighbouring entries of x_T'; a Gaussian has 0"
        ),
        Measure("clipped", "clipped", "share of the picture's values that were cut off, which no inverse can return"),
    ),
    charts=_charts,
    method=("solver", "inverse", "spacing"),
    tested="relative_error",
)
