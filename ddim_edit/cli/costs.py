"""What `interpolate --dry-run` prints: the clip that would be made, and what it would cost."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ddim_edit.forecast import Part
    from ddim_edit.models.base import Model
    from ddim_edit.morphing import Morph
    from ddim_edit.recipe import Recipe


def report(
    plan: "Morph", recipe: "Recipe", frames: int, parts: "Sequence[Part]", model: "Model", batch_size: int
) -> dict[str, Any]:
    """The figures, with a few evaluations timed; `plan` needs no positions yet."""
    from ddim_edit.forecast import seconds_each, total
    from ddim_edit.interpolation import segments

    whole, each = total(parts), seconds_each(model, recipe, batch_size)
    return {
        "keys": plan.latents.names,
        "frames": len(plan.order) or (None if plan.motion.max_step else frames),
        "segments": segments(len(plan.latents), closed=plan.motion.closed),
        "path": plan.path,
        "steps": {"encode": recipe.grid.steps, "decode": plan.grid.steps},
        "work": [vars(part) for part in parts],
        "evaluations": {"count": whole.evaluations, "bound": whole.bound},
        "seconds": round(each * whole.evaluations, 1),
        "seconds_each": each,
        "device": str(model.device),
    }


def say(found: dict[str, Any], *, as_json: bool) -> None:
    """Print them, for programs or for people."""
    if as_json:
        click.echo(json.dumps(found))
        return
    frames = "as many frames as --max-step needs" if found["frames"] is None else f"{found['frames']} frames"
    steps = found["steps"]["decode"]
    click.echo(f"keys: {', '.join(found['keys'])}")
    click.echo(f"clip: {frames}, {found['segments']} segments, path {found['path']}, {steps} steps a picture")
    for part in found["work"]:
        count = f"{_bounded(part['evaluations'], part['bound'])} evaluations"
        click.echo(f"  {part['what']:8} {part['pictures']:5} pictures  {count}")
    count, bound = found["evaluations"].values()
    click.echo(
        f"total: {_bounded(count, bound)} evaluations; {bound if bound == 'at least' else 'about'} "
        f"{found['seconds']:g} s on {found['device']}, at {found['seconds_each']:.3g} s an evaluation"
    )


def _bounded(count: int, bound: str) -> str:
    return str(count) if bound == "exactly" else f"{bound} {count}"
