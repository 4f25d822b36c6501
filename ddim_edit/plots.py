"""Charts, as picture files: the only place that draws with matplotlib."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from ddim_edit.files import atomic, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# DDIM paper (arXiv 2010.02502), Table 2: CIFAR-10, steps -> mean squared error on [0, 1], rounded to 1e-4 there.
PAPER_TABLE_2 = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8c8c8c"  # apart for colour-blind readers too
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


@dataclass(frozen=True)
class Curve:
    """One line of a chart, with an interval around each point if there is one (NaN: none there).

    `kind`: ours, a published figure to compare with, or a level that y cannot pass.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    kind: Literal["ours", "published", "level"] = "ours"


@dataclass(frozen=True)
class Chart:
    """A figure for one column of a paper. `log` names the axes that are logarithmic; all x are ticks of that one."""

    name: str
    title: str
    xlabel: str
    ylabel: str
    curves: Sequence[Curve]
    log: Literal["", "x", "y", "xy"] = ""


def latent_figure(x: Tensor, pictures: Sequence[Tensor], names: Sequence[str], path: Path) -> None:
    """Draw x_T as pictures, and the histogram of its entries against N(0, 1).

    Args:
        x: (B, C, h, w) latents.
        pictures: the same as (3, H, W) in [-1, 1], to be looked at.
        names: one per latent.
        path: of the PNG.
    """
    figure = _figure(3.2 * (len(pictures) + 1.4), 3.4)
    axes = figure.subplots(1, len(pictures) + 1, width_ratios=[1.0] * len(pictures) + [1.6])
    for axis, picture, name, latent in zip(axes, pictures, names, x, strict=False):
        axis.imshow(((picture + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(f"x_T of {name}\nrms {latent.square().mean().sqrt():.3f}", fontsize=10)
        axis.set_axis_off()
    grid = np.linspace(-4.5, 4.5, 181)
    axes[-1].hist(x.flatten().numpy(), bins=90, range=(-4.5, 4.5), density=True, color=BLUE, alpha=0.6, label="x_T")
    axes[-1].plot(grid, np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), color=ORANGE, lw=2, label="N(0, 1)")
    axes[-1].set(xlabel="value", ylabel="density", xlim=(-4.5, 4.5))
    axes[-1].legend(frameon=False)
    _save(figure, path)


def error_figure(ours: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Draw reconstruction error against steps, log-log, beside the DDIM paper's Table 2.

    Args:
        ours: what was measured -> steps -> mean squared error on [0, 1].
        path: of the PNG.
    """
    figure = _figure(6.4, 4.4)
    axis: Axes = figure.subplots()
    paper = "DDIM paper, Table 2 (CIFAR-10, another model)"
    axis.loglog(list(PAPER_TABLE_2), list(PAPER_TABLE_2.values()), "s--", color=GREY, label=paper)
    for (label, errors), colour in zip(ours.items(), (BLUE, ORANGE), strict=False):
        steps = sorted(errors)
        axis.loglog(steps, [errors[s] for s in steps], "o-", color=colour, lw=2, label=label)
        for s in steps:
            axis.annotate(f"{errors[s]:.2g}", (s, errors[s]), xytext=(6, 6), textcoords="offset points", fontsize=9)
    axis.set(xlabel="steps S (encode with S, decode with S)", ylabel="mean squared error on [0, 1]")
    ticks = sorted(set(PAPER_TABLE_2).union(*ours.values()))
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.margins(y=0.1)  # room for the topmost number
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    _save(figure, path)


def write_chart(chart: Chart, folder: Path) -> list[Path]:
    """Draw a chart as NAME.pdf and NAME.png, and write its numbers to NAME.csv."""
    figure = _figure(4.8, 3.5)
    axis: Axes = figure.subplots()
    for curve, colour in zip(chart.curves, _colours(chart.curves), strict=True):
        _draw_curve(axis, curve, colour, above=0 if "y" in chart.log else -math.inf)
    axis.set(xlabel=chart.xlabel, ylabel=chart.ylabel)
    for name, of in (("x", axis.set_xscale), ("y", axis.set_yscale)):
        if name in chart.log:
            of("log")
    if "x" in chart.log:
        ticks = sorted({x for curve in chart.curves for x in curve.x})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45 if len(ticks) > 6 else 0)
        axis.xaxis.minorticks_off()
    elif all(float(x).is_integer() for curve in chart.curves for x in curve.x):
        axis.locator_params(axis="x", integer=True)  # there is no step 2.5
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    paths = [folder / f"{chart.name}.{suffix}" for suffix in ("pdf", "png", "csv")]
    _save(figure, paths[0])
    _save(figure, paths[1], dpi=220)
    write_text(paths[2], _numbers(chart))
    return paths


def _colours(curves: Sequence[Curve]) -> list[str]:
    own = iter(COLOURS * len(curves))
    return [next(own) if curve.kind == "ours" else GREY for curve in curves]


def _draw_curve(axis: "Axes", curve: Curve, colour: str, above: float) -> None:
    """Draw what lies above a bound: nothing is left of a zero on a logarithmic axis."""
    form = {"ours": "o-", "published": "s--", "level": ":"}[curve.kind]
    y = [value if value > above else math.nan for value in curve.y]
    axis.plot(curve.x, y, form, color=colour, label=curve.label, ms=4, lw=1.5)
    if len(curve.low) and len(curve.x) > 1:
        axis.fill_between(curve.x, np.array(curve.low), np.array(curve.high), color=colour, alpha=0.15, lw=0)


def _numbers(chart: Chart) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["curve", "x", "y", "low", "high"])
    for curve in chart.curves:
        none = [math.nan] * len(curve.x)
        for x, *y in zip(curve.x, curve.y, curve.low or none, curve.high or none, strict=True):
            writer.writerow([curve.label, x, *("" if math.isnan(value) else value for value in y)])
    return buffer.getvalue()


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _save(figure: "Figure", path: Path, dpi: float | None = None) -> None:
    # No versions and no dates inside: the same chart, the same bytes.
    nothing = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
    with atomic(path) as temporary:
        figure.savefig(temporary, metadata=nothing, dpi=dpi or figure.dpi)
