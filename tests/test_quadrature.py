"""The integrals behind the higher-order solvers, against numerical integration, and their steps written out."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import Mixture, Recording, gaussian_noise, relative_rms
from scipy.integrate import quad
from torch import Tensor

from ddim_edit.denoiser import Prediction
from ddim_edit.errors import ConfigError
from ddim_edit.grid import Grid
from ddim_edit.ode import integrate
from ddim_edit.schedule import Level, NoiseSchedule
from ddim_edit.solvers import SOLVERS, State
from ddim_edit.solvers.quadrature import advance
from ddim_edit.solvers.symmetric import Dop853, Trapezoid

LINEAR = NoiseSchedule.from_config({})
X = gaussian_noise(1, 2, 2, 2, 2)


def at(u: float) -> Level:
    """The level with this noise / signal."""
    signal = 1 / math.sqrt(1 + u * u)
    return Level(0.0, signal, u * signal)


def integral(here: float, there: float, nodes: list[float], values: list[float]) -> float:
    """Of the polynomial in log u through the values at the nodes, over u."""
    polynomial = np.polyfit(np.log(nodes), values, len(nodes) - 1)

    def inside(u: float) -> float:
        return float(np.polyval(polynomial, math.log(u)))

    return quad(inside, here, there, epsabs=1e-12, epsrel=1e-12, limit=500)[0]


class TestAdvance:
    @pytest.mark.parametrize("nodes", [[1.5], [1.5, 0.7], [1.5, 3.0], [1.5, 2.2, 4.0], [1.5, 0.7, 0.2]])
    @pytest.mark.parametrize(
        ("here", "there"), [(1.5, 0.6), (0.6, 1.5), (1.5, 4.0), (1.5, 0.0), (0.0, 1.5), (0.01, 20)]
    )
    def test_is_the_integral_of_the_polynomial_in_both_directions(self, here: float, there: float, nodes: list[float]):
        values = [0.8, -0.4, 1.7][: len(nodes)]
        eps = [(at(u), torch.full((1, 1, 1, 1), value).double()) for u, value in zip(nodes, values, strict=True)]
        x = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
        moved = advance(x, at(here), at(there), eps)
        exact = at(there).signal * (0.3 / at(here).signal + integral(here, there, nodes, values))
        assert moved.item() == pytest.approx(exact, rel=1e-7, abs=1e-9)

    @pytest.mark.parametrize("there", [0.4, 6.0, 0.0])
    def test_with_one_eps_it_is_the_step_of_ddim(self, there: float):
        eps = gaussian_noise(2, *X.shape)
        here, end = at(2.0), at(there)
        x0 = (X - here.noise * eps) / here.signal
        assert relative_rms(advance(X, here, end, [(here, eps)]), Prediction(x0, eps).at(end)) < 1e-12

    def test_there_and_back_along_the_same_polynomial_is_nowhere(self):
        eps = [(at(u), gaussian_noise(k, *X.shape)) for k, u in enumerate((0.5, 1.0, 3.0))]
        assert relative_rms(advance(advance(X, at(0.5), at(3), eps), at(3), at(0.5), eps), X) < 1e-12

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_a_constant_eps_is_integrated_exactly_whatever_the_nodes(self, count: int):
        eps = [(at(u), torch.full_like(X, 0.7)) for u in (2.0, 3.0, 5.0)[:count]]
        x_bar = X / at(2).signal + (0.25 - 2) * 0.7
        assert relative_rms(advance(X, at(2), at(0.25), eps), at(0.25).signal * x_bar) < 1e-12

    def test_nodes_that_nearly_meet_lose_no_more_than_their_digits(self):
        """Neighbouring timesteps of a fine grid."""
        near = [(at(u), torch.full_like(X, u)) for u in (2.0, 2.0001, 2.0002)]
        wide = advance(X, at(2.0), at(1.9), near)
        exact = at(1.9).signal * (X / at(2.0).signal + (1.9**2 - 2.0**2) / 2)
        assert relative_rms(wide, exact) < 1e-4  # eps = u is no polynomial in log u


class TestSteps:
    def test_the_trapezoid_rule_is_the_same_equation_in_both_directions(self, mixture: Mixture):
        grid = Grid.build(LINEAR, 10, "quadratic")
        here, there = grid[4], grid[5]
        solver = Trapezoid(1e-11)
        for one, other, step in ((there, here, solver.toward_clean), (here, there, solver.toward_noise)):
            x = one.signal * mixture.photos(2) + one.noise * X
            state = step(mixture, grid, 5, State.start(x))[0]
            end = state.x
            assert [solved.residual.shape for solved in state.solved] == [(2,)]
            assert float(state.solved[0].residual.max()) <= 1e-11
            ends = [(one, mixture(x, one).eps), (other, mixture(end, other).eps)]
            assert relative_rms(advance(x, one, other, ends), end) < 1e-10

    def test_ab2_remembers_the_step_before(self, mixture: Mixture):
        grid = Grid.build(LINEAR, 10, "quadratic")
        x = grid[10].noise * X
        state = State.start(x)
        for i in (10, 9):
            state, _ = SOLVERS["ab2"]().toward_clean(mixture, grid, i, state)
        first = mixture(x, grid[10])
        second = first.at(grid[9])
        eps = [(grid[9], mixture(second, grid[9]).eps), (grid[10], first.eps)]
        assert relative_rms(state.x, advance(second, grid[9], grid[8], eps)) < 1e-12

    def test_a_replaced_state_makes_a_multistep_solver_start_again(self, mixture: Mixture):
        grid = Grid.build(LINEAR, 10, "quadratic")

        def zero(step: object) -> State | None:
            return State.start(torch.zeros_like(X)) if getattr(step, "index", 0) == 4 else None

        replaced = integrate(mixture, SOLVERS["ab2"](), grid, State.start(X), toward="clean", on_step=zero).x
        fresh = grid.until(grid[6].t)
        assert (
            relative_rms(
                replaced,
                integrate(mixture, SOLVERS["ab2"](), fresh, State.start(torch.zeros_like(X)), toward="clean").x,
            )
            < 1e-12
        )

    def test_dpm_solver_is_algorithm_2_of_its_paper(self, mixture: Mixture):
        """x_t = sigma_t / sigma_s x_s - alpha_t (exp(-h) - 1) D, D = (1 + 1 / 2r) x0_s - 1 / 2r x0_before."""
        grid = Grid.build(LINEAR, 10, "quadratic")
        x = grid[10].noise * X
        state = State.start(x)
        before, after = grid[10], grid[9]
        for i in (10, 9):
            state, _ = SOLVERS["dpm++2m"]().toward_clean(mixture, grid, i, state)
        middle = mixture(x, before).at(after)
        lam = [math.log(level.signal / level.noise) for level in (before, after, grid[8])]
        h, r = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
        d = (1 + 1 / (2 * r)) * mixture(middle, after).x0 - 1 / (2 * r) * mixture(x, before).x0
        expected = grid[8].noise / after.noise * middle - grid[8].signal * (math.exp(-h) - 1) * d
        assert relative_rms(state.x, expected) < 1e-12

    @pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
    def test_dop853_keeps_its_tolerance(self, mixture: Mixture, tolerance: float):
        grid = Grid.from_timesteps(LINEAR, [0, 500])
        start = State.start(X[:1])
        ends: list[Tensor] = [
            integrate(mixture, Dop853(one), grid, start, toward="clean").x for one in (tolerance, 1e-12)
        ]
        assert relative_rms(*ends) < 30 * tolerance

    def test_dop853_takes_more_evaluations_for_a_harder_photo_and_counts_them(self, mixture: Mixture):
        grid, recording = Grid.from_timesteps(LINEAR, [0, 900]), Recording(mixture)
        state = integrate(recording, Dop853(), grid, State.start(X), toward="clean")
        assert int(state.evaluations.sum()) == sum(recording.photos)

    def test_levels_between_those_of_a_grid_need_its_schedule(self, mixture: Mixture):
        bare = Grid(Grid.build(LINEAR, 5, "quadratic").levels, "given")
        for name in ("midpoint", "dop853"):
            with pytest.raises(ConfigError, match="this grid knows no levels but its own"):
                integrate(mixture, SOLVERS[name](), bare, State.start(X), toward="clean")


class TestRefinedGrids:
    @pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
    @pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "quadratic", "logsnr"])
    def test_no_step_is_stiff_and_every_level_is_still_there(self, steps: int, spacing: str):
        grid = Grid.build(LINEAR, steps, spacing)  # pyright: ignore[reportArgumentType]
        refined = grid.refined()
        assert set(grid.timesteps) <= set(refined.timesteps)
        assert refined.timesteps[-1] == grid.timesteps[-1]
        assert max(h for h in (0.0, *refined.step_sizes()) if math.isfinite(h)) < 3
        assert refined[1].noise / refined[1].signal <= 0.02
        assert refined.spacing == grid.spacing
        assert refined.refined() == refined

    def test_a_fine_grid_is_left_as_it_is(self):
        for grid in (Grid.build(LINEAR, 50, "quadratic"), Grid.build(LINEAR, 1000)):
            assert grid.refined() == grid

    def test_a_stiff_step_is_cut_evenly_in_log_snr(self):
        grid = Grid.from_timesteps(LINEAR, [0, 900])
        sizes = grid.refined().step_sizes()[1:]
        assert len(sizes) > 1
        np.testing.assert_allclose(sizes, grid.step_sizes()[1] / len(sizes), rtol=1e-3)

    def test_pure_noise_is_reached_in_one_step(self):
        zero = NoiseSchedule.from_config({"rescale_betas_zero_snr": True})
        refined = Grid.from_timesteps(zero, [0, 300, 999]).refined()
        assert refined.timesteps[-1] == 999
        assert refined.step_sizes()[-1] == math.inf

    def test_a_clean_end_with_noise_counts_as_a_level(self):
        schedule = NoiseSchedule.from_config({"set_alpha_to_one": False})
        refined = Grid.from_timesteps(schedule, [600]).refined()
        assert refined[0].t == -1
        assert max(refined.step_sizes()) < 3

    def test_without_a_schedule_nothing_can_be_added(self):
        bare = Grid(Grid.from_timesteps(LINEAR, [900]).levels, "given")
        assert bare.refined() is bare

    def test_step_sizes_are_differences_of_log_snr(self):
        grid = Grid.build(LINEAR, 10, "quadratic")
        half_log_snr = [LINEAR.half_log_snr[int(t)] for t in grid.timesteps]
        assert grid.step_sizes()[0] == math.inf
        np.testing.assert_allclose(
            grid.step_sizes()[1:], [a - b for a, b in itertools.pairwise(half_log_snr)], rtol=1e-9
        )

    def test_between_is_half_way_in_log_snr(self):
        grid = Grid.build(LINEAR, 10)
        middle = grid.between(grid[3], grid[7])
        ratios = [level.noise / level.signal for level in (grid[3], middle, grid[7])]
        assert ratios[1] == pytest.approx(math.sqrt(ratios[0] * ratios[2]), rel=1e-9)
