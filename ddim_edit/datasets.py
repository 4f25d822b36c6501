"""Sets of photos with classes, whole in memory: what training and evaluation work on.

A set is a folder (classes are the names of its sub-folders, or come from a table) or an `.npz` with `images` and
perhaps `labels` and `label_names`. Photos that cannot be read are left out and listed; labels that do not fit are an
error.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim_edit.batch import Failure
from ddim_edit.errors import ConfigError, ImageError
from ddim_edit.images import SUFFIXES, Fit, Photo, find_photos, to_uint8

NO_CLASS = "none"  # the class of photos without one; a model's null class


@dataclass(frozen=True)
class PhotoSet:
    """Photos of one size and, if they have any, their classes.

    Attributes:
        pixels: (N, 3, H, W) uint8.
        classes: the class of each by name, or None where the set has no classes.
        failures: what could not be read, and why.
    """

    pixels: Tensor
    classes: tuple[str, ...] | None
    failures: tuple[Failure, ...] = ()

    def __len__(self) -> int:
        """How many photos."""
        return len(self.pixels)

    @property
    def scaled(self) -> Tensor:
        """The pixels as networks take them: (N, 3, H, W) float32 in [-1, 1]."""
        return self.pixels.float() / 127.5 - 1

    @property
    def digest(self) -> str:
        """A hash of pixels and classes, which tells whether a resumed run sees the photos that it began with."""
        content = hashlib.sha256(self.pixels.numpy().tobytes())
        content.update("\n".join(self.classes or ()).encode())
        return content.hexdigest()[:16]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Every class once, numbers before names, with `none` at the end whether or not a photo has it."""
        found = set(self.classes or ()) - {NO_CLASS}
        return (
            *sorted(found, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)),
            NO_CLASS,
        )

    def select(self, rows: Sequence[int]) -> "PhotoSet":
        """The photos of these rows."""
        return PhotoSet(self.pixels[list(rows)], self.classes and tuple(self.classes[row] for row in rows))


def read_photo_set(
    path: str | Path,
    size: tuple[int, int],
    *,
    table: str | Path | None = None,
    fit: Fit = "crop",
    limit: int | None = None,
) -> PhotoSet:
    """Read a set of photos at one size.

    Args:
        path: a folder, searched with its sub-folders, whose first level gives the classes; or an `.npz`.
        size: (height, width).
        table: a CSV with the columns `file` (relative to the folder) and `label`, instead of sub-folders.
        fit: how photos get their size; see `read_image`.
        limit: only the first so many.

    Raises:
        ImageError: no such place, no photo in it, or none that can be read.
        ConfigError: classes that do not fit the photos.
    """
    path = Path(path)
    photos, classes = _listed(path, None if table is None else Path(table))
    pixels: list[Tensor] = []
    kept: list[str] = []
    failures: list[Failure] = []
    for row, photo in enumerate(photos[:limit]):
        try:
            pixels.append(torch.from_numpy(to_uint8(photo.read(size, fit))).permute(2, 0, 1))
            kept += [] if classes is None else [classes[row]]
        except ImageError as error:
            failures.append(Failure(photo.source, str(error)))
    if not pixels:
        raise ImageError(f"{path}: none of {len(failures)} photos can be read; the first: {failures[0].error}")
    return PhotoSet(torch.stack(pixels), None if classes is None else tuple(kept), tuple(failures))


def first_names(names: Sequence[str]) -> str:
    """The first three of some names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _listed(path: Path, table: Path | None) -> tuple[list[Photo], list[str] | None]:
    """The photos of a set, and their classes."""
    if not path.is_dir():
        if table is not None:
            raise ConfigError(f"{table} names files, and {path} is no folder; an .npz has its own `labels`")
        photos = find_photos([path])
        return photos, _npz_classes(path, len(photos)) if path.suffix.lower() == ".npz" else None
    files = [file for file in sorted(path.rglob("*")) if _is_photo(file.relative_to(path)) and file.is_file()]
    if not files:
        raise ImageError(f"{path} has no image files (such as .jpg or .png), and no sub-folder of it has any")
    names = [file.relative_to(path) for file in files]
    if table is not None:
        classes: list[str] | None = _table_classes(table, [name.as_posix() for name in names])
    elif any(len(name.parts) > 1 for name in names):
        classes = [name.parts[0] if len(name.parts) > 1 else NO_CLASS for name in names]
    else:
        classes = None
    return find_photos(files), classes


def _is_photo(name: Path) -> bool:
    return name.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in name.parts)


def _npz_classes(path: Path, count: int) -> list[str] | None:
    with np.load(path, allow_pickle=False) as archive:
        if "labels" not in archive:
            return None
        labels = _plain(archive, "labels", path, "store whole numbers, and their names as label_names")
        given = _plain(archive, "label_names", path, "store text") if "label_names" in archive else np.array([])
        names = [str(name) for name in given.astype(np.str_)]
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ConfigError(
            f"{path}: `labels` is {labels.dtype} {labels.shape}; {count} photos need whole numbers ({count},)"
        )
    known = len(names) if names else int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= known:
        raise ConfigError(f"{path}: `labels` go from {labels.min()} to {labels.max()}; there are {known} label_names")
    return [names[label] if names else str(label) for label in labels]


def _plain(archive: Mapping[str, NDArray[Any]], name: str, path: Path, remedy: str) -> NDArray[Any]:
    try:
        return archive[name]
    except ValueError as error:
        raise ConfigError(f"{path}: `{name}` holds objects; {remedy}") from error


def _table_classes(table: Path, files: Sequence[str]) -> list[str]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{table} cannot be read as CSV ({error}); check the path") from error
    if not rows or not {"file", "label"} <= rows[0].keys():
        raise ConfigError(f"{table} needs a first line with `file` and `label`, and a row for each photo")
    labels = {row["file"] or "": row["label"] for row in rows}
    twice = Counter(row["file"] for row in rows if row["file"])
    write = f"write '{NO_CLASS}' where there is no class"
    for what, odd, remedy in (
        ("has rows without a file", ["" for row in rows if not row["file"]], "complete them"),
        ("names files twice", sorted(name for name, count in twice.items() if count > 1), "leave one row for each"),
        ("names files that are not there", sorted(labels.keys() - set(files)), "paths begin in the folder of photos"),
        ("has no row for photos", sorted(set(files) - labels.keys()), write),
        ("has no label for files", sorted(name for name, label in labels.items() if not label), write),
    ):
        if odd:
            raise ConfigError(f"{table} {what}: {len(odd)} ({first_names(odd)}); {remedy}")
    return [labels[name] for name in files]
