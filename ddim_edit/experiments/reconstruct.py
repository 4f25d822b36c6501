"""The DDIM paper's Table 2: encode photos, decode them again, and measure what came back."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ddim_edit.batch import PhotoBatch, roundtrip_photos
from ddim_edit.experiments.base import Cell, Experiment, Measure, Results, Setting, Sheet, Unit, Value, units_of
from ddim_edit.experiments.charts import against, blocks, picture_sheet
from ddim_edit.experiments.statistics import psnr_of_mean
from ddim_edit.experiments.store import Store
from ddim_edit.images import to_tensor, to_uint8
from ddim_edit.metrics import compare, pixels_off
from ddim_edit.models.base import Model
from ddim_edit.ode import OnStep
from ddim_edit.plots import PAPER_TABLE_2, Chart, Curve
from ddim_edit.recipe import Recipe

ROUNDING_FLOOR = 1 / 255**2 / 12  # the MSE of rounding to 8 bits: that of a uniform error of one level's width
PHOTO: Setting = {"photo": "original"}
ERRORS = ("mse", "psnr", "ssim", "max_error", "pixels_off")


@dataclass(frozen=True)
class Method:
    """One way of encoding and decoding, under the names that rows give it."""

    setting: Setting
    recipe: Recipe


def units(
    model: Model, photos: PhotoBatch, methods: Sequence[Method], store: Store, show: int, batch: int
) -> list[Unit]:
    """The work: every photo by every method; the first `show` leave their pictures."""
    names = [record.name for record in photos.records]
    recipes = {tuple(method.setting.values()): method.recipe for method in methods}

    def measure(cell: Cell, chosen: Sequence[str], on_step: OnStep) -> list[Mapping[str, Value]]:
        rows = [names.index(name) for name in chosen]
        part = PhotoBatch([photos.records[row] for row in rows], photos.pixels[rows])
        trips = list(roundtrip_photos(model, [part], recipes[tuple(cell.setting.values())], on_step=on_step))
        back = torch.stack([trip.picture for trip in trips])
        for pixels, place in ((part.pixels, PHOTO), (back, cell.setting)):
            kept = {name: picture for name, picture in zip(chosen, pixels, strict=True) if name in names[:show]}
            store.keep(place, kept)
        health = [trip.photo.health for trip in trips]
        spent = [trip.photo.evaluations + trip.decode_evaluations for trip in trips]
        return [
            {**errors, "latent_rms": found.rms if found else "nan", "evaluations": cost}
            for errors, found, cost in zip(errors_of(part.pixels, back), health, spent, strict=True)
        ]

    cells = [Cell(method.setting, 2 * method.recipe.grid.steps) for method in methods]
    return units_of(cells, names, batch, measure)


def errors_of(photos: Tensor, back: Tensor) -> list[dict[str, float]]:
    """Errors of pictures (B, 3, H, W), as floats and, under names that end in `_8bit`, as a file would hold them."""
    found: list[dict[str, float]] = [{} for _ in photos]
    for end, pictures in (("", back), ("_8bit", torch.stack([to_tensor(to_uint8(picture)) for picture in back]))):
        off = pixels_off(photos, pictures).tolist()
        for row, quality, share in zip(found, compare(photos, pictures), off, strict=True):
            values = {**asdict(quality), "pixels_off": share}
            row.update({f"{name}{end}": values[name] for name in ERRORS})
    return found


def _slope(curve: Curve) -> str:
    """How fast a curve falls from its first to its last point, on logarithmic axes; the paper's falls as S^-1.2."""
    ends = [(curve.x[k], curve.y[k]) for k in (0, -1)]
    if len(curve.x) < 2 or min(y for _, y in ends) <= 0:
        return ""
    (x0, y0), (x1, y1) = ends
    return f", S^{math.log(y1 / y0) / math.log(x1 / x0):.2f}"


def _charts(results: Results) -> Iterator[Chart]:
    curves = [replace(curve, label=f"{curve.label}{_slope(curve)}") for curve in against(results, "mse")]
    steps = [float(value) for value in results.values("steps")]
    paper = [(s, PAPER_TABLE_2[int(s)]) for s in steps if int(s) in PAPER_TABLE_2]
    if paper:
        x, y = zip(*paper, strict=True)
        curves.append(Curve("DDIM paper, Table 2 (CIFAR-10, another model)", x, y, kind="published"))
    ends = [min(steps), max(steps)]
    curves.append(Curve("rounding to 8 bits", ends, [ROUNDING_FLOOR] * 2, kind="level"))
    yield Chart(
        "error_against_steps",
        "Reconstruction error against steps, with the paper's figures and the floor of 8-bit files",
        "steps S (encode with S, decode with S)",
        "mean squared error on [0, 1]",
        curves,
        log="xy",
    )


def _sheets(results: Results) -> Iterator[Sheet]:
    for common, block in blocks(results, "steps"):
        columns = {"photo": PHOTO} | {f"S = {found.setting['steps']}": found.setting for found in block}
        name = "_".join(["reconstructions", *common.values()])
        yield Sheet(name, f"Photos and what came back: {' '.join(common.values())}.", picture_sheet(results, columns))


EXPERIMENT = Experiment(
    name="reconstruct",
    title="Reconstruction error of photos against the number of steps",
    text=(
        "Each photo is encoded toward noise in S steps and decoded again in S steps (DDIM, arXiv 2010.02502, section "
        "5.4 and Table 2). Errors are on the scale [0, 1] against the 8-bit photo after crop and resize; on floats, "
        "unclamped, and again after rounding to 8 bits as in a file."
    ),
    settings=("solver", "inverse", "spacing", "steps"),
    columns=(*ERRORS, *(f"{name}_8bit" for name in ERRORS), "latent_rms", "evaluations"),
    measures=(
        Measure("mse", "MSE", "mean squared error on [0, 1], mean over photos", better="lower"),
        Measure(
            "psnr", "PSNR of it", "PSNR in dB of that mean", columns=("mse",), statistic=psnr_of_mean, better="higher"
        ),
        Measure("ssim", "SSIM", "Gaussian window of sigma 1.5, data range 1, mean over channels", better="higher"),
        Measure("max_error", "max error", "largest error of one value, mean over photos", better="lower"),
        Measure(
            "pixels_off", "off by > 1/255", "share of pixels with a channel off by more than 1/255", better="lower"
        ),
        Measure("mse_8bit", "MSE, 8-bit", "the MSE of the picture rounded to 8 bits", better="lower"),
        Measure(
            "psnr_8bit",
            "PSNR of it, 8-bit",
            "PSNR in dB of the mean 8-bit MSE",
            columns=("mse_8bit",),
            statistic=psnr_of_mean,
            better="higher",
            shown=False,
        ),
        *(
            Measure(f"{name}_8bit", f"{name}, 8-bit", f"{name} of the picture rounded to 8 bits", shown=False)
            for name in ERRORS[2:]
        ),
        Measure("latent_rms", "rms of x_T", "root mean square of the latent; a Gaussian has 1"),
        Measure("evaluations", "evaluations", "network forwards of one photo, both ways", shown=False),
    ),
    charts=_charts,
    sheets=_sheets,
    method=("solver", "inverse", "spacing"),
    tested="mse",
    published=("paper's MSE (CIFAR-10)", lambda setting: PAPER_TABLE_2.get(int(setting["steps"]))),
)
