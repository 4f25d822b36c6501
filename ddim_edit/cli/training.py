"""`train`: from photos to a model folder."""

import json
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddim_edit.cli import options, run, values

if TYPE_CHECKING:
    from ddim_edit.datasets import PhotoSet
    from ddim_edit.training import Progress
    from ddim_edit.training.loop import Row

# Written out, because reading them from the modules that define them would import torch; a test compares them.
SCHEDULES = ("linear", "scaled_linear", "cosine")
TARGETS = ("epsilon", "sample", "v_prediction", "x_prev")
LOSSES = ("mse", "vb", "rescaled-vb", "hybrid")
SAMPLERS = ("uniform", "stratified", "loss-second-moment")
PRECISIONS = ("fp32", "bf16", "fp16")
OPTIMIZERS = ("adamw", "muon")


def _options(*added: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(added):
            command = option(command)
        return command

    return decorate


def _choice(name: str, known: tuple[str, ...], default: str, text: str) -> Callable[[Any], Any]:
    """An option that a fine-tuned model may fix."""
    return click.option(name, type=click.Choice(known), help=f"{text}  [default: {default}]")


ends = _options(
    click.option("--minutes", type=float, help="Stop after so many minutes; the learning rate falls in time."),
    click.option("--steps", type=int, help="Stop after so many steps. Give one of the two."),
    click.option("--resume", is_flag=True, help="Go on from the state in --output, if there is one."),
)
network = _options(
    click.option("--init", metavar="MODEL", help="Fine-tune this model: a folder, a hub id, or 'small'."),
    click.option("--size", type=int, help="Height and width of the photos.  [default: 64]"),
    click.option(
        "--channels",
        type=values.channels,
        metavar="NAME|N,N,...",
        help="tiny, small, base, large, or the width of each level, each at half the size.  [default: small]",
    ),
    click.option("--layers", type=int, help="Residual layers per level.  [default: 1]"),
    click.option("--attention", type=int, help="Attention at this many pixels a side and below.  [default: 8]"),
    click.option("--dropout", type=float, default=0.0, show_default=True),
    click.option("--class-cond", is_flag=True, help="Learn classes; 'none' is the null class."),
    click.option("--label-dropout", type=float, default=0.1, show_default=True, help="Share shown without class."),
)
objective = _options(
    _choice("--schedule", SCHEDULES, "linear", "Noise schedule."),
    click.option("--diffusion-steps", type=int, help="T.  [default: 1000]"),
    _choice("--target", TARGETS, "epsilon", "What the network outputs."),
    click.option("--loss", type=click.Choice(LOSSES), help="[default: mse, or hybrid with --learn-sigma]"),
    click.option("--learn-sigma", is_flag=True, help="The network outputs a variance too."),
    click.option("--schedule-sampler", type=click.Choice(SAMPLERS), default="stratified", show_default=True),
    click.option("--min-snr", type=float, metavar="GAMMA", help="Weigh the error by min(SNR, GAMMA); 5 is usual."),
    click.option(
        "--snr-floor",
        type=float,
        metavar="LEAST",
        help="And by no less than this, for colours at high noise; say 0.02.",
    ),
    click.option(
        "--high-noise",
        type=float,
        metavar="POWER",
        help="Weigh the error of eps by signal^-POWER, for the shapes of samples; say 1. 2 is the loss of v.",
    ),
    click.option(
        "--moments",
        type=float,
        metavar="WEIGHT",
        help="Weigh the mean and the size of the noise, for colours and grain of samples; say 0.05.",
    ),
)
optimization = _options(
    click.option("--batch-size", type=int, default=16, show_default=True, help="Photos at once, per device."),
    click.option("--accumulate", type=int, default=1, show_default=True, help="Batches per step."),
    click.option(
        "--optimizer",
        type=click.Choice(OPTIMIZERS),
        default="adamw",
        show_default=True,
        help="muon needs torch 2.9: steps are dearer, and lead further at high noise.",
    ),
    click.option("--lr", type=float, default=1e-3, show_default=True, help="Highest learning rate."),
    click.option("--warmup", type=int, default=200, show_default=True, help="Steps over which it rises."),
    click.option("--decay", type=float, default=0.35, show_default=True, help="Last share of the run, where it falls."),
    click.option("--clip-norm", type=float, default=1.0, show_default=True, help="Longest gradient."),
    click.option("--ema", type=float, default=0.999, show_default=True, help="Decay of the averaged weights."),
    click.option("--fit", type=click.Choice(options.FITS), default="crop", show_default=True, help="To a square."),
    click.option("--flip/--no-flip", default=True, show_default=True, help="Mirror photos, half of them by chance."),
    click.option("--seed", type=int, default=0, show_default=True),
)
machine = _options(
    click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True),
    click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True),
    click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's choice]"),
    click.option("--compile", is_flag=True, help="Compile the network: minutes of waiting first, then faster."),
    click.option("--channels-last", is_flag=True, help="The memory layout that GPUs prefer."),
)
reports = _options(
    click.option("--set-aside", type=int, default=0, show_default=True, help="Photos to watch the error on."),
    click.option("--report-every", type=int, metavar="STEPS", help="Report and save.  [default: ten minutes]"),
    click.option("--sample-every", type=int, metavar="STEPS", help="Draw samples.  [default: with each report]"),
    click.option("--store", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="On disk."),
    click.option("--licence", default="unknown", show_default=True, help="Of the photos, for the model card."),
)


