"""Photos at eta > 0: the noise of every step is recorded, and with it the random solver decodes to the photo."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import Outcome, run_cli, save_photo
from model_helpers import SIZE, counted_model, mixture_model, photos
from pytest import CaptureFixture, MonkeyPatch  # noqa: PT013
from torch import Tensor

import ddim_edit as de
from ddim_edit import models
from ddim_edit.errors import ConfigError, InversionError, LatentsError
from ddim_edit.images import read_image, to_uint8
from ddim_edit.metrics import mse
from ddim_edit.noise import GivenNoise
from ddim_edit.ode import Step
from ddim_edit.solvers.recorder import FIRST_STEP

Run = Callable[..., Outcome]
RANDOM = [de.Ddim(0.1), de.Ddim(0.5), de.Ddim(1.0), de.Ddim(1.0, sigma_hat=True)]


def recorded(model: de.Model, pixels: Tensor, solver: de.Ddim = RANDOM[1], grid: de.Grid | int | str = 10, **more):
    return de.encode(model, pixels, grid=grid, solver=solver, **more)


class TestCodes:
    @pytest.mark.parametrize("steps", [1, 2, 5, 50])
    @pytest.mark.parametrize("spacing", ["leading", "quadratic"])
    @pytest.mark.parametrize("solver", RANDOM, ids=str)
    def test_they_decode_to_the_photo(self, solver: de.Ddim, spacing, steps: int):
        model, pixels = mixture_model(), photos(3)
        latents = recorded(model, pixels, solver, de.Grid.build(model.schedule, steps, spacing))
        assert latents.how["inverse"] == {"name": "recorded", "seed": 0}
        assert mse(de.decode(model, latents), pixels).max() < 1e-6
        assert all(record.quality is not None and record.quality.changed_8bit == 0 for record in latents.photos)

    def test_they_survive_a_file_bit_for_bit(self, tmp_path: Path):
        model = mixture_model()
        latents = recorded(model, photos(2))
        latents.save(tmp_path / "code.safetensors")
        loaded = de.Latents.load(tmp_path / "code.safetensors")
        assert de.decode(model, loaded).equal(de.decode(model, latents))

    def test_the_photo_is_in_the_noises(self):
        """With another photo's noises x_T leads elsewhere."""
        model, pixels = mixture_model(), photos(2)
        latents = recorded(model, pixels)
        assert latents.noises is not None
        swapped = de.decode(model, latents, noise=GivenNoise(latents.noises.flip(1)))
        assert mse(swapped, pixels).min() > 1e-3

    def test_noises_of_small_steps_are_nearly_standard(self):
        """As in sampling; in large steps what the network cannot know of the photo is added to them."""
        model = mixture_model()
        noises = recorded(model, photos(4), de.Ddim(1.0), de.Grid.build(model.schedule, 500)).noises
        assert noises is not None
        assert noises.shape == (500, 4, 3, SIZE, SIZE)
        assert noises[10:].square().mean((1, 2, 3, 4)).sqrt().numpy() == pytest.approx(1, abs=0.15)

    def test_x_t_is_the_photo_drowned_in_seeded_noise(self):
        model, pixels = mixture_model(), photos(2)
        latents = recorded(model, pixels, inverse=de.Recorded(7))
        noise = de.gaussian([7, 7], (3, SIZE, SIZE))
        assert latents.x.allclose(latents.level.signal * pixels + latents.level.noise * noise, atol=1e-6)
        assert not latents.x.allclose(recorded(model, pixels).x, atol=0.1)

    def test_decoding_passes_through_what_was_kept_of_the_way(self):
        model = mixture_model()
        latents = recorded(model, photos(2), trajectory_every=3)
        seen: dict[float, Tensor] = {}

        def watch(step: Step) -> None:
            seen[step.level.t] = step.state.x

        de.decode(model, latents, on_step=watch)
        assert latents.trajectory is not None
        grid = de.Grid.build(model.schedule, 10, "quadratic")
        assert latents.trajectory_t == tuple(grid[i].t for i in (3, 6, 9))
        for t, x in zip(latents.trajectory_t, latents.trajectory, strict=True):
            assert x.allclose(seen[t], atol=1e-4)

    def test_part_of_the_way(self):
        model, pixels = mixture_model(), photos(2)
        latents = recorded(model, pixels, grid=de.Grid.build(model.schedule, 20).until(400))
        assert not latents.whole
        assert mse(de.decode(model, latents), pixels).max() < 1e-6

    def test_the_price_is_one_evaluation_a_step_and_the_solving_of_one(self):
        model, calls = counted_model()
        latents = recorded(model, photos(3), check=False)
        assert [record.evaluations for record in latents.photos] == [10 - 1 + FIRST_STEP] * 3
        assert sum(calls) == 3 * (10 - 1 + FIRST_STEP)

    def test_a_code_does_not_depend_on_its_company(self):
        model, pixels = mixture_model(), photos(3)
        together, alone = recorded(model, pixels), recorded(model, pixels[1:2])
        assert together.noises is not None
        assert alone.noises is not None
        assert together.x[1:2].allclose(alone.x, atol=1e-5)
        assert together.noises[:, 1:2].allclose(alone.noises, atol=1e-3)

    @pytest.mark.parametrize("solver", RANDOM[1:], ids=str)
    def test_paths_through_both_halves_end_at_the_photos(self, solver: de.Ddim):
        model, pixels = mixture_model(), photos(3)
        frames = torch.stack(list(de.morph(model, recorded(model, pixels, solver), 7, de.Motion(pace="none"))))
        assert (to_uint8(frames[[0, 3, 6]]) == to_uint8(pixels)).all()
        assert mse(frames[1:], frames[:-1]).min() > 1e-5
        assert frames.abs().max() < 2  # nothing blows up between them

    @pytest.mark.parametrize("steps", [5, 10])
    def test_photos_come_back_from_grids_that_begin_with_much_noise(self, steps: int):
        model = mixture_model()
        latents = recorded(model, photos(3), de.Ddim(1.0), de.Grid.build(model.schedule, steps, "trailing"))
        assert len(latents.how["timesteps"]) == steps + 1  # pyright: ignore[reportArgumentType]
        assert min(photo.quality.psnr for photo in latents.photos if photo.quality) > 80
        assert all(photo.inversion and len(photo.inversion.iterations) == 1 for photo in latents.photos)

    def test_noise_of_another_grid_or_eta_is_refused(self):
        model = mixture_model()
        latents = recorded(model, photos(1), grid=de.Grid.from_timesteps(model.schedule, [0, 100, 500, 900]))
        another = de.Grid.from_timesteps(model.schedule, [0, 200, 500, 900])
        others: list[dict[str, Any]] = [{"grid": another}, {"solver": de.Ddim(1.0)}]
        for other in others:
            with pytest.raises(LatentsError, match="recorded on another grid or at another eta; leave both as encoded"):
                de.decode(model, latents, **other)

    def test_what_cannot_be_recorded_is_refused(self):
        model, pixels = mixture_model(), photos(1)
        with pytest.raises(ConfigError, match="adds no noise that could be recorded; use --inverse exact, or an eta"):
            recorded(model, pixels, de.Ddim(), inverse=de.Recorded())
        with pytest.raises(InversionError, match="encode with eta = 0, or use the inverse recorded"):
            recorded(model, pixels, inverse=de.Exact())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]) -> Run:
    """Run a command on two photos, with an exact network in place of the bundled model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load_model", lambda *given, **settings: mixture_model())
    for seed, name in enumerate("ab"):
        save_photo(tmp_path / "in" / f"{name}.png", seed, (SIZE, SIZE))
    return partial(run_cli, capsys=capsys)


def pictures(*paths: str) -> list[list[int]]:
    return [to_uint8(read_image(path, (SIZE, SIZE))).tolist() for path in paths]


class TestCommands:
    @pytest.mark.parametrize("eta", ["0.5", "1", "sigma-hat"])
    def test_what_is_encoded_is_decoded(self, run: Run, eta: str):
        made = run("encode", "in", "-o", "codes", "--eta", eta, "-n", 10)
        assert made.code == 0, made.stderr
        assert run("decode", "codes", "-o", "out").code == 0
        assert pictures("out/a.png", "out/b.png") == pictures("in/a.png", "in/b.png")

    def test_recorded_noise_is_kept_unless_a_seed_is_asked_for(self, run: Run):
        assert run("encode", "in", "-o", "codes", "--eta", 0.5, "-n", 10).code == 0
        for name, flags in (("own", ()), ("other", ("--seed", 3))):
            assert run("decode", "codes", "--eta", 0.5, *flags, "-o", name).code == 0
        own, other, truth = (pictures(f"{name}/a.png", f"{name}/b.png") for name in ("own", "other", "in"))
        assert own == truth
        assert other != truth

    @pytest.mark.parametrize("flags", [(), ("--seed", 3)], ids=str)
    def test_a_repeated_decode_draws_or_keeps_the_same_noise(self, run: Run, flags: tuple[object, ...]):
        assert run("encode", "in", "-o", "codes", "--eta", 0.5, "-n", 10).code == 0
        assert run("decode", "codes", "--eta", 0.5, *flags, "-o", "first").code == 0
        assert run("decode", "codes", "--config", "first/run.json", "-o", "again").code == 0
        assert pictures("again/a.png", "again/b.png") == pictures("first/a.png", "first/b.png")

    def test_roundtrip_says_so_on_the_models_own_grid(self, run: Run):
        outcome = run("roundtrip", "in", "--json", "--eta", 0.5)
        for row in map(json.loads, outcome.stdout.splitlines()):
            assert (row["inverse"], row["spacing"], row["steps"]) == ("recorded", "leading", 50)
            assert row["mse"] < 1e-4
            assert row["changed_8bit"] == 0

    def test_eta_of_0_is_encoded_exactly_as_without(self, run: Run):
        rows = [run("roundtrip", "in", "--json", *flags).stdout.splitlines() for flags in (("--eta", 0), ())]
        ours, theirs = ([{**json.loads(line), "seconds": 0} for line in part] for part in rows)
        assert ours == theirs

    def test_a_morph_of_photos_meets_them_when_they_are_decoded(self, run: Run):
        flags = ("-n", 10, "--frames", 5, "--pilot", 3, "--scale", 1)
        given = ("in/a.png", "in/b.png", "--eta", 0.5, "--endpoints", "decoded")
        made = run("interpolate", *given, *flags, "-o", "frames")
        assert made.code == 0, made.stderr
        assert pictures("frames/frame_000000.png", "frames/frame_000004.png") == pictures("in/a.png", "in/b.png")
        run("encode", "in", "--eta", 0.5, "-n", 10, "-o", "codes")
        codes = ("codes/a.safetensors", "codes/b.safetensors")
        assert run("interpolate", *codes, *flags[2:], "-o", "again").code == 0
        names = [f"frame_{k:06d}.png" for k in range(5)]
        assert pictures(*(f"frames/{name}" for name in names)) == pictures(*(f"again/{name}" for name in names))

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ("roundtrip in --eta 0.5 --solver ab2", 2, "leave --solver and goals out"),
            ("roundtrip in --eta 0.5 --budget 90", 2, "leave --solver and goals out"),
            ("roundtrip in --eta 0.5 --inverse exact", 1, "or use the inverse recorded"),
            ("roundtrip in --inverse recorded", 2, "adds no noise that could be recorded"),
            ("roundtrip in --eta 2", 2, "choose it in [0, 1]"),
            ("interpolate in --eta 0.5 --decode-steps 5", 1, "leave the grid as it was"),
            ("interpolate --seeds 0,1 --solver heun -o out", 2, "--seeds are drawn, not encoded"),
            (
                "grid in in --eta 0.5 --mix lol -n 3",
                2,
                "lol is for independent noise, and that of recorded photos is not; use karcher",
            ),
        ],
    )
    def test_settings_that_cannot_work_are_refused(self, run: Run, arguments: str, code: int, message: str):
        refused = run(*arguments.split())
        assert refused.code == code
        assert message in refused.said
