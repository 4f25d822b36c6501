"""`train`: from photos to a model folder, in one loop that can be killed at any moment and goes on where it was."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from ddim_edit.datasets import NO_CLASS, PhotoSet, read_photo_set
from ddim_edit.errors import ConfigError, MissingExtraError, NumericsError, OutputError, first_line
from ddim_edit.files import prepare_output, remove_leftovers
from ddim_edit.models import Model, load_model
from ddim_edit.training import checkpoint
from ddim_edit.training.config import PRECISIONS, TrainConfig
from ddim_edit.training.data import set_aside
from ddim_edit.training.network import load_init, make_origin, settings_of
from ddim_edit.training.optimizers import rate_factor
from ddim_edit.training.reports import Watch
from ddim_edit.training.run import Training

if TYPE_CHECKING:
    from accelerate import Accelerator

Row = dict[str, object]
GLANCE_SECONDS = 0.5  # between calls of on_progress
REPORT_SECONDS = 600.0


class Progress(NamedTuple):
    """How far a run is: steps and photos seen, the share of the run, the last loss, photos per second, seconds left.

    The time left of a run by steps is that of their pace since the last report, without the reports to come.
    """

    step: int
    images: int
    done: float
    loss: float
    speed: float
    left: float


@dataclass(frozen=True)
class Watchers:
    """Who is told about a run, and who may end it. All are called between two steps.

    Args:
        on_photos: with the photos that were read, and the list of those that could not be.
        on_progress: about twice a second.
        on_report: with the row of `metrics.csv`, once it is written.
        should_stop: a run that is told to stop reports, saves its state, and ends as if its time were over.
    """

    on_photos: Callable[[PhotoSet], None] = lambda photos: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_report: Callable[[Row], None] = lambda row: None
    should_stop: Callable[[], bool] = lambda: False


def train(
    photos: str | Path | PhotoSet,
    output: str | Path,
    config: TrainConfig,
    *,
    table: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    watchers: Watchers = Watchers(),
) -> Model:
    """Train a model, or fine-tune one, and write it as a folder that `load_model` and diffusers read.

    Args:
        photos: a folder, an `.npz`, or photos that were read already; see `read_photo_set`.
        output: the run's folder, with the model, `training.json`, `metrics.csv`, samples and `state.pt`.
        config: the settings.
        table: classes of the photos in a folder, as CSV.
        resume: go on from the state in `output`, if there is one.
        device: `auto` takes GPUs where there are any; `cpu`.
        watchers: who is told.

    Returns:
        The model with the averaged weights, as it was saved.

    Raises:
        ConfigError: settings that cannot work, with each other, the photos or the run that is resumed.
        ImageError: there is no photo, or none that can be read.
        ModelError: the model to fine-tune cannot be read, or the state to go on from.
        OutputError: `output` holds a run and `resume` is false, or files of no run, or lies in the photos' folder, or
            cannot be written to.
        NumericsError: the loss is not finite; the last checkpoint is kept.
        MissingExtraError: accelerate is not installed.

    Example:
        >>> import tempfile
        >>> photos = PhotoSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), None)
        >>> config = TrainConfig(size=8, channels=(8,), diffusion_steps=50, batch_size=2, steps=1)
        >>> train(photos, tempfile.mkdtemp(), config, device="cpu").image_size
        (8, 8)
    """
    began = time.monotonic()
    run = Path(output)
    if not isinstance(photos, PhotoSet) and run.resolve().is_relative_to(Path(photos).resolve()):
        raise OutputError(f"{run} lies in the folder of the photos, and its samples would join them; choose another")
    _claim(run, resume=resume)
    state = checkpoint.load_state(run)
    accelerator = _accelerator(config, device)
    model = load_init(config.init) if config.init else None
    config = config.resolved(settings_of(model) if model else None)
    if state is not None:
        config.require_same(TrainConfig.from_json(json.loads(state["config"])))
    found = _read(photos, config, table)
    watchers.on_photos(found)
    kept, held_out = set_aside(found, config.set_aside, config.seed)
    has_null = config.label_dropout > 0 or kept.classes is None or NO_CLASS in kept.classes
    origin = make_origin(config, found.class_names, has_null=has_null, model=model)
    training = Training.begin(origin, kept, accelerator)
    if state is not None:
        training.restore(state)
    watch = Watch.of(training.averaged, origin, kept, held_out)
    source = "photos in memory" if isinstance(photos, PhotoSet) else Path(photos).resolve().name
    Loop(training, watch, run, _describe(found, source, config), watchers, began - training.seconds).go()
    accelerator.wait_for_everyone()
    return load_model(run, device=str(accelerator.device))


@dataclass
class Loop:
    """Steps and reports until a run is over.

    Args:
        training: the run.
        watch: what reports look at.
        run: the folder.
        data: what is known of the photos.
        watchers: who is told.
        started: when it would have begun if it had never been interrupted, by `time.monotonic`.
    """

    training: Training
    watch: Watch
    run: Path
    data: Mapping[str, object]
    watchers: Watchers
    started: float
    rows: list[Row] = field(default_factory=list[Row])
    _losses: list[Tensor] = field(default_factory=list[Tensor])  # (2,), since the last report, on the device
    _reported_step: int = -1
    _reported: tuple[float, int] = (0.0, 0)  # seconds and photos at the last report
    _reporting: float = 0.0  # seconds that the last report took
    _glanced: float = 0.0

    def go(self) -> None:
        """Run to the end."""
        training, config = self.training, self.training.config
        if training.step > 0:
            self.rows = checkpoint.read_metrics(self.run, training.step)
            self._reported_step = training.step
        self._reported = (self._now(), training.images)
        factor = 0.0
        if training.step == 0:  # what is wrong with the disk or the photos shows before the long work
            self._report(factor)
        while (done := self._done()) < 1 and not self._agreed(float(self.watchers.should_stop())):
            factor = rate_factor(training.step, done, warmup=config.warmup, decay=config.decay)
            self._losses.append(training.advance(factor))
            self._glance(done)
            if self._report_is_due():
                self._report(factor)
        if training.step == 0 and done >= 1:
            raise ConfigError(f"minutes={config.minutes} were over before the first step; give more")
        if self._reported_step != training.step:
            self._report(factor)

    def _now(self) -> float:
        return time.monotonic() - self.started

    def _done(self) -> float:
        """The share of the run that is over; a run by the clock leaves time for its last report."""
        config, shares = self.training.config, [0.0]
        if config.steps is not None:
            shares.append(self.training.step / config.steps)
        if config.minutes is not None:
            shares.append((self._now() + self._reporting) / (60 * config.minutes))
        return self._agreed(max(shares))

    def _report_is_due(self) -> bool:
        every = self.training.config.report_every
        if every is not None:
            return self.training.step % every == 0
        return self._agreed(self._now() - self._reported[0]) >= REPORT_SECONDS

    def _glance(self, done: float) -> None:
        """Tell the watcher how it goes, now and then, because looking at a loss makes a GPU wait."""
        now = self._now()
        if now - self._glanced < GLANCE_SECONDS:
            return
        self._glanced = now
        loss = float(self._losses[-1][0])
        self._check(loss)
        training, (seconds, images) = self.training, self._reported
        speed = (training.images - images) / max(now - seconds, 1e-9)
        left = self._left(now)
        if training.accelerator.is_main_process:
            self.watchers.on_progress(Progress(training.step, training.images, done, loss, speed, left))

    def _left(self, now: float) -> float:
        """Seconds until the run ends, by the clock or by the pace of its steps, whichever is sooner."""
        training, left = self.training, float("inf")
        if training.config.minutes is not None:
            left = 60 * training.config.minutes - now
        if training.config.steps is not None:
            pace = (now - self._reported[0]) / (training.step - self._reported_step)
            left = min(left, pace * (training.config.steps - training.step))
        return max(0.0, left)

    def _report(self, factor: float) -> None:
        """Look at the averaged weights and write everything down; the state comes last and decides what counts."""
        began = self._now()
        losses: list[float] | None = None
        if self._losses:  # of all processes together
            mean = torch.stack(self._losses).mean(0)
            losses = cast(Tensor, self.training.accelerator.reduce(mean, "mean")).tolist()
        module = self.training.average()
        weights = float(torch.stack([value.norm() for value in module.parameters()]).sum())
        self._check(weights + sum(losses or ()))
        if self.training.accelerator.is_main_process:
            self.rows.append(self._row(factor, losses, began))
            # The record comes first: it claims the folder.
            checkpoint.write_record(self.training.origin, self.data, self.rows[-1], self.run)
            checkpoint.write_metrics(self.rows, self.run)
            if self._sheet_is_due():
                self.watch.draw(self.run / "samples" / f"{self.training.step:08d}.png")
            checkpoint.save_model(module, self.training.origin, self.run)
            checkpoint.write_card(self.training.origin, self.data, self.rows[-1], self.run)
            self.training.seconds = self._now()
            checkpoint.save_state(self.training.state(), self.run)
            self.watchers.on_report(self.rows[-1])
        self.training.accelerator.wait_for_everyone()
        self._losses.clear()
        self._reported_step = self.training.step
        self._reported = (self._now(), self.training.images)
        self._reporting = self._now() - began

    def _row(self, factor: float, losses: list[float] | None, now: float) -> Row:
        training, (seconds, images) = self.training, self._reported
        found = self.watch.evaluate()
        levels = list(found.levels.items()) if found else []
        bound = found.bits_per_dim if found else None
        return {
            "step": training.step,
            "images": training.images,
            "minutes": round(now / 60, 2),
            "lr": training.config.lr * factor,
            "images_per_second": round((training.images - images) / max(now - seconds, 1e-9), 2) if losses else "",
            "train_loss": losses[0] if losses else "",
            "train_mse": losses[1] if losses else "",
            "eps_mse": found.uniform.mean if found else "",
            "eps_mse_high": found.high.mean if found else "",
            **{f"eps_mse_{t}": value.mean for t, value in levels},
            "bits_per_dim": bound.mean if bound else "",
        }

    def _sheet_is_due(self) -> bool:
        every = self.training.config.sample_every
        if every is None or self._reported_step < 0:
            return True
        return self.training.step // every > self._reported_step // every

    def _check(self, loss: float) -> None:
        if not loss < float("inf"):
            raise NumericsError(
                f"loss or weights are {loss} at step {self.training.step}; go on from the last checkpoint (--resume) "
                "with a lower --lr, or with --precision fp32"
            )

    def _agreed(self, value: float) -> float:
        """The main process's value, in every process: clocks and signals differ."""
        accelerator = self.training.accelerator
        if accelerator.num_processes == 1:
            return value
        from accelerate.utils import broadcast

        return float(broadcast(torch.tensor(value, device=accelerator.device)))  # pyright: ignore


