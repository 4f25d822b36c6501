"""report.html, which a person reads in any browser without a network, and methods.txt, which a paper quotes."""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

from ddim_edit.experiments.base import Experiment, Pair, Results, Sheet
from ddim_edit.experiments.statistics import CONFIDENCE, RESAMPLES
from ddim_edit.experiments.tables import (
    best_values,
    head_text,
    method_names,
    number_text,
    p_text,
    published_text,
    range_text,
)
from ddim_edit.plots import Chart

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.wide { overflow-x: auto; } img { max-width: 100%; } img.chart { width: 38rem; }
img.sheet { image-rendering: pixelated; border: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #222; vertical-align: bottom; } tbody tr { border-bottom: 1px solid #eee; }
small { color: #666; white-space: nowrap; } figcaption { color: #444; font-size: 0.9rem; }
figure { margin: 1.5rem 0; } pre { white-space: pre-wrap; background: #f6f6f6; padding: 0.8rem; }
"""


def methods_text(experiment: Experiment, results: Results) -> str:
    """Everything that a reader needs to judge the numbers and to make them again."""
    known = results.description
    model = cast(Mapping[str, object], known["model"])
    images = cast(Sequence[Mapping[str, str]], known["images"])
    failures = cast(Sequence[Mapping[str, str]], known["failures"])
    grids = cast(Mapping[str, Sequence[float]], known["grids"])
    measures = [f"{measure.name} ({measure.label}): {measure.text}" for measure in experiment.measures]
    lines = [
        *(experiment.title, "", experiment.text, "", f"Command: {known['command']}", ""),
        f"Model: {model['name']}; weights sha256 {model['weights']}; schedule {model['schedule']}; "
        f"prediction {model['prediction']}; shape {model['shape']}; codec {model['codec']}.",
        f"Images: {len(images)}; could not be read: {len(failures)}.",
        *(f"  {image['name']} {image.get('sha256', '')}".rstrip() for image in images[:200]),
        *(f"  ... {len(images) - 200} more in result.json" for _ in range(len(images) > 200)),
        *(f"  failed: {failure['error']}" for failure in failures),
        f"Steps of the network for these rows: {known['steps']}, counted picture by picture (with guidance, two "
        "forwards each; where photos are encoded exactly, a step takes several).",
        f"Device {known['device']}, {known['threads']} thread(s); {_versions(known)}.",
        *("", "Timesteps, clean to noisy:", *(f"  {name}: {_timesteps(grid)}" for name, grid in grids.items())),
        *("", "Measures:", *(f"  {line}" for line in measures), ""),
        f"Intervals: {CONFIDENCE:.0%}, BCa bootstrap over images, {RESAMPLES} resamples, seed 0 (fewer where images "
        "times resamples would not fit into memory).",
    ]
    if experiment.method:
        lines.append(
            f"Paired tests: {experiment.tested}, methods ({', '.join(experiment.method)}) compared image by image "
            "where the rest of the setting is the same; Wilcoxon signed-rank, two-sided, Holm over all pairs."
        )
    return "\n".join(lines) + "\n"


def report_html(experiment: Experiment, results: Results, charts: Sequence[Chart], sheets: Sequence[Sheet]) -> str:
    """One page with everything in it: tables, charts, sheets, methods."""
    known = results.description
    unfinished = "" if known["complete"] else "<p><strong>This run is not complete; repeat its command.</strong></p>"
    hidden = any(not measure.shown for measure in experiment.measures)
    sections = [
        f"<h1>{_escape(experiment.title)}</h1><p>{_escape(experiment.text)}</p>{unfinished}",
        f"<pre>{_escape(str(known['command']))}</pre>",
        "<h2>Results</h2>" + _summary(experiment, results, shown=True),
        *(_picture(results.root / "figures" / f"{chart.name}.png", chart.title) for chart in charts),
        *(["<h2>Methods compared</h2>" + _pairs(experiment, results)] if results.pairs else []),
        *(["<h2>Pictures</h2>"] if sheets else []),
        *(_picture(results.root / "sheets" / f"{s.name}.png", s.caption, "sheet") for s in sheets),
        *(["<h2>All measures</h2>" + _summary(experiment, results, shown=False)] if hidden else []),
        f"<h2>Methods</h2><pre>{_escape(methods_text(experiment, results))}</pre>",
        "<h2>Files</h2><p>rows.csv: one row per image and setting. summary.csv, summary.json and paired.csv: the "
        "tables above. table.tex: for LaTeX (booktabs). figures/: PDF, PNG and the numbers. result.json: settings, "
        "seeds, versions, hashes. <code>ddim-edit experiment render</code> makes all but rows and pictures again.</p>",
    ]
    title = _escape(experiment.title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    icon = '<link rel="icon" href="data:,">'  # or browsers ask for one, and log that there is none
    top = f'<!doctype html>\n<html lang="en"><head>{head}{icon}<style>{_STYLE}</style></head>\n<body>'
    return "\n".join([top, *sections, "</body></html>\n"])


def _summary(experiment: Experiment, results: Results, *, shown: bool) -> str:
    measures = [measure for measure in experiment.measures if measure.shown or not shown]
    published = [experiment.published[0]] if experiment.published else []
    best = best_values(experiment, results)
    head = [*experiment.settings, "images", *map(head_text, measures), *published]
    lines: list[list[str]] = []
    for number, found in enumerate(results.summaries):
        cells = [*map(_escape, found.setting.values()), str(found.images)]
        for measure in measures:
            one = found.found[measure.name]
            value = number_text(one.value)
            value = f"<strong>{value}</strong>" if (number, measure.name) in best else value
            # An interval of no width is no interval: values that do not vary.
            cells.append(f"{value} <small>[{range_text(one)}]</small>" if one.low < one.high else value)
        lines.append([*cells, *map(_escape, published_text(experiment, found))])
    return _table(head, lines)


def _pairs(experiment: Experiment, results: Results) -> str:
    context = [name for name in experiment.settings if name not in experiment.method]
    head = [*context, "first", "second", "images", f"difference of {experiment.tested}", "p (Wilcoxon, Holm)"]
    return _table(head, (_pair(pair) for pair in results.pairs))


def _pair(pair: Pair) -> list[str]:
    difference = f"{number_text(pair.difference.value)} <small>[{range_text(pair.difference)}]</small>"
    names = [*pair.context.values(), *method_names(pair)]
    return [*map(_escape, names), str(pair.images), difference, _escape(p_text(pair.p_holm))]


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{_escape(text)}</th>" for text in head)
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n" for cells in lines)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>\n{rows}</tbody></table></div>'


def _picture(path: Path, caption: str, kind: str = "chart") -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    text = _escape(caption)
    image = f'<img class="{kind}" alt="{text}" src="data:image/png;base64,{data}">'
    return f'<figure><div class="wide">{image}</div><figcaption>{text}</figcaption></figure>'


def _escape(text: str) -> str:
    return html.escape(text)


def _timesteps(grid: Sequence[float]) -> str:
    texts = [f"{t:g}" for t in grid]
    gaps = {round(b - a, 6) for a, b in pairwise(grid)}
    shown = [*texts[:3], "...", texts[-1]] if len(texts) > 24 and len(gaps) == 1 else texts  # nothing is lost
    return f"{len(texts)} steps, {', '.join(shown)}"


def _versions(known: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in json.loads(json.dumps(known["versions"])).items())
