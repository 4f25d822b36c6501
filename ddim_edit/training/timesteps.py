"""How the timesteps of a batch are drawn, and the weights that keep the loss unbiased."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


class TimestepSampler(ABC):
    """Draws timesteps; may learn from the losses that come back."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Integer timesteps (count,) in [0, T) and the weights (count,) of their losses."""

    def learn(self, t: Tensor, losses: Tensor) -> None:
        """Take note of the unweighted losses (B,) at timesteps t (B,), both on the CPU. Most samplers do not."""
        return

    @property
    def learns(self) -> bool:
        """Whether `learn` wants to be called."""
        return False

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        return


@dataclass(frozen=True)
class Uniform(TimestepSampler):
    """Independent draws."""

    T: int

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Every timestep alike."""
        return torch.randint(self.T, (count,), generator=generator), torch.ones(count)


@dataclass(frozen=True)
class Stratified(TimestepSampler):
    """One draw in each of `count` equal parts of the schedule: as uniform, with less variance in the loss."""

    T: int

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Every timestep alike, spread over the batch."""
        shares = torch.rand(count, generator=generator, dtype=torch.float64)
        strata = (torch.randperm(count, generator=generator) + shares) / count
        return (strata * self.T).long().clamp(max=self.T - 1), torch.ones(count)


HISTORY = 10
EXPLORE = 1e-3  # share of uniform draws, so that no timestep is forgotten


@dataclass(frozen=True)
class LossSecondMoment(TimestepSampler):
    """Importance sampling with p_t ~ sqrt(E[L_t^2]) over the last 10 losses of each t (arXiv 2102.09672, section 3.3).

    Uniform until every timestep has 10 losses.
    """

    T: int
    losses: Tensor = field(init=False)
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", torch.zeros(self.T, HISTORY, dtype=torch.float64))
        object.__setattr__(self, "counts", torch.zeros(self.T, dtype=torch.int64))

    @property
    def learns(self) -> bool:
        """Yes."""
        return True

    @property
    def chances(self) -> Tensor:
        """(T,) probabilities of the next draw."""
        if int(self.counts.min()) < HISTORY:
            return torch.full((self.T,), 1 / self.T, dtype=torch.float64)
        moment = self.losses.square().mean(1).sqrt()
        return (1 - EXPLORE) * moment / moment.sum() + EXPLORE / self.T

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """More of what has large losses, with smaller weights."""
        chances = self.chances
        t = torch.multinomial(chances, count, replacement=True, generator=generator)
        return t, (1 / (self.T * chances[t])).float()

    def learn(self, t: Tensor, losses: Tensor) -> None:
        """Keep the last losses of each timestep; one that is not finite (fp16 meets some) says nothing of its own."""
        finite = losses.isfinite()
        for timestep, loss in zip(t[finite].tolist(), losses[finite].tolist(), strict=True):
            self.losses[timestep, self.counts[timestep] % HISTORY] = loss
            self.counts[timestep] += 1

    def state(self) -> dict[str, Tensor]:
        """The losses kept."""
        return {"losses": self.losses, "counts": self.counts}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over the losses kept."""
        self.losses.copy_(state["losses"])
        self.counts.copy_(state["counts"])


SAMPLERS: dict[str, Callable[[int], TimestepSampler]] = {
    "uniform": Uniform,
    "stratified": Stratified,
    "loss-second-moment": LossSecondMoment,
}
