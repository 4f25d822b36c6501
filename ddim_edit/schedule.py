"""Noise schedules and levels: which noise levels a model knows.

A `Level` is (timestep, signal, noise): x_t = signal * x0 + noise * eps. A `NoiseSchedule` knows every level of
a model; which of them a run visits is a `Grid` (grid.py). Coefficients are Python floats made in float64.

Symbols: alpha_bar here is `alphas_cumprod` in diffusers and alpha in the DDIM paper (arXiv 2010.02502).
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim_edit.errors import ConfigError

Array = NDArray[np.float64]
Spacing = Literal["leading", "trailing", "linspace", "uniform", "quadratic", "quadratic-full", "logsnr"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)

CLEAN_T = -1.0
MAX_T = 1_000_000


class Level(NamedTuple):
    """One noise level: x_t = signal * x0 + noise * eps.

    `t` is the model timestep in [0, T - 1], or -1 at the clean end, which is never shown to a network.
    """

    t: float
    signal: float
    noise: float

    @property
    def half_log_snr(self) -> float:
        """log(signal / noise); the level must have both."""
        return math.log(self.signal / self.noise)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Every noise level of a model, with the conventions that its scheduler file fixes.

    Args:
        alpha_bar: (T,) float64, decreasing, in [0, 1]: the share of the photo's variance left at each timestep.
        clean_alpha_bar: alpha_bar of the clean end: 1, or alpha_bar[0] where `set_alpha_to_one` is false.
        steps_offset: added to the timesteps of leading spacing, as in diffusers.
        spacing: the spacing that the model's own scheduler file asks for.
    """

    alpha_bar: Array
    clean_alpha_bar: float = 1.0
    steps_offset: int = 0
    spacing: Spacing = "leading"

    def __post_init__(self) -> None:
        a = np.asarray(self.alpha_bar, dtype=np.float64)
        object.__setattr__(self, "alpha_bar", a)
        if (
            a.ndim != 1
            or len(a) < 1
            or not np.isfinite(a).all()
            or a.min() < 0
            or a.max() > 1
            or (np.diff(a) > 0).any()
        ):
            raise ConfigError("alpha_bar must be one row of numbers in [0, 1] that never rises; check the betas")
        if not a[0] <= self.clean_alpha_bar <= 1:
            raise ConfigError(
                f"clean_alpha_bar is {self.clean_alpha_bar:g}; choose it in [{a[0]:g} (that of t = 0), 1]"
            )

    @classmethod
    def from_betas(cls, betas: Sequence[float], clean_alpha_bar: float = 1.0) -> "NoiseSchedule":
        """The schedule of these betas: alpha_bar_t = product of (1 - beta_s) over s <= t."""
        return cls(_alpha_bar(np.array(betas, dtype=np.float64)), clean_alpha_bar)

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "NoiseSchedule":
        """Read a diffusers scheduler config (any class: only its noise schedule matters here).

        Args:
            config: the parsed `scheduler_config.json`; keys that say nothing about noise levels are ignored.

        Raises:
            ConfigError: an unknown `beta_schedule` or `timestep_spacing`, or numbers that make no schedule.
        """
        alpha_bar = _alpha_bar(_betas(config))
        if config.get("rescale_betas_zero_snr"):
            alpha_bar = _rescale_zero_snr(alpha_bar)
        spacing = str(config.get("timestep_spacing") or "leading")
        if spacing not in SPACINGS:
            raise ConfigError(f"timestep_spacing {spacing!r} is unknown; choose one of {', '.join(SPACINGS)}")
        return cls(
            alpha_bar,
            clean_alpha_bar=1.0 if config.get("set_alpha_to_one", True) else float(alpha_bar[0]),
            steps_offset=int(_number(config, "steps_offset", 0)),
            spacing=spacing,  # pyright: ignore[reportArgumentType]
        )

    def __len__(self) -> int:
        """T, the number of timesteps that the model was trained on."""
        return len(self.alpha_bar)

    @property
    def clean(self) -> Level:
        """The clean end, where a photo is (t = -1)."""
        return _level(CLEAN_T, self.clean_alpha_bar)

    @cached_property
    def digest(self) -> str:
        """A short hash of the noise levels, for the provenance of latents files."""
        values = np.append(self.alpha_bar, self.clean_alpha_bar).astype("<f4")
        return hashlib.sha256(values.tobytes()).hexdigest()[:16]

    @cached_property
    def half_log_snr(self) -> Array:
        """(T,) log(signal / noise), falling; -inf where no signal is left."""
        with np.errstate(divide="ignore"):
            return 0.5 * (np.log(self.alpha_bar) - np.log1p(-self.alpha_bar))

    @property
    def betas(self) -> Array:
        """(T,) the share of noise that each step of the noising process adds (DDPM, arXiv 2006.11239, eq. 2)."""
        return 1 - self.alpha_bar / np.append(1.0, self.alpha_bar[:-1])

    def level(self, t: float) -> Level:
        """The level at a real-valued timestep in [0, T - 1], by linear interpolation of log SNR.

        Raises:
            ConfigError: t outside the schedule.
        """
        if not 0 <= t <= len(self) - 1:
            raise ConfigError(f"timestep {t:g} is outside the schedule; choose it in [0, {len(self) - 1}]")
        below = int(t)
        share = t - below
        if share == 0:
            return _level(t, float(self.alpha_bar[below]))
        ends = self.half_log_snr[below], self.half_log_snr[below + 1]
        if not np.isfinite(ends).all():  # zero SNR at the top: log SNR cannot be interpolated, the signal can
            signal = (1 - share) * math.sqrt(self.alpha_bar[below]) + share * math.sqrt(self.alpha_bar[below + 1])
            return _level(t, signal**2)
        return _level(t, 1 / (1 + math.exp(-2 * float((1 - share) * ends[0] + share * ends[1]))))

    def level_at(self, half_log_snr: float) -> Level:
        """The level with this log(signal / noise), between those of t = 0 and t = T - 1.

        Raises:
            ConfigError: no timestep of the schedule is that clean or that noisy.
        """
        known = np.isfinite(self.half_log_snr)
        ratios, t = self.half_log_snr[known], np.flatnonzero(known)
        least, most = ratios[-1], ratios[0]
        if not least - 1e-9 <= half_log_snr <= most + 1e-9:  # the ends themselves may be off by a rounding
            raise ConfigError(
                f"log(signal / noise) = {half_log_snr:g} is outside the schedule; choose it in [{least:g}, {most:g}]"
            )
        return self.level(float(np.interp(-half_log_snr, -ratios, t)))

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Noise photos for training: x_t = signal * x0 + noise * eps.

        Args:
            x0: (B, C, H, W).
            eps: (B, C, H, W) standard normal.
            t: (B,) integer timesteps in [0, T - 1].
        """
        signal, noise = self.signal_and_noise(t, x0)
        return signal * x0 + noise * eps

    def velocity(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The target of v-prediction, v = signal * eps - noise * x0 (arXiv 2202.00512). Shapes as `add_noise`."""
        signal, noise = self.signal_and_noise(t, x0)
        return signal * eps - noise * x0

    def signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise of integer timesteps (B,), shaped to multiply `like` (B, ...), in its dtype and place."""
        alpha_bar = torch.from_numpy(self.alpha_bar)[t.cpu()].view(-1, *[1] * (like.ndim - 1))
        return alpha_bar.sqrt().to(like), (1 - alpha_bar).sqrt().to(like)


def _alpha_bar(betas: Array) -> Array:
    return np.cumprod(1.0 - betas).astype(np.float64)


def _level(t: float, alpha_bar: float) -> Level:
    return Level(float(t), math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


def _number(config: Mapping[str, object], key: str, default: float) -> float:
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int | float):
        raise ConfigError(f"{key} is {value!r} in the scheduler config; it must be a number")
    return value


def _betas(config: Mapping[str, object]) -> Array:
    """(T,) float64, by the names that diffusers gives to the shapes."""
    trained = config.get("trained_betas")
    if trained is not None:
        if not isinstance(trained, list | tuple | np.ndarray) or np.ndim(trained) != 1:
            raise ConfigError("trained_betas must be one row of numbers; check the scheduler config")
        return np.array(trained, dtype=np.float64)
    count = _number(config, "num_train_timesteps", 1000)
    start, end = _number(config, "beta_start", 1e-4), _number(config, "beta_end", 0.02)
    if not (1 <= count <= MAX_T and 0 <= start < 1 and 0 <= end < 1):
        raise ConfigError(f"{count:g} timesteps, betas from {start:g} to {end:g} make no schedule; check the config")
    T = int(count)
    name = str(config.get("beta_schedule", "linear"))
    shapes: dict[str, Callable[[], Array]] = {
        "linear": lambda: np.linspace(start, end, T),
        "scaled_linear": lambda: np.square(np.linspace(start**0.5, end**0.5, T)),
        "squaredcos_cap_v2": lambda: _cosine_betas(T),
        "sigmoid": lambda: (end - start) / (1 + np.exp(-np.linspace(-6, 6, T))) + start,
    }
    if name not in shapes:
        raise ConfigError(f"beta_schedule {name!r} is unknown; choose one of {', '.join(shapes)}")
    return shapes[name]()


def _cosine_betas(T: int, max_beta: float = 0.999) -> Array:
    """Improved DDPM (arXiv 2102.09672) eq. 17."""
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], max_beta)


def _rescale_zero_snr(alpha_bar: Array) -> Array:
    """Shift and scale sqrt(alpha_bar) so that the last timestep keeps no signal (arXiv 2305.08891, algorithm 1)."""
    signal = np.sqrt(alpha_bar)
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
