"""Morphs: clips that travel a path through latents, evenly paced, and meet the photos at their keys.

`plan_morph` decides where on the path every frame goes, which takes a few pilot frames; `Morph.frames` decodes them,
one batch in memory at a time. No files here: `rendering` writes frames so that an interrupted run can go on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ddim_edit.corrections import corrected
from ddim_edit.decoding import decode, prepared
from ddim_edit.denoiser import Denoiser, label_of
from ddim_edit.errors import ConfigError
from ddim_edit.grid import Grid
from ddim_edit.interpolation import How, along, segments
from ddim_edit.inversion import named_advice, with_health, with_quality
from ddim_edit.latents import Latents
from ddim_edit.models.base import Model
from ddim_edit.motion import Metric, Motion
from ddim_edit.ode import OnStep
from ddim_edit.pacing import (
    Distance,
    Look,
    bisected,
    dissimilarity,
    even_pace,
    l2,
    measure_pace,
    measure_pace_at,
    paced_positions,
)
from ddim_edit.perception import FeatureDistance
from ddim_edit.solvers import Solver


@dataclass(frozen=True)
class Morph:
    """A planned clip: everything but the model.

    Args:
        latents: N keys, in the order of the clip.
        motion: how it moves.
        positions: (R,) float64, where on the path each picture lies; see `interpolation.along`.
        grid: the levels that a frame is decoded on.
        photos: (N, 3, H, W) in [-1, 1], where keys are to meet their photos.
        residuals: (N, 3, H, W), photos minus decoded keys, where they are to be faded in.
        cost: network forwards that one picture takes.
        looked: how many pictures were decoded to make the plan.
        compared: network forwards that comparing them took; see `perception`.
        solver: of decoding, where it is not that of the latents.
        denoiser: likewise.
    """

    latents: Latents
    motion: Motion
    positions: Tensor
    grid: Grid
    photos: Tensor | None = None
    residuals: Tensor | None = None
    cost: int = 0
    looked: int = 0
    compared: int = 0
    solver: Solver | None = None
    denoiser: Denoiser | None = None

    @property
    def order(self) -> list[int]:
        """Which row of `positions` each frame shows: all of them, and on a boomerang back again."""
        rows = list(range(len(self.positions)))
        return rows + rows[-2:0:-1] if self.motion.loop == "boomerang" else rows

    @property
    def warnings(self) -> list[str]:
        """What a user should know before the frames are made: one line per problem."""
        lines = named_advice(self.latents)
        if self.motion.correct != "none":
            keys = self.latents.x
            changed = corrected(keys, self.motion.correct, keys=keys, u=torch.arange(len(keys)).double())
            change = float((changed.double() - keys.double()).square().mean().sqrt())
            lines.append(f"correct={self.motion.correct} changes the key latents by {change:.3f} rms")
        return lines

    @property
    def path(self) -> How:
        """The path that is taken."""
        return self.motion.path or ("slerp" if len(self.latents) == 2 else "squad")

    def x(self, u: Tensor) -> Tensor:
        """The latents (F, C, h, w) at positions (F,) on the path."""
        keys = self.latents.x
        return corrected(along(keys, u, self.path, closed=self.motion.closed), self.motion.correct, keys=keys, u=u)

    def between(self, u: Tensor) -> Latents:
        """The latents at positions (F,) on the path, with step noises or a solver's memory if the keys have any."""
        return self.latents.moved(self.x(u), lambda keys: along(keys, u, self.path, closed=self.motion.closed))

    def frames(
        self, model: Model, rows: Sequence[int] | None = None, *, batch_size: int = 8, on_step: OnStep | None = None
    ) -> Iterator[Tensor]:
        """Decode pictures (3, H, W) of the clip, one batch at a time.

        Args:
            model: the model that encoded the keys.
            rows: of `positions`; by default those of every frame, in order.
            batch_size: pictures decoded at once.
            on_step: called after every step of every batch.

        Raises:
            LatentsError: another model's latents; NumericsError: values that are not finite.
        """
        wanted = self.order if rows is None else list(rows)
        for start in range(0, len(wanted), batch_size):
            u = self.positions[wanted[start : start + batch_size]]
            latents = self.between(u)
            pictures = decode(
                model, latents, grid=self.grid, solver=self.solver, denoiser=self.denoiser, on_step=on_step
            )
            yield from self._meeting(pictures, u)

    def _meeting(self, pictures: Tensor, u: Tensor) -> Tensor:
        """Pictures at positions, meeting the photos the way that was asked for."""
        if self.photos is None:
            return pictures
        key, t = u.floor().long(), (u - u.floor()).float().view(-1, 1, 1, 1)
        if self.residuals is not None:
            before, after = (self.residuals[(key + k) % len(self.residuals)] for k in (0, 1))
            pictures = pictures + (1 - t) * before + t * after
        return torch.where(t == 0, self.photos[key % len(self.photos)].to(pictures), pictures)


