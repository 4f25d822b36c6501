"""The fixed-point solver on equations whose solutions are known."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from ddim_edit.solvers.base import Solved
from ddim_edit.solvers.fixed_point import Enough, Moves, solve


def until(tolerance: float = 0.0, limit: int = 80) -> Enough:
    """The same for every photo."""
    return lambda row, residual, looks: residual <= tolerance or looks >= limit


@dataclass(frozen=True)
class Linear:
    """r(x) = b - A x, one A (n, n) and b (n,) for each photo, whose x is (1, 1, n); the photos seen are recorded."""

    matrices: Tensor
    aims: Tensor
    noise: float = 0.0
    seen: list[list[int]] = field(default_factory=list[list[int]])

    @classmethod
    def with_eigenvalues(cls, *photos: list[float], noise: float = 0.0) -> "Linear":
        """Symmetric matrices in random bases."""
        draw = torch.Generator().manual_seed(0)
        n = len(photos[0])
        bases = [torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=torch.float64))[0] for _ in photos]
        values = [torch.diag(torch.tensor(photo, dtype=torch.float64)) for photo in photos]
        matrices = torch.stack([q @ value @ q.T for q, value in zip(bases, values, strict=True)])
        return cls(matrices, torch.randn(len(photos), n, generator=draw, dtype=torch.float64), noise)

    def __call__(self, rows: Tensor, x: Tensor) -> Tensor:
        self.seen.append(rows.tolist())
        products = [self.matrices[row] @ value.flatten().double() for row, value in zip(rows.tolist(), x, strict=True)]
        r = self.aims[rows] - torch.stack(products)
        return (r + self.noise * torch.sin(1e7 * x.flatten(1).double())).view_as(x).to(x)

    @property
    def start(self) -> Tensor:
        return torch.zeros(len(self.aims), 1, 1, self.aims.shape[1], dtype=torch.float64)

    @property
    def solution(self) -> Tensor:
        return torch.linalg.solve(self.matrices, self.aims)[:, None, None]

    def solved(self, tolerance: float = 1e-11, limit: int = 80, relax: float = 1.0) -> tuple[Tensor, Solved]:
        x, found, _ = solve(self, self.start, enough=until(tolerance, limit), relax=relax)
        return x, found


def scalar(r: Callable[[float], float], *, limit: int, tolerance: float = 1e-9) -> tuple[list[float], Tensor, Solved]:
    """Solve one equation in one unknown from 0; also where it was looked at."""
    looked: list[float] = []

    def residual(rows: Tensor, x: Tensor) -> Tensor:
        looked.append(x.item())
        return torch.full_like(x, r(x.item()))

    x, found, _ = solve(residual, torch.zeros(1, 1, 1, 1, dtype=torch.float64), enough=until(tolerance, limit))
    return looked, x, found


class TestLinear:
    @pytest.mark.parametrize("relax", [0.7, 1.0, 1.3])
    def test_the_solution_is_found_within_a_few_more_looks_than_there_are_unknowns(self, relax: float):
        linear = Linear.with_eigenvalues([0.3, 0.6, 1.0, 1.4], [0.5, 0.5, 1.5, 0.9])
        x, found = linear.solved(relax=relax)
        torch.testing.assert_close(x, linear.solution, rtol=0, atol=1e-9)
        assert found.iterations.max() <= 8
        assert not found.stalled.any()
        assert found.residual.max() <= 1e-11

    def test_more_unknowns_than_the_window_remembers(self):
        linear = Linear.with_eigenvalues([0.2 + 0.1 * k for k in range(14)])
        x, found = linear.solved()
        torch.testing.assert_close(x, linear.solution, rtol=0, atol=1e-9)
        assert found.iterations[0] < 60

    def test_where_plain_iteration_diverges(self):
        """x + r(x) stretches errors by 1 - 3 = -2 and by 1 - 2.5 = -1.5."""
        linear = Linear.with_eigenvalues([3.0, 2.5, 0.8, 1.1])
        x, found = linear.solved()
        torch.testing.assert_close(x, linear.solution, rtol=0, atol=1e-9)
        assert not found.stalled.any()

    def test_the_residuals_are_those_of_the_first_and_the_last_look(self):
        linear = Linear.with_eigenvalues([0.3, 0.6, 1.0, 1.4])
        for limit in (1, 3):
            _, found = linear.solved(limit=limit)
            assert found.iterations.tolist() == [limit]
        first = linear.aims[0].square().mean().sqrt()
        one, three = (linear.solved(limit=limit)[1] for limit in (1, 3))
        assert one.residual[0] == one.first[0] == three.first[0] == pytest.approx(float(first), rel=1e-12)
        assert three.residual[0] < three.first[0]

    def test_every_photo_may_end_by_a_rule_of_its_own(self):
        linear = Linear.with_eigenvalues([0.3, 0.6, 1.0, 1.4], [0.3, 0.6, 1.0, 1.4])
        tolerance = [0.3, 1e-10]
        _, found, _ = solve(linear, linear.start, enough=lambda row, residual, looks: residual <= tolerance[row])
        assert (found.residual <= torch.tensor(tolerance, dtype=torch.float64)).all()
        assert found.iterations[0] < found.iterations[1]


class TestBatch:
    def test_the_network_sees_the_unfinished_photos_only(self):
        linear = Linear.with_eigenvalues([1.0] * 4, [0.3, 0.6, 1.0, 1.4], [0.9, 1.1, 1.0, 1.0])
        _, found = linear.solved()
        assert found.iterations.tolist() == [sum(row in rows for rows in linear.seen) for row in range(3)]
        assert linear.seen[0] == [0, 1, 2]
        assert linear.seen[-1] == [1]

    def test_a_photo_is_solved_as_if_it_were_alone_bit_for_bit(self):
        photos = [[0.3, 0.6, 1.0, 1.4], [3.0, 2.5, 0.8, 1.1], [1.0, 1.0, 1.0, 1.2]]
        batch = Linear.with_eigenvalues(*photos)
        together, found = batch.solved()
        for row in range(3):
            alone = Linear(batch.matrices[row : row + 1], batch.aims[row : row + 1])
            x, own = alone.solved()
            assert x[0].equal(together[row])
            for ours, theirs in zip(own, found, strict=True):
                assert ours[0] == theirs[row]

    def test_limits_are_kept_and_at_least_one_look_is_taken(self):
        linear = Linear.with_eigenvalues(*[[0.3, 0.6, 1.0, 1.4]] * 3)
        limits = [0, 2, 5]
        _, found, _ = solve(linear, linear.start, enough=lambda row, residual, looks: looks >= limits[row])
        assert found.iterations.tolist() == [1, 2, 5]
        assert not found.stalled.any()

    def test_the_guess_is_not_changed(self):
        guess = torch.ones(1, 1, 1, 4, dtype=torch.float64)
        linear = Linear.with_eigenvalues([0.3, 0.6, 1.0, 1.4])
        x, *_ = solve(linear, guess, enough=until(limit=5))
        assert guess.eq(1).all()
        assert not x.equal(guess)

    def test_float32_stays_float32_and_reaches_its_precision(self):
        linear = Linear.with_eigenvalues([0.3, 0.6, 1.0, 1.4])
        x, found, _ = solve(linear, linear.start.float(), enough=until(1e-6, 30))
        assert x.dtype == torch.float32
        assert found.residual[0] <= 1e-6
        torch.testing.assert_close(x.double(), linear.solution, rtol=0, atol=1e-5)


class TestHints:
    @property
    def twins(self) -> tuple[Linear, Linear]:
        """Two searches with one matrix, whose solutions differ."""
        linear = Linear.with_eigenvalues([0.3, 0.6, 1.0, 1.4])
        return linear, Linear(linear.matrices, linear.aims.flip(1))

    def test_moves_of_an_equation_that_answers_alike_save_looks(self):
        one, other = self.twins
        _, _, moves = solve(one, one.start, enough=until(1e-11), keep=4)
        assert moves.dx.shape == (1, 4, 1, 1, 4)
        torch.testing.assert_close(moves.dr.flatten(1), -(one.matrices[0] @ moves.dx.view(4, 4).T).T.reshape(1, 16))
        plain, helped = (
            solve(other, other.start, enough=until(limit=3), hints=hints)[1].residual for hints in (None, moves)
        )
        assert helped < 0.3 * plain

    def test_what_misleads_only_costs_a_few(self):
        one, other = self.twins
        _, _, moves = solve(one, one.start, enough=until(1e-11), keep=4)
        x, found, _ = solve(other, other.start, enough=until(1e-11), hints=Moves(moves.dx, -moves.dr))
        torch.testing.assert_close(x, other.solution, rtol=0, atol=1e-9)
        assert found.iterations[0] <= other.solved()[1].iterations[0] + 5

    def test_no_moves_are_no_hint(self):
        one, _ = self.twins
        _, _, none = solve(one, one.start, enough=until(limit=1), keep=2)
        assert not none.dx.any()
        x, *_ = solve(one, one.start, enough=until(1e-11), hints=none)
        assert x.equal(one.solved()[0])

    def test_hints_leave_as_moves_of_its_own_come(self):
        """Hints of a wrong size keep the search from its full precision unless they are forgotten."""
        linear = Linear.with_eigenvalues([0.2 + 0.1 * k for k in range(14)])
        wrong = torch.randn(1, 5, 1, 1, 14, generator=torch.Generator().manual_seed(1)).double()
        x, found, _ = solve(linear, linear.start, enough=until(1e-10, 200), hints=Moves(wrong, 3 * wrong.flip(1)))
        assert not found.stalled.any()
        torch.testing.assert_close(x, linear.solution, rtol=0, atol=1e-8)


class TestSafeguards:
    def test_a_residual_that_grows_drops_the_history_and_halves_the_step_from_the_best_place(self):
        looked, _, _ = scalar(lambda x: 1.0 if x == 0 else 10.0 if x == 1 else 0.9, limit=3)
        assert looked == [0.0, 1.0, 0.5]

    def test_again_and_again(self):
        looked, _, found = scalar(lambda x: 1.0 if x == 0 else 10.0, limit=4)
        assert looked == [0.0, 1.0, 0.5, 0.25]
        assert found.residual[0] == 1

    @pytest.mark.parametrize("broken", [float("nan"), float("inf")])
    def test_so_does_one_that_breaks_on_the_way(self, broken: float):
        looked, x, _ = scalar(lambda x: 1.0 if x == 0 else broken if x == 1 else 0.8 - x, limit=20)
        assert looked[:3] == [0.0, 1.0, 0.5]
        assert x.item() == pytest.approx(0.8)

    def test_one_that_is_not_finite_from_the_start_ends_the_search(self):
        looked, x, found = scalar(lambda x: float("nan"), limit=20)
        assert looked == [0.0]
        assert not torch.isfinite(x).all()
        assert found.iterations.tolist() == [1]

    def test_a_history_that_leads_nowhere_is_dropped_once_before_the_search_ends(self):
        """The first looks answer at random; from the fifth on the equation is a plain one."""
        answers = iter([1.0, 0.95, 1.3, 0.97, 1.1])
        looked, x, found = scalar(lambda x: next(answers, 0.5 - x), limit=30)
        assert not found.stalled.any()
        assert x.item() == pytest.approx(0.5)
        assert len(looked) < 15

    @pytest.mark.parametrize("noise", [1e-3, 1e-6])
    def test_a_noise_floor_is_noticed_and_said(self, noise: float):
        linear = Linear.with_eigenvalues([0.3, 0.6, 1.0, 1.4], [0.5, 0.9, 1.0, 1.2], noise=noise)
        x, found = linear.solved(tolerance=1e-12, limit=300)
        assert found.stalled.all()
        assert found.iterations.max() < 60
        assert found.residual.max() < 2 * noise
        torch.testing.assert_close(x, linear.solution, rtol=0, atol=10 * noise)

    def test_what_a_stalled_search_returns_is_the_best_place_seen(self):
        linear = Linear.with_eigenvalues([0.3, 0.6, 1.0, 1.4], noise=1e-3)
        x, found = linear.solved(tolerance=1e-12, limit=300)
        r = linear(torch.tensor([0]), x)
        assert r.square().mean().sqrt().item() == pytest.approx(found.residual.item(), rel=1e-12)

    def test_a_floor_below_the_tolerance_is_no_stall(self):
        linear = Linear.with_eigenvalues([0.3, 0.6, 1.0, 1.4], noise=1e-6)
        _, found = linear.solved(tolerance=1e-5, limit=300)
        assert not found.stalled.any()
        assert found.residual.max() <= 1e-5

    def test_a_residual_that_never_changes_is_a_floor_too(self):
        looked, _, found = scalar(lambda x: 0.5, limit=50)
        assert found.stalled.all()
        assert len(looked) < 10

    def test_one_that_jumps_between_two_values_as_rounding_makes_it(self):
        looked, x, found = scalar(lambda x: 0.25 if x < 0.5 else -0.25, limit=50)
        assert found.stalled.all()
        assert abs(x.item() - 0.5) <= 0.5
        assert len(looked) < 20
