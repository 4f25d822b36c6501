"""Grids: the levels that one run visits.

A `Grid` is made once and walked in both directions, so nobody ever computes a neighbouring timestep. Spacings that
repeat a timestep (quadratic, at its clean end) lose the repeat: `grid.steps` is the true number of steps.
"""

import itertools
import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from ddim_edit.errors import ConfigError
from ddim_edit.schedule import SPACINGS, Array, Level, NoiseSchedule, Spacing

STIFF = 2.5  # change of log(signal / noise) in one step above which solving it takes more than splitting it
FIRST_NOISE = 0.02  # noise / signal of the first noisy level, above which the step from the photo is split


@dataclass(frozen=True)
class Grid(Sequence[Level]):
    """The levels of one run, from clean (`grid[0]`) to noisy (`grid[steps]`), strictly noisier one by one.

    Make one with `build`, `respaced` or `from_timesteps`; encode and decode walk the same grid.
    """

    levels: tuple[Level, ...]
    spacing: str
    schedule: NoiseSchedule | None = field(default=None, repr=False, compare=False)  # for levels between the grid's

    def __post_init__(self) -> None:
        ratios = [level.noise / level.signal if level.signal else math.inf for level in self.levels]
        if len(ratios) < 2 or any(b <= a for a, b in itertools.pairwise(ratios)):
            raise ConfigError("a grid needs two levels or more, each noisier than the one before")

    @classmethod
    def build(cls, schedule: NoiseSchedule, steps: int = 50, spacing: Spacing | None = None) -> "Grid":
        """Spread `steps` timesteps over the schedule.

        Args:
            schedule: the model's.
            steps: in [1, T]. Timesteps that would repeat are dropped: `grid.steps` tells the true number.
            spacing: `leading`, `trailing` and `linspace` as in diffusers; `uniform` (range(0, T, T // steps)) and
                `quadratic` (to 0.8 T) as in the DDIM code; `quadratic-full` to T - 1; `logsnr`, equal steps of
                log SNR. None: the spacing that the model's scheduler file names.

        Raises:
            ConfigError: steps outside [1, T], an unknown spacing, or one that cannot be had on this schedule.
        """
        T = len(schedule)
        spacing = spacing or schedule.spacing
        if spacing not in SPACINGS:
            raise ConfigError(f"spacing {spacing!r} is unknown; choose one of {', '.join(SPACINGS)}")
        if not 1 <= steps <= T:
            raise ConfigError(f"{steps} steps, but the schedule has {T} timesteps; choose steps in [1, {T}]")
        return cls.from_timesteps(schedule, _spread(schedule, steps, spacing).tolist(), spacing)

    @classmethod
    def respaced(cls, schedule: NoiseSchedule, sections: str) -> "Grid":
        """The timesteps of improved-diffusion's `timestep_respacing`.

        Args:
            schedule: the model's.
            sections: `ddim50` for a constant whole stride that gives 50 timesteps, or counts like `10,15,20` for
                equal sections of the schedule, the cleanest first.

        Raises:
            ConfigError: a text of another form, a `ddimN` that no whole stride gives (the message names the
                nearest that work), or a section shorter than its count.
        """
        T = len(schedule)
        text = sections.replace(" ", "")
        if stride := re.fullmatch(r"ddim(\d+)", text):
            timesteps = _constant_stride(T, int(stride[1]))
        elif re.fullmatch(r"\d+(,\d+)*", text):
            timesteps = _sections(T, [int(count) for count in text.split(",")])
        else:
            raise ConfigError(f"respacing {sections!r} is not of the form ddim50 or 10,15,20")
        return cls.from_timesteps(schedule, timesteps, text)

    @classmethod
    def of(cls, schedule: NoiseSchedule, grid: "Grid | int | str", spacing: Spacing | None = None) -> "Grid":
        """A grid as it is, a number of steps in this spacing (None: the model's own), or a text like `ddim50`.

        Raises:
            ConfigError: it is none of these, or no such grid exists.
        """
        if isinstance(grid, Grid):
            return grid
        if isinstance(grid, str):
            return cls.respaced(schedule, grid)
        try:
            steps = operator.index(grid)
        except TypeError:
            raise ConfigError(
                f"{grid!r} is no grid; give a number of steps, a text like ddim50, or Grid.from_timesteps(...)"
            ) from None
        return cls.build(schedule, steps, spacing)

    @classmethod
    def from_timesteps(cls, schedule: NoiseSchedule, timesteps: Sequence[float], spacing: str = "given") -> "Grid":
        """The grid of these timesteps (any order, real values allowed), with the schedule's clean end before them.

        Raises:
            ConfigError: a timestep outside [0, T - 1], or none.
        """
        levels = [schedule.clean]
        for t in sorted({float(t) for t in timesteps}):
            level = schedule.level(t)
            # With set_alpha_to_one false, t = 0 is the clean end itself; a repeat would be a step to nowhere.
            if level.noise * levels[-1].signal > levels[-1].noise * level.signal:
                levels.append(level)
        if len(levels) == 1:
            raise ConfigError(
                "the list of timesteps is empty (or holds the clean end alone); give at least one above it"
            )
        return cls(tuple(levels), spacing, schedule)

    @property
    def steps(self) -> int:
        """The number of steps from clean to the noisiest level."""
        return len(self.levels) - 1

    @property
    def timesteps(self) -> list[float]:
        """The timesteps without the clean end, cleanest first."""
        return [level.t for level in self.levels[1:]]

    def level_at(self, half_log_snr: float) -> Level:
        """A level of the schedule that need not be one of the grid's.

        Raises:
            ConfigError: the grid was made without its schedule, or no timestep has this log SNR.
        """
        if self.schedule is None:
            raise ConfigError("this grid knows no levels but its own; make it with Grid.build or from_timesteps")
        return self.schedule.level_at(half_log_snr)

    def between(self, one: Level, other: Level) -> Level:
        """The level half way between two in log SNR. Both must have signal and noise."""
        return self.level_at((one.half_log_snr + other.half_log_snr) / 2)

    def step_sizes(self) -> list[float]:
        """The size h of every step, the cleanest first: its change of log(signal / noise), infinite at the ends."""
        return [
            math.log(low.signal * high.noise / (low.noise * high.signal)) if low.noise and high.signal else math.inf
            for low, high in itertools.pairwise(self.levels)
        ]

    def entered(self) -> "Grid":
        """The grid with a first level of little noise, which photos are entered at.

        A step from the photo that skips noise which its detail stands out of may have no inverse at all.
        """
        if self.schedule is None or len(self.schedule) == 1 or self.timesteps[0] == 0:
            return self
        if self.levels[0].noise or self[1].noise <= FIRST_NOISE * self[1].signal:
            return self
        return Grid.from_timesteps(self.schedule, [0.0, *self.timesteps], self.spacing)

    def refined(self) -> "Grid":
        """The grid with the steps split that an exact inversion would labour at; itself where there are none.

        They are the step from the photo (see `entered`) and those where log(signal / noise) changes by more than
        `STIFF` (see `solvers.implicit`).
        """
        grid = self.entered()
        if grid.schedule is None:
            return grid
        timesteps = list(grid.timesteps)
        for low, h in zip(grid.levels, grid.step_sizes(), strict=False):
            if math.isfinite(h):
                parts = math.ceil(h / STIFF)
                top = low.half_log_snr
                inside = [min(top - h * k / parts, float(grid.schedule.half_log_snr[0])) for k in range(1, parts)]
                timesteps += [grid.schedule.level_at(half_log_snr).t for half_log_snr in inside]
        return Grid.from_timesteps(grid.schedule, timesteps, self.spacing)

    def until(self, t: float) -> "Grid":
        """The part of the grid from clean up to the last level at or below timestep t.

        Raises:
            ConfigError: every level lies above t.
        """
        levels = tuple(level for level in self.levels if level.t <= t)
        if len(levels) < 2:
            raise ConfigError(f"no level at or below timestep {t:g}; the grid starts at t = {self.levels[1].t:g}")
        return Grid(levels, self.spacing, self.schedule)

    def __len__(self) -> int:
        return len(self.levels)

    @overload
    def __getitem__(self, index: int) -> Level: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Level, ...]: ...
    def __getitem__(self, index: int | slice) -> Level | tuple[Level, ...]:
        return self.levels[index]


