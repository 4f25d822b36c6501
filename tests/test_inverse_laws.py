"""What holds for every solver that claims an exact inverse: what was encoded comes back, on every grid."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from helpers import Mixture, gaussian_noise, relative_rms
from model_helpers import counted_model, mixture_model, photos
from torch import Tensor

from ddim_edit.decoding import decode
from ddim_edit.denoiser import Condition, Denoiser, NetworkDenoiser, Prediction, PredictionType
from ddim_edit.grid import Grid
from ddim_edit.inverse import Exact, Explicit
from ddim_edit.inversion import encode
from ddim_edit.latents import Latents
from ddim_edit.ode import integrate
from ddim_edit.schedule import SPACINGS, Level, NoiseSchedule, Spacing
from ddim_edit.solvers import SOLVERS, Ddim, Implicit, Solver, State
from ddim_edit.task import Goal

SOLVED = [name for name, solver in SOLVERS.items() if solver.undone_by == "solving"]
PAIRS = [name for name, solver in SOLVERS.items() if solver.pair]
LINEAR = NoiseSchedule.from_config({})
SHORT = NoiseSchedule.from_config({"num_train_timesteps": 20, "beta_start": 5e-3, "beta_end": 0.6})
ZERO_SNR = NoiseSchedule.from_config({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
POINT = 2.0**-24  # of the lattice
TIGHT = torch.tensor([1e-11], dtype=torch.float64)

every_solved = pytest.mark.parametrize("name", SOLVED)
every_pair = pytest.mark.parametrize("name", PAIRS)
every_spacing = pytest.mark.parametrize("spacing", SPACINGS)


@dataclass(frozen=True)
class OneByOne:
    """A denoiser that sees every photo alone, so that its numbers cannot depend on the batch."""

    inner: Denoiser
    cost: int = 1

    @property
    def settings(self) -> dict[str, object]:
        return {}

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        found = [self.inner(x[row : row + 1], level) for row in range(len(x))]
        return Prediction(torch.cat([one.x0 for one in found]), torch.cat([one.eps for one in found]))


def solved(solver: Solver, grid: Grid, x: Tensor, denoise: Denoiser) -> State:
    return integrate(denoise, Implicit(solver, TIGHT), grid, State.start(x), toward="noise")


def there_and_back(name: str, grid: Grid, x: Tensor, denoise: Denoiser) -> Tensor:
    state = solved(SOLVERS[name](), grid, x, denoise)
    return integrate(denoise, SOLVERS[name](), grid, State.start(state.x), toward="clean").x


class TestSolvedSteps:
    """On grids without stiff steps, as `Exact` prepares them: otherwise a photo need not have an inverse."""

    @every_spacing
    @every_solved
    def test_what_was_encoded_comes_back_to_round_off(self, mixture: Mixture, name: str, spacing: Spacing):
        x = mixture.photos(2)
        for steps in (1, 2, 10, 11):
            grid = Grid.build(LINEAR, steps, spacing).refined()
            assert relative_rms(there_and_back(name, grid, x, mixture), x) < 1e-10

    @every_spacing
    @every_solved
    def test_so_it_does_with_every_timestep_of_a_short_schedule(self, mixture: Mixture, name: str, spacing: Spacing):
        x = mixture.photos(2)
        grid = Grid.build(SHORT, len(SHORT), spacing).refined()
        assert relative_rms(there_and_back(name, grid, x, mixture), x) < 1e-10

    @pytest.mark.parametrize(
        ("name", "spacing"), [*((name, "quadratic") for name in SOLVED), ("ddim", "leading"), ("ddim", "trailing")]
    )
    def test_so_it_does_with_50_steps(self, mixture: Mixture, name: str, spacing: Spacing):
        x = mixture.photos(2)
        grid = Grid.build(LINEAR, 50, spacing).refined()
        assert relative_rms(there_and_back(name, grid, x, mixture), x) < 1e-10

    @every_solved
    def test_from_the_other_end_too(self, mixture: Mixture, name: str):
        """A latent, decoded and solved for, is found again: the inverse is unique."""
        grid = Grid.build(LINEAR, 20, "quadratic").refined()
        x_T = gaussian_noise(3, 2, 2, 2, 2)
        photo = integrate(mixture, SOLVERS[name](), grid, State.start(x_T), toward="clean").x
        assert relative_rms(solved(SOLVERS[name](), grid, photo, mixture).x, x_T) < 1e-7

    @every_solved
    def test_a_permuted_batch_gives_the_permuted_latents_bit_for_bit(self, mixture: Mixture, name: str):
        grid, x, order = Grid.build(LINEAR, 10, "quadratic"), mixture.photos(4), torch.tensor([2, 0, 3, 1])
        plain, turned = (solved(SOLVERS[name](), grid, y, OneByOne(mixture)) for y in (x, x[order]))
        assert turned.x.equal(plain.x[order])
        assert turned.evaluations.equal(plain.evaluations[order])
        for ours, theirs in zip(turned.solved, plain.solved, strict=True):
            assert all(a.equal(b[order]) for a, b in zip(ours, theirs, strict=True))

    @every_solved
    def test_float32_follows_float64(self, mixture: Mixture, name: str):
        grid, x = Grid.build(LINEAR, 10, "quadratic"), mixture.photos(2)
        single = integrate(
            mixture, Implicit(SOLVERS[name](), 1e5 * TIGHT), grid, State.start(x.float()), toward="noise"
        )
        assert single.x.dtype == torch.float32
        assert relative_rms(single.x, solved(SOLVERS[name](), grid, x, mixture).x) < 1e-3
        assert max(float(step.residual.max()) for step in single.solved) < 1e-5

    @every_solved
    def test_a_budget_is_kept_photo_by_photo_and_spent_where_it_helps(self, mixture: Mixture, name: str):
        grid, x = Grid.build(LINEAR, 5, "quadratic"), mixture.photos(3)
        budget = torch.tensor([0, 9, 20])
        never = Implicit(SOLVERS[name](), torch.zeros(1).double(), budget)
        looks = torch.stack(
            [s.iterations for s in integrate(mixture, never, grid, State.start(x), toward="noise").solved]
        )
        assert looks.sum(0).tolist() == [5, 9, 20]
        assert looks.min() >= 1
        soon = Implicit(SOLVERS[name](), torch.tensor([0.1]).double(), torch.full((3,), 20))
        found = integrate(mixture, soon, grid, State.start(x), toward="noise").solved
        assert torch.stack([step.iterations for step in found]).sum(0).max() < 20

    @every_solved
    def test_a_limit_is_that_of_one_step(self, mixture: Mixture, name: str):
        grid, x = Grid.build(LINEAR, 5, "quadratic"), mixture.photos(2)
        thrice = Implicit(SOLVERS[name](), torch.zeros(1).double(), limit=3)
        state = integrate(mixture, thrice, grid, State.start(x), toward="noise")
        assert all(step.iterations.eq(3).all() for step in state.solved)


class TestExactEncode:
    @every_spacing
    @pytest.mark.parametrize("steps", [1, 2, 11])
    def test_photos_come_back_as_well_as_was_asked_for(self, spacing: Spacing, steps: int):
        model, x = mixture_model(), photos(2).double()
        grid = Grid.build(model.schedule, steps, spacing)
        latents = encode(model, x, grid=grid, inverse=Exact(Goal(1e-9)))
        assert (decode(model, latents) - x).square().mean((1, 2, 3)).sqrt().max() <= 2e-9
        for photo in latents.photos:
            assert photo.inversion is not None
            assert photo.inversion.reached
            assert photo.inversion.stalled == 0

    @pytest.mark.parametrize("steps", [20, 50])
    @every_solved
    def test_with_every_solver_that_is_solved(self, name: str, steps: int):
        model, x = mixture_model(), photos(2).double()
        latents = encode(model, x, grid=steps, solver=SOLVERS[name](), inverse=Exact(Goal(1e-8)))
        assert (decode(model, latents) - x).square().mean((1, 2, 3)).sqrt().max() <= 2e-8

    def test_with_every_timestep_of_a_short_schedule(self):
        model, x = mixture_model(schedule=SHORT), photos(2).double()
        latents = encode(model, x, grid=Grid.build(SHORT, 20, "leading"), inverse=Exact(Goal(1e-9)))
        assert (decode(model, latents) - x).abs().max() < 1e-7

    def test_by_default_every_byte_comes_back(self):
        model, x = mixture_model(), torch.round((photos(3) + 1) * 127.5) / 127.5 - 1
        latents = encode(model, x)
        for photo in latents.photos:
            assert photo.quality is not None
            assert photo.quality.changed_8bit == 0
        assert latents.how["solver"] == Ddim().settings

    def test_float32_photos_are_held_back_by_no_more_than_their_precision(self):
        model, x = mixture_model(), photos(2)
        single, double = (encode(model, y, grid=20, inverse=Exact(Goal(1e-5))).x for y in (x, x.double()))
        assert single.dtype == torch.float32
        assert relative_rms(single, double) < 1e-2


class TestPairs:
    @pytest.mark.parametrize("steps", [2, 3, 10, 11, 50])
    @every_pair
    def test_photos_come_back_at_one_evaluation_a_step(self, name: str, steps: int, tmp_path: Path):
        model, calls = counted_model()
        model, x = model.micro_batched(4), photos(2).double()
        latents = encode(model, x, grid=steps, solver=SOLVERS[name](), check=False)
        levels = latents.how["timesteps"]
        assert isinstance(levels, list)
        assert max(photo.evaluations for photo in latents.photos) <= len(levels) + 4
        assert len(latents.memory) == 1
        calls.clear()
        back = decode(model, latents)
        assert (back - x).abs().max() <= (POINT / 2 if name == "lattice" else 1e-12)
        assert len(calls) == len(levels) - 1  # the last step asks nothing

        latents.save(tmp_path / "pair.safetensors")
        loaded = Latents.load(tmp_path / "pair.safetensors")
        assert decode(model, loaded).equal(back)
        assert loaded.memory[0].equal(latents.memory[0])

    @every_spacing
    @every_pair
    def test_on_every_grid(self, name: str, spacing: Spacing):
        model, x = mixture_model().micro_batched(4), photos(2).double()
        latents = encode(model, x, grid=Grid.build(model.schedule, 10, spacing), solver=SOLVERS[name](), check=False)
        assert (decode(model, latents) - x).abs().max() <= (POINT / 2 if name == "lattice" else 1e-10)

    @every_pair
    def test_whatever_the_network(self, mixture: Mixture, name: str):
        """Even where the run leads nowhere: only the first step is solved for, and its error does not matter."""
        model = replace(mixture_model(), network=lambda x, t, condition: torch.cos(7 * x) * x.abs().sqrt())
        x = photos(2).double()
        latents = encode(model.micro_batched(4), x, grid=20, solver=SOLVERS[name](), check=False)
        assert (decode(model.micro_batched(4), latents) - x).abs().max() <= (POINT / 2 if name == "lattice" else 1e-9)

    @every_pair
    def test_selected_and_joined_pairs_decode_as_before(self, name: str):
        model, x = mixture_model().micro_batched(4), photos(3).double()
        latents = encode(model, x, grid=6, solver=SOLVERS[name](), check=False)
        parts = [latents.select([row]) for row in range(3)]
        assert decode(model, Latents.join(parts[::-1])).equal(decode(model, latents).flip(0))

    @every_pair
    def test_a_permuted_batch_gives_the_permuted_pairs_bit_for_bit(self, mixture: Mixture, name: str):
        grid, x, order = Grid.build(LINEAR, 10, "quadratic"), mixture.photos(4), torch.tensor([2, 0, 3, 1])
        plain, turned = (
            integrate(OneByOne(mixture), SOLVERS[name](), grid, State.start(y), toward="noise") for y in (x, x[order])
        )
        assert turned.x.equal(plain.x[order])
        assert turned.memory[0].equal(plain.memory[0][order])


class TestPredictionTypes:
    """The same step and the same inverse, whatever the network was trained to say."""

    @staticmethod
    def coefficient(kind: PredictionType, here: Level, there: Level) -> float:
        """What a step from `there` to `here` multiplies x by, where the network's output stays as it is."""
        if kind is PredictionType.EPSILON:
            return here.signal / there.signal if there.signal else 0.0
        if kind is PredictionType.SAMPLE:
            return here.noise / there.noise
        return here.signal * there.signal + here.noise * there.noise

    @staticmethod
    def frozen(network: Tensor, kind: PredictionType) -> NetworkDenoiser:
        """A network that says this and nothing else."""
        condition = Condition({"output": network})  # which follows the photos that are not finished
        return NetworkDenoiser(lambda x, t, given: given.tensors["output"].to(x) if given else x, kind, condition)

    @pytest.mark.parametrize("schedule", [LINEAR, ZERO_SNR], ids=["linear", "zero-snr"])
    @pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
    @pytest.mark.parametrize("kind", PredictionType)
    def test_step_and_inverse_undo_each_other(
        self, mixture: Mixture, kind: PredictionType, dtype: torch.dtype, close: float, schedule: NoiseSchedule
    ):
        """Both given one output of the network. Errors are relative to the cleaner end, where the identity is lossless:

        a step that shrinks x by c leaves no more than its precision / c of x (2e-6 in float32 at c = 0.03).
        """
        x, noise = mixture.photos(2).to(dtype), gaussian_noise(5, 2, 2, 2, 2).to(dtype)
        network = mixture.network(schedule, kind)
        tested = 0
        for spacing in SPACINGS:
            if spacing == "logsnr" and schedule is ZERO_SNR:
                continue
            grid = Grid.build(schedule, 10, spacing)
            for i in range(1, grid.steps + 1):
                here, there = grid[i - 1], grid[i]
                shrinks = self.coefficient(kind, here, there)
                if shrinks <= 1e-3:
                    continue
                x_t = there.signal * x + there.noise * noise
                denoise = self.frozen(network(x_t, torch.tensor([there.t])), kind)
                y = Ddim().toward_clean(denoise, grid, i, State.start(x_t))[0].x
                found = Implicit(Ddim(), torch.tensor([close / 100]).double()).toward_noise(
                    denoise, grid, i, State.start(y)
                )[0]
                landed = Ddim().toward_clean(denoise, grid, i, State.start(found.x))[0].x
                assert relative_rms(landed, y) <= close
                assert relative_rms(found.x, x_t) * min(shrinks, 1) <= close
                tested += 1
        assert tested >= 50

    def test_the_step_of_an_x0_model_to_the_clean_end_is_solved_as_d_of_x_is_the_photo(self, mixture: Mixture):
        network = mixture.network(LINEAR, PredictionType.SAMPLE)
        denoise = NetworkDenoiser(network, PredictionType.SAMPLE)
        x = mixture.photos(2)
        for spacing in SPACINGS:
            grid = Grid.build(LINEAR, 10, spacing).refined()
            found = Implicit(Ddim(), TIGHT).toward_noise(denoise, grid, 1, State.start(x))[0]
            assert relative_rms(network(found.x, torch.tensor([grid[1].t])), x) < 1e-10

    @pytest.mark.parametrize("steps", [1, 2, 10, 11])
    @pytest.mark.parametrize("kind", [PredictionType.SAMPLE, PredictionType.V])
    def test_zero_terminal_snr(self, kind: PredictionType, steps: int):
        model, x = mixture_model(kind, ZERO_SNR), photos(2).double()
        latents = encode(model, x, grid=Grid.build(ZERO_SNR, steps), inverse=Exact(Goal(1e-8)))
        assert latents.level.signal == 0
        assert (decode(model, latents) - x).square().mean((1, 2, 3)).sqrt().max() <= 2e-8

    @pytest.mark.parametrize("inverse", [Explicit(), Explicit("target"), Exact(None, 24), Exact(Goal(1e-6))], ids=str)
    def test_their_curves_agree(self, inverse: Explicit | Exact):
        """To far better than the factor of two that is asked for: with exact networks they do the same arithmetic."""
        x = photos(2).double()
        made = [encode(mixture_model(kind), x, grid=10, inverse=inverse) for kind in PredictionType]
        for other in made[1:]:
            assert relative_rms(other.x, made[0].x) < 1e-6
            for ours, theirs in zip(other.photos, made[0].photos, strict=True):
                assert ours.quality is not None
                assert theirs.quality is not None
                assert ours.evaluations == theirs.evaluations
                assert ours.quality.mse == pytest.approx(theirs.quality.mse, rel=1e-3)


