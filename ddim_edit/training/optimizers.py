"""Optimizers by name, and the learning rate of a step. A new optimizer is one function here."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ddim_edit.errors import ConfigError


def _adamw(network: nn.Module, lr: float) -> list[Optimizer]:
    return [AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)]


def _muon(network: nn.Module, lr: float) -> list[Optimizer]:
    """Muon (K. Jordan et al., 2024) for the weights between the first and the last layer, and AdamW for all others.

    Muon makes the steps of a matrix orthogonal, and a convolution is one: (outputs, all that it sees). Its steps are
    scaled to the size of AdamW's (arXiv 2502.16982, 2.2), so that one learning rate serves both.
    """
    try:
        from torch.optim import Muon
    except ImportError as error:
        raise ConfigError(
            f"torch {torch.__version__} has no Muon; install torch 2.9 or later, or take adamw"
        ) from error

    inner = {
        name: weight
        for name, weight in network.named_parameters()
        if weight.ndim > 1 and not name.startswith(("conv_in", "conv_out", "class_embedding"))
    }
    matrices = [nn.Parameter(_as_matrix(weight)) for weight in inner.values()]
    for weight, matrix in zip(inner.values(), matrices, strict=True):
        weight.register_post_accumulate_grad_hook(partial(_follow, matrix))
    others = [value for name, value in network.named_parameters() if name not in inner]
    return [
        Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    ]


def _as_matrix(weight: Tensor) -> Tensor:
    """A weight (outputs, ...) or its gradient as (outputs, all the rest), in the same memory, whatever its layout."""
    plain = weight.detach() if weight.is_contiguous() else weight.detach().movedim(1, -1)
    return plain.view(len(weight), -1)


def _follow(matrix: nn.Parameter, weight: Tensor) -> None:
    """After every backward pass: DistributedDataParallel moves the weights to memory of its own."""
    assert weight.grad is not None
    matrix.data, matrix.grad = _as_matrix(weight), _as_matrix(weight.grad)


# (network, highest learning rate) -> one optimizer, or several that share the parameters out. Those that see weights in
# another shape leave it to `Training.advance` to clear their gradients.
OPTIMIZERS: dict[str, Callable[[nn.Module, float], list[Optimizer]]] = {"adamw": _adamw, "muon": _muon}


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
