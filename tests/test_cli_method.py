"""How photos are encoded, on the command line: solvers, inverses, goals and budgets."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import Outcome, run_cli, save_photo
from model_helpers import mixture_model
from pytest import CaptureFixture, MonkeyPatch  # noqa: PT013

from ddim_edit import models
from ddim_edit.images import read_image, to_uint8
from ddim_edit.latents import Latents

Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]) -> Run:
    """Run a command on two photos, with an exact network in place of the bundled model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load_model", lambda *given, **settings: mixture_model())
    for seed, name in enumerate("ab"):
        save_photo(tmp_path / "in" / f"{name}.png", seed, (12, 12))
    return partial(run_cli, capsys=capsys)


def rows(run: Run, *arguments: object) -> list[dict[str, Any]]:
    outcome = run("roundtrip", "in", "--json", *arguments)
    assert outcome.code == 0, outcome.stderr
    return [json.loads(line) for line in outcome.stdout.splitlines()]


class TestRoundtrip:
    def test_by_default_every_byte_comes_back_from_a_quadratic_grid(self, run: Run):
        for row in rows(run):
            assert (row["solver"], row["inverse"], row["spacing"]) == ("ddim", "exact", "quadratic")
            assert row["changed_8bit"] == 0
            assert row["inversion"]["reached"] is True
            assert len(row["inversion"]["residuals"]) == row["steps"]

    def test_the_lines_say_what_was_reached_and_what_it_took(self, run: Run):
        for row in rows(run, "-n", 10, "--budget", 24):
            assert row["inversion"]["reached"] is None
            assert sum(row["inversion"]["iterations"]) == row["evaluations"]["encode"] <= 24
            assert row["evaluations"]["decode"] == row["steps"]
            assert row["inversion"]["stalled"] == 0

    @pytest.mark.parametrize(
        ("flags", "psnr"), [(("--target-psnr", 45), 45), (("--tolerance", 1e-3), 60), (("--tolerance", "0.02"), 33.9)]
    )
    def test_goals(self, run: Run, flags: tuple[object, ...], psnr: float):
        for row in rows(run, "-n", 10, *flags):
            assert row["psnr"] >= psnr
            assert row["inversion"]["reached"] is True

    def test_a_goal_within_a_budget(self, run: Run):
        for row in rows(run, "-n", 10, "--target-psnr", 40, "--budget", 60):
            assert row["evaluations"]["encode"] <= 60

    def test_the_target_of_every_byte(self, run: Run):
        for row in rows(run, "-n", 20, "--target", "8bit"):
            assert row["changed_8bit"] == 0

    def test_explicit_is_the_models_own_grid(self, run: Run):
        for row in rows(run, "-n", 10, "--inverse", "explicit"):
            assert (row["inverse"], row["spacing"], row["inversion"]) == ("explicit", "leading", None)
            assert row["evaluations"] == {"encode": 10, "decode": 10}

    def test_the_two_guesses_differ(self, run: Run):
        flags = ("-n", 10, "--inverse", "explicit")
        errors = [[row["mse"] for row in rows(run, *flags, "--guess", guess)] for guess in ("source", "target")]
        assert errors[0] != errors[1]
        assert errors[0] == [row["mse"] for row in rows(run, *flags)]

    @pytest.mark.parametrize(
        ("solver", "inverse"), [("ab2", "refine"), ("midpoint", "exact"), ("trapezoid", "exact"), ("lattice", "exact")]
    )
    def test_solvers_come_with_the_inverse_that_suits_them(self, run: Run, solver: str, inverse: str):
        for row in rows(run, "-n", 20, "--solver", solver):
            assert (row["solver"], row["inverse"]) == (solver, inverse)
            assert row["psnr"] is None or row["psnr"] > 40

    def test_decoding_is_counted_as_it_was(self, run: Run):
        cost = {
            solver: rows(run, "-n", 5, "--spacing", "leading", "--inverse", "explicit", "--solver", solver)
            for solver in ("midpoint", "leapfrog")
        }
        assert {row["evaluations"]["decode"] for row in cost["midpoint"]} == {9}
        assert {row["evaluations"]["decode"] for row in cost["leapfrog"]} == {4}

    def test_both_states_of_a_pair_are_reported(self, run: Run):
        for row in rows(run, "-n", 10, "--solver", "lattice"):
            assert row["latent"]["second"]["rms"] > 0
        assert all("second" not in row["latent"] for row in rows(run, "-n", 10))

    def test_a_grid_that_must_be_split_is_said_to_be(self, run: Run):
        outcome = run("roundtrip", "in", "--json", "-n", 2, "--spacing", "trailing")
        steps = json.loads(outcome.stdout.splitlines()[0])["steps"]
        assert steps > 2
        (note,) = [line for line in outcome.stderr.splitlines() if line.startswith("note: ")]
        assert f"{steps - 2} steps more" in note
        assert "too large to be undone" in note
        assert "note: " not in run("roundtrip", "in", "-n", 20).stderr


