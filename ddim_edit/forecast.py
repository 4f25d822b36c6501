"""What a morph will cost, before it is made: pictures, network evaluations and time.

An evaluation is one network forward of one photo. Where the settings fix how many there are the forecast is exact;
where a solver or an inverse iterates it says which way it may be off. Nothing is encoded or decoded here.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ddim_edit.interpolation import segments
from ddim_edit.inverse import Exact, Explicit, Recorded, Refine
from ddim_edit.models.base import Model
from ddim_edit.motion import Motion
from ddim_edit.noise import gaussian
from ddim_edit.recipe import Recipe
from ddim_edit.solvers.recorder import FIRST_STEP

Bound = Literal["exactly", "at most", "about", "at least"]

# Walks to noise that a photo takes where nothing limits them: medians of photos like and unlike the bundled model's.
_EXACT_WALKS, _REFINE_WALKS = 5, 8
_TIMED = 3  # evaluations, after one that warms up


@dataclass(frozen=True)
class Part:
    """One part of the work: what is done with how many pictures, and the evaluations of all of them together."""

    what: str
    pictures: int
    evaluations: int
    bound: Bound = "exactly"


def forecast(recipe: Recipe, decoding: Recipe, motion: Motion, *, photos: int, keys: int, frames: int) -> list[Part]:
    """The parts of a morph, as `plan_morph` and `Morph.frames` will do them.

    Args:
        recipe: how the photos are encoded.
        decoding: how frames are decoded.
        motion: how the clip moves.
        photos: how many are encoded; 0 where the keys are latents or seeds.
        keys: of the path.
        frames: of the clip; without effect where `motion` has a `max_step`.
    """
    travelled, parts = motion.max_step is not None, segments(keys, closed=motion.closed)
    pilots = motion.pilots(keys, frames)
    rows = parts + (not motion.closed) if travelled else motion.rows(frames)
    measured = pilots if motion.pace == "unet" else 0
    found = [
        encoding(recipe, photos),
        decoded("keys", decoding, motion.met(keys)),
        decoded("pilot", decoding, pilots, at_least=travelled),
        Part("features", measured, measured, "at least" if travelled else "exactly"),
        decoded("frames", decoding, rows, at_least=travelled),
    ]
    return [part for part in found if part.pictures]


def encoding(recipe: Recipe, photos: int) -> Part:
    """Encode so many photos."""
    each, bound = recipe.cost, _bound(recipe)
    if recipe.solver.undone_by != "itself":
        match recipe.inverse:
            case Exact(budget=int(budget)) | Refine(budget=int(budget)):
                each, bound = budget, "at most"
            case Recorded():  # the step at the clean end is solved, and all others are made once
                each, bound = (recipe.grid.steps - 1 + FIRST_STEP) * recipe.denoiser.cost, "at most"
            case Explicit():
                pass
            case inverse:
                each, bound = each * (_REFINE_WALKS if isinstance(inverse, Refine) else _EXACT_WALKS), "about"
    return Part("encode", photos, photos * each, bound)


def decoded(what: str, recipe: Recipe, pictures: int, *, at_least: bool = False) -> Part:
    """Decode so many pictures, or `at_least` so many."""
    return Part(
        what, pictures, pictures * recipe.cost, _loosest([_bound(recipe), "at least" if at_least else "exactly"])
    )


def total(parts: Sequence[Part]) -> Part:
    """All of it."""
    count, pictures = (sum(getattr(part, name) for part in parts) for name in ("evaluations", "pictures"))
    return Part("total", pictures, count, _loosest([part.bound for part in parts]))


def seconds_each(model: Model, recipe: Recipe, batch_size: int) -> float:
    """Time a few evaluations in batches of this size, at the noisiest level; seconds for one of one photo."""
    x, level = gaussian(range(batch_size), model.shape).to(model.device), recipe.grid[recipe.grid.steps]
    times: list[float] = []
    with torch.no_grad():
        for _ in range(1 + _TIMED):
            started = time.perf_counter()
            recipe.denoiser(x, level).x0.cpu()  # waits for the device
            times.append(time.perf_counter() - started)
    return sum(times[1:]) / _TIMED / (batch_size * recipe.denoiser.cost)


def _bound(recipe: Recipe) -> Bound:
    """How `recipe.cost` compares with one walk; pairs make one step with more evaluations, and one with fewer."""
    if recipe.solver.undone_by != "itself":
        return "exactly"
    return "about" if recipe.solver.pair else "at least"


def _loosest(bounds: Sequence[Bound]) -> Bound:
    loose = set(bounds) - {"exactly"}
    return "exactly" if not loose else loose.pop() if len(loose) == 1 else "about"
