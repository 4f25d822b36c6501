"""Inverses: goals checked by the actual decode, budgets that are kept, and what is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import relative_rms
from model_helpers import bundled_model, counted_model, mixture_model, photos
from torch import Tensor

from ddim_edit import inverse as inverses
from ddim_edit.decoding import decode
from ddim_edit.denoiser import Denoiser
from ddim_edit.errors import ConfigError, InversionError
from ddim_edit.grid import Grid
from ddim_edit.inverse import INVERSES, Exact, Explicit, Inverse, Refine, default_inverse
from ddim_edit.inversion import advice, encode
from ddim_edit.latents import Latents
from ddim_edit.metrics import changed_8bit, mse
from ddim_edit.models.base import Labels, Model
from ddim_edit.schedule import NoiseSchedule
from ddim_edit.solvers import SOLVERS, Ddim
from ddim_edit.solvers.symmetric import Trapezoid
from ddim_edit.task import EIGHT_BIT, Goal

SOLVED = [name for name, solver in SOLVERS.items() if solver.undone_by == "solving"]
REFINED = [name for name, solver in SOLVERS.items() if solver.undone_by == "refining"]
THEMSELVES = [name for name, solver in SOLVERS.items() if solver.undone_by == "itself"]
LINEAR = NoiseSchedule.from_config({})


def eight_bit(count: int, seed: int = 0) -> Tensor:
    """Photos whose values are bytes, as files have them."""
    return torch.round((photos(count, seed) + 1) * 127.5) / 127.5 - 1


def guided_model() -> tuple[Model, list[int], Denoiser]:
    """A model that takes a label and does not heed it, and its denoiser with guidance: two forwards a call."""
    model, calls = counted_model()
    model = replace(model, labels=Labels(2, null=1))
    return model, calls, model.denoiser(0, guidance=2.0)


class TestGoals:
    @pytest.mark.parametrize("rms", [1e-2, 1e-4, 1e-6])
    def test_an_rms_error(self, rms: float):
        model, x = mixture_model(), photos(3).double()
        latents = encode(model, x, grid=10, inverse=Exact(Goal(rms)))
        assert mse(x, decode(model, latents)).sqrt().max() <= rms
        assert all(photo.inversion and photo.inversion.reached for photo in latents.photos)

    @pytest.mark.parametrize("decibels", [30.0, 50.0, 80.0])
    def test_a_psnr(self, decibels: float):
        model, x = mixture_model(), photos(3).double()
        latents = encode(model, x, grid=10, inverse=Exact(Goal.of_psnr(decibels)))
        assert min(photo.quality.psnr for photo in latents.photos if photo.quality) >= decibels

    def test_a_weaker_goal_takes_fewer_evaluations(self):
        model, x = mixture_model(), photos(2).double()
        costs = [
            sum(photo.evaluations for photo in encode(model, x, grid=10, inverse=Exact(Goal(rms))).photos)
            for rms in (1e-2, 1e-4, 1e-7)
        ]
        assert costs == sorted(costs)
        assert costs[0] < costs[-1]

    @pytest.mark.parametrize("inverse", [Exact(), Refine()], ids=str)
    def test_every_byte(self, inverse: Inverse):
        model, x = mixture_model(), eight_bit(3)
        solver = Ddim() if isinstance(inverse, Exact) else SOLVERS["midpoint"]()
        latents = encode(model, x, grid=20, solver=solver, inverse=inverse)
        assert changed_8bit(x, decode(model, latents)).eq(0).all()
        assert all(photo.inversion and photo.inversion.reached for photo in latents.photos)

    def test_what_is_recorded_is_what_decoding_gives(self):
        model, x = mixture_model(), photos(3)
        latents = encode(model, x, grid=10, inverse=Exact(Goal(1e-4)))
        restored = decode(model, latents)
        for photo, error in zip(latents.photos, mse(x, restored).tolist(), strict=True):
            assert photo.quality is not None
            assert photo.quality.mse == pytest.approx(error, rel=1e-3)

    def test_a_float32_network_that_cannot_reach_the_goal_says_so(self):
        latents = encode(mixture_model(), photos(2), grid=10, inverse=Exact(Goal(1e-12)))
        for photo in latents.photos:
            assert photo.inversion is not None
            assert photo.inversion.reached is False
            assert photo.inversion.stalled > 0
            assert any("does not come back as well as was asked for" in line for line in advice(photo))
            assert photo.quality is not None
            assert photo.quality.mse < 1e-9  # the best of all attempts all the same

    def test_without_a_goal_nothing_is_claimed(self):
        for inverse in (Explicit(), Exact(None, 30)):
            (photo,) = encode(mixture_model(), photos(1), grid=10, inverse=inverse).photos
            assert photo.inversion is None or photo.inversion.reached is None
            assert not any("was asked for" in line for line in advice(photo))

    def test_the_report_has_one_entry_a_step(self):
        latents = encode(mixture_model(), photos(2), grid=10, inverse=Exact(None, 40))
        for photo in latents.photos:
            assert photo.inversion is not None
            assert len(photo.inversion.residuals) == len(photo.inversion.iterations) == 10
            assert sum(photo.inversion.iterations) == photo.evaluations <= 40

    @pytest.mark.parametrize("rms", [0.0, 1.0, -1e-3, math.nan, math.inf])
    def test_errors_that_are_none(self, rms: float):
        with pytest.raises(ConfigError, match=r"is no RMS error on \[0, 1\]; choose it between 0 and 1"):
            Goal(rms)

    def test_a_psnr_is_an_rms_error(self):
        assert Goal.of_psnr(40).rms == pytest.approx(0.01)
        for decibels in (0, -3):
            with pytest.raises(ConfigError, match="is no RMS error"):
                Goal.of_psnr(decibels)


@pytest.mark.parametrize(("patience", "reached"), [(1, False), (2, True)])
def test_a_photo_is_given_up_after_two_attempts_without_progress(monkeypatch, patience: int, reached: bool):
    learn, attempts = inverses._Tightening.learn, []

    def learning_late(self, rows: Tensor, decoded: Tensor, rms: Tensor) -> None:
        attempts.append(rows)
        if len(attempts) > 1:  # so that the second attempt is the first again
            learn(self, rows, decoded, rms)

    monkeypatch.setattr(inverses._Tightening, "learn", learning_late)
    monkeypatch.setattr(inverses, "STEPWISE", 1e3)
    monkeypatch.setattr(inverses, "PATIENCE", patience)
    report = encode(mixture_model(), photos(1), grid=10).photos[0].inversion
    assert report is not None
    assert report.reached is reached


class TestBudgets:
    @pytest.mark.parametrize("goal", [None, Goal(1e-2), Goal(1e-9), EIGHT_BIT], ids=["none", "1e-2", "1e-9", "8bit"])
    @pytest.mark.parametrize("budget", [20, 21, 33, 100])
    @pytest.mark.parametrize("guided", [False, True])
    @pytest.mark.parametrize("name", SOLVED)
    def test_a_budget_is_never_exceeded(self, name: str, guided: bool, budget: int, goal: Goal | None):
        model, calls, guidance = guided_model()
        denoise = guidance if guided else model.denoiser(0)
        budget *= 2 * (1 + guided)
        solver, grid = SOLVERS[name](), Grid.build(LINEAR, 10, "quadratic")
        calls.clear()
        latents = encode(
            model, photos(2), grid=grid, solver=solver, denoiser=denoise, inverse=Exact(goal, budget), check=False
        )
        spent = [photo.evaluations for photo in latents.photos]
        assert max(spent) <= budget
        assert sum(calls) == sum(spent)

    @pytest.mark.parametrize("guided", [False, True])
    @pytest.mark.parametrize("name", [*SOLVED, *REFINED])
    def test_nor_is_that_of_a_refinement(self, name: str, guided: bool):
        model, calls, guidance = guided_model()
        denoise = guidance if guided else model.denoiser(0)
        solver, grid = SOLVERS[name](), Grid.build(LINEAR, 10, "quadratic")
        least = 2 * solver.evaluations(10) * denoise.cost
        for budget in (least, least + 1, 3 * least):
            calls.clear()
            inverse = Refine(Goal(1e-9), budget)
            latents = encode(model, photos(2), grid=grid, solver=solver, denoiser=denoise, inverse=inverse)
            spent = [photo.evaluations for photo in latents.photos]
            assert max(spent) <= budget
            assert sum(calls) == sum(spent)

    def test_decodes_that_check_a_goal_count(self):
        model, calls = counted_model()
        latents = encode(model, photos(2), grid=10, inverse=Exact(Goal(1e-4)))
        assert sum(calls) == sum(photo.evaluations for photo in latents.photos)

    def test_more_budget_brings_the_photo_back_better(self):
        model, x = mixture_model(), photos(2).double()
        errors = [
            max(p.quality.mse for p in encode(model, x, grid=10, inverse=Exact(None, budget)).photos if p.quality)
            for budget in (10, 20, 40, 80)
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-2 * errors[0]

    def test_a_photo_is_worth_its_budget_whatever_its_batch(self):
        model, x = mixture_model(), photos(3).double()
        inverse = Exact(Goal(1e-7), 100)
        batch = encode(model, x, grid=10, inverse=inverse)
        for row in range(3):
            alone = encode(model, x[row : row + 1], grid=10, inverse=inverse)
            torch.testing.assert_close(alone.x[0], batch.x[row], rtol=1e-5, atol=1e-6)
            assert alone.photos[0].evaluations == batch.photos[row].evaluations


class TestRefine:
    @pytest.mark.parametrize(("name", "steps"), [("ab2", 40), ("midpoint", 20), ("dpm++2m", 40), ("heun", 20)])
    def test_second_order_pairs_come_back(self, name: str, steps: int):
        model, x = mixture_model(), eight_bit(3)
        latents = encode(model, x, grid=steps, solver=SOLVERS[name](), inverse=Refine())
        assert changed_8bit(x, decode(model, latents)).eq(0).all()
        assert all(photo.inversion and photo.inversion.reached for photo in latents.photos)

    def test_in_double_precision_it_goes_on_to_round_off(self):
        model, x = mixture_model(), photos(2).double()
        latents = encode(model, x, grid=40, solver=SOLVERS["ab2"](), inverse=Refine(Goal(1e-7)))
        assert mse(x, decode(model, latents)).sqrt().max() <= 1e-7

    def test_a_goal_that_is_met_at_once_takes_one_round(self):
        model, x = mixture_model(), photos(2)
        latents = encode(model, x, grid=20, solver=SOLVERS["ab2"](), inverse=Refine(Goal(0.5)))
        assert [photo.evaluations for photo in latents.photos] == [40, 40]

    def test_it_gives_up_on_coarse_ddim_and_returns_the_best(self):
        model, x = mixture_model(), eight_bit(3)
        grid = Grid.build(LINEAR, 3, "leading")
        explicit = encode(model, x, grid=grid, inverse=Explicit())
        latents = encode(model, x, grid=grid, inverse=Refine())
        for photo, plain in zip(latents.photos, explicit.photos, strict=True):
            assert photo.inversion is not None
            assert photo.inversion.reached is False
            assert photo.quality is not None
            assert plain.quality is not None
            assert photo.quality.mse <= plain.quality.mse
            assert any("use more steps" in line for line in advice(photo))

    def test_the_grid_is_left_as_it_is(self):
        grid = Grid.build(LINEAR, 5, "trailing")
        assert Refine().prepared(grid, Ddim()) is grid
        assert Exact().prepared(grid, Ddim()).steps > grid.steps


class TestExplicit:
    def test_the_guess_at_the_target_is_that_of_diffusers(self):
        """x_t = A y + B eps(y, t), A = signal_t / signal_s, B = noise_t - A noise_s."""
        model, x = mixture_model(), photos(2).double()
        grid, denoise = Grid.build(model.schedule, 8, "quadratic"), model.denoiser()
        y = x
        for i in range(1, grid.steps + 1):
            s, t = grid[i - 1], grid[i]
            a = t.signal / s.signal
            y = a * y + (t.noise - a * s.noise) * denoise(y, t).eps
        latents = encode(model, x, grid=grid, inverse=Explicit("target"))
        assert relative_rms(latents.x, y) < 1e-12
        assert [photo.evaluations for photo in latents.photos] == [grid.steps] * 2
        assert [photo.inversion for photo in latents.photos] == [None] * 2  # a guess says nothing of what is left

    def test_the_one_at_the_source_is_the_papers(self):
        model, x = mixture_model(), photos(2).double()
        grid, denoise = Grid.build(model.schedule, 8, "quadratic"), model.denoiser()
        y = x
        for i in range(1, grid.steps + 1):
            s, t = grid[i - 1], grid[i]
            a = t.signal / s.signal
            y = a * y + (t.noise - a * s.noise) * denoise(y, s if i > 1 else t).eps
        assert relative_rms(encode(model, x, grid=grid, inverse=Explicit()).x, y) < 1e-12

    @pytest.mark.parametrize("name", SOLVED)
    def test_the_target_is_the_first_look_of_the_exact_inverse(self, name: str):
        model, x = mixture_model(), photos(1).double()
        guess = encode(model, x, grid=20, solver=SOLVERS[name](), inverse=Explicit("target"))
        exact = encode(model, x, grid=20, solver=SOLVERS[name](), inverse=Exact(Goal(1e-6)))
        assert 1e-4 < relative_rms(guess.x, exact.x) < 0.5

    def test_there_is_no_third_guess(self):
        with pytest.raises(ConfigError, match="eps cannot be guessed at 'middle'; choose source or target"):
            Explicit("middle")  # pyright: ignore[reportArgumentType]


class TestSolversThatUndoThemselves:
    @pytest.mark.parametrize("name", ["leapfrog", "lattice", "trapezoid"])
    def test_a_goal_is_looked_at_by_the_self_check_alone(self, name: str):
        model, calls = counted_model()
        model, solver = model.micro_batched(4), SOLVERS[name]()
        asked = encode(model, eight_bit(2), grid=20, solver=solver)
        assert [photo.inversion and photo.inversion.reached for photo in asked.photos] == [True, True]
        calls.clear()
        bare = encode(model, eight_bit(2), grid=20, solver=solver, check=False)
        assert all(photo.inversion is None or photo.inversion.reached is None for photo in bare.photos)
        assert [photo.evaluations for photo in asked.photos] == [photo.evaluations for photo in bare.photos]
        assert len(calls) == max(photo.evaluations for photo in bare.photos)

    def test_one_that_misses_it_says_so(self):
        latents = encode(mixture_model(), photos(2), grid=10, solver=Trapezoid(0.05), inverse=Exact(Goal(1e-6)))
        assert [photo.inversion and photo.inversion.reached for photo in latents.photos] == [False, False]

    def test_pairs_keep_large_steps_that_others_split(self):
        grid = Grid.build(LINEAR, 5, "trailing")
        assert Exact().prepared(grid, SOLVERS["leapfrog"]()) is grid
        assert Exact().prepared(grid, SOLVERS["trapezoid"]()).steps > grid.steps


class TestRefused:
    def test_a_budget_is_held_against_the_grid_that_is_walked(self):
        coarse = Grid.build(LINEAR, 3, "trailing")
        fine = coarse.refined().steps
        assert fine > 3
        with pytest.raises(ConfigError, match=f"too small for {fine} steps"):
            encode(mixture_model(), photos(1), grid=coarse, inverse=Exact(None, fine - 1))

    @staticmethod
    def refusal(inverse: Inverse, solver: str = "ddim", steps: int = 10) -> str:
        model, calls = counted_model()
        with pytest.raises(ConfigError) as refused:
            encode(model.micro_batched(4), photos(1), grid=steps, solver=SOLVERS[solver](), inverse=inverse)
        assert calls == []
        return str(refused.value)

    @pytest.mark.parametrize("inverse", [Explicit(), Exact(), Refine()], ids=str)
    def test_random_solvers(self, inverse: Inverse):
        model, calls = counted_model()
        with pytest.raises(InversionError, match="is random, so nothing can be encoded with it; encode with eta = 0"):
            encode(model, photos(1), grid=5, solver=Ddim(eta=0.5), inverse=inverse)
        assert calls == []

    @pytest.mark.parametrize("clipping", [{"clip_x0": 0.5}, {"threshold": 0.9}])
    def test_clipping_of_what_is_solved(self, clipping: dict[str, float]):
        model, calls = counted_model()
        (name,) = clipping
        with pytest.raises(InversionError, match=f"{name} takes away what cannot be brought back; encode without it"):
            encode(model, photos(1), grid=5, denoiser=model.denoiser(**clipping))
        assert calls == []
        pair = encode(model, eight_bit(1), grid=5, denoiser=model.denoiser(**clipping), solver=SOLVERS["leapfrog"]())
        assert pair.photos[0].quality is not None

    @pytest.mark.parametrize("name", REFINED)
    def test_steps_that_cannot_be_undone_one_by_one(self, name: str):
        assert f"{name} cannot be undone one by one; use --inverse refine" in self.refusal(Exact(), name)

    @pytest.mark.parametrize("name", [*REFINED, *THEMSELVES])
    def test_a_guess_at_the_target_of_solvers_that_have_none(self, name: str):
        assert f"solver {name} has no guess at the target level" in self.refusal(Explicit("target"), name)

    def test_budgets_that_are_too_small(self):
        assert "budget 9 is too small for 10 steps; give 10 or more" in self.refusal(Exact(None, 9))
        assert "budget 19 is too small for 10 steps; give 20 or more" in self.refusal(Exact(EIGHT_BIT, 19))
        assert "budget 19 is too small for 10 steps; give 20 or more" in self.refusal(Refine(EIGHT_BIT, 19))
        assert "give 38 or more" in self.refusal(Exact(EIGHT_BIT, 37), "midpoint")
        assert "give 22 or more" in self.refusal(Refine(EIGHT_BIT, 21), "ab3")

    def test_a_budget_counts_guidance_twice(self):
        model, calls, guided = guided_model()
        with pytest.raises(ConfigError, match="budget 39 is too small for 10 steps; give 40 or more"):
            encode(model, photos(1), grid=10, denoiser=guided, inverse=Exact(EIGHT_BIT, 39))
        assert calls == []

    @pytest.mark.parametrize("inverse", [Exact(None, 50), Refine(EIGHT_BIT, 50)], ids=str)
    @pytest.mark.parametrize("name", THEMSELVES)
    def test_budgets_of_solvers_that_take_what_they_take(self, name: str, inverse: Inverse):
        assert f"solver {name} takes what it takes; leave the budget out" in self.refusal(inverse, name)

    def test_neither_goal_nor_budget(self):
        with pytest.raises(ConfigError, match="neither goal nor budget has no end"):
            Exact(None)


class TestSettings:
    @pytest.mark.parametrize(
        "inverse", [Explicit(), Explicit("target"), Exact(), Exact(Goal(1e-3), 40), Exact(None, 40), Refine()], ids=str
    )
    def test_are_json_and_recorded(self, inverse: Inverse):
        settings = dict(inverse.settings)
        assert settings["name"] == inverse.name
        assert json.loads(json.dumps(settings)) == settings
        latents = encode(mixture_model(), photos(1), grid=20, inverse=inverse, check=False)
        assert latents.how["inverse"] == settings

    def test_the_registry_names_them(self):
        assert {name: kind.name for name, kind in INVERSES.items()} == {name: name for name in INVERSES}

    @pytest.mark.parametrize("name", SOLVERS)
    def test_the_default_is_exact_where_it_can_be(self, name: str):
        inverse = default_inverse(SOLVERS[name]())
        assert inverse == (Refine() if name in REFINED else Exact())
        inverse.check(SOLVERS[name](), Grid.build(LINEAR, 5), mixture_model().denoiser())


def test_a_trajectory_of_an_exact_encode_is_that_of_the_attempt_that_was_kept():
    model, x = mixture_model(), photos(3)
    latents = encode(model, x, grid=20, inverse=Exact(Goal(1e-5)), trajectory_every=5)
    assert latents.trajectory is not None
    assert latents.trajectory.shape == (4, *x.shape)
    assert latents.trajectory[-1].equal(latents.x)


class TestMicroBatches:
    """M9: with micro-batches of 4, neither latents nor pictures depend on the batch, to the last bit."""

    @staticmethod
    def same_in_batches(model: Model, x: Tensor, sizes: tuple[int, ...], **how: object) -> None:
        def run(size: int) -> tuple[Latents, Tensor]:
            parts = [encode(model, x[k : k + size], check=False, **how) for k in range(0, len(x), size)]  # pyright: ignore[reportArgumentType]
            pictures = torch.cat([decode(model, part) for part in parts])
            return Latents.join(parts), pictures

        (first, picture), *others = (run(size) for size in sizes)
        for latents, other in others:
            assert latents.x.equal(first.x)
            assert other.equal(picture)
            assert latents.photos == first.photos
            for ours, theirs in zip(latents.memory, first.memory, strict=True):
                assert ours.equal(theirs)

    @pytest.mark.parametrize("name", ["ddim", "ab2", "lattice"])
    def test_of_a_unet(self, tiny: Model, name: str):
        inverse = {"ddim": Exact(Goal(0.05), 20), "ab2": Refine(Goal(1e-4), 20)}.get(name)
        self.same_in_batches(tiny, photos(8), (8, 1, 3), grid=3, solver=SOLVERS[name](), inverse=inverse)

    @pytest.mark.slow
    def test_of_the_bundled_model(self):
        model = bundled_model().micro_batched(4)
        x = torch.linspace(-1, 1, 4 * 3 * 64 * 64).view(4, 3, 64, 64).sin()
        self.same_in_batches(model, x, (4, 1, 3), grid=5, inverse=Exact(Goal(1e-2)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    from helpers import save_pipeline_folder, tiny_unet
    from model_helpers import SIZE, cpu

    folder = save_pipeline_folder(tmp_path_factory.mktemp("unet") / "unet", tiny_unet(sample_size=SIZE))
    return cpu(folder).micro_batched(4)
