"""What holds for every solver, checked on a Gaussian mixture whose eps is exact. A new solver is tested by existing."""

import json
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from helpers import Constant, Mixture, Recording, gaussian_noise, relative_rms
from scipy.integrate import solve_ivp
from torch import Tensor

from ddim_edit.denoiser import Denoiser, Guided
from ddim_edit.grid import Grid
from ddim_edit.ode import Direction, Step, integrate, walk
from ddim_edit.schedule import SPACINGS, NoiseSchedule, Spacing
from ddim_edit.solvers import SOLVERS, Solver, State

DETERMINISTIC = [name for name, solver in SOLVERS.items() if solver().deterministic]
ADAPTIVE = ("dop853",)  # meets a tolerance of its own on any grid
ITERATIVE = (*ADAPTIVE, "trapezoid")  # as exact as their tolerance, and dearer for some photos than for others
GRID_BOUND = [name for name in DETERMINISTIC if name not in ADAPTIVE]
APPROXIMATE = [name for name in DETERMINISTIC if SOLVERS[name].undone_by != "itself"]
FLOAT64_ONLY = ("lattice",)
STEPS = (40, 80, 160)
POINT = 2.0**-24  # of the lattice
LOWEST, HIGHEST = 1e-4, 20.0  # sigma = noise / signal at both ends; the interval below LOWEST is never refined

every_solver = pytest.mark.parametrize("name", SOLVERS)
every_deterministic_solver = pytest.mark.parametrize("name", DETERMINISTIC)
both_ways = pytest.mark.parametrize("toward", ["noise", "clean"])


@cache
def ideal() -> tuple[NoiseSchedule, Mixture, Tensor, Tensor]:
    """A schedule even in log SNR, a mixture, photos (4, 2, 2, 2) of it, and noise of the same shape."""
    sigma = np.geomspace(LOWEST, HIGHEST, 1000)
    mixture = Mixture.make()
    return NoiseSchedule(1 / (1 + sigma**2)), mixture, mixture.photos(4), gaussian_noise(1, 4, 2, 2, 2)


def start(toward: Direction) -> Tensor:
    _, _, photos, noise = ideal()
    return photos if toward == "noise" else noise


def run(name: str, steps: int, x: Tensor, toward: Direction, denoise: Denoiser | None = None) -> State:
    schedule, mixture, _, _ = ideal()
    grid = Grid.build(schedule, min(steps, 5) if name in ADAPTIVE else steps, "logsnr")
    return integrate(denoise or mixture, SOLVERS[name](), grid, State.start(x), toward=toward)


def there_and_back(solver: Solver, grid: Grid, x: Tensor, denoise: Denoiser) -> Tensor:
    """Encode and decode; pairs keep their pair."""
    state = integrate(denoise, solver, grid, State.start(x), toward="noise")
    start = State.start(state.x, memory=state.memory if solver.pair else ())
    return integrate(denoise, solver, grid, start, toward="clean").x


def closeness(name: str) -> float:
    """How close a solver comes to a result that its steps reach without error."""
    return {"lattice": 1000 * POINT, "dop853": 1e-5, "trapezoid": 1e-5}.get(name, 1e-12)


