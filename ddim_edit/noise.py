"""Seeded Gaussian noise: x_T and the noise of the steps.

Every image has its own seed and every use its own stream, keyed by (seed, stream, step), so a picture does not
depend on the batch, the device or the number of steps it was made with, and x_T never shares numbers with the
noise of the steps (with a shared stream, samples at eta > 0 blow up). Numbers are drawn on the CPU in float32.

The package draws in few other places, never without a seed: `sphere` (which way to leave a latent for its exact
opposite), `training` (batches, timesteps, noise, first weights), `evaluation` (timesteps and noise to judge a model
by) and `experiments.statistics` (the bootstrap).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ddim_edit.errors import ConfigError

Stream = Literal["latent", "step", "evaluation", "training", "order", "dropout"]
_STREAMS: dict[Stream, int] = {"latent": 0, "step": 1, "evaluation": 2, "training": 3, "order": 4, "dropout": 5}


def seed_name(seed: int) -> str:
    """What pictures and rows that come from a seed are called."""
    return f"seed{seed:04d}"


def gaussian(seeds: Sequence[int], shape: tuple[int, ...], stream: Stream = "latent", step: int = 0) -> Tensor:
    """Standard normal noise, one independent stream per image.

    Args:
        seeds: one non-negative seed per image.
        shape: of one image, (C, h, w).
        stream: what the noise is for; streams of one seed are independent.
        step: index within the stream.

    Returns:
        (B, C, h, w) float32 on the CPU.

    Raises:
        ConfigError: no seed, or a negative one.
    """
    if not seeds:
        raise ConfigError("there are no seeds; give one per picture")
    if any(seed < 0 for seed in seeds):
        raise ConfigError(f"seed {min(seeds)} is negative; choose seeds of 0 or more")
    return torch.stack([torch.randn(shape, generator=generator(seed, stream, step)) for seed in seeds])


def generator(seed: int, stream: Stream, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on nothing but (seed, stream, step); seeds and steps are 0 or more.

    Another kind of device draws other numbers; whatever must agree between devices is drawn on the CPU and moved.
    """
    # The seed comes last: it may fill several 32-bit words, and must not reach into those of stream and step.
    key = np.random.SeedSequence((_STREAMS[stream], step, seed)).generate_state(2, np.uint64)
    # 63 bits: torch takes a signed 64-bit seed.
    return torch.Generator(device).manual_seed(int(key[0] >> np.uint64(1)))


@dataclass(frozen=True)
class SeededNoise:
    """The step noise of a run at eta > 0, drawn from one seed per image when a step asks for it."""

    seeds: tuple[int, ...]

    def __call__(self, step: int, like: Tensor) -> Tensor:
        """Noise (B, C, h, w) for the step that leaves grid level `step`, on the device and in the dtype of `like`."""
        return gaussian(self.seeds, tuple(like.shape[1:]), "step", step).to(like)


@dataclass(frozen=True)
class GivenNoise:
    """Step noise given outright: `values[k]` (B, C, h, w) serves the step that leaves grid level k + 1."""

    values: Tensor

    def __call__(self, step: int, like: Tensor) -> Tensor:
        """The noise of that step.

        Raises:
            ConfigError: the tensor holds fewer steps than the run has.
        """
        if not 1 <= step <= len(self.values):
            raise ConfigError(f"step {step} has no noise: {len(self.values)} were given; give one per step of the grid")
        return self.values[step - 1].to(like)
