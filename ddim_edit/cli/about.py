"""`info` and `doctor`: what a model or a latents file is, and whether this machine is ready."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddim_edit.cli import options

if TYPE_CHECKING:
    from ddim_edit.grid import Grid
    from ddim_edit.latents import Latents
    from ddim_edit.models.base import Model


@click.command()
@click.argument("subject", required=False)
@options.model_options
@options.grid_options
@options.json_option
def info(subject: str | None, choice: options.ModelChoice, grid: options.GridChoice, as_json: bool) -> int:
    """Describe SUBJECT: a latents file, or a model (bundled name, folder or hub id; by default --model)."""
    from dataclasses import replace

    from ddim_edit.latents import Latents

    if subject and subject.endswith(".safetensors"):
        facts = _latents_facts(Latents.load(Path(subject)))
    elif subject and Path(subject).is_file():
        raise click.UsageError(f"{subject} is a file and holds no latents; give a .safetensors, or a model's folder.")
    else:
        model = (replace(choice, model=subject) if subject else choice).load()
        facts = _model_facts(model, grid.build(model.schedule))
    if as_json:
        click.echo(json.dumps(facts))
        return 0
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        click.echo(f"{key:<{width}}  {value if isinstance(value, str) else json.dumps(value)}")
    return 0


def _model_facts(model: "Model", grid: "Grid") -> dict[str, object]:
    from ddim_edit.solvers.spending import contractions

    labels = model.labels
    return {
        "model": model.name,
        "photo size": list(model.image_size),
        "size multiple": model.size_multiple * model.codec.factor,
        "prediction": str(model.prediction),
        "timesteps": len(model.schedule),
        "labels": None if labels is None else (list(labels.names) or labels.count),
        "null label": None if labels is None else labels.null,
        "weights sha256": model.fingerprint,
        "schedule": model.schedule.digest,
        **model.facts,
        "device": str(model.device),
        "grid": {"steps": grid.steps, "spacing": grid.spacing, "timesteps": grid.timesteps},
        "step sizes in log SNR": [round(h, 2) if math.isfinite(h) else None for h in grid.step_sizes()],
        "expected contraction": [None if rate is None else round(rate, 2) for rate in contractions(grid)],
        "to invert": _invertibility(grid),
    }


def _invertibility(grid: "Grid") -> str:
    """What an exact encode would make of this grid."""
    from ddim_edit.solvers.spending import contractions

    refined = grid.refined()
    if refined.steps > grid.steps:
        return f"some steps are too large: an exact encode splits them and has {refined.steps} instead of {grid.steps}"
    worst = max((rate for rate in contractions(grid) if rate is not None), default=0.0)
    return f"well; the hardest step leaves {worst:.0%} of an error after one evaluation"


def _latents_facts(latents: "Latents") -> dict[str, object]:
    return {
        "photos": len(latents),
        "shape": list(latents.x.shape),
        "level": f"t = {latents.level.t:g}",
        "space": dict(latents.space),
        "how": dict(latents.how),
        "trajectory": list(latents.trajectory_t),
        "records": [record.to_json() for record in latents.photos],
    }


@click.command()
@options.json_option
def doctor(as_json: bool) -> int:
    """Check this machine: versions, device, video, the bundled model, and known traps."""
    from ddim_edit.doctor import checks

    results = list(checks())
    for result in results:
        if as_json:
            click.echo(json.dumps(vars(result)))
        else:
            click.echo(f"{'ok  ' if result.ok else 'FAIL'}  {result.name}: {result.detail}")
    return 0 if all(result.ok or result.optional for result in results) else 1
