"""The state of a training run, and one step of it: everything that must survive a kill lives in `Training.state`."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddim_edit.datasets import PhotoSet
from ddim_edit.errors import ConfigError
from ddim_edit.noise import generator
from ddim_edit.training.config import WEIGHTS, TrainConfig
from ddim_edit.training.data import Batch, Batches, labels_of
from ddim_edit.training.network import Origin
from ddim_edit.training.objectives import Objective
from ddim_edit.training.optimizers import OPTIMIZERS, rates_of, set_rate
from ddim_edit.training.timesteps import SAMPLERS, TimestepSampler

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.training_utils import EMAModel


@dataclass
class Training:
    """A run between two steps.

    Attributes:
        origin: what it started from.
        accelerator: devices, precision and processes.
        module: the network itself.
        forward: the same as it is called, wrapped and perhaps compiled.
        optimizers: one, or several that share the parameters out.
        rates: highest learning rate of each of their groups.
        ema: the averaged weights.
        averaged: a network to hold them, which nothing trains.
        sampler: of timesteps.
        batches: of photos.
        objective: the loss.
        digest: of the photos.
        step: steps done.
        images: photos seen, by all processes together.
        seconds: time spent.
    """

    origin: Origin
    accelerator: "Accelerator"
    module: nn.Module
    forward: Callable[..., Any]
    optimizers: list[Optimizer]
    rates: list[list[float]]
    ema: "EMAModel"
    averaged: "UNet2DModel"
    sampler: TimestepSampler
    batches: Batches
    objective: Objective
    digest: str
    step: int = 0
    images: int = 0
    seconds: float = 0.0

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        return self.origin.config

    @classmethod
    def begin(cls, origin: Origin, photos: PhotoSet, accelerator: "Accelerator") -> "Training":
        """Set everything up for step 0."""
        from diffusers.training_utils import EMAModel

        config, schedule, device = origin.config, origin.schedule, accelerator.device
        memory = torch.channels_last if config.channels_last else torch.contiguous_format
        module = cast(nn.Module, origin.module.to(device).to(memory_format=memory)).train()  # pyright: ignore
        averaged = deepcopy(origin.module).eval().requires_grad_(False)
        optimizers = OPTIMIZERS[config.optimizer](module, config.lr)
        rates = rates_of(optimizers)
        network, *prepared = accelerator.prepare(module, *optimizers)
        return cls(
            origin=origin,
            accelerator=accelerator,
            module=module,
            forward=torch.compile(network) if config.compile else network,
            optimizers=cast(list[Optimizer], prepared),
            rates=rates,
            ema=EMAModel(module.parameters(), decay=config.ema, foreach=True),
            averaged=averaged,
            sampler=SAMPLERS[config.schedule_sampler](len(schedule)),
            batches=_batches(origin, photos, device),
            objective=_objective(origin),
            digest=photos.digest,
        )

    def advance(self, rate_factor: float) -> Tensor:
        """One step of the optimizers, at a share of the highest learning rate; gives its loss and MSE, (2,)."""
        set_rate(self.optimizers, self.rates, rate_factor)
        parts = self.config.accumulate
        found = torch.zeros(2, device=self.accelerator.device)
        for part in range(parts):
            batch = self._batch(part)
            last = part == parts - 1
            with nullcontext() if last else self.accelerator.no_sync(self.forward), self._dropping(part):  # pyright: ignore
                found += self._backward(batch) / parts
        self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.module.zero_grad()  # an optimizer may have seen them through matrices of its own
        self.ema.step(self.module.parameters())
        self.step += 1
        self.images += parts * self.accelerator.num_processes * self.config.batch_size
        return found

    def average(self) -> "UNet2DModel":
        """The network with the averaged weights of now."""
        self.ema.copy_to(self.averaged.parameters())
        return self.averaged

    def state(self) -> dict[str, object]:
        """Everything that a step changes."""
        scaler = self.accelerator.scaler
        return {
            "network": self.module.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "sampler": self.sampler.state(),
            "scaler": {} if scaler is None else scaler.state_dict(),
            "step": self.step,
            "images": self.images,
            "seconds": self.seconds,
            "config": json.dumps(self.config.to_json()),
            "photos": self.digest,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave.

        Raises:
            ConfigError: it is that of other photos.
        """
        if state["photos"] != self.digest:
            raise ConfigError("these are not the photos that the run began with; give the same to --resume")
        self.module.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.accelerator.device)
        self.ema.decay = self.config.ema
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.sampler.restore(state["sampler"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.images, self.seconds = state["step"], state["images"], state["seconds"]

    def _within(self, part: int) -> int:
        """Which of the step's batches is number `part` of this process."""
        return part * self.accelerator.num_processes + self.accelerator.process_index

    def _number(self, part: int) -> int:
        """Which of the run's."""
        return self.step * self.config.accumulate * self.accelerator.num_processes + self._within(part)

    def _batch(self, part: int) -> Batch:
        """This process's batch number `part` of the step."""
        position = self.images + self._within(part) * self.config.batch_size
        return self.batches.draw(self._number(part), position, self.sampler)

    @contextmanager
    def _dropping(self, part: int) -> Generator[None]:
        """Layers draw what they drop from torch's own generators: seed these for the batch, and put them back after."""
        if not self.config.dropout:
            yield
            return
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(generator(self.config.seed, "dropout", self._number(part)).initial_seed())
            yield

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of one batch; gives its loss and its MSE, (2,), as if timesteps were drawn evenly."""
        noised = batch.noised
        x_t = noised.x_t
        if self.config.channels_last:
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        out = self.forward(x_t, noised.t.to(x_t.device), class_labels=batch.labels, return_dict=False)[0]
        losses = self.objective(out.float(), noised)
        loss = (batch.weights * losses.total).mean()
        self.accelerator.backward(loss / self.config.accumulate)
        if self.sampler.learns:
            t, total = noised.t.to(x_t.device), losses.total.detach()
            t, total = cast(tuple[Tensor, Tensor], self.accelerator.gather((t, total)))
            self.sampler.learn(t.cpu(), total.cpu())
        return torch.stack([loss, (batch.weights * losses.mse).mean()]).detach()


def _objective(origin: Origin) -> Objective:
    config = origin.config
    weights = {name: getattr(config, name) for name in WEIGHTS}
    return Objective(origin.schedule, str(config.target), config.loss, **weights)


def _batches(origin: Origin, photos: PhotoSet, device: torch.device) -> Batches:
    config, labels = origin.config, origin.labels
    has_null = labels is not None and labels.null is not None
    return Batches(
        pixels=photos.pixels.to(device),
        labels=None if labels is None else labels_of(photos, labels).to(device),
        null=labels.null if labels and labels.null is not None else 0,
        schedule=origin.schedule,
        size=config.batch_size,
        seed=config.seed,
        flip=config.flip,
        dropout=config.label_dropout if has_null else 0.0,
    )
