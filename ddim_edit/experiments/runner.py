"""Run an experiment into its folder, and render what the folder holds: one way for all experiments."""

from collections.abc import Sequence
from pathlib import Path

from ddim_edit.errors import OutputError
from ddim_edit.experiments.base import Experiment, Results, Unit
from ddim_edit.experiments.report import methods_text, report_html
from ddim_edit.experiments.statistics import compare_methods, summarise
from ddim_edit.experiments.store import Store
from ddim_edit.experiments.tables import paired_csv, summary_csv, summary_json, table_tex
from ddim_edit.files import write_text
from ddim_edit.images import write_image
from ddim_edit.ode import OnStep
from ddim_edit.plots import write_chart


def run(experiment: Experiment, units: Sequence[Unit], store: Store, on_step: OnStep) -> None:
    """Make the rows that the folder does not have yet.

    Args:
        experiment: what is run.
        units: all of its work, in order; what was done before is skipped.
        store: the folder, in which `Store.begin` was called.
        on_step: called after every step of the network.
    """
    for unit in store.keep_whole(experiment, units):
        rows = unit.make(on_step)
        assert tuple(experiment.key(row) for row in rows) == unit.keys
        store.append(experiment, rows)


def render(experiment: Experiment, root: Path) -> list[Path]:
    """Make tables, charts, sheets and the report from rows.csv, result.json and the pictures, without the model.

    The same folder gives the same bytes.

    Returns:
        What was written.

    Raises:
        OutputError: the folder has no rows, or is no experiment's.
    """
    store = Store(root)
    rows = store.rows(experiment)
    if not rows:
        raise OutputError(f"{root} has no rows yet; repeat the command that its result.json names")
    results = Results(root, store.description(), rows, summarise(experiment, rows), compare_methods(experiment, rows))
    charts, sheets = list(experiment.charts(results)), list(experiment.sheets(results) if results.shown else ())
    paths = [path for chart in charts for path in write_chart(chart, root / "figures")]
    for sheet in sheets:
        paths.append(root / "sheets" / f"{sheet.name}.png")
        write_image(sheet.picture, paths[-1])
    texts = {
        "summary.csv": summary_csv(experiment, results),
        "summary.json": summary_json(experiment, results),
        "table.tex": table_tex(experiment, results),
        "methods.txt": methods_text(experiment, results),
        "report.html": report_html(experiment, results, charts, sheets),
    }
    if results.pairs:
        texts["paired.csv"] = paired_csv(experiment, results)
    for name, text in texts.items():
        write_text(root / name, text)
    return [*paths, *(root / name for name in texts), *(experiment.animate(results) if results.shown else ())]