def _claim(run: Path, *, resume: bool) -> None:
    """Make sure that the folder may be written to, and that no model is lost."""
    if (run / checkpoint.STATE).exists() and not resume:
        raise OutputError(f"{run} holds a run; pass --resume to go on with it, or choose another --output")
    if not (run / checkpoint.RECORD).exists() and (lost := [name for name in checkpoint.OWN if (run / name).exists()]):
        raise OutputError(f"{run} holds {lost[0]}, which is of no run and would be replaced; choose another --output")
    prepare_output(run / checkpoint.STATE, overwrite=True)
    for large in (checkpoint.STATE, checkpoint.WEIGHTS):
        remove_leftovers(run / large)


def _accelerator(config: TrainConfig, device: str) -> "Accelerator":
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingExtraError("training needs accelerate: pip install 'ddim-edit[train]'") from error
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device {device!r} is not for training; choose auto or cpu, and set CUDA_VISIBLE_DEVICES")
    try:
        return Accelerator(cpu=device == "cpu", mixed_precision=PRECISIONS[config.precision])
    except ValueError as error:
        if "already been initialized" in str(error):
            raise ConfigError("this process has trained with another precision before; start a new one") from error
        raise ConfigError(
            f"precision {config.precision} cannot be used here ({first_line(error)}); choose fp32"
        ) from error


