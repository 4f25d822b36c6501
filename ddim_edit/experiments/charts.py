"""What charts and sheets of several experiments share: curves against steps, and pictures laid out by setting."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from ddim_edit.experiments.base import Results, Setting, Summary
from ddim_edit.experiments.store import picture_path
from ddim_edit.images import read_picture, visible_scale
from ddim_edit.plots import Curve
from ddim_edit.sheets import sheet


def blocks(results: Results, along: str) -> Iterator[tuple[Setting, list[Summary]]]:
    """The summaries in blocks that differ in nothing but the setting `along`, each with what it has in common."""
    found: dict[tuple[tuple[str, str], ...], list[Summary]] = {}
    for summary in results.summaries:
        rest = tuple((name, value) for name, value in summary.setting.items() if name != along)
        found.setdefault(rest, []).append(summary)
    return ((dict(rest), block) for rest, block in found.items())


def against(results: Results, measure: str, along: str = "steps") -> list[Curve]:
    """One curve for every block: a measure against the numbers of a setting."""
    curves: list[Curve] = []
    for common, block in blocks(results, along):
        found = sorted((float(summary.setting[along]), summary.found[measure]) for summary in block)
        x, intervals = zip(*found, strict=True)
        low, high = ([getattr(one, end) for one in intervals] for end in ("low", "high"))
        curves.append(Curve(" ".join(common.values()) or measure, x, [one.value for one in intervals], low, high))
    return curves


def picture_sheet(results: Results, columns: Mapping[str, Setting], names: Sequence[str] = ()) -> Tensor:
    """The pictures of the shown images, one row each, at the settings that the column titles name."""
    rows = names or results.shown
    tiles = [[read_picture(picture_path(results.root, place, name)) for place in columns.values()] for name in rows]
    return sheet(tiles, row_titles=rows, column_titles=list(columns), scale=visible_scale(tiles[0][0].shape[-1]))
