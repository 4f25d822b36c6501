"""What `interpolate --dry-run` says against what the run then spends, counted by the network."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Outcome, files_in, run_cli, save_photo, save_tiny_model
from model_helpers import SIZE, counted_model
from pytest import CaptureFixture, MonkeyPatch  # noqa: PT013

from ddim_edit import models
from ddim_edit.forecast import Part, total
from ddim_edit.solvers import SOLVERS

Calls = list[int]
EXPLICIT = ("--inverse", "explicit", "-n", 6)
PHOTOS = ("in/a.png", "in/b.png", "in/c.png")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: MonkeyPatch) -> Calls:
    """A folder of photos, and the batch sizes that an exact network in place of the bundled model is called with."""
    model, calls = counted_model()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load_model", lambda *given, **settings: model)
    for seed, name in enumerate("abc"):
        save_photo(tmp_path / "in" / f"{name}.png", seed, (SIZE, SIZE))
    return calls


@pytest.fixture
def run(calls: Calls, capsys: CaptureFixture[str]) -> Callable[..., Outcome]:
    return partial(run_cli, capsys=capsys)


def told_and_spent(run: Callable[..., Outcome], calls: Calls, *arguments: object) -> tuple[dict[str, Any], int]:
    """What the dry run of an interpolation says, which must leave no trace, and how many evaluations the run makes."""
    before = files_in(Path())
    dry = run("interpolate", *arguments, "--dry-run", "--json")
    assert dry.code == 0, dry.stderr
    assert files_in(Path()) == before
    calls.clear()
    made = run("interpolate", *arguments)
    assert made.code == 0, made.stderr
    return json.loads(dry.stdout), sum(calls)


@pytest.mark.parametrize(
    "flags",
    [
        (*PHOTOS, *EXPLICIT),
        (*PHOTOS, *EXPLICIT, "--guess", "target", "--loop", "--settle", 1),
        (*PHOTOS, *EXPLICIT, "--boomerang", "--endpoints", "decoded", "--settle", 2),
        (*PHOTOS, *EXPLICIT, "--pace", "none", "--endpoints", "paste", "--batch-size", 2),
        (*PHOTOS, *EXPLICIT, "--decode-steps", 3, "--pilot", 4),
        (*PHOTOS[:2], *EXPLICIT, "--decode-steps", 11),  # whose topmost level lies above that of the latents
        ("--seeds", "0-2", "-n", 5, "--eta", 0.5),
    ],
)
def test_the_evaluations_told_are_those_that_are_spent(run: Callable[..., Outcome], calls: Calls, flags: tuple[object]):
    told, spent = told_and_spent(run, calls, *flags, "--frames", 8, "-o", "out.webp")
    assert told["evaluations"] == {"count": spent, "bound": "exactly"}
    assert {part["bound"] for part in told["work"]} == {"exactly"}


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_keeps_the_bound_that_is_told(run: Callable[..., Outcome], calls: Calls, solver: str):
    flags = (*PHOTOS[:2], *EXPLICIT, "--solver", solver, "--pilot", 3, "--frames", 4)
    told, spent = told_and_spent(run, calls, *flags, "-o", "out.webp")
    count, bound = told["evaluations"].values()
    if solver in ("trapezoid", "dop853"):
        assert bound == "at least"
        assert count < spent
    elif SOLVERS[solver]().pair:
        assert bound == "about"
    else:
        assert (count, bound) == (spent, "exactly")


@pytest.mark.parametrize(
    ("flags", "bound"),
    [
        (("-n", 10, "--budget", 24), "at most"),
        (("-n", 10, "--eta", 0.5), "at most"),
        (("-n", 10), "about"),
        (("-n", 10, "--solver", "ab2"), "about"),
    ],
)
def test_iterating_inverses_are_bounded_or_said_to_be_guessed(
    run: Callable[..., Outcome], calls: Calls, flags: tuple[object], bound: str
):
    told, spent = told_and_spent(run, calls, *PHOTOS, *flags, "--frames", 4, "--pilot", 2, "-o", "out.webp")
    assert told["evaluations"]["bound"] == bound
    assert [part["bound"] for part in told["work"]] == [bound, "exactly", "exactly", "exactly"]
    if bound == "at most":
        assert spent <= told["evaluations"]["count"]


def test_as_many_frames_as_it_takes_are_at_least_the_keys(run: Callable[..., Outcome], calls: Calls):
    flags = (*PHOTOS, *EXPLICIT, "--max-step", 0.05, "-o", "out.webp")
    told, spent = told_and_spent(run, calls, *flags)
    assert told["frames"] is None
    assert told["evaluations"]["bound"] == "at least"
    assert told["evaluations"]["count"] <= spent


def test_guidance_counts_twice_and_features_once(
    run: Callable[..., Outcome], calls: Calls, tmp_path: Path, monkeypatch: MonkeyPatch
):
    monkeypatch.undo()  # of the exact network
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "model", labels={"names": ["cat", "dog", "none"], "null": 2})
    forward = models.unet2d.UNet2DNetwork.__call__
    monkeypatch.setattr(
        models.unet2d.UNet2DNetwork, "__call__", lambda self, x, *rest: calls.append(len(x)) or forward(self, x, *rest)
    )
    flags = ("--model", "model", "--label", "cat", "--guidance", 2, "--pace", "unet", "--pilot", 3, "--frames", 6)
    told, spent = told_and_spent(run, calls, *PHOTOS, *EXPLICIT, *flags, "-o", "out.webp")
    assert told["evaluations"] == {"count": spent, "bound": "exactly"}
    assert [part["what"] for part in told["work"]] == ["encode", "keys", "pilot", "features", "frames"]


def test_an_interrupted_run_has_only_its_missing_frames_left(
    run: Callable[..., Outcome], calls: Calls, monkeypatch: MonkeyPatch
):
    from ddim_edit.rendering import Checkpoint

    arguments = ("interpolate", *PHOTOS, *EXPLICIT, "--frames", 20, "--batch-size", 4, "-o", "out.webp")
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "missing", lambda *_: [range(4), range(8, 12)])
        patched.setattr(Checkpoint, "frames", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*arguments).code == 130
    told, spent = told_and_spent(run, calls, *arguments[1:])
    assert [(part["what"], part["pictures"]) for part in told["work"]] == [("frames", 12)]
    assert told["evaluations"]["count"] == spent == 12 * 6


def test_people_read_what_would_be_done(run: Callable[..., Outcome]):
    lines = run("interpolate", *PHOTOS, *EXPLICIT, "--frames", 9, "--pilot", 3, "--dry-run").stdout.splitlines()
    assert lines[:2] == ["keys: a, b, c", "clip: 9 frames, 2 segments, path squad, 6 steps a picture"]
    assert [line.split() for line in lines[2:-1]] == [
        ["encode", "3", "pictures", "18", "evaluations"],
        ["keys", "3", "pictures", "18", "evaluations"],
        ["pilot", "5", "pictures", "30", "evaluations"],
        ["frames", "9", "pictures", "54", "evaluations"],
    ]
    assert lines[-1].startswith("total: 120 evaluations; about ")


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ((*PHOTOS, "--frames", 2), 2, "choose frames >= 3"),
        ((*PHOTOS, "-o", "in/a.png"), 1, "exists; choose another"),
        ((*PHOTOS, "--pace", "unet"), 2, "shows no features to pace by"),
        ((*PHOTOS, "--solver", "leapfrog", "--decode-steps", 3), 1, "leave the grid as encoded"),
        (("--seeds", "0-2", "--eta", 0.5, "--decode-steps", 3), 1, "leave the grid as it was"),
        ((*PHOTOS, "bad.png"), 1, "bad.png"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_evaluation(
    run: Callable[..., Outcome], calls: Calls, flags: tuple[object], code: int, message: str
):
    Path("bad.png").write_bytes(b"no photo")
    for dry in (("--dry-run",), ()):
        refused = run("interpolate", *flags, *dry)
        assert refused.code == code
        assert message in refused.said
        assert (refused.stdout, calls) == ("", [])


def test_a_total_is_as_loose_as_its_parts():
    exact, more, fewer = Part("a", 1, 2), Part("b", 1, 3, "at least"), Part("c", 1, 4, "at most")
    assert total([exact, exact]) == Part("total", 2, 4)
    assert total([exact, more]) == Part("total", 2, 5, "at least")
    assert total([more, fewer]) == Part("total", 2, 7, "about")