@click.command()
@click.argument("photos", type=click.Path(path_type=Path))
@click.option("--output", "-o", "--outdir", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--label-table", type=click.Path(path_type=Path), help="CSV (file, label) instead of sub-folders.")
@ends
@network
@objective
@optimization
@machine
@reports
@options.json_option
@options.progress_option
@options.config_option
@click.pass_context
def train(  # noqa: PLR0913
    ctx: click.Context,
    *,
    photos: Path,
    output: Path,
    label_table: Path | None,
    resume: bool,
    device: str,
    threads: int | None,
    as_json: bool,
    progress: bool,
    **settings: Any,
) -> int:
    """Train a model on PHOTOS (a folder, whose sub-folders are classes, or an .npz), or fine-tune one.

    The run's folder is a model that every command and diffusers load. It may be killed at any time; the same command
    with --resume goes on. Several GPUs: accelerate launch -m ddim_edit train ...; a process for each of two CPU
    cores: torchrun --nproc-per-node 2 -m ddim_edit train ... --threads 1

    \b
    ddim-edit train photos/ -o run --minutes 60
    ddim-edit train photos.npz -o run --class-cond --steps 20000 --resume
    """
    import torch

    from ddim_edit.datasets import first_names
    from ddim_edit.training import TrainConfig, Watchers
    from ddim_edit.training import train as run_training

    if threads:
        torch.set_num_threads(threads)
    settings["channels"] = _widths(settings["channels"])
    settings["loss"] = settings["loss"] or ("hybrid" if settings["learn_sigma"] else "mse")
    failures: list[Any] = []

    def on_photos(found: "PhotoSet") -> None:
        failures.extend(found.failures)
        if failures and _rank() == 0:
            names, total = first_names([failure.source for failure in failures]), len(found) + len(failures)
            click.echo(f"{len(failures)} of {total} photos cannot be read and are left out: {names}", err=True)

    record = run.Record({}, outputs=[output])
    with _interruptible() as stopped, Meter(progress, as_json) as meter:
        watchers = Watchers(on_photos, meter.show, meter.report, lambda: bool(stopped))
        config = TrainConfig(**settings)
        model = run_training(photos, output, config, table=label_table, resume=resume, device=device, watchers=watchers)
    if stopped:
        click.echo(f"{output} is saved; the same command with --resume goes on", err=True)
        raise KeyboardInterrupt
    if _rank() > 0:  # of several processes, one writes and speaks
        return 0
    record.description = run.describe_run(ctx, model)
    running = options.Running(overwrite=True, progress=progress)
    code = run.finish(record, output, failures, done=1, running=running)
    return code if int(os.environ.get("WORLD_SIZE", 1)) == 1 else 0  # to a launcher all but 0 is a crash


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _widths(channels: tuple[int, ...] | str | None) -> tuple[int, ...] | None:
    from ddim_edit.errors import ConfigError
    from ddim_edit.training.config import NETWORKS

    if not isinstance(channels, str):
        return channels
    if channels not in NETWORKS:
        raise ConfigError(f"channels {channels!r} are unknown; choose {', '.join(NETWORKS)}, or widths like 32,64,96")
    return NETWORKS[channels]


@contextmanager
def _interruptible() -> Generator[list[int]]:
    """Collect the first Ctrl-C or termination signal instead of stopping at once; the second one stops at once."""
    received: list[int] = []

    def take_note(number: int, _frame: object) -> None:
        received.append(number)
        restore()
        click.echo("stopping after this step and a report; once more to stop at once", err=True)

    before = {number: signal.signal(number, take_note) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield received
    finally:
        restore()


class Meter:
    """Progress on stderr where that is a terminal, and a line on stdout for every report."""

    def __init__(self, shown: bool, as_json: bool) -> None:
        """Start a bar."""
        from tqdm import tqdm

        form = "train: {percentage:3.0f}%|{bar}| {desc}"
        # None: hidden unless stderr is a terminal
        self._bar: Any = tqdm(total=1.0, bar_format=form, disable=None if shown else True, leave=False)
        self._as_json = as_json

    def show(self, progress: "Progress") -> None:
        """Move the bar."""
        left = timedelta(seconds=round(progress.left)) if progress.done > 0 else "?"
        self._bar.set_description_str(
            f"step {progress.step}, loss {progress.loss:.4f}, {progress.speed:.1f} photos/s, {left} left", refresh=False
        )
        self._bar.n = min(1.0, progress.done)
        self._bar.refresh()

    def report(self, row: "Row") -> None:
        """Print a report."""
        with self._bar.external_write_mode():
            known = {name: None if value == "" else value for name, value in row.items()}
            click.echo(json.dumps(known) if self._as_json else _line(row))

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()


def _line(row: "Row") -> str:
    parts = [f"step {row['step']}: {row['images']} photos in {row['minutes']} min"]
    parts += [f"loss {row['train_loss']:.4f}"] if row["train_loss"] else []
    parts += [f"{row['images_per_second']} photos/s"] if row["images_per_second"] else []
    parts += (
        [f"set aside: MSE of eps {row['eps_mse']:.4f}, {row['bits_per_dim']:.2f} bits/dim"] if row["eps_mse"] else []
    )
    return ", ".join(parts)
