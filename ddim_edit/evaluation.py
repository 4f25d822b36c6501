"""How well a model fits photos: the error of its noise predictions at every level, and the variational bound.

Both are averages over photos, timesteps and noise. The photos are given; timesteps and noise come from a seed, are
spread evenly, and are the same for every model, so that two models are compared on equal terms.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim_edit.denoiser import Condition, interpret
from ddim_edit.errors import ConfigError, NumericsError
from ddim_edit.models.base import Model
from ddim_edit.noise import gaussian, generator
from ddim_edit.variational import Posterior, bound_terms, prior_term

LEVELS = (0.05, 0.1, 0.3, 0.4, 0.6, 0.8)  # where the error is reported, as shares of T
HIGH = 0.4  # from this share of T on, x_t is mostly noise
MIN_DRAWS = 2  # fewer would leave photos without a draw at a high level


@dataclass(frozen=True)
class Estimate:
    """A mean over photos with its 95 % interval (normal, over the photos' own means); None for a single photo."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """Estimate from one number per photo (N,)."""
        mean = float(values.mean())
        if len(values) < 2:
            return cls(mean, None, None)
        margin = 1.96 * float(values.std()) / math.sqrt(len(values))
        return cls(mean, mean - margin, mean + margin)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_model` measures.

    Attributes:
        photos: how many.
        draws: timesteps per photo behind `uniform` and `high`; the bound has half as many of its own.
        uniform: mean squared error of eps over all timesteps.
        high: the same over the timesteps in [0.4 T, T).
        levels: the same at single timesteps.
        bits_per_dim: the variational bound on the negative log-likelihood, with predicted photos clipped to [-1, 1]
            and the posterior's variance unless the network learned one; None where x is not made of pixels.
    """

    photos: int
    draws: int
    uniform: Estimate
    high: Estimate
    levels: Mapping[int, Estimate]
    bits_per_dim: Estimate | None


def evaluate_model(
    model: Model,
    photos: Tensor,
    labels: Sequence[int] | None = None,
    *,
    timesteps: Sequence[int] | None = None,
    draws: int = 20,
    seed: int = 0,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measure a model on photos that it was not trained on.

    Args:
        model: any model.
        photos: (N, 3, H, W) in [-1, 1], of the model's size.
        labels: one per photo, by number; None for the model's null class or an unconditional model.
        timesteps: where to report the error by itself; by default 50, 100, 300, 400, 600 and 800 of 1000.
        draws: timesteps per photo, one in each of so many equal parts of the schedule.
        seed: of the timesteps and the noise.
        batch_size: photos at once; changes the last digits only.
        on_batch: called with the number of network evaluations after each.

    Raises:
        ConfigError: settings that cannot work.
        NumericsError: the network answers with NaN or infinity.

    Example:
        >>> from ddim_edit.models import load_model
        >>> found = evaluate_model(load_model("small"), torch.zeros(2, 3, 64, 64), draws=2, timesteps=[500])
        >>> sorted(found.levels)
        [500]
    """
    T = len(model.schedule)
    chosen = [int(share * T) for share in LEVELS] if timesteps is None else [int(t) for t in timesteps]
    _check(model, photos, labels, chosen, draws)
    even, low = spread_timesteps(len(photos), draws, T, seed)
    single = torch.tensor([*chosen, 0]).expand(len(photos), -1)
    t = torch.cat([even, single, low], dim=1)
    parts: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(photos), batch_size):
            rows = slice(start, start + batch_size)
            condition = _condition(model, None if labels is None else labels[rows])
            seeds = range(seed + start, seed + min(start + batch_size, len(photos)))
            parts.append(_measure(model, photos[rows], t[rows], seeds, condition, on_batch))
    errors, terms = torch.cat(parts).unbind(2)
    if not torch.isfinite(errors).all():
        raise NumericsError(f"{model.name} predicts values that are not finite; try --dtype fp32")
    is_high = even >= HIGH * T  # of even draws; their number differs from photo to photo, and their share of T does not
    first, rest = terms[:, draws + len(chosen)], terms[:, draws + len(chosen) + 1 :]
    bound = first + (rest / low_density(low, T)).mean(1) + prior_term(model.schedule, photos.double())
    return Evaluation(
        photos=len(photos),
        draws=draws,
        uniform=Estimate.of(errors[:, :draws].mean(1)),
        high=Estimate.of((errors[:, :draws] * is_high).mean(1) * T / (T - math.ceil(HIGH * T))),
        levels={level: Estimate.of(errors[:, draws + k]) for k, level in enumerate(chosen)},
        bits_per_dim=Estimate.of(bound) if model.codec.name == "pixels" else None,
    )


def evaluations_per_photo(draws: int = 20, levels: int = len(LEVELS)) -> int:
    """How often `evaluate_model` runs the network for each photo: the draws, those of the bound, and single levels."""
    return draws + max(1, draws // 2) + 1 + levels


def spread_timesteps(photos: int, draws: int, T: int, seed: int) -> tuple[Tensor, Tensor]:
    """Timesteps for every photo: `draws` evenly over [0, T), and half as many over [1, T) that favour low ones.

    The terms of the bound fall about as 1 / t, so those are drawn with the density of `low_density`.
    """
    draw = generator(seed, "evaluation")
    even, low = _spread(photos, draws, draw), _spread(photos, max(1, draws // 2), draw)
    return (even * T).long().clamp(max=T - 1), (T**low).long().clamp(1, max(1, T - 1))


def low_density(t: Tensor, T: int) -> Tensor:
    """Probability of t >= 1 where log t is uniform over [0, log T) and then rounded down."""
    return torch.log1p(1 / t.double()) / math.log(T)


def _spread(photos: int, draws: int, draw: torch.Generator) -> Tensor:
    """Numbers (photos, draws) in [0, 1), one a photo in each of `draws` equal parts, in which photos lie evenly too."""
    within = torch.stack([torch.randperm(photos, generator=draw) for _ in range(draws)], dim=1)
    within = (within + torch.rand((photos, draws), generator=draw, dtype=torch.float64)) / photos
    return (torch.arange(draws) + within) / draws


def _measure(
    model: Model,
    photos: Tensor,
    t: Tensor,
    seeds: Sequence[int],
    condition: Condition | None,
    on_batch: Callable[[int], None] | None,
) -> Tensor:
    """Error of eps and term of the bound for a batch at all its timesteps: (B, K, 2) float64 on the CPU."""
    x0 = model.codec.encode(photos.to(model.device))
    posterior = Posterior.of(model.schedule)
    columns: list[Tensor] = []
    for k in range(t.shape[1]):
        # Step 0 of the stream chose the timesteps.
        eps = gaussian(seeds, tuple(x0.shape[1:]), "evaluation", k + 1).to(x0)
        columns.append(_measure_once(model, posterior, x0, eps, t[:, k], condition))
        if on_batch:
            on_batch(len(x0))
    return torch.stack(columns, dim=1)


def _measure_once(
    model: Model, posterior: Posterior, x0: Tensor, eps: Tensor, t: Tensor, condition: Condition | None
) -> Tensor:
    """(B, 2) float64 on the CPU."""
    signal, noise = model.schedule.signal_and_noise(t, x0)
    x_t = signal * x0 + noise * eps
    out = model.network(x_t, t.to(x_t), condition)
    found = interpret(model.prediction, x_t, out, signal, noise)
    error = (found.eps - eps).square().flatten(1).mean(1)
    term = bound_terms(posterior, x0, x_t, t, posterior.mean(found.x0.clamp(-1, 1), x_t, t), found.variance)
    return torch.stack([error, term], dim=1).double().cpu()


def _condition(model: Model, labels: Sequence[int] | None) -> Condition | None:
    return model.condition() if labels is None else Condition({"label": torch.tensor(labels, device=model.device)})


def _check(model: Model, photos: Tensor, labels: Sequence[int] | None, timesteps: Sequence[int], draws: int) -> None:
    T = len(model.schedule)
    if photos.ndim != 4 or photos.shape[1:] != (3, *model.image_size) or len(photos) == 0:
        height, width = model.image_size
        raise ConfigError(f"photos are {tuple(photos.shape)}; {model.name} takes (N, 3, {height}, {width}), N >= 1")
    if labels is not None and model.labels is None:
        raise ConfigError(f"labels were given, but {model.name} is not class-conditional; leave them out")
    if labels is not None and len(labels) != len(photos):
        raise ConfigError(f"{len(labels)} labels for {len(photos)} photos; give one for each")
    known = range(model.labels.count if model.labels else 0)
    if odd := [number for number in labels or () if number not in known]:
        raise ConfigError(f"label {odd[0]} is none of {model.name}; choose 0 to {len(known) - 1}")
    if T < 2:
        raise ConfigError(f"{model.name} has {T} timestep; a model with one cannot be evaluated")
    if not MIN_DRAWS <= draws <= T:
        raise ConfigError(f"draws={draws}; choose {MIN_DRAWS} to {T} timesteps per photo")
    if outside := [t for t in timesteps if not 0 <= t < T]:
        raise ConfigError(f"timestep {outside[0]} is outside the schedule; choose it in [0, {T - 1}]")
