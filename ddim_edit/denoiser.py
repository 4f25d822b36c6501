"""Denoisers: from a network's raw output to a prediction of the photo and of the noise.

A `Denoiser` maps (x, level) to a `Prediction` (x0, eps). Re-noising a prediction at another level *is* the DDIM
step (arXiv 2010.02502, eq. 12 with sigma = 0). Guidance, clipping and other changes of a prediction are wrappers
with the same protocol; x0 and eps of a prediction need not agree. No loop, no schedule arithmetic, no files here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from ddim_edit.errors import ConfigError, ModelError
from ddim_edit.schedule import Level


class PredictionType(StrEnum):
    """What the network was trained to output; values are diffusers' names."""

    EPSILON = "epsilon"
    SAMPLE = "sample"
    V = "v_prediction"

    @classmethod
    def parse(cls, name: str) -> "PredictionType":
        """The member of this name; ConfigError lists the known ones."""
        try:
            return cls(name)
        except ValueError:
            raise ConfigError(f"prediction_type {name!r} is unknown; choose one of {', '.join(cls)}") from None


class Prediction(NamedTuple):
    """What a denoiser says about x_t. All tensors (B, C, h, w).

    `variance` is the raw second half of a learned-sigma network, or None; deterministic solvers ignore it.
    """

    x0: Tensor
    eps: Tensor
    variance: Tensor | None = None

    def at(self, level: Level) -> Tensor:
        """The predicted photo with the predicted noise put back at another level: the eta = 0 DDIM update."""
        return level.signal * self.x0 + level.noise * self.eps


class Denoiser(Protocol):
    """The protocol of everything that can stand between a network and a solver."""

    @property
    def cost(self) -> int:
        """Network forwards per photo and call (guidance makes two)."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """What `Model.denoiser` needs to make this denoiser again; recorded with latents. JSON values only."""
        ...

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict from x (B, C, h, w) at this level."""
        ...


@dataclass(frozen=True)
class Condition:
    """What a network is conditioned on, made by a model and opaque to everyone else.

    `tensors` have a leading dimension of 1 (shared by the batch) or B.
    """

    tensors: Mapping[str, Tensor]
    description: Mapping[str, object] = field(default_factory=dict[str, object])

    def check(self, pictures: int) -> None:
        """Refuse a batch of another size than the condition is for.

        Raises:
            ConfigError: it is neither shared nor one for each picture.
        """
        if odd := [len(value) for value in self.tensors.values() if len(value) not in (1, pictures)]:
            raise ConfigError(f"{odd[0]} labels for {pictures} pictures; give one for all, or one for each")

    def select(self, rows: Tensor) -> "Condition":
        """The condition of these photos of the batch."""
        tensors = {name: value if len(value) == 1 else value[rows] for name, value in self.tensors.items()}
        return replace(self, tensors=tensors)


def select_rows(denoise: Denoiser, rows: Tensor) -> Denoiser:
    """The denoiser of these photos of the batch, for work that goes on with some of them.

    A denoiser that treats the photos of a batch differently has a method `select(rows)`; others serve as they are.
    """
    select = getattr(denoise, "select", None)
    return select(rows) if select else denoise