def _read(photos: str | Path | PhotoSet, config: TrainConfig, table: str | Path | None) -> PhotoSet:
    """The photos, with their classes if those are to be learned."""
    assert config.size
    if table is not None and not config.class_cond:
        raise ConfigError(f"{table} says classes, which are not learned; add --class-cond, or leave it out")
    if not isinstance(photos, PhotoSet):
        photos = read_photo_set(photos, (config.size, config.size), table=table, fit=config.fit)
    if photos.pixels.shape[1:] != (3, config.size, config.size):
        raise ConfigError(f"photos are {tuple(photos.pixels.shape)}; the network takes (N, 3, {config.size}, ...)")
    if not config.class_cond:
        return replace(photos, classes=None)
    if photos.classes is None:
        raise ConfigError("class_cond needs classes: sub-folders, a table (file, label), or `labels` in the .npz")
    return photos


def _describe(photos: PhotoSet, source: str, config: TrainConfig) -> dict[str, object]:
    """What `training.json` says of the photos."""
    classes = photos.classes or ()
    return {
        "source": source,
        "photos": len(photos),
        "set_aside": config.set_aside,
        "digest": photos.digest,
        "classes": {name: classes.count(name) for name in photos.class_names} if classes else None,
        "failures": [vars(failure) for failure in photos.failures],
    }