def _spread(schedule: NoiseSchedule, steps: int, spacing: str) -> Array:
    """Timesteps by the named rule, before repeats are dropped."""
    T = len(schedule)
    if spacing == "leading":
        # A model with an offset of 1 has no timestep T: the last is clamped into the schedule.
        return np.minimum(np.arange(steps) * (T // steps) + schedule.steps_offset, T - 1)
    if spacing == "trailing":
        return np.maximum(np.round(np.arange(T, 0, -T / steps)[:steps]) - 1, 0)
    if spacing == "linspace":
        return np.round(np.linspace(0, T - 1, steps))
    if spacing == "uniform":
        return np.arange(0, T, T // steps, dtype=np.float64)
    if spacing == "logsnr":
        if not np.isfinite(schedule.half_log_snr).all():
            raise ConfigError("spacing 'logsnr' needs signal at every timestep; choose another for a zero-SNR schedule")
        even = np.linspace(schedule.half_log_snr[0], schedule.half_log_snr[-1], steps)
        return np.interp(-even, -schedule.half_log_snr, np.arange(T))
    if spacing == "quadratic":  # rounded down exactly as in the DDIM code: a square that just misses 32 is 31
        return np.floor(np.linspace(0, math.sqrt(0.8 * T), steps) ** 2)
    return np.floor(np.linspace(0, math.sqrt(T - 1), steps) ** 2 + 1e-9)


def _constant_stride(T: int, count: int) -> list[int]:
    """The timesteps 0, k, 2k, ... of the smallest whole stride k that gives exactly `count` of them."""
    possible = {len(range(0, T, stride)): stride for stride in range(T, 0, -1)}
    if count in possible:
        return list(range(0, T, possible[count]))
    nearest = sorted(sorted(possible, key=lambda n: abs(n - count))[:2])
    raise ConfigError(
        f"ddim{count} is impossible: no whole stride gives {count} of {T} timesteps; "
        f"the nearest that work are {' and '.join(f'ddim{n}' for n in nearest)}"
    )


def _sections(T: int, counts: list[int]) -> list[int]:
    """`counts[k]` evenly spread timesteps in the k-th of len(counts) equal parts of the schedule."""
    size, extra = divmod(T, len(counts))
    timesteps: list[int] = []
    start = 0
    for k, count in enumerate(counts):
        length = size + (k < extra)
        if not 1 <= count <= length:
            raise ConfigError(
                f"section {k + 1} of {len(counts)} asks for {count} of its {length} timesteps; choose 1 to {length}"
            )
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # A running sum as in improved-diffusion: stride * i rounds elsewhere for some counts (21 of 1000, say).
        timesteps += [start + round(at) for at in itertools.accumulate([stride] * (count - 1), initial=0.0)]
        start += length
    return timesteps
