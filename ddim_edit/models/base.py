"""What a model is to the rest of the package: a network, its schedule, a codec, and its identity.

Everything a checkpoint family needs to say fits into a `Model`; nothing outside `ddim_edit.models` knows which
family it came from. No diffusers here, no files, no solver.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ddim_edit.denoiser import (
    Condition,
    Denoiser,
    Guided,
    MapX0,
    Network,
    NetworkDenoiser,
    PredictionType,
    clip,
    dynamic_threshold,
)
from ddim_edit.errors import ConfigError, ModelError
from ddim_edit.schedule import NoiseSchedule


class Codec(ABC):
    """Between pixels (B, 3, H, W) in [-1, 1] and the model's x (B, C, h, w). Deterministic in both directions."""

    name: ClassVar[str]
    factor: ClassVar[int]  # H = factor * h, W = factor * w

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W), not clamped."""


@dataclass(frozen=True)
class PixelCodec(Codec):
    """The codec of pixel models: x is the pixels."""

    name: ClassVar[str] = "pixels"
    factor: ClassVar[int] = 1

    def encode(self, pixels: Tensor) -> Tensor:
        """The pixels themselves."""
        return pixels

    def decode(self, x: Tensor) -> Tensor:
        """The given x itself."""
        return x


@dataclass(frozen=True)
class Labels:
    """The classes of a class-conditional model.

    Args:
        count: how many labels the network knows.
        names: one per label, or empty where the checkpoint names none.
        null: the label that stands for "no label", or None where the network was trained without one.
    """

    count: int
    names: tuple[str, ...] = ()
    null: int | None = None

    def index(self, label: int | str) -> int:
        """The number of a label given by number or by name.

        Raises:
            ConfigError: no such label; the message lists what there is.
        """
        known = ", ".join(self.names) or f"0 to {self.count - 1}"
        if isinstance(label, str) and label in self.names:
            return self.names.index(label)
        try:
            index = int(label)
        except ValueError:
            raise ConfigError(f"label {label!r} is unknown to this model; choose one of: {known}") from None
        if not 0 <= index < self.count:
            raise ConfigError(f"label {index} is unknown to this model; choose 0 to {self.count - 1}")
        return index


@dataclass(frozen=True)
class MicroBatched:
    """A network that only ever sees batches of exactly `rows` photos: larger ones are cut, smaller ones padded.

    Convolution kernels are chosen by batch size, so the last bits of a photo's result depend on the batch it was
    in; with a fixed size of 4 or more they do not, and results are the same bit for bit whatever the batch size.
    """

    network: Network
    rows: int

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Run in chunks of `rows`."""
        chunks: list[Tensor] = []
        for start in range(0, len(x), self.rows):
            size = min(self.rows, len(x) - start)
            rows = torch.arange(start, start + self.rows).clamp(max=start + size - 1).to(x.device)
            chosen = condition.select(rows) if condition else None
            chunks.append(self.network(x[rows], t[rows], chosen)[:size])
        return torch.cat(chunks)


Features = Callable[[Tensor, Tensor, Condition | None], Sequence[Tensor]]


# Layers that do something else, at random or with the batch, while they are trained.
_TRAINED_OTHERWISE = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)  # pyright: ignore


