"""What every command does around its work: a progress bar, messages, failures and run.json."""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddim_edit.files import write_text

if TYPE_CHECKING:
    from ddim_edit.batch import Failure
    from ddim_edit.cli.options import Running
    from ddim_edit.grid import Grid
    from ddim_edit.images import Photo
    from ddim_edit.models.base import Model
    from ddim_edit.ode import OnStep, Step

PARTLY_FAILED = 3


class Progress:
    """One bar over all steps of all photos, on stderr; silent where stderr is no terminal."""

    def __init__(self, what: str, photo_steps: int, *, shown: bool) -> None:
        """Start a bar of `photo_steps` = photos x steps."""
        from tqdm import tqdm

        form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left"
        hide = None if shown else True  # None: hidden unless stderr is a terminal
        self._bar: Any = tqdm(total=photo_steps, desc=what, bar_format=form, disable=hide, leave=False)

    def __call__(self, step: "Step") -> None:
        """Count one step of a batch."""
        self.advance(len(step.state.x))

    def advance(self, photo_steps: int = 1) -> None:
        """Count work that is no step of a sampler."""
        self._bar.update(photo_steps)

    def write(self, *lines: str) -> None:
        """Print result lines to stdout without tearing the bar."""
        with self._bar.external_write_mode():
            for line in lines:
                click.echo(line)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()


def both(first: "OnStep", second: "OnStep") -> "OnStep":
    """Call two watchers after every step."""

    def on_step(step: "Step") -> None:
        first(step)
        second(step)

    return on_step


def arguments_of(ctx: click.Context) -> dict[str, object]:
    """The command's arguments and options as JSON values; what `--config` reads back.

    In the order of their declaration: click's own is that of the command line, and pictures would differ by it.
    """
    names = [param.name for param in ctx.command.params if param.name in ctx.params]
    return {name: _plain(ctx.params[name]) for name in names}


def was_asked(ctx: click.Context, name: str) -> bool:
    """Whether this option was typed or set, or a run.json, which holds them all, has another value than the default."""
    source = ctx.get_parameter_source(name)
    if source is not click.core.ParameterSource.DEFAULT_MAP:
        return source is not click.core.ParameterSource.DEFAULT
    (option,) = (param for param in ctx.command.params if param.name == name)
    return str(ctx.params[name]) != str(option.default)


def describe_run(ctx: click.Context, model: "Model", grid: "Grid | None" = None) -> dict[str, object]:
    """Everything needed to repeat a run: what was asked, with which model, on which levels, by which versions."""
    import torch

    packages = ("ddim-edit", "torch", "diffusers", "numpy", "pillow")
    return {
        "command": ctx.info_name,
        "arguments": arguments_of(ctx),
        "model": {"name": model.name, **model.space},
        "timesteps": None if grid is None else grid.timesteps,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
    }


def sources_of(photos: "Sequence[Photo]") -> dict[str, str]:
    """Which file each name is of: two photos of one stem get names that do not say it."""
    return {photo.name: photo.source for photo in photos}


@dataclass
class Record:
    """What becomes of a run, written to run.json when it ends.

    `sources` says which photo each name is of. `inside` false: beside an output folder, which holds nothing but frames,
    and not in it.
    """

    description: Mapping[str, object]
    outputs: list[Path] = field(default_factory=list[Path])
    failures: "Sequence[Failure]" = ()
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    inside: bool = True
    started: float = field(default_factory=time.time)

    def write(self, output: Path, *, overwrite: bool) -> Path:
        """Write it into the output folder, or beside an output file; an earlier record is kept, with a number."""
        place = output / "run.json" if self.inside and output.is_dir() else output.with_name(f"{output.stem}.run.json")
        name, number = place.stem, 2
        while place.exists() and not overwrite:
            place = place.with_name(f"{name}-{number}.json")
            number += 1
        record = {
            **self.description,
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self.started, 3),
            "outputs": [str(path) for path in self.outputs],
            **({"sources": self.sources} if self.sources else {}),
            "failures": [vars(failure) for failure in self.failures],
        }
        write_text(place, json.dumps(record, indent=2, default=str) + "\n")
        return place


def finish(
    record: Record,
    output: Path | None,
    failures: "Sequence[Failure]",
    *,
    done: int,
    running: "Running",
    before: int = 0,
) -> int:
    """End a run: write run.json, say what was written and what failed, and give the exit code.

    The code is 0 if all went well, 3 if some photos failed, and 1 if all did; `before` were done by an earlier run.
    """
    record.failures = failures
    if output and done:
        record.write(output, overwrite=running.overwrite)
        click.echo(f"wrote {output} ({done} done)", err=True)
    for failure in failures:
        click.echo(f"failed: {failure.error}", err=True)
    if not failures:
        return 0
    click.echo(f"{done} done, {len(failures)} failed", err=True)
    return PARTLY_FAILED if done or before else 1


def picture_metadata(description: Mapping[str, object], **of_this: object) -> dict[str, str]:
    """What goes into a PNG: one line for people and the JSON for programs; neither holds paths or times.

    `of_this` are arguments as they were for this picture, out of many.
    """
    arguments = description["arguments"]
    assert isinstance(arguments, dict)
    arguments = arguments | of_this
    told_elsewhere = {"photos", "latents", "output", "model", "cache_dir"}
    hidden = told_elsewhere | {"overwrite", "progress", "as_json", "metadata", "resume"}
    # Not `in (None, False)`: a seed of 0 equals False, and is a setting.
    kept = {key: value for key, value in arguments.items() if not (key in hidden or value is None or value is False)}
    public = {key: description[key] for key in ("command", "model", "timesteps", "versions")} | {"arguments": kept}
    line = f"ddim-edit {description['command']}, " + ", ".join(f"{key} {value}" for key, value in kept.items())
    return {"parameters": line, "ddim_edit": json.dumps(public, sort_keys=True, default=str)}


def is_made(path: Path, text: Mapping[str, str]) -> bool:
    """Whether this PNG is there, whole, and says the same of how it was made."""
    from ddim_edit.errors import ImageError
    from ddim_edit.images import read_metadata

    try:
        return read_metadata(path) == text
    except ImageError:
        return False


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
