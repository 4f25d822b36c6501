"""`interpolate`: a morph through photos, latents or seeds as a video."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddim_edit.cli import costs, options, run, values
from ddim_edit.cli import film as films
from ddim_edit.cli.keys import Asked, Keys, Ready, keys_options
from ddim_edit.cli.packing import packed

if TYPE_CHECKING:
    from ddim_edit.models.base import Model
    from ddim_edit.morphing import Morph
    from ddim_edit.motion import Motion
    from ddim_edit.rendering import Checkpoint

# Written out, because reading them from the modules that define them would import torch; a test compares them.
PATHS = ("slerp", "squad", "catmull-rom", "lerp", "lerp-norm")
PACES = ("none", "l2", "ssim", "unet")
OVERS = ("global", "segment")
EASES = ("linear", "ease-in", "ease-out", "ease-in-out", "smoothstep")
ENDPOINTS = ("decoded", "paste", "exact")
CORRECTIONS = ("none", "radius", "adain", "clip")


@dataclass(frozen=True)
class MotionChoice:
    """How the clip moves."""

    how: str | None
    loop: bool
    boomerang: bool
    pace: str
    pilot: int
    settle: int
    pace_over: str
    ease: str | list[float]
    max_step: float | None
    endpoints: str | None
    correct: str

    def __post_init__(self) -> None:
        if self.loop and self.boomerang:
            raise click.UsageError("--loop goes on from the last photo to the first, --boomerang goes back; give one.")
        if isinstance(self.ease, str) and self.ease not in EASES:
            raise click.UsageError(f"--ease {self.ease} is not known; choose {', '.join(EASES)}, or x1,y1,x2,y2.")

    def check(self, ctx: click.Context) -> None:
        """Refuse what a bound on steps would leave without effect."""
        for name in ("frames", "pilot", "settle"):
            if self.max_step is not None and run.was_asked(ctx, name):
                raise click.UsageError(f"--max-step finds out how many frames it takes; leave --{name} away.")

    def build(self, *, photos: bool) -> "Motion":
        """The motion asked for; photos are met exactly unless the user says otherwise."""
        from ddim_edit.motion import Motion

        if self.endpoints in ("paste", "exact") and not photos:
            raise click.UsageError(f"--endpoints {self.endpoints} needs the photos themselves; give them, or decoded.")
        given: dict[str, Any] = {
            "path": self.how,
            "loop": "closed" if self.loop else "boomerang" if self.boomerang else "none",
            "pace": self.pace,
            "over": self.pace_over,
            "ease": self.ease if isinstance(self.ease, str) else tuple(self.ease),
            "endpoints": self.endpoints or ("exact" if photos else "decoded"),
            "correct": self.correct,
        }
        return Motion(**given, pilot=self.pilot, settle=self.settle, max_step=self.max_step)


motion_options = packed(
    "moving",
    MotionChoice,
    click.option("--path", "how", type=click.Choice(PATHS), help="[default: slerp through two, squad through more]"),
    click.option("--loop", is_flag=True, help="Close the path: frame 0 follows the last frame."),
    click.option("--boomerang", is_flag=True, help="There and back, without showing an end twice."),
    click.option(
        "--pace", type=click.Choice(PACES), default="l2", show_default=True, help="What every step is even in."
    ),
    click.option("--pilot", type=click.IntRange(2), default=17, show_default=True, help="Frames a segment to pace by."),
    click.option(
        "--settle", type=click.IntRange(0), default=0, show_default=True, help="Passes over all frames to pace again."
    ),
    click.option("--pace-over", type=click.Choice(OVERS), default="global", show_default=True, help="Even over what."),
    click.option(
        "--ease", type=values.ease, default="linear", show_default=True, help=f"{', '.join(EASES)}, or x1,y1,x2,y2."
    ),
    click.option("--max-step", type=float, metavar="D", help="As many frames as no step above D needs (see --pace)."),
    click.option("--endpoints", type=click.Choice(ENDPOINTS), help="How photos are met.  [default: exact for photos]"),
    click.option(
        "--correct", type=click.Choice(CORRECTIONS), default="none", show_default=True, help="Make latents Gaussian."
    ),
)


@click.command()
@keys_options
@options.output_option("morph.mp4", "Video: .mp4, .gif, .webp, .png (animated), or a folder for frames.")
@motion_options
@films.film_options
@click.option("--dry-run", is_flag=True, help="Say what would be done and what it would cost, and write nothing.")
@options.json_option
@options.model_options
@options.running_options
@click.pass_context
def interpolate(  # noqa: PLR0913
    ctx: click.Context,
    *,
    asked: Asked,
    output: Path,
    choice: options.ModelChoice,
    moving: MotionChoice,
    film: films.Film,
    dry_run: bool,
    as_json: bool,
    running: options.Running,
) -> int:
    """Morph through PHOTOS (two or more; photos, an .npz, or latents that encode wrote) as a video.

    A run that was stopped goes on where it was when it is started again in the same way.

    \b
    ddim-edit interpolate a.jpg b.jpg c.jpg --frames 90 -o morph.mp4
    ddim-edit interpolate a.jpg b.jpg c.jpg --loop --frames 48 --format png -o frames
    ddim-edit interpolate --seeds 0-3 --eta 0.5 --ease ease-in-out -o seeds.webp
    """
    from ddim_edit.morphing import distance_of
    from ddim_edit.rendering import Checkpoint

    moving.check(ctx)
    output = film.prepare(ctx, output, overwrite=running.overwrite)
    keys = asked.find()
    motion = moving.build(photos=bool(keys.photos))
    motion.check(len(keys), film.frames)
    ready = keys.ready(choice.load())
    distance_of(motion.pace, ready.model, ready.decoding.denoiser)
    description = run.describe_run(ctx, ready.model, ready.recipe.grid)
    record = run.Record(description, outputs=[output, *film.extra(output)], inside=False)
    checkpoint = Checkpoint.beside(output, _request(description, keys.hashes))
    if dry_run:
        costs.say(_costs(keys, ready, motion, film.frames, checkpoint), as_json=as_json)
        return 0
    plan = _plan(keys, ready, motion, film.frames, checkpoint, running)
    _render(plan, ready.model, checkpoint, asked.source.batch_size, running)
    report = film.write(plan, checkpoint, output, description)
    checkpoint.remove()
    record.description = {**description, **{key: value for key, value in report.items() if key != "frames"}}
    click.echo(json.dumps(report["steps"]) if as_json else films.summary(report), err=not as_json)
    return run.finish(record, output, (), done=len(plan.order), running=running)


def _request(description: dict[str, object], hashes: list[str]) -> str:
    """What the pictures depend on, as a digest: all but where they go and how they are wrapped."""
    arguments = description["arguments"]
    assert isinstance(arguments, dict)
    wrapping = {"photos", "output", "overwrite", "progress", "as_json", "dry_run", *films.WRAPPING}
    kept = {key: value for key, value in arguments.items() if key not in wrapping}
    text = json.dumps({**description, "arguments": kept, "sources": hashes}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _costs(keys: Keys, ready: Ready, motion: "Motion", frames: int, checkpoint: "Checkpoint") -> dict[str, Any]:
    """What a clip costs that is not planned yet, or what an interrupted run of it has left to do."""
    import torch

    from ddim_edit.forecast import decoded, forecast
    from ddim_edit.morphing import Morph

    model, recipe, decoding, outline = ready
    keys.read(model)  # the run would stop at a photo that cannot be read
    size = keys.asked.source.batch_size
    if plan := checkpoint.load(motion, decoding.grid):
        parts = [decoded("frames", decoding, checkpoint.left(plan, size))]
    else:
        plan = Morph(outline, motion, torch.zeros(0), decoding.grid)  # with everything but its frames
        parts = forecast(recipe, decoding, motion, photos=len(keys.photos), keys=len(keys), frames=frames)
    return costs.report(plan, recipe, frames, parts, model, size)


def _plan(
    keys: Keys, ready: Ready, motion: "Motion", frames: int, checkpoint: "Checkpoint", running: options.Running
) -> "Morph":
    """The plan of the clip: that of an interrupted run, or a new one, with warnings about the latents."""
    from ddim_edit.morphing import plan_morph

    model, recipe, decoding, _ = ready
    if plan := checkpoint.load(motion, decoding.grid):
        _warn(plan)
        click.echo("going on with the plan of an interrupted run", err=True)
        return plan
    size = keys.asked.source.batch_size
    looked = motion.met(len(keys)) + motion.pilots(len(keys), frames)
    total = len(keys.photos) * recipe.grid.steps + looked * decoding.grid.steps
    with run.Progress("plan", total, shown=running.progress) as bar:
        latents, photos = keys.make(model, recipe, bar)
        grid = decoding.grid
        plan = plan_morph(model, latents, frames, motion, photos=photos, grid=grid, batch_size=size, on_step=bar)
    _warn(plan)
    checkpoint.save(plan)
    return plan


def _warn(plan: "Morph") -> None:
    for line in plan.warnings:
        click.echo(f"warning: {line}", err=True)


def _render(plan: "Morph", model: "Model", checkpoint: "Checkpoint", batch_size: int, running: options.Running) -> None:
    missing = checkpoint.left(plan, batch_size)
    if missing < len(plan.positions):
        click.echo(f"{len(plan.positions) - missing} of {len(plan.positions)} pictures are there already", err=True)
    try:
        with run.Progress("interpolate", missing * plan.grid.steps, shown=running.progress) as bar:
            checkpoint.render(plan, model, batch_size=batch_size, on_step=bar)
    except KeyboardInterrupt:
        click.echo("start it again in the same way to go on from here", err=True)
        raise