@dataclass(frozen=True)
class Model:
    """A diffusion model, ready to encode and decode.

    Args:
        network: predicts from (x, t, condition).
        schedule: its noise levels.
        prediction: what the network outputs.
        shape: (C, h, w) of one x.
        codec: between pixels and x.
        labels: the classes, or None for an unconditional model.
        name: for people.
        fingerprint: says which network it is, as a hash of its weights does; latents are not decoded with another.
        size_multiple: h and w must be multiples of this.
        device: where the network lives.
        notes: what a user should be told once (a setting of the checkpoint that is not applied, say).
        facts: for `info`: parameters, precision, file format and the like.
        features: what the network makes of x inside, as (x, t, condition) -> tensors (B, C', h', w') from fine to
            coarse, or None where it does not show.
    """

    network: Network
    schedule: NoiseSchedule
    prediction: PredictionType
    shape: tuple[int, int, int]
    codec: Codec = field(default_factory=PixelCodec)
    labels: Labels | None = None
    name: str = "custom"
    fingerprint: str = ""
    size_multiple: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    notes: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict[str, object])
    features: Features | None = None

    @classmethod
    def from_function(
        cls,
        function: Callable[..., Tensor],
        schedule: NoiseSchedule,
        shape: tuple[int, int, int],
        *,
        prediction: str = "epsilon",
        name: str = "custom",
        device: torch.device | str | None = None,
        labels: Labels | None = None,
    ) -> "Model":
        """Make a model of any function, a plain `torch.nn.Module` included.

        Args:
            function: (x (B, C, H, W), t (B,) float) -> (B, C, H, W), or (B, 2 C, H, W) with a learned sigma. Where
                there are `labels`, it gets them as well: (x, t, label (B,) int64).
            schedule: the noise schedule that it was trained with.
            shape: (C, H, W); C must be 3 to read and write photos.
            prediction: `epsilon`, `sample` (x0) or `v_prediction`.
            name: recorded with latents in place of a hash of weights, so give each network its own.
            device: where the function wants its tensors. None: where a module is, and the CPU for all else.
            labels: the classes that it knows.

        Raises:
            ConfigError: a module that drops values at random, because it is in training mode.
            ModelError: from the model, where the function gives no tensor, or one of another shape.
        """
        place = choose_device(str(device or "cpu"))
        if isinstance(function, nn.Module):
            if device is None:
                place = next((value.device for value in function.parameters()), place)
            if any(part.training and isinstance(part, _TRAINED_OTHERWISE) for part in function.modules()):
                raise ConfigError(f"{name} is in training mode, where its answers are random; call its eval() first")

        def network(x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
            known = condition if labels else None
            out: object = function(x, t, *([known.tensors["label"].expand(len(x))] if known else []))
            if not isinstance(out, Tensor):
                kind = type(out).__name__
                raise ModelError(f"{name} gives a {kind}, and no tensor; wrap it, as in lambda x, t: net(x, t).sample")
            return out

        return cls(
            network,
            schedule,
            PredictionType.parse(prediction),
            shape,
            name=name,
            labels=labels,
            fingerprint=f"function:{name}",
            device=place,
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the photos in pixels."""
        return self.shape[1] * self.codec.factor, self.shape[2] * self.codec.factor

    @property
    def space(self) -> dict[str, object]:
        """What must agree for latents to be decoded: JSON, recorded in latents files."""
        return {
            "weights": self.fingerprint,
            "schedule": self.schedule.digest,
            "codec": self.codec.name,
            "prediction": str(self.prediction),
            "shape": list(self.shape),
        }

    def resized(self, height: int, width: int) -> "Model":
        """The same network at another photo size (most U-Nets are convolutional; quality is best at their own).

        Raises:
            ConfigError: a size that the network cannot take; the message gives the nearest that it can.
        """
        step = self.size_multiple * self.codec.factor
        if height < 1 or width < 1 or height % step or width % step:
            near = " x ".join(str(max(step, round(side / step) * step)) for side in (height, width))
            raise ConfigError(
                f"size {height} x {width} does not fit the network, which needs multiples of {step}; choose {near}"
            )
        return replace(self, shape=(self.shape[0], height // self.codec.factor, width // self.codec.factor))

    def micro_batched(self, rows: int) -> "Model":
        """The same model with every network call padded or cut to `rows` photos (see `MicroBatched`)."""
        if rows < 1:
            raise ConfigError(f"micro-batch {rows} is not a number of photos; choose 4 or more")
        return replace(self, network=MicroBatched(self.network, rows))

    def condition(self, label: int | str | Sequence[int | str] | None = None) -> Condition | None:
        """The condition for a label, for one label for each picture of a batch, or for no label.

        Raises:
            ConfigError: a label for an unconditional model, an unknown one, or none where the network needs one.
        """
        if self.labels is None:
            if label is not None:
                raise ConfigError(
                    f"label {label!r} was given, but {self.name} is not class-conditional; leave --label out"
                )
            return None
        if label is None and self.labels.null is None:
            raise ConfigError(
                f"{self.name} needs a label and has none for 'no label'; give --label 0 to {self.labels.count - 1}"
            )
        if label is None:
            indices, given = [self.labels.null], {}
        elif isinstance(label, Sequence) and not isinstance(label, str):
            indices = [self.labels.index(one) for one in label]
            given = {"labels": indices}  # not "label": it would not follow a selection of the latents
        else:
            indices = [self.labels.index(label)]
            given = {"label": indices[0]}
        return Condition({"label": torch.tensor(indices, device=self.device)}, given)

    def denoiser(
        self,
        label: int | str | Sequence[int | str] | None = None,
        *,
        guidance: float = 1.0,
        clip_x0: float | None = None,
        threshold: float | None = None,
        rederive_eps: bool = False,
    ) -> Denoiser:
        """The network as a denoiser, with what the user asked for wrapped around it.

        Args:
            label: a class by number or name, or a list of them, one for each picture of the batch (latents made with
                a list are decoded by giving it again). None: the model's null class, or an unconditional model.
            guidance: scale of classifier-free guidance; 1 is none.
            clip_x0: clamp every predicted photo to [-clip_x0, clip_x0]. Clipping cannot be inverted.
            threshold: dynamic thresholding of predicted photos at this quantile, in (0, 1].
            rederive_eps: after clipping, make the noise agree with the clipped photo.

        Raises:
            ConfigError: guidance on a model without a null class, `rederive_eps` without clipping, or the errors of
                `condition` and `MapX0`.
        """
        if rederive_eps and clip_x0 is None and threshold is None:
            raise ConfigError("rederive_eps changes nothing without clip_x0 or threshold; add one, or leave it out")
        denoise: Denoiser = NetworkDenoiser(self.network, self.prediction, self.condition(label))
        if guidance != 1:
            if self.labels is None or self.labels.null is None or label is None:
                raise ConfigError(
                    f"guidance {guidance:g} needs a label, and a model with a null class; set guidance to 1"
                )
            denoise = Guided(denoise, NetworkDenoiser(self.network, self.prediction, self.condition()), guidance)
        for value, make in ((clip_x0, clip), (threshold, dynamic_threshold)):
            if value is not None:
                denoise = MapX0(denoise, make(value), rederive_eps)
        return denoise


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and float32 bytes: the same whatever file format or precision they were stored in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def choose_device(name: str = "auto") -> torch.device:
    """The device of this name; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: a device that torch does not know, that this machine does not have or that computes nothing (meta).
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        float(torch.ones(1, device=name))  # a meta tensor can be made, and has no values
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise ConfigError(f"device {name!r} is not available here; choose auto or cpu") from None
