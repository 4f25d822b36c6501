"""Where a budget goes: more looks where they do more."""

import math

import pytest

from ddim_edit.grid import Grid
from ddim_edit.schedule import NoiseSchedule, Spacing
from ddim_edit.solvers.spending import USUAL, Outlook, contractions, hardness, outlooks, worth_another_look

LINEAR = NoiseSchedule.from_config({})


def spent(steps: tuple[Outlook, ...], budget: int, scale: float = USUAL, hard: int = -1) -> list[int]:
    """Looks at every step, of a photo whose residuals are as expected, but ten times as large in one step."""
    looks: list[int] = []
    for i, step in enumerate(steps):
        residual = scale * step.error * (10 if i == hard else 1)
        looks.append(1)
        while worth_another_look(steps, i, residual, scale, budget - sum(looks)):
            residual *= step.rate
            looks[-1] += 1
    return looks


SPACINGS: list[Spacing] = ["quadratic", "logsnr", "trailing"]


class TestLooks:
    @pytest.mark.parametrize("spacing", SPACINGS)
    @pytest.mark.parametrize("budget", [0, 10, 11, 37, 200])
    def test_all_are_spent_and_every_step_gets_one(self, spacing: Spacing, budget: int):
        looks = spent(outlooks(Grid.build(LINEAR, 10, spacing)), budget)
        assert sum(looks) == max(budget, 10)
        assert min(looks) >= 1

    def test_they_go_where_they_take_most_away(self):
        """Greedy: no look less at one step and one more at another would have been better."""
        steps = outlooks(Grid.build(LINEAR, 10, "quadratic"))
        looks = spent(steps, 40)
        left = [step.error * step.weight * step.rate**n for step, n in zip(steps, looks, strict=True)]
        best = sum(e * e for e in left)
        for i, one in enumerate(steps):
            for j, other in enumerate(steps):
                if i != j and looks[i] > 1:
                    swapped = best - left[i] ** 2 - left[j] ** 2
                    swapped += (left[i] / one.rate) ** 2 + (left[j] * other.rate) ** 2
                    assert swapped >= best * (1 - 1e-9)

    def test_the_hardness_a_photo_does_not_matter(self):
        steps = outlooks(Grid.build(LINEAR, 10, "quadratic"))
        assert spent(steps, 30, 1e-3) == spent(steps, 30, 10.0)

    @pytest.mark.parametrize("hard", [0, 4, 8])
    def test_a_step_that_turns_out_hard_gets_more(self, hard: int):
        steps = outlooks(Grid.build(LINEAR, 10, "quadratic"))
        assert spent(steps, 30, hard=hard)[hard] > spent(steps, 30)[hard]

    def test_nothing_is_left_to_gain_at_no_error(self):
        steps = outlooks(Grid.build(LINEAR, 10, "quadratic"))
        assert not worth_another_look(steps, 3, 0.0, USUAL, 1000)


class TestExpectations:
    def test_large_steps_are_hard_and_leave_much(self):
        grid = Grid.from_timesteps(LINEAR, [0, 20, 40, 400, 500])
        rates = contractions(grid)
        assert rates[0] is None
        assert rates[3] == max(rate for rate in rates if rate is not None)
        assert all(rate is None or 0 < rate < 1 for rate in rates)
        errors = [step.error for step in outlooks(grid)]
        assert errors[3] == max(errors)

    def test_a_scale_is_learned_from_what_was_seen(self):
        steps = outlooks(Grid.build(LINEAR, 10, "quadratic"))
        assert hardness([], steps) == pytest.approx(USUAL)
        seen = [2.0 * step.error for step in steps]
        scales = [hardness(seen[:count], steps) for count in range(11)]
        assert scales == sorted(scales)
        assert scales[10] == pytest.approx(math.exp((math.log(USUAL) + 10 * math.log(2.0)) / 11))

    def test_a_residual_of_zero_breaks_nothing(self):
        assert hardness([0.0], outlooks(Grid.build(LINEAR, 10, "quadratic"))) > 0
