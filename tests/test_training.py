"""Whole training runs of tiny networks: what they write, who can load it, and that a kill changes nothing."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import LABELS, run_cli, save_photo, save_tiny_model
from helpers import gaussian_noise
from model_helpers import cpu
from torch import Tensor

import ddim_edit as de
from ddim_edit.cli.training import LOSSES, OPTIMIZERS, PRECISIONS, SAMPLERS, SCHEDULES
from ddim_edit.cli.training import train as train_command
from ddim_edit.datasets import PhotoSet, read_photo_set
from ddim_edit.errors import ConfigError, MissingExtraError, NumericsError, OutputError
from ddim_edit.models.base import Labels, Model
from ddim_edit.training import TrainConfig, Watchers, checkpoint, loop, train
from ddim_edit.training import config as settings
from ddim_edit.training.data import labels_of
from ddim_edit.training.loop import Progress, Row
from ddim_edit.training.objectives import TARGETS
from ddim_edit.training.reports import Watch

SIZE = 8
# Twelve steps of a network with 9,000 parameters; T is small, so that sampling and evaluation are quick.
TINY = {"size": SIZE, "channels": (8,), "diffusion_steps": 100, "batch_size": 4, "warmup": 2, "lr": 2e-3, "steps": 4}


def tiny(**changes: object) -> TrainConfig:
    return TrainConfig(**(TINY | changes))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def photos() -> PhotoSet:
    """Ten smooth pictures in two classes and without one."""
    low = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 3, 2, 2), dtype=np.uint8))
    pixels = low.repeat_interleave(4, -1).repeat_interleave(4, -2)
    return PhotoSet(pixels, tuple(["cat", "dog"] * 4 + ["none"] * 2))


def needs(optimizer: str) -> None:
    """Muon came with torch 2.9."""
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")


def state_of(run: Path) -> dict[str, object]:
    state = checkpoint.load_state(run)
    assert state is not None
    return state


def tensors_of(value: object, name: str = "") -> dict[str, Tensor]:
    """Every tensor of a nested state."""
    if isinstance(value, Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {key: t for part, inner in items for key, t in tensors_of(inner, f"{name}.{part}").items()}


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run_in_child(work: Callable[[], object]) -> int:
    """Fork, do the work, and give the number of the signal that killed the child, or 0."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def kill_self(*_arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_killed_three_times_ends_with_the_same_weights(photos: PhotoSet, tmp_path: Path, monkeypatch, optimizer):
    needs(optimizer)
    everything = tiny(
        optimizer=optimizer,
        steps=12,
        report_every=3,
        sample_every=100,
        set_aside=2,
        class_cond=True,
        accumulate=2,
        learn_sigma=True,
        loss="hybrid",
        schedule_sampler="loss-second-moment",
        dropout=0.1,
        schedule="cosine",
        diffusion_steps=4,  # so few that the sampler soon knows them all
    )
    train(photos, tmp_path / "whole", everything, device="cpu")
    run = tmp_path / "killed"

    def between_reports() -> None:
        calls = iter(range(100))
        stop = Watchers(should_stop=lambda: next(calls) == 5 and bool(kill_self()))
        train(photos, run, everything, device="cpu", watchers=stop)

    def before_the_state_is_written() -> None:
        monkeypatch.setattr(checkpoint, "save_state", kill_self)
        train(photos, run, everything, resume=True, device="cpu")

    def while_the_state_is_written() -> None:
        def write_some(path: Path, data: bytes) -> int:
            is_state = path.name.startswith(".state")
            with path.open("wb") as file:
                written = file.write(data[: len(data) // 2] if is_state else data)
            if is_state:
                kill_self()
            return written

        monkeypatch.setattr(Path, "write_bytes", write_some)
        train(photos, run, everything, resume=True, device="cpu")

    for work in (between_reports, before_the_state_is_written, while_the_state_is_written):
        assert run_in_child(work) == signal.SIGKILL
        assert state_of(run)["step"] == 3
        assert de.load_model(run, device="cpu").labels is not None
    assert [row["step"] for row in rows_of(run)] == ["0", "3", "6"]  # the last one's state was never written
    assert list(run.glob(".state.*.tmp.pt"))
    train(photos, run, everything, resume=True, device="cpu")
    assert not list(run.rglob("*.tmp*"))
    whole, killed = (tensors_of(state_of(folder)) for folder in (tmp_path / "whole", run))
    assert whole.keys() == killed.keys()
    assert len(whole) > 100
    assert max(float((whole[name].double() - killed[name].double()).abs().max()) for name in whole) < 1e-6
    columns = ("step", "images", "lr", "train_mse", "eps_mse", "bits_per_dim")
    ours, theirs = (
        [[row[name] for name in columns] for row in rows_of(folder)] for folder in (tmp_path / "whole", run)
    )
    assert ours == theirs
    assert [row[0] for row in ours] == ["0", "3", "6", "9", "12"]


class TestFolder:
    def test_holds_what_the_design_says(self, photos: PhotoSet, tmp_path: Path):
        rows: list[Row] = []
        config = tiny(class_cond=True, set_aside=2, report_every=2, licence="CC0 1.0")
        train(photos, tmp_path / "run", config, device="cpu", watchers=Watchers(on_report=rows.append))
        names = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*.*")}
        assert names == {
            *("README.md", "labels.json", "metrics.csv", "model_index.json", "state.pt", "training.json"),
            *("scheduler/scheduler_config.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
            *(f"samples/0000000{step}.png" for step in (0, 2, 4)),
        }
        record = json.loads((tmp_path / "run" / "training.json").read_text())
        assert TrainConfig.from_json(record["config"]) == config.resolved()
        assert record["data"]["classes"] == {"cat": 4, "dog": 4, "none": 2}
        assert json.loads((tmp_path / "run" / "labels.json").read_text()) == LABELS
        assert "license: cc0-1.0" in (tmp_path / "run" / "README.md").read_text()
        assert [row["step"] for row in rows] == [0, 2, 4]
        assert [row["step"] for row in rows_of(tmp_path / "run")] == ["0", "2", "4"]

    def test_the_model_is_the_average_in_the_precision_asked_for(self, photos: PhotoSet, tmp_path: Path):
        from safetensors.torch import load_file

        for store, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
            train(photos, tmp_path / store, tiny(store=store), device="cpu")
            saved = load_file(tmp_path / store / checkpoint.WEIGHTS)
            average = state_of(tmp_path / store)["ema"]["shadow_params"]  # pyright: ignore
            names = list(state_of(tmp_path / store)["network"])  # pyright: ignore
            assert {value.dtype for value in saved.values()} == {dtype}
            for name, value in zip(names, average, strict=True):
                assert saved[name].equal(value.to(dtype))

    def test_two_runs_are_the_same_to_the_bit(self, photos: PhotoSet, tmp_path: Path):
        models = [train(photos, tmp_path / name, tiny(), device="cpu") for name in ("a", "b")]
        assert models[0].fingerprint == models[1].fingerprint
        assert train(photos, tmp_path / "c", tiny(seed=1), device="cpu").fingerprint != models[0].fingerprint

    def test_training_lowers_the_error(self, photos: PhotoSet, tmp_path: Path):
        rows: list[Row] = []
        config = tiny(steps=60, set_aside=2, sample_every=1000)
        train(photos, tmp_path / "run", config, device="cpu", watchers=Watchers(on_report=rows.append))
        assert float(str(rows[-1]["eps_mse"])) < 0.75 * float(str(rows[0]["eps_mse"]))

    def test_a_single_photo_is_enough(self, photos: PhotoSet, tmp_path: Path):
        train(photos.select([0]), tmp_path / "run", tiny(steps=2), device="cpu")
        assert state_of(tmp_path / "run")["images"] == 8


def by_hand(run: Path, x: Tensor, steps: int, label: int | None) -> Tensor:
    """Plain DDIM with diffusers' U-Net alone."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    unet = UNet2DModel.from_pretrained(run / "unet")
    scheduler = json.loads((run / "scheduler" / "scheduler_config.json").read_text())
    betas = np.linspace(scheduler["beta_start"], scheduler["beta_end"], scheduler["num_train_timesteps"])
    alpha_bar = np.cumprod(1 - betas)
    labels = None if label is None else torch.full((len(x),), label)
    times = [int(t) for t in np.arange(steps) * (len(betas) // steps)]
    for t, before in zip(reversed(times), [*reversed(times[:-1]), None], strict=True):
        with torch.no_grad():
            eps: Tensor = unet(x, t, class_labels=labels).sample[:, :3]
        clean = 1.0 if before is None else alpha_bar[before]
        x0 = (x - (1 - alpha_bar[t]) ** 0.5 * eps) / alpha_bar[t] ** 0.5
        x = clean**0.5 * x0 + (1 - clean) ** 0.5 * eps
    return x


class TestProcesses:
    """What `accelerate launch` and `torchrun` do: a process for every device, here two on the CPU."""

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_two_processes_are_one_that_accumulates(self, photos: PhotoSet, tmp_path: Path, optimizer: str):
        needs(optimizer)
        names = ("cat", "dog", "none")
        labels = np.array([names.index(name) for name in photos.classes or ()])
        np.savez(tmp_path / "p.npz", images=photos.pixels.movedim(1, -1).numpy(), labels=labels, label_names=names)
        config = tiny(class_cond=True, dropout=0.1, set_aside=2, report_every=2, optimizer=optimizer)
        options = [text for name in TINY for text in (f"--{name.replace('_', '-')}", str(TINY[name]).strip("(,)"))]
        options += ["--class-cond", "--dropout=0.1", "--set-aside=2", "--report-every=2", f"--optimizer={optimizer}"]
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
                *("-m", "ddim_edit", "train", tmp_path / "p.npz", "-o", tmp_path / "two"),
                *("--device=cpu", "--threads=1", *options),
            ],
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        assert [line.split(":")[0] for line in ended.stdout.splitlines()] == ["step 0", "step 2", "step 4"]
        assert ended.stderr.count("wrote") == 1
        train(photos, tmp_path / "one", replace(config, accumulate=2), device="cpu")
        two, one = (tensors_of(state_of(tmp_path / run)) for run in ("two", "one"))
        assert two.keys() == one.keys()
        for name, value in one.items():
            assert torch.allclose(two[name], value, atol=1e-5), name


class TestPlainDiffusers:
    X = gaussian_noise(0, 2, 3, SIZE, SIZE).float()

    def test_the_pipeline_samples_from_an_unconditional_run(self, photos: PhotoSet, tmp_path: Path):
        from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline

        train(photos, tmp_path / "run", tiny(), device="cpu")
        pipeline = DDIMPipeline.from_pretrained(tmp_path / "run")
        pipeline.set_progress_bar_config(disable=True)
        pictures = pipeline(batch_size=2, num_inference_steps=5, output_type="np").images  # pyright: ignore
        assert pictures.shape == (2, SIZE, SIZE, 3)
        assert np.isfinite(pictures).all()

    @pytest.mark.parametrize(
        ("changes", "label"),
        [({}, None), ({"class_cond": True}, 1), ({"learn_sigma": True, "loss": "hybrid"}, None)],
        ids=["plain", "class-conditional", "learned sigma"],
    )
    def test_a_loop_by_hand_matches_our_decode(self, photos, tmp_path, changes, label):
        model = train(photos, tmp_path / "run", tiny(**changes), device="cpu")
        ours = de.sample(model, self.X, grid=10, denoiser=model.denoiser(label))
        assert torch.allclose(ours, by_hand(tmp_path / "run", self.X, 10, label), atol=1e-4)


def test_the_time_left_is_that_of_the_steps_left(photos: PhotoSet, tmp_path: Path, monkeypatch):
    draw, seen = Watch.draw, list[Progress]()
    monkeypatch.setattr(loop, "GLANCE_SECONDS", 0)
    monkeypatch.setattr(Watch, "draw", lambda self, path: (time.sleep(2), draw(self, path)))  # in the first report
    watchers = Watchers(on_progress=seen.append)
    train(photos, tmp_path / "run", tiny(steps=20, report_every=100), device="cpu", watchers=watchers)
    assert [progress.step for progress in seen] == list(range(1, 21))
    assert seen[4].left < 15 * 0.5  # with the report among the five steps it would be more than 30 seconds
    assert seen[-1].left == 0


def test_photos_without_a_class_go_to_whatever_the_model_calls_it():
    pictures = PhotoSet(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), ("none", "cat", "none"))
    assert labels_of(pictures, Labels(count=3, null=1, names=("cat", "nothing", "dog"))).tolist() == [1, 0, 1]
    assert labels_of(pictures, Labels(count=2, null=None, names=("none", "cat"))).tolist() == [0, 1, 0]


def test_a_run_without_a_null_class_is_watched_with_labels(photos: PhotoSet, tmp_path: Path):
    known = PhotoSet(photos.pixels[:8], tuple(["cat", "dog"] * 4))
    train(known, tmp_path / "run", tiny(class_cond=True, label_dropout=0.0, set_aside=2, steps=1), device="cpu")
    assert float(rows_of(tmp_path / "run")[-1]["eps_mse"]) > 0
    assert json.loads((tmp_path / "run" / "labels.json").read_text())["null"] is None


@pytest.mark.parametrize(
    ("changes", "licence", "sampled"),
    [
        ({}, "cc-by-4.0", True),
        ({"class_cond": True}, "other", False),
        ({"class_cond": True, "label_dropout": 0.0}, "other", False),
        ({"target": "x_prev"}, "other", False),
    ],
)
def test_the_card_says_who_can_sample_it(photos: PhotoSet, tmp_path: Path, changes, licence: str, sampled: bool):
    config = tiny(steps=1, **changes, licence="CC BY 4.0" if sampled else "CC BY 4.0: see site")
    if config.label_dropout == 0:  # and no photo without a class: a model without a null class
        photos = PhotoSet(photos.pixels[:8], tuple(["cat", "dog"] * 4))
    train(photos, tmp_path / "run", config, device="cpu")
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"\nlicense: {licence}\n" in card
    assert ("DDIMPipeline.from_pretrained` samples it too" in card) is sampled
    code = card.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code.replace('"run"', repr(str(tmp_path / "run"))), names)
    assert names["pictures"].shape == (2, 3, SIZE, SIZE)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_and_schedule_makes_a_model_that_samples(photos, tmp_path, target, schedule):
    config = tiny(target=target, schedule=schedule, steps=2, set_aside=1, loss="mse" if target != "sample" else "vb")
    model = train(photos, tmp_path / "run", config, device="cpu")
    assert str(model.prediction) == ("epsilon" if target == "x_prev" else target)
    picture = de.sample(model, [0], grid=4, denoiser=model.denoiser(clip_x0=1.0, rederive_eps=True))
    assert torch.isfinite(picture).all()


def test_a_run_by_the_clock_ends_in_time_and_anneals(photos: PhotoSet, tmp_path: Path, monkeypatch):
    ticks = iter(range(10_000))

    class Clock:
        """A second passes with every look."""

        monotonic = staticmethod(lambda: float(next(ticks)))

    monkeypatch.setattr(loop, "time", Clock)
    config = tiny(steps=None, minutes=2, report_every=1000, decay=0.5)
    train(photos, tmp_path / "run", config, device="cpu")
    first, last = rows_of(tmp_path / "run")
    assert float(last["minutes"]) <= 2
    assert float(last["lr"]) < 0.1 * TINY["lr"]
    assert int(last["step"]) > 10
    assert float(first["lr"]) == 0


class TestFineTuning:
    def test_begins_with_the_same_function(self, photos: PhotoSet, tmp_path: Path):
        start = cpu(save_tiny_model(tmp_path / "model"))
        bigger = PhotoSet(photos.pixels.repeat_interleave(2, -1).repeat_interleave(2, -2), photos.classes)
        config = TrainConfig(
            init=str(tmp_path / "model"),
            steps=1,
            lr=1e-9,
            batch_size=2,
            warmup=0,
            class_cond=True,
            learn_sigma=True,
            loss="hybrid",
        )
        tuned = train(bigger, tmp_path / "run", config, device="cpu")
        assert tuned.labels is not None
        assert tuned.labels.names == ("cat", "dog", "none")
        assert tuned.schedule.digest == start.schedule.digest
        x, level = gaussian_noise(0, 2, 3, 16, 16).float(), start.schedule.level(500)
        with torch.no_grad():
            before, after = start.denoiser()(x, level), tuned.denoiser("dog")(x, level)
        assert torch.allclose(before.eps, after.eps, atol=1e-5)
        assert after.variance is not None

    def test_keeps_the_classes_of_the_model(self, photos: PhotoSet, tmp_path: Path):
        save_tiny_model(tmp_path / "model", labels=LABELS)
        bigger = PhotoSet(photos.pixels.repeat_interleave(2, -1).repeat_interleave(2, -2), photos.classes)
        config = TrainConfig(init=str(tmp_path / "model"), steps=1, batch_size=2, class_cond=True)
        assert train(bigger, tmp_path / "run", config, device="cpu").labels == cpu(tmp_path / "model").labels
        birds = PhotoSet(bigger.pixels, ("bird",) * 10)
        with pytest.raises(ConfigError, match="label 'bird' is unknown to this model"):
            train(birds, tmp_path / "other", config, device="cpu")

    def test_classes_without_names_stay_so(self, photos: PhotoSet, tmp_path: Path):
        """As plain diffusers folders have them."""
        save_tiny_model(tmp_path / "model", labels=LABELS)
        (tmp_path / "model" / "labels.json").unlink()
        bigger = PhotoSet(photos.pixels.repeat_interleave(2, -1).repeat_interleave(2, -2), ("0", "1") * 5)
        config = TrainConfig(init=str(tmp_path / "model"), steps=1, batch_size=2, class_cond=True)
        tuned = train(bigger, tmp_path / "run", config, device="cpu")
        assert tuned.labels == Labels(3)
        assert "model.denoiser(0)" in (tmp_path / "run" / "README.md").read_text()

    def test_what_the_model_fixes_cannot_be_chosen(self, photos: PhotoSet, tmp_path: Path):
        save_tiny_model(tmp_path / "model")
        config = TrainConfig(init=str(tmp_path / "model"), steps=1, target="sample")
        with pytest.raises(ConfigError, match=r"target is epsilon in .*; leave it out when fine-tuning"):
            train(photos, tmp_path / "run", config, device="cpu")


def test_channels_may_be_a_list(photos: PhotoSet, tmp_path: Path):
    """As people write them, and as JSON has them; the run goes on with either."""
    train(photos, tmp_path / "run", tiny(channels=[8], steps=1), device="cpu")
    train(photos, tmp_path / "run", tiny(channels=[8], steps=2), device="cpu", resume=True)
    assert len(rows_of(tmp_path / "run")) == 3


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"steps": None}, "neither steps nor minutes were given"),
            ({"steps": 0}, "steps is 0; choose a whole number above 0"),
            ({"lr": 0.0}, "lr is 0.0; choose a number above 0"),
            ({"ema": 1.0}, r"ema is 1.0; choose a number in \[0, 1\)"),
            ({"channels": (12,)}, r"channels is \(12,\); choose widths that are multiples of 8"),
            ({"size": 10, "channels": (8, 8, 8)}, "size 10 cannot be halved 2 times; choose a multiple of 4"),
            ({"steps": 1.5}, "steps is 1.5; choose a whole number above 0"),
            ({"fit": "squeeze"}, "fit 'squeeze' is unknown; choose one of crop, pad, stretch"),
            ({"target": "score"}, "target 'score' is unknown; choose one of epsilon, sample, v_prediction, x_prev"),
            ({"learn_sigma": True}, "loss mse leaves a learned sigma untrained"),
            ({"diffusion_steps": 20}, "diffusion_steps is 20; choose 25 or more, or the cosine schedule"),
            ({"loss": "hybrid"}, "add --learn-sigma"),
            ({"loss": "vb", "min_snr": 5}, "min_snr weighs squared errors"),
            ({"target": "x_prev", "min_snr": 5}, "min_snr weighs squared errors"),
            ({"loss": "vb", "snr_floor": 0.1}, "snr_floor weighs squared errors"),
            ({"loss": "vb", "moments": 0.1}, "moments weighs squared errors"),
            ({"loss": "vb", "high_noise": 1}, "high_noise weighs squared errors"),
            ({"high_noise": 2.1}, r"high_noise is 2.1; choose a number in \(0, 2\]"),
            ({"moments": 0}, "moments is 0; choose a number above 0"),
            ({"precision": "fp16", "optimizer": "muon"}, "precision fp16 scales gradients for one optimizer"),
            ({"min_snr": 5, "snr_floor": 6}, "snr_floor 6 is above min_snr 5; choose it below"),
            ({"seed": 10**20}, "seed is 100000000000000000000; choose 0 or more, below"),
        ],
    )
    def test_settings_are_checked_at_once(self, changes: dict[str, object], message: str):
        with pytest.raises(ConfigError, match=message):
            tiny(**changes)

    def test_classes_to_learn_must_be_there(self, photos: PhotoSet, tmp_path: Path):
        with pytest.raises(ConfigError, match="class_cond needs classes"):
            train(PhotoSet(photos.pixels, None), tmp_path / "run", tiny(class_cond=True), device="cpu")

    def test_a_run_is_not_begun_twice_and_a_model_not_overwritten(self, photos: PhotoSet, tmp_path: Path):
        train(photos, tmp_path / "run", tiny(steps=1), device="cpu")
        with pytest.raises(OutputError, match="holds a run; pass --resume"):
            train(photos, tmp_path / "run", tiny(steps=1), device="cpu")
        with pytest.raises(OutputError, match="which is of no run"):
            train(photos, save_tiny_model(tmp_path / "model"), tiny(steps=1), resume=True, device="cpu")

    def test_a_run_goes_on_only_as_it_began(self, photos: PhotoSet, tmp_path: Path):
        train(photos, tmp_path / "run", tiny(steps=1), device="cpu")
        with pytest.raises(ConfigError, match="the run began with target 'epsilon', not 'sample'"):
            train(photos, tmp_path / "run", tiny(target="sample"), resume=True, device="cpu")
        with pytest.raises(ConfigError, match="the run began with channels_last False, not True"):
            train(photos, tmp_path / "run", tiny(channels_last=True), resume=True, device="cpu")
        with pytest.raises(ConfigError, match="not the photos that the run began with"):
            train(photos.select(range(5)), tmp_path / "run", tiny(), resume=True, device="cpu")
        for _ in range(2):  # the second time there is nothing left to do
            train(photos, tmp_path / "run", tiny(steps=3, lr=1e-4, batch_size=2), resume=True, device="cpu")
            assert (state_of(tmp_path / "run")["step"], state_of(tmp_path / "run")["images"]) == (3, 8)
            assert [row["step"] for row in rows_of(tmp_path / "run")] == ["0", "1", "3"]

    def test_files_of_others_are_not_replaced(self, photos: PhotoSet, tmp_path: Path):
        (tmp_path / "README.md").write_text("mine")
        with pytest.raises(OutputError, match=r"holds README\.md, which is of no run and would be replaced"):
            train(photos, tmp_path, tiny(steps=1), device="cpu")
        assert (tmp_path / "README.md").read_text() == "mine"

    def test_the_state_of_another_program_is_not_loaded(self, photos: PhotoSet, tmp_path: Path):
        train(photos, tmp_path / "run", tiny(steps=1), device="cpu")
        torch.save({"model": torch.zeros(1)}, tmp_path / "run" / "state.pt")
        with pytest.raises(de.DdimEditError, match=r"state\.pt is no state of a run; move it away"):
            train(photos, tmp_path / "run", tiny(steps=2), resume=True, device="cpu")

    def test_the_null_class_stays_when_a_run_goes_on(self, photos: PhotoSet, tmp_path: Path):
        train(photos, tmp_path / "run", tiny(steps=1, class_cond=True), device="cpu")
        config = tiny(steps=2, class_cond=True, label_dropout=0.0)
        with pytest.raises(ConfigError, match=r"the run began with label_dropout 0\.1, not 0\.0"):
            train(photos, tmp_path / "run", config, resume=True, device="cpu")

    def test_time_for_no_step_is_an_error(self, photos: PhotoSet, tmp_path: Path):
        with pytest.raises(ConfigError, match="minutes=1e-06 were over before the first step; give more"):
            train(photos, tmp_path / "run", tiny(steps=None, minutes=1e-6), device="cpu")

    def test_a_damaged_state_is_not_loaded(self, photos: PhotoSet, tmp_path: Path):
        train(photos, tmp_path / "run", tiny(steps=1), device="cpu")
        state = tmp_path / "run" / "state.pt"
        state.write_bytes(state.read_bytes()[:1000])
        with pytest.raises(de.DdimEditError, match=r"state\.pt cannot be read .*; delete it to begin the run anew"):
            train(photos, tmp_path / "run", tiny(), resume=True, device="cpu")

    @pytest.mark.parametrize("every", [1, 2])
    def test_a_run_that_explodes_stops_and_keeps_the_checkpoint(self, photos: PhotoSet, tmp_path: Path, every: int):
        # With a report after every step, no loss shows yet what the step did to the weights.
        config = tiny(lr=1e38, warmup=0, steps=20, report_every=every, sample_every=1000)
        with pytest.raises(NumericsError, match=r"loss or weights are (nan|inf) at step \d+; .* lower --lr"):
            train(photos, tmp_path / "run", config, device="cpu")
        assert state_of(tmp_path / "run")["step"] == 0

    def test_a_full_disk_keeps_the_last_checkpoint(self, photos: PhotoSet, tmp_path: Path, monkeypatch):
        train(photos, tmp_path / "run", tiny(steps=2), device="cpu")

        def write_some(path: Path, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", write_some)
        with pytest.raises(OutputError, match="No space left on device"):
            train(photos, tmp_path / "run", tiny(steps=4), resume=True, device="cpu")
        monkeypatch.undo()
        assert state_of(tmp_path / "run")["step"] == 2
        assert not list((tmp_path / "run").rglob("*.tmp*"))
        assert de.load_model(tmp_path / "run", device="cpu").facts["parameters"]

    def test_without_accelerate(self, photos: PhotoSet, tmp_path: Path, monkeypatch):
        monkeypatch.setitem(sys.modules, "accelerate", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'ddim-edit\[train\]'"):
            train(photos, tmp_path / "run", tiny(), device="cpu")


class TestCommand:
    OPTIONS = (
        *("--size", SIZE, "--channels", "8", "--diffusion-steps", 50, "--batch-size", 2, "--device", "cpu"),
        *("--steps", 4, "--report-every", 2, "--sample-every", 100),
    )

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for number, name in enumerate(("cat/a", "cat/b", "dog/a", "c")):
            save_photo(tmp_path / "photos" / f"{name}.png", number, size=(20 + number, 30))
        return tmp_path / "photos"

    def test_every_setting_is_an_option_with_the_same_default(self):
        with train_command.make_context("train", ["photos", "-o", "run"]) as context:
            found = dict(context.params)
        own = vars(TrainConfig(steps=1)) | {"steps": None, "loss": None}  # the command chooses mse or hybrid
        assert {name: found[name] for name in own} == own

    def test_the_choices_are_those_of_the_package(self):
        from ddim_edit.cli import training as command

        assert set(command.TARGETS) == set(TARGETS)
        assert (
            settings.SCHEDULES,
            tuple(settings.SAMPLERS),
            tuple(settings.OPTIMIZERS),
        ) == (SCHEDULES, SAMPLERS, OPTIMIZERS)
        assert (settings.LOSSES, tuple(settings.PRECISIONS)) == (LOSSES, PRECISIONS)

    def test_trains_and_the_other_commands_load_the_run(self, folder: Path, tmp_path: Path, capsys):
        run = tmp_path / "run"
        outcome = run_cli("train", folder, "-o", run, "--class-cond", *self.OPTIONS, capsys=capsys)
        assert outcome.code == 0, outcome
        assert [line.split(":")[0] for line in outcome.stdout.splitlines()] == ["step 0", "step 2", "step 4"]
        assert outcome.stderr == f"wrote {run} (1 done)\n"
        assert json.loads((run / "run.json").read_text())["command"] == "train"
        again = run_cli("train", "--config", run / "run.json", "-o", tmp_path / "again", capsys=capsys)
        assert again.code == 0, again
        assert (
            de.load_model(run, device="cpu").fingerprint == de.load_model(tmp_path / "again", device="cpu").fingerprint
        )
        for command in (
            ("sample", "--model", run, "--seeds", "0", "-n", 2, "--label", "dog", "-o", tmp_path / "samples"),
            ("evaluate-model", run, folder, "--draws", 2, "--labels", "true"),
            ("encode", folder / "c.png", "--model", run, "-n", 2, "--no-check", "-o", tmp_path / "latents"),
            ("info", run),
        ):
            assert run_cli(*command, capsys=capsys).code == 0, command

    def test_photos_get_their_shape_as_asked(self, folder: Path, tmp_path: Path):
        crop, stretch = (read_photo_set(folder, (SIZE, SIZE), fit=fit).pixels for fit in ("crop", "stretch"))
        seen: list[PhotoSet] = []
        config = tiny(fit="stretch", steps=1)
        train(folder, tmp_path / "run", config, device="cpu", watchers=Watchers(on_photos=seen.append))
        assert seen[0].pixels.equal(stretch)
        assert not seen[0].pixels.equal(crop)
        with pytest.raises(ConfigError, match="the run began with fit 'stretch', not 'crop'"):
            train(folder, tmp_path / "run", tiny(steps=2), device="cpu", resume=True)

    def test_a_run_does_not_lie_among_its_photos(self, folder: Path, capsys):
        outcome = run_cli("train", folder, "-o", folder / "run", *self.OPTIONS, capsys=capsys)
        assert outcome.code == 1
        assert "lies in the folder of the photos" in outcome.stderr
        assert not (folder / "run").exists()

    def test_a_table_is_not_ignored(self, folder: Path, tmp_path: Path, capsys):
        table = tmp_path / "labels.csv"
        table.write_text("file,label\nc.png,cat\n")
        outcome = run_cli("train", folder, "-o", tmp_path / "run", "--label-table", table, *self.OPTIONS, capsys=capsys)
        assert outcome.code == 2
        assert "add --class-cond, or leave it out" in outcome.stderr

    def test_the_record_covers_the_whole_run(self, folder: Path, tmp_path: Path, capsys, monkeypatch):
        before = time.time()
        draw = Watch.draw
        monkeypatch.setattr(Watch, "draw", lambda self, path: (time.sleep(1.1), draw(self, path)))
        assert run_cli("train", folder, "-o", tmp_path / "run", *self.OPTIONS, capsys=capsys).code == 0
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert record["seconds"] > 1.1
        assert datetime.fromisoformat(record["started"]).timestamp() < before + 1

    def test_bad_photos_are_counted_and_listed(self, folder: Path, tmp_path: Path, capsys):
        (folder / "dog" / "bad.jpg").write_text("no photo")
        outcome = run_cli("train", folder, "-o", tmp_path / "run", "--json", *self.OPTIONS, capsys=capsys)
        assert outcome.code == 3
        assert "1 of 5 photos cannot be read and are left out: " in outcome.stderr
        assert "bad.jpg is not an image" in outcome.stderr
        assert [json.loads(line)["step"] for line in outcome.stdout.splitlines()] == [0, 2, 4]
        record = json.loads((tmp_path / "run" / "training.json").read_text())
        assert [Path(failure["source"]).name for failure in record["data"]["failures"]] == ["bad.jpg"]

    def test_bad_photos_are_no_crash_to_a_launcher(self, folder: Path, tmp_path: Path, capsys, monkeypatch):
        (folder / "dog" / "bad.jpg").write_text("no photo")
        model = cpu(save_tiny_model(tmp_path / "model"))

        def trained(photos: Path, output: Path, config: TrainConfig, **given: Any) -> Model:
            given["watchers"].on_photos(read_photo_set(photos, (8, 8)))
            return model

        monkeypatch.setattr("ddim_edit.training.train", trained)
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank, said in (("0", True), ("1", False)):
            monkeypatch.setenv("RANK", rank)
            outcome = run_cli("train", folder, "-o", tmp_path / "run", *self.OPTIONS, capsys=capsys)
            assert outcome.code == 0
            assert ("bad.jpg" in outcome.stderr) == said

    def test_ctrl_c_saves_and_resume_goes_on(self, folder: Path, tmp_path: Path, capsys, monkeypatch):
        from ddim_edit.cli.training import Meter

        run = tmp_path / "run"
        arguments = ("train", folder, "-o", run, *self.OPTIONS)
        monkeypatch.setattr(Meter, "report", lambda self, row: os.kill(os.getpid(), signal.SIGINT))
        handler = signal.getsignal(signal.SIGINT)
        outcome = run_cli(*arguments, capsys=capsys)
        monkeypatch.undo()
        assert outcome.code == 130
        assert f"{run} is saved; the same command with --resume goes on" in outcome.stderr
        assert signal.getsignal(signal.SIGINT) is handler
        assert state_of(run)["step"] == 0
        assert run_cli(*arguments, capsys=capsys).code == 1
        assert run_cli(*arguments, "--resume", capsys=capsys).code == 0
        assert state_of(run)["step"] == 4
