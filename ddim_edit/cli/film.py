"""What `interpolate` makes of its finished frames: a video or a folder, captions, a contact sheet, a manifest."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddim_edit.cli import run
from ddim_edit.cli.packing import packed

if TYPE_CHECKING:
    from torch import Tensor

    from ddim_edit.morphing import Morph
    from ddim_edit.rendering import Checkpoint

FORMATS = ("png", "gif", "apng", "webp", "mp4")
# Options that change how frames are wrapped, and not the frames.
WRAPPING = ("fps", "scale", "output_format", "crf", "caption", "sheet")

_AT_ONCE = 64  # latents in memory
_COLUMNS = 8  # of a contact sheet


@dataclass(frozen=True)
class Film:
    """How many frames, and what they become."""

    frames: int
    fps: float
    scale: int | None
    output_format: str | None
    crf: int
    caption: bool
    sheet: int | None

    def prepare(self, ctx: click.Context, output: Path, *, overwrite: bool) -> Path:
        """Where the film goes, checked before the long work."""
        from ddim_edit.files import prepare_output
        from ddim_edit.video import check_video_path

        target = self._target(output, chosen=run.was_asked(ctx, "output"))
        check_video_path(target, fps=self.fps)
        prepare_output(target, *self.extra(target), overwrite=overwrite)
        return target

    def extra(self, output: Path) -> list[Path]:
        """The files beside the film."""
        return [output.with_name(f"{output.stem}.sheet.{end}") for end in ("png", "json")] if self.sheet else []

    def write(
        self, plan: "Morph", checkpoint: "Checkpoint", output: Path, description: dict[str, object]
    ) -> dict[str, Any]:
        """Write film and sheet from the finished frames, and return what the manifest says."""
        from ddim_edit.images import visible_scale
        from ddim_edit.video import write_video

        scale = self.scale or visible_scale(plan.latents.x.shape[-1], 256)
        places = _places(plan)
        report = _report(plan, checkpoint, places)
        about = run.picture_metadata(description)
        manifest = json.dumps({"format": 1, **json.loads(about["ddim_edit"]), **report}, indent=1) + "\n"
        title = " to ".join(plan.latents.names)
        pictures = self._captioned(plan, checkpoint, scale) if self.caption else checkpoint.frames(plan)
        write_video(
            pictures,
            output,
            fps=self.fps,
            scale=1 if self.caption else scale,
            crf=self.crf,
            metadata={"title": title, "comment": about["ddim_edit"]},
            manifest=manifest,
        )
        if self.sheet:
            self._write_sheet(plan, checkpoint, output, max(1, scale // 2), places)
        return report

    def _target(self, output: Path, *, chosen: bool) -> Path:
        kind = self.output_format
        if kind is None:
            return output
        bare = output if chosen else output.with_suffix("")
        if kind == "png" and bare.suffix:
            raise click.UsageError(
                f"--format png writes a folder of frames, but {bare} has a suffix; use --format apng."
            )
        if kind == "png" or bare.suffix.lower() == f".{kind}" or (kind, bare.suffix.lower()) == ("apng", ".png"):
            return bare
        if bare.suffix:
            raise click.UsageError(f"--format {kind} and --output {bare} do not agree; drop one of them.")
        return bare.with_name(f"{bare.name}.{kind}")

    def _captioned(self, plan: "Morph", checkpoint: "Checkpoint", scale: int) -> "Iterator[Tensor]":
        from ddim_edit.images import enlarge
        from ddim_edit.sheets import captioned

        for row, frame in zip(plan.order, checkpoint.frames(plan), strict=True):
            yield captioned(enlarge(frame, scale), _caption(plan, row))

    def _write_sheet(
        self, plan: "Morph", checkpoint: "Checkpoint", output: Path, scale: int, places: list[dict[str, Any]]
    ) -> None:
        """A contact sheet of frames spread over the clip, and a JSON that says what each tile is."""
        from ddim_edit.files import write_text
        from ddim_edit.images import write_image
        from ddim_edit.sheets import sheet, tile_boxes

        last = len(plan.order) - 1
        wanted = sorted({round(k * last / max(1, (self.sheet or 1) - 1)) for k in range(self.sheet or 1)})
        shown = [(frame, checkpoint.picture(plan.order[frame])) for frame in wanted]
        rows = [shown[start : start + _COLUMNS] for start in range(0, len(shown), _COLUMNS)]
        tiles = [[pixels for _, pixels in row] for row in rows]
        captions = [[f"{frame}: {_caption(plan, plan.order[frame])}" for frame, _ in row] for row in rows]
        picture, facts = self.extra(output)
        write_image(sheet(tiles, captions=captions, scale=scale), picture)
        boxes = tile_boxes(tiles, captions=captions, scale=scale)
        listed = [
            {"row": i, "column": j, "box": boxes[i][j], "frame": frame, **places[plan.order[frame]]}
            for i, row in enumerate(rows)
            for j, (frame, _) in enumerate(row)
        ]
        write_text(
            facts, json.dumps({"format": 1, "box": "left, top, width, height", "tiles": listed}, indent=1) + "\n"
        )


film_options = packed(
    "film",
    Film,
    click.option("--frames", type=click.IntRange(2), default=60, show_default=True, help="Of the whole video."),
    click.option("--fps", type=click.FloatRange(1, 240), default=30, show_default=True),
    click.option("--scale", type=click.IntRange(1, 32), help="Enlarge by a whole factor.  [default: to 256 pixels]"),
    click.option(
        "--format",
        "output_format",
        type=click.Choice(FORMATS),
        help="png is a folder of frames.  [default: by the suffix of --output]",
    ),
    click.option("--crf", type=click.IntRange(1, 51), default=14, show_default=True, help="Of an mp4: 1 is the best."),
    click.option("--caption", is_flag=True, help="Say below each frame what it is."),
    click.option("--sheet", type=click.IntRange(2), metavar="K", help="Also a contact sheet of K frames, with a JSON."),
)


def summary(report: dict[str, Any]) -> str:
    """The figures of a clip in one line, for people."""
    steps = report["steps"]
    seam = "" if steps["seam_over_median"] is None else f", seam {steps['seam_over_median']:.2f} x"
    return (
        f"smoothness {steps['smoothness']:.3f}, largest step {steps['largest_over_median']:.2f} x the median{seam}; "
        f"{report['evaluations']['plan']} + {report['evaluations']['frames']} evaluations"
    )


def _report(plan: "Morph", checkpoint: "Checkpoint", places: list[dict[str, Any]]) -> dict[str, Any]:
    """What the finished clip is: where each frame lies, how even its steps are, how its keys meet their photos."""
    from ddim_edit.pacing import Steps

    loop = plan.motion.loop != "none"
    frames = [{"file": f"frame_{k:06d}.png", **places[row]} for k, row in enumerate(plan.order)]
    steps = Steps.of(checkpoint.frames(plan), loop=loop)
    return {
        "path": plan.path,
        "keys": _key_report(plan, checkpoint),
        "steps": {"count": len(steps.lengths), "distance": "l2", **steps.to_json()},
        "evaluations": {
            "plan": plan.looked * plan.cost + plan.compared,
            "frames": len(plan.positions) * plan.cost,
        },
        "frames": frames,
    }


def _key_report(plan: "Morph", checkpoint: "Checkpoint") -> list[dict[str, Any]]:
    """The frame of each key, and how far it is from its photo on [0, 1] where there is one."""
    rows = {float(u): row for row, u in enumerate(plan.positions) if float(u).is_integer()}
    keys: list[dict[str, Any]] = []
    for number, name in enumerate(plan.latents.names):
        row = rows[float(number)]
        photo = None if plan.photos is None else plan.photos[number]
        error = None if photo is None else float((checkpoint.picture(row) - photo).abs().max()) / 2
        digest = plan.latents.photos[number].source.get("sha256")
        keys.append({"name": name, "sha256": digest, "frame": row, "max_error": error})
    return keys


def _places(plan: "Morph") -> list[dict[str, Any]]:
    """Where every picture lies: between which keys, how far from the first of them, and the rms of its latent."""
    import torch

    parts = (plan.x(u).double() for u in plan.positions.split(_AT_ONCE))
    rms = torch.cat([part.square().mean(dim=(1, 2, 3)).sqrt() for part in parts]).tolist()
    between = [_between(plan, row) for row in range(len(plan.positions))]
    return [
        {"position": u, "between": [a, b], "alpha": alpha, "rms": size}
        for u, (a, b, alpha), size in zip(plan.positions.tolist(), between, rms, strict=True)
    ]


def _between(plan: "Morph", row: int) -> tuple[str, str, float]:
    names = plan.latents.names
    key = int(plan.positions[row])
    last = key == len(names) - 1 and not plan.motion.closed
    return names[key], names[key if last else (key + 1) % len(names)], float(plan.positions[row]) - key


def _caption(plan: "Morph", row: int) -> str:
    a, b, alpha = _between(plan, row)
    return a if alpha == 0 else f"{a} > {b} {alpha:.2f}"
