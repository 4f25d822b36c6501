"""What an experiment is: which settings name its rows, what is measured, and what is shown of it.

An experiment is declared as data (`Experiment`); the work is a list of `Unit`s, each of which makes rows. Everything
after the rows (summary, tables, charts, report) is the same code for all of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddim_edit.ode import OnStep
from ddim_edit.plots import Chart

Array = NDArray[np.float64]
Key = tuple[str, ...]  # the image, then the values of the settings in their order
Value = str | int | float | Sequence[float]
Setting = Mapping[str, str]
Statistic = Callable[..., Array]


def mean(values: Array) -> Array:
    """The mean over images, the last axis."""
    return values.mean(-1)


@dataclass(frozen=True)
class Measure:
    """One number of the summary, made from columns of the rows.

    Args:
        name: its column in summary.csv.
        label: its head in tables.
        text: its definition, for methods.txt.
        columns: the columns of rows.csv that it is made of; the column of its own name by default.
        statistic: takes one array (..., images) per column and gives (...).
        better: which way is better, or neither.
        shown: whether it is in table.tex and at the top of the report.
        resampled: whether it has an interval by bootstrap. One that repeated images bias has none.
    """

    name: str
    label: str
    text: str
    columns: tuple[str, ...] = ()
    statistic: Statistic = mean
    better: Literal["lower", "higher", ""] = ""
    shown: bool = True
    resampled: bool = True

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns that it is made of."""
        return self.columns or (self.name,)


@dataclass(frozen=True)
class Interval:
    """A statistic and its confidence interval; NaN where there is none, as for a single image."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """What was found at one setting, over all images."""

    setting: Setting
    images: int
    found: Mapping[str, Interval]


@dataclass(frozen=True)
class Pair:
    """Two methods compared image by image, where the rest of the setting is the same."""

    context: Setting
    first: Setting
    second: Setting
    images: int
    difference: Interval
    p: float
    p_holm: float


@dataclass(frozen=True)
class Sheet:
    """A picture for people, with what it shows."""

    name: str
    caption: str
    picture: Tensor


@dataclass(frozen=True)
class Results:
    """An experiment folder, read back: all that charts, sheets, tables and the report are made of."""

    root: Path
    description: Mapping[str, object]
    rows: list[dict[str, str]]
    summaries: list[Summary]
    pairs: list[Pair]

    @property
    def shown(self) -> list[str]:
        """The images that have pictures, in order."""
        names = list(dict.fromkeys(row["image"] for row in self.rows))
        settings = cast(Mapping[str, object], self.description["settings"])
        return names[: cast(int, settings["show"])]

    def values(self, name: str) -> list[str]:
        """The values that a setting takes, in order of appearance."""
        return list(dict.fromkeys(row[name] for row in self.rows))

    def where(self, **setting: str) -> list[Summary]:
        """The summaries at which these settings have these values."""
        return [found for found in self.summaries if setting.items() <= found.setting.items()]


def nothing(of: object) -> list[Any]:
    """For an experiment without pictures, without references, or without an animation."""
    return []


@dataclass(frozen=True)
class Experiment:
    """What one experiment asks, measures and shows.

    Args:
        name: of its command.
        title: one line.
        text: what is done and why, with the source, for people.
        settings: the columns that, with the image, name a row.
        columns: what is measured of every image.
        measures: the numbers of the summary.
        charts: the figures.
        sheets: the pictures.
        method: those of the settings whose values are rivals, compared image by image in `tested`.
        tested: the column on which they are compared.
        references: the settings that the others are compared with, by the rows: they are not compared with themselves.
        published: a name and the figures of the paper by setting, printed beside ours.
        animate: writes an animation into the folder, and gives its path.
    """

    name: str
    title: str
    text: str
    settings: tuple[str, ...]
    columns: tuple[str, ...]
    measures: tuple[Measure, ...]
    charts: Callable[[Results], Iterable[Chart]]
    sheets: Callable[[Results], Iterable[Sheet]] = nothing
    method: tuple[str, ...] = ()
    tested: str = ""
    references: Callable[[Sequence[Mapping[str, str]]], list[Setting]] = nothing
    published: tuple[str, Callable[[Setting], float | None]] | None = None
    animate: Callable[[Results], list[Path]] = nothing

    @property
    def header(self) -> tuple[str, ...]:
        """The columns of rows.csv."""
        return ("image", *self.settings, *self.columns)

    def key(self, row: Mapping[str, Value]) -> Key:
        """What names a row."""
        return tuple(str(row[name]) for name in ("image", *self.settings))


@dataclass(frozen=True)
class Unit:
    """A piece of work that makes the rows of these keys, all or none.

    `cost` is its steps times its images; `make` is called with a watcher of the steps.
    """

    keys: tuple[Key, ...]
    cost: int
    make: Callable[[OnStep], Sequence[Mapping[str, Value]]]


@dataclass(frozen=True)
class Cell:
    """One setting, and the number of steps that an image takes there."""

    setting: Setting
    steps: int


Measuring = Callable[[Cell, Sequence[str], OnStep], Sequence[Mapping[str, Value]]]


def units_of(cells: Sequence[Cell], images: Sequence[str], batch_size: int, measure: Measuring) -> list[Unit]:
    """One unit for every setting and batch of images; `measure` gives what is measured of each image there."""

    def unit(cell: Cell, names: tuple[str, ...]) -> Unit:
        def make(on_step: OnStep) -> list[Mapping[str, Value]]:
            found = measure(cell, names, on_step)
            return [{"image": name, **cell.setting, **measured} for name, measured in zip(names, found, strict=True)]

        return Unit(tuple((name, *cell.setting.values()) for name in names), cell.steps * len(names), make)

    return [unit(cell, names) for cell, names in product(cells, list(batches(images, batch_size)))]


def batches(images: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Cut names into batches; the same names always share one."""
    return (tuple(images[start : start + size]) for start in range(0, len(images), size))