class TestEncode:
    @pytest.mark.parametrize("solver", ["ddim", "midpoint", "ab2", "leapfrog", "lattice"])
    def test_what_is_encoded_is_decoded(self, run: Run, solver: str, tmp_path: Path):
        made = run("encode", "in", "-o", "latents", "-n", 20, "--solver", solver)
        assert made.code == 0, made.stderr
        assert run("decode", "latents", "-o", "out").code == 0
        for name in "ab":
            ours, theirs = (read_image(tmp_path / place / f"{name}.png", (12, 12)) for place in ("out", "in"))
            assert (to_uint8(ours) == to_uint8(theirs)).all()

    def test_the_file_says_how_it_was_made_and_what_was_reached(self, run: Run, tmp_path: Path):
        run("encode", "in", "-o", "all.safetensors", "-n", 10, "--tolerance", 1e-3, "--budget", 80)
        latents = Latents.load(tmp_path / "all.safetensors")
        assert latents.how["inverse"] == {"name": "exact", "goal": {"rms": 1e-3, "every_byte": False}, "budget": 80}
        assert all(photo.inversion and photo.inversion.reached for photo in latents.photos)

    def test_a_goal_that_is_missed_is_said_with_what_to_do(self, run: Run):
        outcome = run("encode", "in", "-o", "out", "-n", 10, "--target-psnr", 110, "--budget", 20)
        assert outcome.code == 0
        assert outcome.stdout.count("does not come back as well as was asked for; use more steps (-n)") == 2

    def test_json_carries_the_report(self, run: Run):
        outcome = run("encode", "in", "-o", "out", "-n", 10, "--json")
        for line in outcome.stdout.splitlines():
            report = json.loads(line)["inversion"]
            assert report["reached"] is True
            assert len(report["iterations"]) == 10

    def test_pairs_keep_their_pair(self, run: Run, tmp_path: Path):
        run("encode", "in", "-o", "all.safetensors", "-n", 10, "--solver", "leapfrog")
        latents = Latents.load(tmp_path / "all.safetensors")
        (other,) = latents.memory
        assert other.dtype == torch.float32
        rms = [photo.second_health.rms for photo in latents.photos if photo.second_health]
        assert rms == pytest.approx(other.square().mean((1, 2, 3)).sqrt().tolist(), rel=1e-5)

    def test_part_of_the_way(self, run: Run, tmp_path: Path):
        run("encode", "in", "-o", "part.safetensors", "-n", 20, "--until", 300)
        assert Latents.load(tmp_path / "part.safetensors").level.t < 300
        assert run("decode", "part.safetensors", "-o", "out").code == 0
        pictures = [read_image(tmp_path / place / "a.png", (12, 12)) for place in ("out", "in")]
        assert (to_uint8(pictures[0]) == to_uint8(pictures[1])).all()


@pytest.mark.parametrize("command", ["encode", "roundtrip"])
@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ("--tolerance 1e-3 --target-psnr 40", 2, "--tolerance and --target-psnr say the same thing twice"),
        ("--target 8bit --target-psnr 40", 2, "--target-psnr and --target say the same thing twice"),
        ("--inverse explicit --budget 30", 2, "--budget needs an inverse that iterates"),
        ("--inverse explicit --target 8bit", 2, "--target needs an inverse that iterates"),
        ("--guess target", 2, "--guess is of the explicit inverse; add --inverse explicit"),
        ("--inverse exact --guess target", 2, "--guess is of the explicit inverse"),
        ("--solver euler", 2, "'euler' is not one of"),
        ("--inverse newton", 2, "'newton' is not one of"),
        ("--target 16bit", 2, "'16bit' is not"),
        ("--budget 0", 2, "0 is not in the range"),
        ("--budget 9 -n 10", 2, "budget 9 is too small for 10 steps; give 10 or more"),
        ("--budget 19 -n 10 --target 8bit", 2, "budget 19 is too small for 10 steps; give 20 or more"),
        ("--budget 30 --solver leapfrog", 2, "solver leapfrog takes what it takes; leave the budget out"),
        ("--solver ab2 --inverse exact", 2, "steps of solver ab2 cannot be undone one by one; use --inverse refine"),
        ("--solver ab2 --inverse explicit --guess target", 2, "solver ab2 has no guess at the target level"),
        ("--tolerance 0", 2, "tolerance 0 is no RMS error on [0, 1]"),
        ("--tolerance 1.5", 2, "tolerance 1.5 is no RMS error on [0, 1]"),
        ("--target-psnr -3", 2, "is no RMS error on [0, 1]"),
    ],
)
def test_settings_that_cannot_work_end_with_one_line_before_any_work(
    run: Run, monkeypatch: MonkeyPatch, tmp_path: Path, command: str, flags: str, code: int, message: str
):
    calls: list[int] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x

    model = models.Model.from_function(network, mixture_model().schedule, (3, 12, 12))
    monkeypatch.setattr(models, "load_model", lambda *given, **settings: model)
    outcome = run(command, "in", *flags.split(), *(("-o", "out") if command == "encode" else ()))
    assert outcome.code == code
    assert message in outcome.said
    assert outcome.stdout == ""
    assert calls == []
    assert not (tmp_path / "out").exists()
