"""From rows to numbers that can be published: intervals by bootstrap over images, and paired tests between methods.

The unit is the image: at eta = 0 a seed changes nothing, so error bars over repeated runs would be empty. Every
interval starts from the same random seed, so the same rows give the same numbers.
"""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from ddim_edit.experiments.base import Array, Experiment, Interval, Measure, Pair, Setting, Statistic, Summary, mean

CONFIDENCE = 0.95
RESAMPLES = 9_999
_FEWEST = 199
_BUDGET = 5e8  # numbers drawn for one interval: with very many images there are fewer resamples

Row = Mapping[str, str]


def summarise(experiment: Experiment, rows: Sequence[Row]) -> list[Summary]:
    """The measures at every setting, in order of appearance."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in experiment.settings), []).append(row)
    return [
        Summary(
            dict(zip(experiment.settings, values, strict=True)),
            len(group),
            {
                measure.name: _measured(measure, [column(group, name) for name in measure.sources])
                for measure in experiment.measures
            },
        )
        for values, group in groups.items()
    ]


def _measured(measure: Measure, columns: Sequence[Array]) -> Interval:
    if measure.resampled:
        return interval(columns, measure.statistic)
    with np.errstate(all="ignore"):
        return Interval(float(measure.statistic(*columns)), math.nan, math.nan)


def column(rows: Sequence[Row], name: str) -> Array:
    """A column of rows as numbers."""
    return np.array([float(row[name]) for row in rows])


def interval(columns: Sequence[Array], statistic: Statistic) -> Interval:
    """A statistic of paired columns, with its interval at 95 % by the bootstrap (BCa) over images.

    Args:
        columns: (N,) each, N images.
        statistic: takes arrays (..., N) and gives (...).

    Returns:
        The interval; its ends are NaN for a single image or where the statistic is not finite.
    """
    from scipy.stats import bootstrap

    with np.errstate(all="ignore"):
        value = float(statistic(*columns))
    images = len(columns[0])
    if images < 2 or not math.isfinite(value):
        return Interval(value, math.nan, math.nan)
    if all(np.allclose(values, values[0], rtol=1e-9, atol=0) for values in columns):  # or BCa may divide 0 by 0
        return Interval(value, value, value)
    size = images * len(columns)
    count = max(_FEWEST, min(RESAMPLES, int(_BUDGET / size)))

    def along_images(*given: Array, axis: int) -> Array:
        return statistic(*given)  # axis is always the last one

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # degenerate resamples give NaN, which is what we report
        found = bootstrap(
            tuple(columns),
            along_images,
            n_resamples=count,
            batch=max(1, int(1e7 / size)),
            vectorized=True,
            paired=True,
            confidence_level=CONFIDENCE,
            method="BCa" if images > 2 else "percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return Interval(value, float(found.low), float(found.high))


def compare_methods(experiment: Experiment, rows: Sequence[Row]) -> list[Pair]:
    """Every two methods, image by image, wherever the rest of the setting is the same.

    Mean difference (first minus second) with its interval, and Wilcoxon's signed-rank test, corrected after Holm for
    all pairs of the experiment. Rows of what the others are compared with are left out.
    """
    context = [name for name in experiment.settings if name not in experiment.method]
    found: dict[tuple[str, ...], dict[tuple[str, ...], dict[str, float]]] = {}
    own = experiment.references(rows)
    for row in rows if experiment.method else ():
        if {name: row[name] for name in experiment.settings} in own:
            continue
        place, method = (tuple(row[name] for name in names) for names in (context, experiment.method))
        found.setdefault(place, {}).setdefault(method, {})[row["image"]] = float(row[experiment.tested])
    pairs: list[Pair] = []
    for place, methods in found.items():
        for first, second in itertools.combinations(methods, 2):
            images = [image for image in methods[first] if image in methods[second]]
            difference = np.array([methods[first][image] - methods[second][image] for image in images])
            named: list[Setting] = [dict(zip(experiment.method, name, strict=True)) for name in (first, second)]
            pairs.append(
                Pair(
                    dict(zip(context, place, strict=True)),
                    *named,
                    images=len(images),
                    difference=interval([difference], mean),
                    p=_wilcoxon(difference),
                    p_holm=math.nan,
                )
            )
    return _holm(pairs)


def _wilcoxon(difference: Array) -> float:
    from scipy.stats import wilcoxon

    if len(difference) < 2 or not np.isfinite(difference).all():
        return math.nan
    _, p = cast(tuple[float, float], wilcoxon(difference)) if difference.any() else (0.0, 1.0)
    return float(p)


def _holm(pairs: Sequence[Pair]) -> list[Pair]:
    """Holm's step-down correction: p times the number of hypotheses still standing, never falling."""
    order = sorted((index for index, pair in enumerate(pairs) if math.isfinite(pair.p)), key=lambda i: pairs[i].p)
    corrected = dict.fromkeys(range(len(pairs)), math.nan)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, pairs[index].p * (len(order) - rank)))
        corrected[index] = highest
    return [replace(pair, p_holm=corrected[index]) for index, pair in enumerate(pairs)]


def psnr_of_mean(errors: Array) -> Array:
    """PSNR in dB of the mean of some MSEs on [0, 1], infinite where all are 0."""
    return -10 * np.log10(errors.mean(-1))


def ratio_of_means(first: Array, second: Array) -> Array:
    """The mean of one column over that of another."""
    return first.mean(-1) / second.mean(-1)


def correlation(first: Array, second: Array) -> Array:
    """Pearson's correlation over images; NaN where one of them does not vary."""
    a, b = (x - x.mean(-1, keepdims=True) for x in (first, second))
    return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