def plan_morph(  # noqa: PLR0913
    model: Model,
    latents: Latents,
    frames: int = 60,
    motion: Motion = Motion(),
    *,
    photos: Tensor | None = None,
    grid: Grid | int | str | None = None,
    solver: Solver | None = None,
    denoiser: Denoiser | None = None,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> Morph:
    """Plan a morph through photos: decode the keys if their photos are to be met, and a few frames to find the pace.

    Args:
        model: the model that encoded them.
        latents: one per photo, in the order of the clip; two or more.
        frames: all frames together; every photo falls on a frame of its own. Without effect where `motion` has a
            `max_step`.
        motion: how the clip moves.
        photos: (N, 3, H, W) in [-1, 1], for the endpoints `paste` and `exact`.
        grid: another grid or number of steps (spread as theirs are) than they were encoded with; fewer are faster.
        solver: another solver, as of `decode`.
        denoiser: another condition, guidance or clipping.
        batch_size: pictures decoded at once.
        on_step: called after every step of every batch.

    Raises:
        ConfigError: fewer than two photos, too few frames, endpoints without photos; and the errors of `decode`.
    """
    motion.check(len(latents), frames)
    if motion.correct != "none" and latents.memory:
        raise ConfigError(
            f"correct={motion.correct} is for single latents, and these are pairs; encode with another solver"
        )
    recipe, _ = prepared(model, latents, grid=grid, solver=solver, denoiser=denoiser)
    distance = distance_of(motion.pace, model, recipe.denoiser)
    given = with_health(latents)
    plan = Morph(given, motion, torch.zeros(0), recipe.grid, cost=recipe.cost, solver=solver, denoiser=denoiser)
    if motion.endpoints != "decoded":
        plan = _with_photos(plan, model, photos, batch_size, on_step)
    # A pasted photo pops out of the clip: pacing by it would slow the clip down around a jump that stays.
    shown = plan if motion.endpoints == "exact" else replace(plan, photos=None)
    scout = _Scout(model, shown, batch_size, on_step)
    positions = _positions(scout.look, distance, len(latents), frames, motion)
    compared = distance.evaluations if isinstance(distance, FeatureDistance) else 0
    return replace(plan, positions=positions, looked=plan.looked + scout.looked, compared=compared)


def morph(  # noqa: PLR0913
    model: Model,
    latents: Latents,
    frames: int = 60,
    motion: Motion = Motion(),
    *,
    photos: Tensor | None = None,
    grid: Grid | int | str | None = None,
    solver: Solver | None = None,
    denoiser: Denoiser | None = None,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> Iterator[Tensor]:
    """Yield the frames (3, H, W) of a morph through the photos, one batch in memory at a time.

    Arguments and errors as `plan_morph`, which runs first.
    """
    plan = plan_morph(
        model,
        latents,
        frames,
        motion,
        photos=photos,
        grid=grid,
        solver=solver,
        denoiser=denoiser,
        batch_size=batch_size,
        on_step=on_step,
    )
    yield from plan.frames(model, batch_size=batch_size, on_step=on_step)


@dataclass
class _Scout:
    """Looks at a path ahead of the frames, and counts how often."""

    model: Model
    plan: Morph
    batch_size: int
    on_step: OnStep | None
    looked: int = field(default=0)

    def look(self, u: Tensor) -> Iterator[Tensor]:
        self.looked += len(u)
        there = replace(self.plan, positions=u)
        return there.frames(self.model, range(len(u)), batch_size=self.batch_size, on_step=self.on_step)


def _positions(look: Look, distance: Distance | None, keys: int, frames: int, motion: Motion) -> Tensor:
    parts = segments(keys, closed=motion.closed)
    if distance is not None and motion.max_step is not None:
        return bisected(look, distance, parts, motion.max_step, closed=motion.closed)
    place = partial(
        paced_positions, frames=motion.rows(frames), closed=motion.closed, over=motion.over, ease=motion.curve
    )
    if distance is None:
        return place(even_pace(parts))
    positions = place(measure_pace(look, distance, parts, motion.pilot))
    for _ in range(motion.settle):
        positions = place(measure_pace_at(look, distance, parts, positions))
    return positions


def _with_photos(plan: Morph, model: Model, photos: Tensor | None, batch_size: int, on_step: OnStep | None) -> Morph:
    if photos is None:
        raise ConfigError(f"endpoints={plan.motion.endpoints} needs the photos; give them, or choose decoded")
    if photos.shape != (len(plan.latents), 3, *model.image_size):
        raise ConfigError(
            f"photos are {tuple(photos.shape)} for {len(plan.latents)} latents; give one each, at its size"
        )
    if plan.motion.endpoints == "paste":
        return replace(plan, photos=photos)
    keys = replace(plan, positions=torch.arange(len(photos)).double())
    restored = torch.stack(list(keys.frames(model, range(len(photos)), batch_size=batch_size, on_step=on_step)))
    latents = with_quality(plan.latents, photos, restored)
    return replace(plan, latents=latents, photos=photos, residuals=photos - restored, looked=len(photos))


def distance_of(pace: Metric | Distance, model: Model, denoiser: Denoiser) -> Distance | None:
    """How far apart two pictures are that this denoiser makes; ConfigError where the model cannot tell."""
    if callable(pace):
        return pace
    if pace == "unet":
        return FeatureDistance(model, label_of(denoiser))
    return {"none": None, "l2": l2, "ssim": dissimilarity}[pace]
