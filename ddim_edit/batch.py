"""Many photos at once: read them, run them in batches, and keep going when one of them is bad."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddim_edit.decoding import decode
from ddim_edit.errors import ImageError, LatentsError, NumericsError
from ddim_edit.images import Fit, Photo
from ddim_edit.inversion import round_trip
from ddim_edit.latents import Latents, PhotoRecord
from ddim_edit.models.base import Model
from ddim_edit.noise import SeededNoise
from ddim_edit.ode import OnStep
from ddim_edit.recipe import Recipe
from ddim_edit.task import Restored


@dataclass(frozen=True)
class Failure:
    """A photo that could not be read or encoded, and why."""

    source: str
    error: str


class PhotoBatch(NamedTuple):
    """Photos that were read: what is known of them, and their pixels (B, 3, H, W) in [-1, 1]."""

    records: list[PhotoRecord]
    pixels: Tensor


def record_of(photo: Photo, fit: Fit) -> PhotoRecord:
    """What is known of a photo before it is encoded; ImageError where it cannot be read."""
    return PhotoRecord(photo.name, {"sha256": photo.sha256(), "fit": fit})


def is_encoded(
    photo: Photo,
    fit: Fit,
    path: Path,
    model: Model,
    recipe: Recipe,
    *,
    checked: bool = False,
    trajectory_every: int = 0,
) -> bool:
    """Whether this latents file holds this photo alone, encoded with this model and recipe, checked and kept as asked.

    A missing or damaged file does not, and a photo that cannot be read is not encoded either.
    """
    try:
        found, wanted = Latents.load(path), record_of(photo, fit)
    except (LatentsError, ImageError):
        return False
    made = (found.names, found.photos[0].source, found.space, found.how)
    kept = recipe.grid.timesteps[trajectory_every - 1 :: trajectory_every] if trajectory_every else []
    return (
        made == ([wanted.name], wanted.source, model.space, json.loads(json.dumps(recipe.to_json())))
        and list(found.trajectory_t) == kept
        and not (checked and found.photos[0].quality is None)
    )


@dataclass
class PhotoBatches:
    """Iterate over batches of readable photos; the others are collected in `failures`.

    Args:
        photos: what to read, in order.
        size: (height, width) to fit them to.
        fit: how.
        batch_size: photos in a batch.
    """

    photos: Sequence[Photo]
    size: tuple[int, int]
    fit: Fit = "crop"
    batch_size: int = 8
    failures: list[Failure] = field(default_factory=list[Failure])

    def __iter__(self) -> Iterator[PhotoBatch]:
        """Yield the readable photos; only the last batch may be smaller."""
        self.failures.clear()  # those of an earlier walk
        records: list[PhotoRecord] = []
        pixels: list[Tensor] = []
        for photo in self.photos:
            try:
                record = record_of(photo, self.fit)
                pixels.append(photo.read(self.size, self.fit))
            except ImageError as error:
                self.failures.append(Failure(photo.source, str(error)))
                continue
            records.append(record)
            if len(records) == self.batch_size:
                yield PhotoBatch(records, torch.stack(pixels))
                records, pixels = [], []
        if records:
            yield PhotoBatch(records, torch.stack(pixels))


@dataclass(frozen=True)
class Encoded:
    """One batch of encoded photos: latents, what they decode to (B, 3, H, W) if that was looked at, and seconds."""

    latents: Latents
    restored: Restored | None
    seconds: float


def encode_photos(
    model: Model,
    batches: Iterable[PhotoBatch],
    recipe: Recipe,
    *,
    trajectory_every: int = 0,
    check: bool = True,
    on_step: OnStep | None = None,
    failures: list[Failure] | None = None,
) -> Iterator[Encoded]:
    """Encode photos batch by batch, with names and sources in their latents.

    Arguments as `inversion.encode`, and a list, `failures`, for photos whose values are not finite, as those of some
    are in half precision. Without the list they end the run.
    """
    run = partial(round_trip, model, recipe=recipe, trajectory_every=trajectory_every, check=check, on_step=on_step)
    for batch in batches:
        for part, latents, restored, seconds in _attempts(batch, run, failures):
            photos = tuple(
                replace(found, name=given.name, source=given.source)
                for found, given in zip(latents.photos, part.records, strict=True)
            )
            yield Encoded(replace(latents, photos=photos), restored, seconds)


def _attempts(
    batch: PhotoBatch, run: Callable[[Tensor], tuple[Latents, Restored | None]], failures: list[Failure] | None
) -> Iterator[tuple[PhotoBatch, Latents, Restored | None, float]]:
    """The batch as it was encoded, with the seconds; photo by photo where values of some of them are not finite."""
    started = time.perf_counter()
    try:
        made = run(batch.pixels)
    except NumericsError as error:
        if failures is None:
            raise
        (first, *others) = batch.records
        if not others:
            failures.append(Failure(first.name, f"{first.name}: {error}"))
            return
        for record, pixels in zip(*batch, strict=True):
            yield from _attempts(PhotoBatch([record], pixels[None]), run, failures)
    else:
        yield batch, *made, time.perf_counter() - started


@dataclass(frozen=True)
class RoundTrip:
    """One photo that went to noise and back.

    Args:
        photo: what is known of it, with health and quality.
        picture: (3, H, W), what came back.
        seconds: its share of the batch's time, both ways.
        decode_evaluations: network forwards that decoding took.
    """

    photo: PhotoRecord
    picture: Tensor
    seconds: float
    decode_evaluations: int


def roundtrip_photos(
    model: Model,
    batches: Iterable[PhotoBatch],
    recipe: Recipe,
    *,
    on_step: OnStep | None = None,
    failures: list[Failure] | None = None,
) -> Iterator[RoundTrip]:
    """Encode photos and decode them again, batch by batch. Arguments as `encode_photos`."""
    for encoded in encode_photos(model, batches, recipe, on_step=on_step, failures=failures):
        assert encoded.restored is not None
        seconds = encoded.seconds / len(encoded.latents)
        for photo, picture, cost in zip(encoded.latents.photos, *encoded.restored, strict=True):
            yield RoundTrip(photo, picture, seconds, int(cost))


def decode_in_batches(
    model: Model,
    latents: Latents,
    recipe: Recipe,
    *,
    batch_size: int = 8,
    seeds: Sequence[int] = (),
    on_step: OnStep | None = None,
) -> Iterator[tuple[range, Tensor]]:
    """Decode many latents, `batch_size` in memory at a time.

    Yields the rows and their pictures (B, 3, H, W). `seeds`, one per row, feed a random solver. The latents' model
    is not checked here.
    """
    for start in range(0, len(latents), batch_size):
        rows = range(start, min(start + batch_size, len(latents)))
        noise = SeededNoise(tuple(seeds[row] for row in rows)) if seeds else None
        yield (
            rows,
            decode(
                model,
                latents.select(rows),
                grid=recipe.grid,
                solver=recipe.solver,
                denoiser=recipe.denoiser,
                noise=noise,
                force=True,
                on_step=on_step,
            ),
        )
