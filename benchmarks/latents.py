"""What exact inversion finds: are x_T Gaussian, are they the true ones, and does the prediction type matter?

    python benchmarks/latents.py statistics --count 16        # x_T of pictures that the model drew itself
    python benchmarks/latents.py recovery --count 8           # x_T -> picture -> x_T, tolerance by tolerance
    python benchmarks/latents.py predictions ../shared/data/garments64_test.npz --count 16     # eps, v and x0 models

`statistics` draws pictures with eta = 1 and encodes them by default, in float: an 8-bit picture has lost what x_T was.
`recovery` shows that loss too. `predictions` lets the model say the same in v and in x0.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ddim_edit.datasets import read_photo_set
from ddim_edit.decoding import sample
from ddim_edit.denoiser import Condition, PredictionType, interpret
from ddim_edit.images import to_tensor, to_uint8
from ddim_edit.inverse import Exact, Inverse
from ddim_edit.inversion import default_grid, encode
from ddim_edit.latents import Latents
from ddim_edit.models import Model, load_model
from ddim_edit.noise import gaussian
from ddim_edit.solvers import Ddim
from ddim_edit.task import Goal

TOLERANCES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
BUDGETS = (12, 20, 30, 40)


def encoded(model: Model, pixels: Tensor, steps: int, inverse: Inverse | None) -> Latents:
    """By fours, which keeps memory small."""
    return Latents.join([encode(model, part, grid=steps, inverse=inverse) for part in pixels.split(4)])


def mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2e}"


def statistics_of_own(model: Model, count: int, steps: int) -> None:
    """The default encode of pictures of the model's own, which are what it takes for photos."""
    seeds = [part.tolist() for part in torch.arange(count).split(4)]
    drawn = [sample(model, part, grid=steps, solver=Ddim(eta=1.0)) for part in seeds]
    latents = encoded(model, torch.cat(drawn), 20, None)
    health = [record.health for record in latents.photos if record.health]
    kurtosis = statistics.fmean(one.excess_kurtosis for one in health)
    correlation = statistics.fmean(one.neighbour_correlation for one in health)
    print("| x_T of | std - 1 | excess kurtosis | neighbour correlation |\n| --- | --- | --- | --- |")
    name = f"{count} pictures drawn with eta = 1, {steps} steps"
    print(f"| {name} | {latents.x.std().item() - 1:+.3f} | {kurtosis:+.3f} | {correlation:+.3f} |")


def recovery(model: Model, count: int, steps: int) -> None:
    """Relative error of x_T, from the picture as it was decoded and from its 8-bit copy."""
    grid, truth = default_grid(model.schedule, steps), gaussian(range(count), model.shape)
    pixels = torch.cat([sample(model, part, grid=grid) for part in truth.split(4)])
    rounded = torch.stack([to_tensor(picture) for picture in to_uint8(pixels)])
    print("| tolerance, RMS on [0, 1] | evaluations | error of x_T, relative, mean | median | worst |")
    print("| --- " * 5 + "|")
    for name, picture in (("float", pixels), ("8 bit", rounded)):
        for tolerance in TOLERANCES if name == "float" else TOLERANCES[-2:]:
            latents = encoded(model, picture, steps, Exact(Goal(tolerance)))
            error = ((latents.x - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).tolist()
            spent = statistics.fmean(record.evaluations for record in latents.photos)
            figures = f"{mean(error)} | {statistics.median(error):.2e} | {max(error):.2e}"
            print(f"| {tolerance:g} ({name}) | {spent:.0f} | {figures} |", flush=True)


def saying(model: Model, kind: PredictionType) -> Model:
    """The same model, whose network says it in another way."""

    def network(x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        level = model.schedule.level(float(t[0]))
        said = interpret(model.prediction, x, model.network(x, t, condition), level.signal, level.noise)
        if kind is PredictionType.SAMPLE:
            return said.x0
        return level.signal * said.eps - level.noise * said.x0

    return model if kind is model.prediction else replace(model, network=network, prediction=kind)


def predictions(model: Model, photos: Path, count: int, steps: int) -> None:
    """Error against budget for each prediction type."""
    pixels = read_photo_set(photos, model.image_size, limit=count).scaled
    print("| prediction | " + " | ".join(f"{budget} evaluations" for budget in BUDGETS) + " |\n" + "| --- " * 5 + "|")
    for kind in PredictionType:
        changed = saying(model, kind)
        errors: list[str] = []
        for budget in BUDGETS:
            latents = encoded(changed, pixels, steps, Exact(None, budget))
            errors.append(mean([record.quality.mse for record in latents.photos if record.quality]))
        print(f"| {kind} | " + " | ".join(errors) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("statistics", "recovery", "predictions"))
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--model", default="small")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    model = load_model(args.model)
    if args.table == "statistics":
        statistics_of_own(model, args.count, args.steps or 250)
    elif args.table == "recovery":
        recovery(model, args.count, args.steps or 10)
    elif args.photos is None:
        parser.error("predictions need PHOTOS")
    else:
        predictions(model, args.photos, args.count, args.steps or 10)


if __name__ == "__main__":
    main()