@cache
def ode_solution(toward: Direction) -> Tensor:
    """Where d x_bar / d sigma = eps leads, by an eighth-order Runge-Kutta method; x_bar = x / signal."""
    schedule, mixture, photos, noise = ideal()
    signal = schedule.level(999).signal
    span, x_bar = ((0, HIGHEST), photos) if toward == "noise" else ((HIGHEST, 0), noise / signal)

    def eps(sigma: float, flat: np.ndarray) -> np.ndarray:
        a = 1 / math.sqrt(1 + sigma**2)
        return mixture.posterior(a * torch.from_numpy(flat).view_as(photos), a, sigma * a)[1].flatten().numpy()

    end = solve_ivp(eps, span, x_bar.flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    return torch.from_numpy(end).view_as(photos) * (signal if toward == "noise" else 1)


def measured_order(error: Callable[[int], float]) -> float:
    """The slope of the error between the last two of STEPS; the error must fall all the way."""
    errors = [error(steps) for steps in STEPS]
    assert errors == sorted(errors, reverse=True)
    return math.log2(errors[-2] / errors[-1])


class TestOrder:
    @pytest.mark.parametrize("name", APPROXIMATE)
    def test_the_round_trip_error_falls_with_the_solvers_order_at_least(self, name: str):
        """Of second-order solvers with the third: the errors of the two directions nearly cancel."""
        schedule, mixture, photos, _ = ideal()

        def error(steps: int) -> float:
            grid = Grid.build(schedule, steps, "logsnr")
            return relative_rms(there_and_back(SOLVERS[name](), grid, photos, mixture), photos)

        assert measured_order(error) > SOLVERS[name].order - 0.25

    @both_ways
    @pytest.mark.parametrize("name", GRID_BOUND)
    def test_the_ode_is_reached_with_the_solvers_order(self, name: str, toward: Direction):
        """Leapfrog too: its parasitic mode neither grows nor falls on an even grid, and has the size of its start."""
        x = start(toward)
        order = measured_order(lambda steps: relative_rms(run(name, steps, x, toward).x, ode_solution(toward)))
        assert order == pytest.approx(SOLVERS[name].order, abs=0.25)

    @both_ways
    @pytest.mark.parametrize("name", ADAPTIVE)
    def test_an_adaptive_solver_reaches_the_ode_on_any_grid(self, name: str, toward: Direction):
        # Toward noise the clean step of the grid, DDIM's, is the largest error; see LOWEST.
        errors = [relative_rms(run(name, steps, start(toward), toward).x, ode_solution(toward)) for steps in (2, 5)]
        assert max(errors) < 1e-5

    @both_ways
    @pytest.mark.parametrize("name", GRID_BOUND)
    def test_160_steps_come_close_to_the_ode(self, name: str, toward: Direction):
        assert relative_rms(run(name, 160, start(toward), toward).x, ode_solution(toward)) < 0.03


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("name", GRID_BOUND)
def test_a_constant_eps_makes_an_exact_round_trip(
    name: str, spacing: Spacing, steps: int, linear_schedule: NoiseSchedule
):
    photos, solver, grid = ideal()[2], SOLVERS[name](), Grid.build(linear_schedule, steps, spacing)
    latents = integrate(Constant(0.7), solver, grid, State.start(photos), toward="noise").x
    top = grid[grid.steps]
    close = closeness(name)
    torch.testing.assert_close(latents, top.signal * photos + top.noise * 0.7, rtol=0, atol=close)
    back = there_and_back(solver, grid, photos, Constant(0.7))
    torch.testing.assert_close(back, photos, rtol=0, atol=POINT if name == "lattice" else close)


@both_ways
@every_deterministic_solver
class TestEveryRun:
    def test_a_row_alone_is_the_row_in_a_batch(self, name: str, toward: Direction):
        x = ideal()[3]
        batch = run(name, 10, x, toward).x
        for row in range(len(x)):
            torch.testing.assert_close(run(name, 10, x[row : row + 1], toward).x, batch[row : row + 1])

    def test_nothing_that_goes_in_or_comes_out_is_changed_later(self, name: str, toward: Direction):
        schedule, mixture, _, noise = ideal()
        x = noise.clone()
        kept: list[tuple[Tensor, Tensor]] = [(x, x.clone())]

        def keep(step: Step) -> None:
            tensors = (step.state.x, step.state.evaluations, step.prediction.x0, step.prediction.eps)
            kept.extend((tensor, tensor.clone()) for tensor in (*tensors, *step.state.memory))

        state, grid = State.start(x), Grid.build(schedule, 10, "logsnr")
        integrate(mixture, SOLVERS[name](), grid, state, toward=toward, on_step=keep)
        assert len(kept) > (15 if name in ADAPTIVE else 40)
        assert all(now.equal(then) for now, then in kept)
        assert state.x is x
        assert state.evaluations.eq(0).all()

    def test_float32_follows_float64(self, name: str, toward: Direction):
        x = ideal()[3]
        single = run(name, 20, x.float(), toward).x
        assert single.dtype == (torch.float64 if name in FLOAT64_ONLY else torch.float32)
        assert relative_rms(single, run(name, 20, x, toward).x) < (1e-4 if name in ITERATIVE else 1e-5)

    def test_every_evaluation_is_counted(self, name: str, toward: Direction):
        _, mixture, photos, _ = ideal()
        recording = Recording(mixture)
        state = run(name, 10, photos, toward, recording)
        assert int(state.evaluations.sum()) == sum(recording.photos)
        if SOLVERS[name].undone_by != "itself":
            assert state.evaluations.tolist() == [SOLVERS[name]().evaluations(10)] * len(photos)

    def test_guidance_counts_two(self, name: str, toward: Direction):
        _, mixture, photos, _ = ideal()
        with_, without = Recording(mixture), Recording(Mixture.make(seed=1))
        state = run(name, 10, photos, toward, Guided(with_, without, 1.5))
        assert int(state.evaluations.sum()) == 2 * sum(with_.photos) == 2 * sum(without.photos)

    def test_the_network_is_never_shown_the_clean_end(self, name: str, toward: Direction):
        _, mixture, photos, _ = ideal()
        recording = Recording(mixture)
        run(name, 10, photos, toward, recording)
        assert min(level.t for level in recording.levels) == 0

    def test_every_x_t_lies_at_its_level(self, name: str, toward: Direction):
        """With the photo known and eps constant, x_t can be told in advance."""
        schedule, _, photos, _ = ideal()
        grid = Grid.build(schedule, 10, "logsnr")
        first = grid[0] if toward == "noise" else grid[grid.steps]
        state = State.start(first.signal * photos + first.noise * 0.7)
        for step in walk(Constant(0.7), SOLVERS[name](), grid, state, toward=toward):
            close, at = closeness(name), step.level
            torch.testing.assert_close(step.state.x, at.signal * photos + at.noise * 0.7, rtol=1e-7, atol=close)
            torch.testing.assert_close(step.prediction.x0, photos, rtol=1e-6, atol=20 * close)


@every_solver
def test_settings_are_json_and_name_the_solver(name: str):
    settings = SOLVERS[name]().settings
    assert settings["name"] == name == SOLVERS[name].name
    assert json.loads(json.dumps(settings)) == settings
