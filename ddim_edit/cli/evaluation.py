"""`evaluate-model`: how well a model fits photos."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from ddim_edit.cli import options, run, values

if TYPE_CHECKING:
    from ddim_edit.datasets import PhotoSet
    from ddim_edit.evaluation import Estimate, Evaluation
    from ddim_edit.images import Fit
    from ddim_edit.models.base import Model


@click.command()
@options.model_argument
@click.argument("photos", type=click.Path(path_type=Path))
@click.option(
    "--labels", type=click.Choice(["null", "true"]), default="null", show_default=True, help="None, or the photos' own."
)
@click.option("--label-table", type=click.Path(path_type=Path), help="CSV (file, label) instead of sub-folders.")
@click.option(
    "--timesteps",
    type=values.timesteps,
    metavar="T,T,...",
    help="Where to report the error by itself, like 50,300.  [default: six levels]",
)
@click.option("--draws", type=int, default=20, show_default=True, help="Timesteps per photo behind the means.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of timesteps and noise.")
@click.option("--fit", type=click.Choice(options.FITS), default="crop", show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only the first N photos.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Photos at once.")
@options.progress_option
@options.json_option
def evaluate_model(  # noqa: PLR0913
    *,
    choice: options.ModelChoice,
    photos: Path,
    labels: str,
    label_table: Path | None,
    timesteps: list[float] | None,
    draws: int,
    seed: int,
    fit: "Fit",
    limit: int | None,
    batch_size: int,
    progress: bool,
    as_json: bool,
) -> int:
    """Measure MODEL on PHOTOS (a folder or an .npz) that it was not trained on.

    Prints the error of its noise predictions (MSE of eps) and the variational bound, each with a 95 % interval over
    photos. Timesteps and noise are fixed by the seed, so models can be compared.

    \b
    ddim-edit evaluate-model small photos.npz
    ddim-edit evaluate-model run/ photos/ --labels true --json
    """
    from ddim_edit.datasets import read_photo_set
    from ddim_edit.evaluation import evaluate_model as evaluate
    from ddim_edit.evaluation import evaluations_per_photo

    if timesteps is not None and (odd := [t for t in timesteps if not float(t).is_integer()]):
        raise click.UsageError(f"--timesteps has {odd[0]:g}; give whole numbers.")
    model = choice.load()
    if labels != "true" and model.labels and model.labels.null is None:
        raise click.UsageError(
            f"{model.name} has no class for 'no class'; give --labels true, and photos with classes."
        )
    found = read_photo_set(photos, model.image_size, table=label_table, fit=fit, limit=limit)
    levels = None if timesteps is None else [int(t) for t in timesteps]
    each = evaluations_per_photo(draws) if levels is None else evaluations_per_photo(draws, len(levels))
    with run.Progress("evaluate", len(found) * each, shown=progress) as bar:
        result = evaluate(
            model,
            found.scaled,
            _indices(model, found) if labels == "true" else None,
            timesteps=levels,
            draws=draws,
            seed=seed,
            batch_size=batch_size,
            on_batch=bar.advance,
        )
    facts = {"model": model.name, "weights": model.fingerprint, "labels": labels, "seed": seed}
    click.echo(json.dumps(facts | _row(result, found)) if as_json else _table(result))
    for failure in found.failures:
        click.echo(f"failed: {failure.error}", err=True)
    return run.PARTLY_FAILED if found.failures else 0


def _indices(model: "Model", photos: "PhotoSet") -> list[int]:
    """The photos' own labels, by the model's numbers."""
    from ddim_edit.errors import ConfigError
    from ddim_edit.training.data import labels_of

    if photos.classes is None or model.labels is None:
        who = "the photos have" if photos.classes is None else f"{model.name} knows"
        raise ConfigError(f"--labels true, but {who} no classes; leave it out")
    return labels_of(photos, model.labels).tolist()


def _row(result: "Evaluation", photos: "PhotoSet") -> dict[str, object]:
    """One JSON object; the keys are part of the interface."""
    bound = result.bits_per_dim
    return {
        "photos": result.photos,
        "draws": result.draws,
        "eps_mse": {
            "uniform": vars(result.uniform),
            "high": vars(result.high),
            "levels": {str(t): vars(value) for t, value in result.levels.items()},
        },
        "bits_per_dim": None if bound is None else vars(bound),
        "failures": [vars(failure) for failure in photos.failures],
    }


def _table(result: "Evaluation") -> str:
    rows = [("uniform t", result.uniform), ("t >= 0.4 T", result.high)]
    rows += [(f"t = {t}", value) for t, value in result.levels.items()]
    lines = [f"MSE of eps, {result.photos} photos, mean and 95 % interval over photos"]
    lines += [f"{name:<10}  {_interval(value, '.5f')}" for name, value in rows]
    if result.bits_per_dim:
        lines.append(f"bits/dim    {_interval(result.bits_per_dim, '.3f')}")
    return "\n".join(lines)


def _interval(value: "Estimate", form: str) -> str:
    if value.low is None:
        return f"{value.mean:{form}}"
    return f"{value.mean:{form}}  [{value.low:{form}}, {cast(float, value.high):{form}}]"
