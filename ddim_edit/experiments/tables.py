"""The summary of an experiment as files: summary.csv, summary.json, paired.csv and table.tex."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence

from ddim_edit.experiments.base import Experiment, Interval, Measure, Pair, Results, Summary
from ddim_edit.experiments.statistics import CONFIDENCE, RESAMPLES

_SPECIAL = {"\\": r"\textbackslash{}", **{char: f"\\{char}" for char in "&%$#_{}"}}


def summary_csv(experiment: Experiment, results: Results) -> str:
    """One line per setting: every measure with the ends of its interval; empty where there is none."""
    columns = [f"{measure.name}{end}" for measure in experiment.measures for end in ("", "_low", "_high")]
    lines: list[list[object]] = [[*experiment.settings, "images", *columns]]
    for found in results.summaries:
        ends = [end for measure in experiment.measures for end in _ends(found.found[measure.name])]
        lines.append([*found.setting.values(), found.images, *map(_number, ends)])
    return _csv(lines)


def paired_csv(experiment: Experiment, results: Results) -> str:
    """One line per two methods."""
    head = ["first", "second", "images", "difference", "difference_low", "difference_high", "p", "p_holm"]
    lines: list[list[object]] = [[*_context(experiment), *head]]
    for pair in results.pairs:
        numbers = [*_ends(pair.difference), pair.p, pair.p_holm]
        lines.append([*pair.context.values(), *method_names(pair), pair.images, *map(_number, numbers)])
    return _csv(lines)


def summary_json(experiment: Experiment, results: Results) -> str:
    """The same for programs; null stands for what is not finite."""

    def plain(found: Interval) -> dict[str, float | None]:
        names = ("value", "low", "high")
        return {name: x if math.isfinite(x) else None for name, x in zip(names, _ends(found), strict=True)}

    record = {
        "format": 1,
        "experiment": experiment.name,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "settings": [
            {"setting": s.setting, "images": s.images, **{name: plain(found) for name, found in s.found.items()}}
            for s in results.summaries
        ],
        "tested": experiment.tested or None,
        "pairs": [
            {
                "context": pair.context,
                "first": pair.first,
                "second": pair.second,
                "images": pair.images,
                "difference": plain(pair.difference),
                **{name: x if math.isfinite(x) else None for name, x in (("p", pair.p), ("p_holm", pair.p_holm))},
            }
            for pair in results.pairs
        ],
    }
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def table_tex(experiment: Experiment, results: Results) -> str:
    """A booktabs table, and a second one of the paired tests where methods were compared.

    Bold is the best method of its block; the interval stands beneath each value in small print.
    """
    measures = [measure for measure in experiment.measures if measure.shown]
    published = [experiment.published[0]] if experiment.published else []
    head = [*experiment.settings, "n", *(measure.label for measure in measures), *published]
    best = best_values(experiment, results)
    lines: list[list[str]] = []
    for number, found in enumerate(results.summaries):
        cells = [*map(_tex, found.setting.values()), str(found.images)]
        for measure in measures:
            one = found.found[measure.name]
            text = rf"\textbf{{{number_text(one.value)}}}" if (number, measure.name) in best else number_text(one.value)
            cells.append(text if math.isnan(one.low) else rf"{text} {{\scriptsize[{range_text(one)}]}}")
        lines.append([*cells, *(_tex(text) for text in published_text(experiment, found))])
    parts = [f"% {experiment.title}. Needs \\usepackage{{booktabs}}.", *_tabular(head, lines)]
    if results.pairs:
        parts += ["", f"% Paired differences of {experiment.tested}: mean, 95 % interval, Wilcoxon p after Holm."]
        parts += _tabular(
            [*_context(experiment), "first", "second", "n", "difference", "p"], map(_pair_tex, results.pairs)
        )
    return "\n".join(parts) + "\n"


def best_values(experiment: Experiment, results: Results) -> set[tuple[int, str]]:
    """(number of the summary, measure) of the best of rival methods, wherever they differ; references are no rivals."""
    best: set[tuple[int, str]] = set()
    own = experiment.references(results.rows)
    for measure in experiment.measures if experiment.method else ():
        blocks: dict[tuple[str, ...], list[tuple[float, int]]] = {}
        for number, found in enumerate(results.summaries):
            if measure.better and found.setting not in own and not math.isnan(found.found[measure.name].value):
                sign = 1 if measure.better == "lower" else -1
                place = tuple(found.setting[name] for name in _context(experiment))
                blocks.setdefault(place, []).append((sign * found.found[measure.name].value, number))
        best |= {(min(block)[1], measure.name) for block in blocks.values() if min(block)[0] < max(block)[0]}
    return best


def published_text(experiment: Experiment, found: Summary) -> list[str]:
    """The paper's figure beside ours, if the experiment has such a column."""
    if experiment.published is None:
        return []
    value = experiment.published[1](found.setting)
    return ["" if value is None else f"{value:g}"]


def method_names(pair: Pair) -> tuple[str, str]:
    """The two methods in words."""
    return " ".join(pair.first.values()), " ".join(pair.second.values())


def number_text(value: float) -> str:
    """Three significant digits, for people; whole numbers, which are counts and timesteps, as they are."""
    if math.isnan(value):
        return "-"
    if value.is_integer() and abs(value) < 1e4:
        return f"{value:.0f}"
    if 1e-3 <= abs(value) < 1e4:
        digits = 3 - 1 - math.floor(math.log10(abs(value)))
        return f"{value:.{min(max(digits, 0), 5)}f}"
    return f"{value:.2e}"


def range_text(found: Interval) -> str:
    """The interval, for people."""
    return f"{number_text(found.low)}, {number_text(found.high)}"


def p_text(p: float) -> str:
    """A probability, for people."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def head_text(measure: Measure) -> str:
    """The head of a column, with the direction that is better."""
    return measure.label + {"lower": " (lower is better)", "higher": " (higher is better)", "": ""}[measure.better]


def _pair_tex(pair: Pair) -> list[str]:
    difference = rf"{number_text(pair.difference.value)} {{\scriptsize[{range_text(pair.difference)}]}}"
    names = [*pair.context.values(), *method_names(pair)]
    return [*map(_tex, names), str(pair.images), difference, p_text(pair.p_holm).replace("<", "$<$")]


def _tabular(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rows = [" & ".join(cells) + r" \\" for cells in lines]
    top = " & ".join(_tex(text) for text in head) + r" \\"
    form = f"\\begin{{tabular}}{{{'l' * len(head)}}}"
    return [form, r"\toprule", top, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]


def _tex(text: str) -> str:
    return "".join(_SPECIAL.get(char, char) for char in text)


def _context(experiment: Experiment) -> list[str]:
    return [name for name in experiment.settings if name not in experiment.method]


def _ends(found: Interval) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def _number(value: float) -> str:
    return "" if math.isnan(value) else str(value)


def _csv(lines: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
