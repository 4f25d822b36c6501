"""The files of an experiment folder that a run leaves behind: result.json, rows.csv and pictures/.

Rows are written as soon as they are known, whole units at a time, and pictures before their rows; so a run that was
killed goes on where it stopped, and its files become those of a run that was not.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ddim_edit.errors import OutputError
from ddim_edit.experiments.base import Experiment, Setting, Unit, Value
from ddim_edit.files import write_text
from ddim_edit.images import read_picture, write_image

FORMAT = 1
RESULT, ROWS, PICTURES = "result.json", "rows.csv", "pictures"
# What of a description changes while a run goes on, or follows from the rest.
ASIDE = ("complete", "failures", "command")


@dataclass(frozen=True)
class Store:
    """An experiment folder, written to by one run at a time."""

    root: Path

    def begin(self, description: Mapping[str, object], *, overwrite: bool = False) -> None:
        """Start a run in this folder, or go on with the one that was started there.

        Args:
            description: what result.json is to say.
            overwrite: delete the experiment that the folder holds; anything else is never deleted.

        Raises:
            OutputError: as `check`.
        """
        self.check(description, overwrite=overwrite)
        if overwrite and (self.root / RESULT).exists():
            self._empty()
        self.describe({**description, "complete": False})

    def check(self, description: Mapping[str, object], *, overwrite: bool = False) -> None:
        """Make sure that a run may begin here; nothing is written.

        Raises:
            OutputError: the folder holds something else, or a run with other settings; the message names them.
        """
        if not (self.root / RESULT).exists():
            if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
                raise OutputError(f"{self.root} holds something other than an experiment; choose another --output")
        elif overwrite:
            self.description()
        elif differing := _differences(self.description(), description):
            raise OutputError(
                f"{self.root} holds a run with other {', '.join(differing)}; choose another --output or --overwrite"
            )

    def _empty(self) -> None:
        """Delete everything, and last what says that this is an experiment: if that stops, it can be done again."""
        for entry in self.root.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != RESULT:
                entry.unlink()
        (self.root / RESULT).unlink()

    def describe(self, description: Mapping[str, object]) -> None:
        """Write result.json."""
        write_text(self.root / RESULT, json.dumps(description, indent=2, ensure_ascii=False) + "\n")

    def description(self) -> dict[str, object]:
        """Read result.json.

        Raises:
            OutputError: it is missing, damaged or of another format.
        """
        path = self.root / RESULT
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            known = found["format"] == FORMAT and isinstance(found["experiment"], str)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{self.root} has no {RESULT} that can be read; give an experiment's folder") from error
        if not known:
            raise OutputError(f"{path} has format {found['format']}, this version reads {FORMAT}; run it anew")
        return cast(dict[str, object], found)

    def rows(self, experiment: Experiment) -> list[dict[str, str]]:
        """Read the rows; a line that a kill cut off is left out.

        Raises:
            OutputError: the columns are not those of the experiment.
        """
        path = self.root / ROWS
        if not path.exists():
            return []
        text = path.read_text(encoding="utf-8")
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        if lines and tuple(lines[0]) != experiment.header:
            raise OutputError(f"{path} has other columns than {experiment.name} writes; run it anew with --overwrite")
        return [dict(zip(experiment.header, line, strict=True)) for line in lines[1:]]

    def keep_whole(self, experiment: Experiment, units: Sequence[Unit]) -> list[Unit]:
        """Forget the rows of units that are not complete, and return those units."""
        found = {experiment.key(row): row for row in self.rows(experiment)}
        is_whole = [found.keys() >= set(unit.keys) for unit in units]
        whole = [found[key] for unit, kept in zip(units, is_whole, strict=True) if kept for key in unit.keys]
        write_text(self.root / ROWS, _lines([dict(zip(experiment.header, experiment.header, strict=True)), *whole]))
        return [unit for unit, kept in zip(units, is_whole, strict=True) if not kept]

    def append(self, experiment: Experiment, rows: Sequence[Mapping[str, Value]]) -> None:
        """Add rows, and see them on the disk before returning."""
        text = _lines([{name: row[name] for name in experiment.header} for row in rows])
        with (self.root / ROWS).open("a", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def keep(self, place: Setting, pictures: Mapping[str, Tensor]) -> None:
        """Write pictures (3, H, W) under their names at this setting, if they are not there yet."""
        for name, picture in pictures.items():
            path = picture_path(self.root, place, name)
            if not path.exists():
                write_image(picture, path)

    def pictures(self, place: Setting, names: Sequence[str], make: Callable[[], Tensor]) -> Tensor:
        """The pictures of these names as the 8-bit files have them; made if one is missing.

        All of them are made together then: the last bits of a picture depend on the batch that it was made in.

        Args:
            place: the setting that they belong to.
            names: one per picture.
            make: gives (len(names), 3, H, W) in [-1, 1].

        Returns:
            (len(names), 3, H, W).
        """
        paths = [picture_path(self.root, place, name) for name in names]
        if not all(path.exists() for path in paths):
            self.keep(place, dict(zip(names, make(), strict=True)))
        return torch.stack([read_picture(path) for path in paths])


def picture_path(root: Path, place: Setting, name: str) -> Path:
    """Where the picture of this name at this setting lies."""
    return root / PICTURES / "_".join(f"{key}-{value}" for key, value in place.items()) / f"{name}.png"


def _lines(rows: Sequence[Mapping[str, Value]]) -> str:
    """Rows as lines of a CSV file; floats in the shortest form that reads back the same."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([[_text(value) for value in row.values()] for row in rows])
    return buffer.getvalue()


def _text(value: Value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    return " ".join(str(float(item)) for item in value)


def _differences(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """Names of what differs, those inside `settings` one by one."""
    names: list[str] = []
    for key in sorted((ours.keys() | theirs.keys()) - set(ASIDE)):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += [f"{key}: {name}" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
        elif a != b:
            names.append(key)
    return names