def test_a_condition_follows_the_photos_that_are_still_worked_on(mixture: Mixture):
    """Photos that finish early leave the batch; each must keep its own condition."""
    shift = torch.tensor([0.0, 0.4, -0.3, 0.2], dtype=torch.float64)

    def network(x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        assert condition is not None
        shifts = condition.tensors["shift"]
        assert len(shifts) == len(x)
        level = LINEAR.level(float(t[0]))
        return mixture.posterior(x - level.signal * shifts.view(-1, 1, 1, 1), level.signal, level.noise)[1]

    def denoiser(rows: slice) -> NetworkDenoiser:
        return NetworkDenoiser(network, PredictionType.EPSILON, Condition({"shift": shift[rows]}))

    grid, x = Grid.build(LINEAR, 6, "quadratic"), mixture.photos(4)
    state = solved(Ddim(), grid, x, denoiser(slice(None)))
    assert len(set(state.evaluations.tolist())) > 1
    back = integrate(denoiser(slice(None)), Ddim(), grid, State.start(state.x), toward="clean").x
    assert relative_rms(back, x) < 1e-10
    for row in range(4):
        own = slice(row, row + 1)
        alone = solved(Ddim(), grid, x[own], denoiser(own))
        torch.testing.assert_close(alone.x, state.x[own], rtol=1e-9, atol=1e-9)
