from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from helpers import Constant, Mixture, Recording, gaussian_noise

from ddim_edit.denoiser import Denoiser, Prediction
from ddim_edit.errors import NumericsError
from ddim_edit.grid import Grid
from ddim_edit.ode import Direction, Step, integrate, walk
from ddim_edit.schedule import NoiseSchedule
from ddim_edit.solvers import Ddim, Solver, State

X = gaussian_noise(0, 2, 2, 2, 2)


@dataclass(frozen=True)
class Remembering(Solver):
    """Adds i to x toward noise and takes it off again toward clean; remembers the last x."""

    name: ClassVar[str] = "remembering"
    order: ClassVar[int] = 1

    @property
    def deterministic(self) -> bool:
        return True

    def toward_clean(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        return state.moved(state.x - i, denoise.cost, (state.x,)), denoise(state.x, grid[i])

    def toward_noise(self, denoise: Denoiser, grid: Grid, i: int, state: State) -> tuple[State, Prediction]:
        return state.moved(state.x + i, denoise.cost, (state.x,)), denoise(state.x, grid[i])


@pytest.fixture
def grid(linear_schedule: NoiseSchedule) -> Grid:
    return Grid.build(linear_schedule, 5)


class TestWalk:
    @pytest.mark.parametrize(("toward", "arrived"), [("clean", [4, 3, 2, 1, 0]), ("noise", [1, 2, 3, 4, 5])])
    def test_visits_every_level_in_order(self, mixture: Mixture, grid: Grid, toward: Direction, arrived: list[int]):
        steps = list(walk(mixture, Ddim(), grid, State.start(X), toward=toward))
        assert [step.index for step in steps] == [1, 2, 3, 4, 5]
        assert [step.of for step in steps] == [5] * 5
        assert [step.level for step in steps] == [grid[i] for i in arrived]

    @pytest.mark.parametrize(("toward", "intervals"), [("clean", [5, 4, 3, 2, 1]), ("noise", [1, 2, 3, 4, 5])])
    def test_gives_every_interval_to_the_solver_once(self, grid: Grid, toward: Direction, intervals: list[int]):
        xs = [X, *(step.state.x for step in walk(Constant(0.0), Remembering(), grid, State.start(X), toward=toward))]
        moves = [round(float((b - a).abs().mean())) for a, b in pairwise(xs)]
        assert moves == intervals

    def test_yields_every_x_t_and_predicted_x0(self, mixture: Mixture, grid: Grid):
        x = X
        for step in walk(mixture, Ddim(), grid, State.start(X), toward="clean"):
            expected = mixture(x, grid[6 - step.index])
            assert step.prediction.x0.equal(expected.x0)
            x = expected.at(step.level)
            assert step.state.x.equal(x)
            assert step.state.evaluations.tolist() == [step.index] * 2

    def test_works_step_by_step_and_can_be_left(self, mixture: Mixture, grid: Grid):
        recording = Recording(mixture)
        steps = walk(recording, Ddim(), grid, State.start(X), toward="clean")
        assert len(recording.levels) == 0
        assert [next(steps).index, next(steps).index] == [1, 2]
        assert len(recording.levels) == 2

    def test_hands_memory_from_step_to_step(self, grid: Grid):
        steps = list(walk(Constant(0.0), Remembering(), grid, State.start(X), toward="noise"))
        assert steps[2].state.memory[0] is steps[1].state.x


class TestIntegrate:
    @pytest.mark.parametrize("toward", ["clean", "noise"])
    def test_is_the_last_of_walk(self, mixture: Mixture, grid: Grid, toward: Direction):
        *_, last = walk(mixture, Ddim(), grid, State.start(X), toward=toward)
        state = integrate(mixture, Ddim(), grid, State.start(X), toward=toward)
        assert state.x.equal(last.state.x)
        assert state.evaluations.equal(last.state.evaluations)

    def test_calls_on_step_after_every_step(self, mixture: Mixture, grid: Grid):
        seen: list[Step] = []
        integrate(mixture, Ddim(), grid, State.start(X), toward="clean", on_step=seen.append)
        walked = list(walk(mixture, Ddim(), grid, State.start(X), toward="clean"))
        assert [step.index for step in seen] == [1, 2, 3, 4, 5]
        assert all(a.state.x.equal(b.state.x) for a, b in zip(seen, walked, strict=True))


class TestOnStep:
    @staticmethod
    def replace_third(step: Step) -> State | None:
        return replace(step.state, x=torch.zeros_like(step.state.x)) if step.index == 3 else None

    def test_a_replaced_state_is_where_the_run_goes_on(self, mixture: Mixture, grid: Grid):
        steps = list(walk(mixture, Ddim(), grid, State.start(X), toward="clean", on_step=self.replace_third))
        assert steps[2].state.x.eq(0).all()
        assert steps[3].state.x.equal(mixture(torch.zeros_like(X), grid[2]).at(grid[1]))
        assert steps[-1].state.evaluations.tolist() == [5, 5]

    def test_integrate_follows_it_to_the_end(self, mixture: Mixture, grid: Grid):
        *_, last = walk(mixture, Ddim(), grid, State.start(X), toward="clean", on_step=self.replace_third)
        state = integrate(mixture, Ddim(), grid, State.start(X), toward="clean", on_step=self.replace_third)
        assert state.x.equal(last.state.x)
        assert not state.x.equal(integrate(mixture, Ddim(), grid, State.start(X), toward="clean").x)

    def test_a_state_replaced_in_the_last_step_is_the_result(self, mixture: Mixture, grid: Grid):
        def zero(step: Step) -> State:
            return replace(step.state, x=torch.zeros_like(step.state.x))

        assert integrate(mixture, Ddim(), grid, State.start(X), toward="clean", on_step=zero).x.eq(0).all()

    def test_the_solver_forgets_what_no_longer_fits(self, grid: Grid):
        solver, start = Remembering(), State.start(X)
        steps = list(walk(Constant(0.0), solver, grid, start, toward="noise", on_step=self.replace_third))
        assert [len(step.state.memory) for step in steps] == [1, 1, 0, 1, 1]


class TestNumbers:
    @dataclass(frozen=True)
    class Breaking(Constant):
        """A network that fails at one timestep."""

        value: float = torch.nan
        at: float = 400

        def __call__(self, x: torch.Tensor, level: object) -> Prediction:
            made = super().__call__(x, level)  # pyright: ignore[reportArgumentType]
            if level.t != self.at:  # pyright: ignore[reportAttributeAccessIssue]
                return made
            eps = made.eps.clone()
            eps[1, 0, 0, 0] = self.value
            return made._replace(eps=eps)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_the_step_that_broke_is_named(self, grid: Grid, value: float):
        steps = walk(self.Breaking(0.5, value=value), Ddim(), grid, State.start(X), toward="clean")
        assert [next(steps).index, next(steps).index] == [1, 2]
        with pytest.raises(NumericsError, match=r"not finite after step 3 of 5 \(t = 200\); run the network in fp32"):
            next(steps)

    def test_encoding_is_watched_too(self, grid: Grid):
        with pytest.raises(NumericsError, match=r"not finite after step 4 of 5 \(t = 600\)"):
            integrate(self.Breaking(0.5), Ddim(), grid, State.start(X), toward="noise")

    def test_the_callback_never_sees_a_broken_step(self, grid: Grid):
        seen: list[int] = []
        with pytest.raises(NumericsError):
            integrate(
                self.Breaking(0.5),
                Ddim(),
                grid,
                State.start(X),
                toward="clean",
                on_step=lambda step: seen.append(step.index),
            )
        assert seen == [1, 2]