class Network(Protocol):
    """A network: x (B, C, h, w), t (B,) float timesteps, condition or None -> (B, C or 2 C, h, w)."""

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Run one forward."""
        ...


@dataclass(frozen=True)
class NetworkDenoiser:
    """The network's own prediction, converted to (x0, eps) whatever it was trained to output.

    A network with 2 C output channels has a learned sigma: its second half goes into `Prediction.variance`.
    """

    network: Network
    prediction: PredictionType
    condition: Condition | None = None
    cost: int = 1

    @property
    def settings(self) -> Mapping[str, object]:
        """The condition's description."""
        return self.condition.description if self.condition else {}

    def select(self, rows: Tensor) -> "NetworkDenoiser":
        """The denoiser of these photos of the batch."""
        return replace(self, condition=self.condition.select(rows)) if self.condition else self

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict x0 and eps from x (B, C, h, w).

        Raises:
            ConfigError: an epsilon network at a level without signal, where x0 does not follow from eps; a condition
                for another number of pictures.
        """
        if self.condition:
            self.condition.check(len(x))
        if self.prediction is PredictionType.EPSILON and level.signal == 0:
            raise ConfigError(
                f"an epsilon model cannot start at t = {level.t:g}, where no signal is left; use a v or sample model"
            )
        t = torch.full((len(x),), level.t, dtype=torch.float32, device=x.device)
        return interpret(self.prediction, x, self.network(x, t, self.condition), level.signal, level.noise)


def interpret(
    prediction: PredictionType, x: Tensor, out: Tensor, signal: float | Tensor, noise: float | Tensor
) -> Prediction:
    """What a network's raw output says, by x = signal * x0 + noise * eps and v = signal * eps - noise * x0.

    Args:
        prediction: what the network was trained to output.
        x: (B, C, h, w), what it saw.
        out: (B, C, h, w), or (B, 2 C, h, w) with a learned sigma.
        signal: of the level, or of each row (B, 1, 1, 1).
        noise: likewise.

    Raises:
        ModelError: `out` has another shape.
    """
    variance = None
    if out.ndim == x.ndim and out.shape[1] == 2 * x.shape[1]:
        out, variance = out.chunk(2, dim=1)
    if out.shape != x.shape:  # which broadcasting would hide
        raise ModelError(
            f"the network answers {tuple(x.shape)} with {tuple(out.shape)}; it must give the same shape, or twice the "
            "channels with a learned sigma"
        )
    if prediction is PredictionType.EPSILON:
        return Prediction((x - noise * out) / signal, out, variance)
    if prediction is PredictionType.SAMPLE:
        return Prediction(out, (x - signal * out) / noise, variance)
    # Divided by signal^2 + noise^2, which is 1 in a variance-preserving schedule and not in others.
    total = signal**2 + noise**2
    return Prediction((signal * x - noise * out) / total, (noise * x + signal * out) / total, variance)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (arXiv 2207.12598): without + scale * (with - without), two forwards a call."""

    conditional: Denoiser
    unconditional: Denoiser
    scale: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ConfigError(f"guidance {self.scale:g} is no scale; choose a finite number, 1 for none")

    @property
    def cost(self) -> int:
        """Both branches together."""
        return self.conditional.cost + self.unconditional.cost

    @property
    def settings(self) -> Mapping[str, object]:
        """The condition and the scale."""
        return {**self.conditional.settings, "guidance": self.scale}

    def select(self, rows: Tensor) -> "Guided":
        """The denoiser of these photos of the batch."""
        return replace(
            self,
            conditional=select_rows(self.conditional, rows),
            unconditional=select_rows(self.unconditional, rows),
        )

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict with guidance; x0 and eps are linear in each other, so both are extrapolated alike."""
        with_, without = self.conditional(x, level), self.unconditional(x, level)
        return Prediction(
            without.x0 + self.scale * (with_.x0 - without.x0),
            without.eps + self.scale * (with_.eps - without.eps),
            with_.variance,
        )


def label_of(denoise: Denoiser) -> int | None:
    """The class by number that a denoiser was given, if it was given one."""
    return cast(int | None, denoise.settings.get("label"))


CLIPPING = ("clip_x0", "threshold")  # settings that name a MapX0 which gives one x0 for many


@dataclass(frozen=True)
class MapX0:
    """Apply a function to every predicted x0: clipping, thresholding, or anything of the user's own.

    Args:
        inner: the denoiser to wrap.
        function: (B, C, h, w) -> (B, C, h, w).
        rederive_eps: make eps agree with the new x0 (diffusers' `use_clipped_model_output`; what OpenAI's code
            always does) instead of keeping the network's.
        added_settings: recorded with latents; must name this wrapper for decode to make it again. `clip` and
            `dynamic_threshold` name themselves.
    """

    inner: Denoiser
    function: Callable[[Tensor], Tensor]
    rederive_eps: bool = False
    added_settings: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def cost(self) -> int:
        """As the wrapped denoiser."""
        return self.inner.cost

    @property
    def settings(self) -> Mapping[str, object]:
        """The wrapped denoiser's, and what names this wrapper."""
        if self.added_settings:
            return {**self.inner.settings, **self.added_settings}
        if isinstance(self.function, Clip | DynamicThreshold):
            return {**self.inner.settings, **self.function.settings, "rederive_eps": self.rederive_eps}
        return {**self.inner.settings, "map_x0": "custom"}

    def select(self, rows: Tensor) -> "MapX0":
        """The denoiser of these photos of the batch."""
        return replace(self, inner=select_rows(self.inner, rows))

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict, then change x0."""
        prediction = self.inner(x, level)
        x0 = self.function(prediction.x0)
        if not self.rederive_eps:
            return prediction._replace(x0=x0)
        return prediction._replace(x0=x0, eps=(x - level.signal * x0) / level.noise)


@dataclass(frozen=True)
class Clip:
    """See `clip`."""

    limit: float

    @property
    def settings(self) -> Mapping[str, object]:
        """As `Model.denoiser` takes them."""
        return {"clip_x0": self.limit}

    def __call__(self, x0: Tensor) -> Tensor:
        """Clamp."""
        return x0.clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class DynamicThreshold:
    """See `dynamic_threshold`."""

    ratio: float
    maximum: float

    @property
    def settings(self) -> Mapping[str, object]:
        """As `Model.denoiser` takes them, if there is no maximum."""
        return {"threshold": self.ratio} | ({} if math.isinf(self.maximum) else {"maximum": self.maximum})

    def __call__(self, x0: Tensor) -> Tensor:
        """Clamp and scale back."""
        limit = torch.quantile(x0.flatten(1).abs().float(), self.ratio, dim=1).clamp(1, self.maximum).to(x0)
        limit = limit.view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-limit, limit) / limit


def clip(limit: float = 1.0) -> Clip:
    """A function for `MapX0`: clamp x0 to [-limit, limit]."""
    if not limit > 0:
        raise ConfigError(f"clip limit {limit:g} must be above 0; pixels lie in [-1, 1]")
    return Clip(limit)


def dynamic_threshold(ratio: float = 0.995, maximum: float = math.inf) -> DynamicThreshold:
    """A function for `MapX0`: clamp each photo's x0 to its own quantile and scale back (arXiv 2205.11487, 2.3).

    Args:
        ratio: the quantile of |x0|, in (0, 1].
        maximum: the quantile is held in [1, maximum]; with 1, diffusers' default, this is plain clipping.
    """
    if not 0 < ratio <= 1 or maximum < 1:
        raise ConfigError(
            f"thresholding needs a ratio in (0, 1] and a maximum of 1 or more, not {ratio:g} and {maximum:g}"
        )
    return DynamicThreshold(ratio, maximum)
