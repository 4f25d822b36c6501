import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ddim_edit.errors import ConfigError
from ddim_edit.grid import Grid
from ddim_edit.schedule import SPACINGS, NoiseSchedule, Spacing

SAMPLED_STEPS = [1, 2, 3, 7, 10, 13, 20, 37, 50, 75, 100, 250, 333, 500, 501, 999, 1000]


def schedule(**config: object) -> NoiseSchedule:
    return NoiseSchedule.from_config(config)


def diffusers_timesteps(spacing: str, steps: int, offset: int = 0) -> list[int]:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)  # pyright: ignore[reportArgumentType]
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()[::-1]


class TestSpacings:
    @pytest.mark.parametrize("steps", SAMPLED_STEPS)
    @pytest.mark.parametrize(
        ("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("trailing", 1), ("linspace", 0)]
    )
    def test_diffusers_own_spacings(self, spacing: Spacing, offset: int, steps: int):
        if (offset, spacing, steps) == (1, "leading", 1000):
            return  # diffusers asks for t = 1000 there; see the next test
        grid = Grid.build(schedule(steps_offset=offset), steps, spacing)
        assert grid.timesteps == diffusers_timesteps(spacing, steps, offset)
        assert grid.steps == steps
        assert grid.spacing == spacing

    @pytest.mark.parametrize("T", [100, 1000, 4000])
    def test_trailing_has_no_step_more_than_asked_for(self, T: int):
        for steps in range(1, T + 1, 1 + T // 1000):
            assert Grid.build(schedule(num_train_timesteps=T), steps, "trailing").steps == steps

    def test_a_thousand_steps_with_an_offset_stay_inside_the_schedule(self):
        grid = Grid.build(schedule(steps_offset=1), 1000, "leading")
        assert grid.timesteps == list(range(1, 1000))
        assert grid.steps == 999

    @pytest.mark.parametrize("T", [100, 1000, 4000])
    @pytest.mark.parametrize("steps", [1, 7, 50, 60, 100])
    def test_uniform_is_a_constant_whole_stride(self, T: int, steps: int):
        grid = Grid.build(schedule(num_train_timesteps=T), steps, "uniform")
        assert grid.timesteps == list(range(0, T, T // steps))
        assert grid.steps == len(grid.timesteps)

    @pytest.mark.parametrize("T", [1000, 4000])
    @pytest.mark.parametrize("steps", range(2, 101))
    def test_quadratic_is_that_of_the_ddim_code_without_repeats(self, T: int, steps: int):
        written = [int(s) for s in np.linspace(0, np.sqrt(T * 0.8), steps) ** 2]
        grid = Grid.build(schedule(num_train_timesteps=T), steps, "quadratic")
        assert grid.timesteps == sorted(set(written))
        assert grid.steps == len(set(written))

    def test_quadratic_reports_its_true_steps(self):
        assert [Grid.build(schedule(), n, "quadratic").steps for n in (10, 50, 100)] == [10, 49, 96]

    @pytest.mark.parametrize("steps", range(2, 101))
    def test_quadratic_full_reaches_the_top(self, steps: int):
        timesteps = Grid.build(schedule(), steps, "quadratic-full").timesteps
        assert (timesteps[0], timesteps[-1]) == (0, 999)
        exact = (np.arange(steps) / max(steps - 1, 1)) ** 2 * 999
        assert set(timesteps) == set(np.floor(exact + 1e-9))

    @pytest.mark.parametrize("steps", [2, 10, 50, 333])
    def test_logsnr_is_even_in_log_snr(self, steps: int):
        grid = Grid.build(schedule(beta_schedule="scaled_linear"), steps, "logsnr")
        assert (grid.timesteps[0], grid.timesteps[-1], grid.steps) == (0, 999, steps)
        strides = np.diff([math.log(level.signal / level.noise) for level in grid[1:]])
        np.testing.assert_allclose(strides, strides[0], atol=1e-9)

    def test_logsnr_needs_signal_everywhere(self):
        with pytest.raises(ConfigError, match="'logsnr' needs signal at every timestep"):
            Grid.build(schedule(rescale_betas_zero_snr=True), 10, "logsnr")

    def test_the_models_own_spacing_is_the_default(self):
        ours = schedule(timestep_spacing="trailing")
        assert Grid.build(ours, 7) == Grid.build(ours, 7, "trailing") != Grid.build(ours, 7, "leading")

    def test_steps_are_50_by_default(self):
        assert Grid.build(schedule()).steps == 50


class TestGivenTimesteps:
    def test_any_order_and_real_values(self, linear_schedule: NoiseSchedule):
        grid = Grid.from_timesteps(linear_schedule, [999, 0.5, 40, 0.5])
        assert grid.timesteps == [0.5, 40, 999]
        assert grid[1:] == tuple(linear_schedule.level(t) for t in (0.5, 40, 999))
        assert grid[0] == linear_schedule.clean
        assert grid.spacing == "given"

    def test_the_clean_end_is_not_visited_twice(self):
        grid = Grid.from_timesteps(schedule(set_alpha_to_one=False), [0, 40, 80])
        assert (grid.timesteps, grid.steps) == ([40, 80], 2)

    @pytest.mark.parametrize(("to_one", "timesteps"), [(True, []), (False, []), (False, [0])])
    def test_an_empty_list_is_refused(self, to_one: bool, timesteps: list[float]):
        with pytest.raises(ConfigError, match="the list of timesteps is empty"):
            Grid.from_timesteps(schedule(set_alpha_to_one=to_one), timesteps)

    @pytest.mark.parametrize("t", [-1, 999.5, 1000, math.nan])
    def test_timesteps_outside_are_refused(self, linear_schedule: NoiseSchedule, t: float):
        with pytest.raises(ConfigError, match="outside the schedule"):
            Grid.from_timesteps(linear_schedule, [10, t])


def test_a_grid_is_a_sequence_of_levels_from_clean_to_noisy(linear_schedule: NoiseSchedule):
    grid = Grid.build(linear_schedule, 10)
    assert (len(grid), grid.steps) == (11, 10)
    assert list(grid) == [grid[i] for i in range(11)]
    assert grid[-1] == grid[grid.steps] == linear_schedule.level(900)
    assert grid[2:4] == (linear_schedule.level(100), linear_schedule.level(200))


def test_levels_that_do_not_get_noisier_make_no_grid(linear_schedule: NoiseSchedule):
    levels = tuple(Grid.build(linear_schedule, 3))
    for wrong in (levels[::-1], levels[:1], (), (*levels, levels[-1])):
        with pytest.raises(ConfigError, match="each noisier than the one before"):
            Grid(wrong, "given")


@pytest.mark.parametrize(
    ("steps", "spacing", "message"),
    [
        (0, "leading", r"0 steps, but the schedule has 1000 timesteps; choose steps in \[1, 1000\]"),
        (-3, "uniform", r"-3 steps, but .* choose steps in \[1, 1000\]"),
        (1001, "trailing", r"1001 steps, but .* choose steps in \[1, 1000\]"),
        (10, "karras", "spacing 'karras' is unknown; choose one of leading, trailing, linspace, uniform, quadratic"),
    ],
)
def test_grids_that_cannot_be_built_are_refused(
    linear_schedule: NoiseSchedule, steps: int, spacing: Spacing, message: str
):
    with pytest.raises(ConfigError, match=message):
        Grid.build(linear_schedule, steps, spacing)


@given(
    spacing=st.sampled_from(SPACINGS),
    T=st.sampled_from([10, 1000, 4000]),
    share=st.floats(0, 1),
    shape=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]),
    offset=st.sampled_from([0, 1]),
    to_one=st.booleans(),
    zero_snr=st.booleans(),
)
def test_every_grid_gets_noisier_step_by_step(
    spacing: Spacing, T: int, share: float, shape: str, offset: int, to_one: bool, zero_snr: bool
):
    assume(not (zero_snr and spacing == "logsnr"))
    steps = 2 + round(share * (T - 2))
    ours = schedule(
        num_train_timesteps=T,
        beta_schedule=shape,
        steps_offset=offset,
        set_alpha_to_one=to_one,
        rescale_betas_zero_snr=zero_snr,
    )
    grid = Grid.build(ours, steps, spacing)
    ratios = [level.noise / level.signal if level.signal else math.inf for level in grid]
    assert all(a < b for a, b in pairwise(ratios))
    assert all(a < b for a, b in pairwise(grid.timesteps))
    assert grid[0] == ours.clean
    assert grid.steps == len(grid.timesteps) <= (T if spacing == "uniform" else steps)


class TestSeedRow5ImprovedDiffusionRespacing:
    """Oracles written from the documented behaviour: a constant stride, or equal parts that are strided each."""

    @staticmethod
    def strides(T: int) -> dict[int, list[int]]:
        """Every count that a whole stride gives, with the timesteps of the smallest such stride."""
        found: dict[int, list[int]] = {}
        for stride in range(1, T):
            found.setdefault(math.ceil(T / stride), [stride * k for k in range(math.ceil(T / stride))])
        return found

    @staticmethod
    def sections(T: int, counts: list[int]) -> list[int]:
        """Each part from its first to its last timestep; positions are running float sums, halves go to even."""
        parts = np.array_split(np.arange(T), len(counts))
        taken: list[int] = []
        for part, count in zip(parts, counts, strict=True):
            stride = (len(part) - 1) / max(count - 1, 1)
            positions = np.cumsum([0.0] + [stride] * (count - 1))
            taken += part[np.rint(positions).astype(int)].tolist()
        return sorted(set(taken))

    @pytest.mark.parametrize("T", [1000, 4000])
    def test_every_possible_ddim_count(self, T: int):
        ours = schedule(num_train_timesteps=T)
        for count, timesteps in self.strides(T).items():
            assert Grid.respaced(ours, f"ddim{count}").timesteps == timesteps

    def test_ddim_counts_in_words(self, linear_schedule: NoiseSchedule):
        assert Grid.respaced(linear_schedule, "ddim7").timesteps == [0, 143, 286, 429, 572, 715, 858]
        assert Grid.respaced(linear_schedule, "ddim50").timesteps == list(range(0, 1000, 20))
        assert Grid.respaced(linear_schedule, "ddim7").spacing == "ddim7"

    def test_all_46_impossible_counts_are_refused_with_the_nearest_that_work(self, linear_schedule: NoiseSchedule):
        possible = self.strides(1000).keys()
        impossible = [count for count in range(2, 101) if count not in possible]
        assert len(impossible) == 46
        for count in impossible:
            with pytest.raises(ConfigError, match=f"ddim{count} is impossible") as error:
                Grid.respaced(linear_schedule, f"ddim{count}")
            named = [int(n) for n in re.findall(r"ddim(\d+)", str(error.value))][1:]
            distances = sorted(abs(n - count) for n in possible)
            assert set(named) <= possible
            assert sorted(abs(n - count) for n in named) == distances[:2]

    @pytest.mark.parametrize("T", [300, 1000, 4000])
    @pytest.mark.parametrize("text", ["1", "10", "100", "250", "10,15,20", "20,15,10", "25,24,1,1,1,7,40", "1,1"])
    def test_sections(self, T: int, text: str):
        counts = [int(n) for n in text.split(",")]
        grid = Grid.respaced(schedule(num_train_timesteps=T), text)
        assert grid.timesteps == self.sections(T, counts)
        assert (grid.steps, grid.spacing) == (sum(counts), text)

    def test_every_count_of_one_section(self, linear_schedule: NoiseSchedule):
        for count in range(1, 400, 2):
            assert Grid.respaced(linear_schedule, str(count)).timesteps == self.sections(1000, [count])

    def test_running_sums_decide_where_halves_round(self, linear_schedule: NoiseSchedule):
        # Ten strides of 49.95 added up are a little less than 499.5, which would round to 500.
        assert Grid.respaced(linear_schedule, "21").timesteps[10] == 499

    def test_the_documented_example(self):
        timesteps = Grid.respaced(schedule(num_train_timesteps=300), "10, 15, 20").timesteps
        assert [sum(a <= t < a + 100 for t in timesteps) for a in (0, 100, 200)] == [10, 15, 20]
        assert timesteps[:10] == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]

    @pytest.mark.parametrize("text", ["", "ddim", "ddim5.5", "dim50", "10,,20", "10;20", "-5", "ddim-5", "fast27"])
    def test_other_texts_are_refused(self, linear_schedule: NoiseSchedule, text: str):
        with pytest.raises(ConfigError, match="is not of the form ddim50 or 10,15,20"):
            Grid.respaced(linear_schedule, text)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("ddim0", "ddim0 is impossible"),
            ("ddim1001", "ddim1001 is impossible: .* ddim500 and ddim1000"),
            ("10,501", "section 2 of 2 asks for 501 of its 500 timesteps; choose 1 to 500"),
            ("0,10", "section 1 of 2 asks for 0 of its 500 timesteps; choose 1 to 500"),
        ],
    )
    def test_counts_that_do_not_fit_are_refused(self, linear_schedule: NoiseSchedule, text: str, message: str):
        with pytest.raises(ConfigError, match=message):
            Grid.respaced(linear_schedule, text)


class TestUntil:
    def test_keeps_the_clean_part(self, linear_schedule: NoiseSchedule):
        grid = Grid.build(linear_schedule, 10)
        assert grid.until(300).levels == grid[:5]
        assert grid.until(399.5).levels == grid[:5]
        assert grid.until(300).spacing == grid.spacing

    def test_above_the_top_it_is_the_whole_grid(self, linear_schedule: NoiseSchedule):
        grid = Grid.build(linear_schedule, 10)
        assert grid.until(900) == grid == grid.until(5000)

    def test_below_the_first_level_it_is_refused(self, linear_schedule: NoiseSchedule):
        with pytest.raises(ConfigError, match="no level at or below timestep 9; the grid starts at t = 10"):
            Grid.from_timesteps(linear_schedule, [10, 20]).until(9)


class TestOf:
    def test_steps_respacing_and_grids(self, linear_schedule: NoiseSchedule):
        grid = Grid.build(linear_schedule, 20)
        assert Grid.of(linear_schedule, grid) is grid
        assert Grid.of(linear_schedule, 20) == grid
        assert Grid.of(linear_schedule, "10,15") == Grid.respaced(linear_schedule, "10,15")
