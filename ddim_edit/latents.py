"""Latents: encoded photos, where they came from, and their file format.

A file is `*.safetensors`: tensor `x` (B, C, h, w), what the solver or a trajectory adds, and one metadata key
`ddim_edit` with canonical JSON. It records the `space` (what decode must agree with) and `how` the photos were
encoded (what decode may change), and no times, durations or paths: the same encoding is the same file, byte for
byte. Only tensors are ever read; nothing is unpickled.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from ddim_edit.errors import LatentsError
from ddim_edit.files import atomic
from ddim_edit.metrics import LatentHealth, Quality
from ddim_edit.schedule import Level

FORMAT = 1
KEY = "ddim_edit"
NOISE_SNR = 0.1  # signal / noise below which x counts as Gaussian noise


def is_noise(level: Level) -> bool:
    """Whether x counts as Gaussian noise at this level."""
    return level.signal <= NOISE_SNR * level.noise


class Header(TypedDict):
    """The JSON record of a latents file."""

    format: int
    level: dict[str, float]
    space: dict[str, object]
    how: dict[str, object]
    photos: list[dict[str, object]]
    trajectory_t: list[float]


@dataclass(frozen=True)
class InversionReport:
    """How well the steps toward noise were solved for one photo. Its tuples have an entry for every step that was.

    Args:
        reached: whether the photo comes back as well as was asked for; None where nothing was asked for.
        stalled: steps at which the network's precision ended before the tolerance was met.
        residuals: RMS of what was left of each equation, in units of the photo ([-1, 1]).
        iterations: how often each step was tried.
    """

    reached: bool | None = None
    stalled: int = 0
    residuals: tuple[float, ...] = ()
    iterations: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, report: Mapping[str, Any]) -> "InversionReport":
        """From the JSON of a latents file; TypeError or KeyError where a field is missing or unknown."""
        found = cls(**report)
        return replace(found, residuals=tuple(found.residuals), iterations=tuple(found.iterations))


@dataclass(frozen=True)
class PhotoRecord:
    """What is known of one encoded photo.

    Args:
        name: the stem of its file.
        source: sha256 of the file and how it was fitted to the model's size; JSON values.
        evaluations: network forwards that its encoding took.
        health: statistics of its latent, where it is a whole one (x_T).
        second_health: those of the other half, where the latent is a pair.
        quality: what the self-check found by decoding it again.
        inversion: how exactly it was encoded, where the inverse is not an explicit one.
    """

    name: str = ""
    source: Mapping[str, object] = field(default_factory=dict[str, object])
    evaluations: int = 0
    health: LatentHealth | None = None
    quality: Quality | None = None
    inversion: InversionReport | None = None
    second_health: LatentHealth | None = None

    def to_json(self) -> dict[str, object]:
        """JSON values; an infinite PSNR (an exact round trip) becomes null."""
        record = asdict(self)
        if self.quality and math.isinf(self.quality.psnr):
            record["quality"]["psnr"] = None
        if self.second_health is None:  # as files of one state have always been
            del record["second_health"]
        return record

    @classmethod
    def from_json(cls, record: dict[str, object]) -> "PhotoRecord":
        """The inverse of `to_json`; KeyError or TypeError where a field is missing or unknown."""
        health = cast(dict[str, float] | None, record["health"])
        quality = cast(dict[str, float | None] | None, record["quality"])
        inversion = cast(dict[str, Any] | None, record["inversion"])
        second = cast(dict[str, float] | None, record.get("second_health"))
        name = str(record["name"])
        if name != Path(name).name or name == "..":  # or a file from a stranger could say where pictures go
            raise TypeError(f"the name {name!r} is no name of a file")
        return cls(
            name,
            cast(Mapping[str, object], record["source"]),
            cast(int, record["evaluations"]),
            LatentHealth(**health) if health else None,
            Quality(**{key: math.inf if value is None else value for key, value in quality.items()})
            if quality
            else None,
            InversionReport.from_json(inversion) if inversion else None,
            LatentHealth(**second) if second else None,
        )


@dataclass(frozen=True)
class Latents:
    """Encoded photos.

    Args:
        x: (B, C, h, w), float32 or float64, on the CPU.
        level: the noise level of x; the top of the grid unless the photos were encoded part of the way.
        space: what must agree to decode (`Model.space`).
        how: grid, solver, inverse and denoiser settings that made them; JSON values.
        photos: one record per photo.
        memory: the solver's own tensors, if it has any.
        trajectory: (K, B, C, h, w), intermediate x_t if they were asked for, cleanest first, or None.
        trajectory_t: the timesteps of the trajectory.
        noises: (S, B, C, h, w), the step noise that belongs to the code at eta > 0, as `noise.GivenNoise` takes it.
    """

    x: Tensor
    level: Level
    space: Mapping[str, object]
    how: Mapping[str, object]
    photos: tuple[PhotoRecord, ...] = ()
    memory: tuple[Tensor, ...] = ()
    trajectory: Tensor | None = None
    trajectory_t: tuple[float, ...] = ()
    noises: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.photos:
            object.__setattr__(self, "photos", (PhotoRecord(),) * len(self.x))
        if len(self.photos) != len(self.x):
            raise LatentsError(f"{len(self.x)} latents, but {len(self.photos)} photo records; give one each")

    def __len__(self) -> int:
        """The number of photos."""
        return len(self.x)

    @property
    def whole(self) -> bool:
        """Whether x is noise all but for a trace of the photo, and was not encoded only part of the way."""
        return is_noise(self.level)

    @property
    def names(self) -> list[str]:
        """One name per photo: the stem of its file, or its row."""
        return [record.name or f"{row:05d}" for row, record in enumerate(self.photos)]

    @property
    def solver(self) -> str:
        """The name of the solver that they were encoded with; empty where nothing says so."""
        found = self.how.get("solver")
        return str(cast(Mapping[str, object], found).get("name", "")) if isinstance(found, Mapping) else ""

    def named(self, stem: str) -> "Latents":
        """The same with a name for photos that have none: that of their file, and their row where there are several."""
        names = [stem] if len(self) == 1 else [f"{stem}_{row:05d}" for row in range(len(self))]
        records = [replace(record, name=record.name or name) for record, name in zip(self.photos, names, strict=True)]
        return replace(self, photos=tuple(records))

    def select(self, rows: Sequence[int]) -> "Latents":
        """The latents of these photos, in this order."""
        index = list(rows)
        return replace(
            self,
            x=self.x[index],
            photos=tuple(self.photos[row] for row in index),
            memory=tuple(value[index] for value in self.memory),
            trajectory=None if self.trajectory is None else self.trajectory[:, index],
            noises=None if self.noises is None else self.noises[:, index],
        )

    def moved(self, x: Tensor, move: Callable[[Tensor], Tensor]) -> "Latents":
        """New latents between these: x, and memory and step noises (N, C, h, w) moved alike; nothing else is known."""
        noises = None if self.noises is None else torch.stack([move(step) for step in self.noises])
        return Latents(x, self.level, self.space, self.how, memory=tuple(map(move, self.memory)), noises=noises)

    def with_x(self, x: Tensor, noises: Tensor | None = None) -> "Latents":
        """Latents of your own making, which `decode` takes as it takes these: a mix of them, say, or a changed one.

        Args:
            x: (N, C, h, w) float32 or float64, noise at the level of these.
            noises: (S, N, C, h, w), the step noise, where these carry some.

        Raises:
            LatentsError: x has another shape, or is only half of what these are: pairs, or x_T and step noise.
        """
        if x.shape[1:] != self.x.shape[1:]:
            raise LatentsError(f"x is {tuple(x.shape)}; give (N, {', '.join(map(str, self.x.shape[1:]))})")
        if self.memory:
            raise LatentsError(f"these are pairs of solver {self.solver}, and x is half of one; encode with ddim")
        shape = None if self.noises is None else (len(self.noises), *x.shape)
        if shape != (None if noises is None else tuple(noises.shape)):
            raise LatentsError(f"noises must be {shape} here, as these latents carry them; see `Latents.noises`")
        return Latents(x.cpu(), self.level, self.space, self.how, noises=noises)

    @classmethod
    def join(cls, parts: Sequence["Latents"]) -> "Latents":
        """All photos of several latents of one space and one way of encoding, in order.

        A trajectory is kept where all parts have one of the same timesteps.

        Raises:
            LatentsError: none, or they differ in space, level or how they were encoded; the message names the fields.
        """
        if not parts:
            raise LatentsError("there are no latents; give one or more")
        first = parts[0]
        for part in parts[1:]:
            part.require_same(first.space, of="the other latents")
            if part.level != first.level or part.how != first.how:
                fields = ", ".join(_differences(dict(first.how), dict(part.how))) or "level"
                raise LatentsError(f"latents were encoded differently ({fields}); encode the photos in one run")
        trajectories = [part.trajectory for part in parts if part.trajectory is not None]
        noises = [part.noises for part in parts if part.noises is not None]
        if len(noises) not in (0, len(parts)):
            raise LatentsError("some of the latents carry step noise and some do not; make them in one run")
        alike = len(trajectories) == len(parts) and all(part.trajectory_t == first.trajectory_t for part in parts)
        return replace(
            first,
            x=torch.cat([part.x for part in parts]),
            photos=tuple(record for part in parts for record in part.photos),
            memory=tuple(torch.cat(values) for values in zip(*(part.memory for part in parts), strict=True)),
            trajectory=torch.cat(trajectories, 1) if alike else None,
            trajectory_t=first.trajectory_t if alike else (),
            noises=torch.cat(noises, 1) if noises else None,
        )

    def require_same(self, space: Mapping[str, object], of: str) -> None:
        """Refuse to go on unless this is the space of the latents.

        Raises:
            LatentsError: fields differ; the message names each with both values.
        """
        if fields := _differences(dict(self.space), dict(space)):
            values = "; ".join(
                f"{key}: {_short(self.space.get(key))} here, {_short(space.get(key))} there" for key in fields
            )
            remedy = "use the model that encoded them, or force it"
            if fields == ["shape"]:  # of latents that are pixels
                remedy = f"use one size, as with --size {'x'.join(map(str, self.x.shape[2:]))}"
            raise LatentsError(f"these latents and {of} differ in {values}; {remedy}")

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: the place cannot be written to.
        """
        from safetensors.torch import save

        tensors = {"x": self.x} | {f"memory.{k}": value for k, value in enumerate(self.memory)}
        if self.trajectory is not None:
            tensors["trajectory"] = self.trajectory
        if self.noises is not None:
            tensors["noises"] = self.noises
        header: Header = {
            "format": FORMAT,
            "level": self.level._asdict(),
            "space": dict(self.space),
            "how": dict(self.how),
            "photos": [record.to_json() for record in self.photos],
            "trajectory_t": list(self.trajectory_t),
        }
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
        data = save({name: value.contiguous() for name, value in tensors.items()}, {KEY: text})
        with atomic(Path(path)) as temporary:
            temporary.write_bytes(data)

    @classmethod
    def load(cls, path: str | Path) -> "Latents":
        """Read a file that `save` wrote.

        Raises:
            LatentsError: missing, truncated, not a latents file, of a newer format, or holding values that are
                not finite.
        """
        tensors, header = _read(Path(path))
        x = tensors.get("x")
        if x is None or x.ndim != 4:
            raise LatentsError(f"{path}: tensor x is missing or not (B, C, h, w); encode the photos again")
        if damaged := [name for name, value in tensors.items() if not torch.isfinite(value).all()]:
            raise LatentsError(f"{path}: values of {', '.join(damaged)} are not finite; encode the photos again")
        try:
            return cls(
                x=x,
                level=Level(**header["level"]),
                space=header["space"],
                how=header["how"],
                photos=tuple(PhotoRecord.from_json(record) for record in header["photos"]),
                memory=tuple(tensors[f"memory.{k}"] for k in range(len(tensors)) if f"memory.{k}" in tensors),
                trajectory=tensors.get("trajectory"),
                trajectory_t=tuple(header["trajectory_t"]),
                noises=tensors.get("noises"),
            )
        except (KeyError, TypeError, AttributeError, ValueError, LatentsError) as error:
            raise LatentsError(f"{path}: its record is incomplete ({error!r}); encode the photos again") from error


def _read(path: Path) -> tuple[dict[str, Tensor], Header]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise LatentsError(f"{path} does not exist (or is a folder); give a .safetensors file that encode wrote")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: cast(Tensor, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise LatentsError(
            f"{path} cannot be read as safetensors ({error}); it is damaged or of another kind"
        ) from error
    if text is None:
        raise LatentsError(f"{path} holds tensors, but no {KEY} record; give a file that encode wrote")
    try:
        header = json.loads(text)
        found = header.get("format")
    except (ValueError, AttributeError) as error:
        raise LatentsError(f"{path}: its {KEY} record is no JSON object; encode the photos again") from error
    if found != FORMAT:
        raise LatentsError(f"{path} has format {found}, this version reads {FORMAT}; update ddim_edit")
    return tensors, cast(Header, header)


def _differences(ours: dict[str, object], theirs: dict[str, object]) -> list[str]:
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."
