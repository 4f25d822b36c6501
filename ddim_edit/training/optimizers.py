"""Optimizers by name, and the learning rate of a step. A new optimizer is one function here."""

from collections.abc import Callable

from torch import nn
from torch.optim import AdamW, Optimizer


def _adamw(network: nn.Module, lr: float) -> list[Optimizer]:
    return [AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)]


# (network, highest learning rate) -> one optimizer, or several that share the parameters out.
OPTIMIZERS: dict[str, Callable[[nn.Module, float], list[Optimizer]]] = {"adamw": _adamw}


def rate_factor(step: int, done: float, *, warmup: int, decay: float) -> float:
    """Share of the highest learning rate: it rises over `warmup` steps, stays, and falls to 0 over the last `decay`.

    Args:
        step: from 0.
        done: how much of the run is over, in [0, 1], by steps or by the clock.
        warmup: steps.
        decay: share of the run; 0 for a rate that never falls.
    """
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    falling = min(1.0, max(0.0, 1 - done) / decay) if decay else 1.0
    return rising * falling


def rates_of(optimizers: list[Optimizer]) -> list[list[float]]:
    """The rate of every group, as `set_rate` takes them."""
    return [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]


def set_rate(optimizers: list[Optimizer], highest: list[list[float]], factor: float) -> None:
    """Give every group a share of its own highest rate."""
    for optimizer, rates in zip(optimizers, highest, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
