import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers import gaussian_noise

from ddim_edit.errors import ConfigError
from ddim_edit.schedule import Level, NoiseSchedule

SHAPES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]


def assert_same_table(ours: np.ndarray, theirs: np.ndarray, atol: float = 1e-9) -> None:
    """To float32, in which diffusers multiplies a thousand factors up."""
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=atol)


def schedule(**config: object) -> NoiseSchedule:
    return NoiseSchedule.from_config(config)


def half_log_snr(level: Level) -> float:
    return math.log(level.signal / level.noise)


def ddpm_table(**config: object) -> np.ndarray:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(**config).alphas_cumprod.numpy()  # pyright: ignore[reportArgumentType]


def ddim_scheduler(**config: object):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(**config)  # pyright: ignore[reportArgumentType]


class TestSeedRow4BetaSchedules:
    @pytest.mark.parametrize("T", [100, 1000, 4000])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_beta_schedule_is_that_of_diffusers(self, shape: str, T: int):
        config = {"beta_schedule": shape, "num_train_timesteps": T, "beta_start": 8.5e-4, "beta_end": 0.012}
        assert_same_table(schedule(**config).alpha_bar, ddpm_table(**config))

    def test_defaults_are_those_of_diffusers(self):
        assert_same_table(schedule().alpha_bar, ddpm_table())
        assert schedule(beta_start=None, trained_betas=None).digest == schedule().digest

    @pytest.mark.parametrize("shape", SHAPES[:3])
    def test_zero_snr_rescale_is_that_of_diffusers_and_leaves_no_signal(self, shape: str):
        config = {"beta_schedule": shape, "rescale_betas_zero_snr": True}
        ours, theirs = schedule(**config), ddim_scheduler(**config)
        assert_same_table(ours.alpha_bar, theirs.alphas_cumprod.numpy(), atol=1e-7)
        assert ours.level(999) == Level(999, 0, 1)
        assert ours.alpha_bar[0] == pytest.approx(schedule(beta_schedule=shape).alpha_bar[0], rel=1e-12)

    def test_trained_betas_win_over_the_named_shape(self):
        betas = [0.01, 0.03, 0.02, 0.4]
        ours = schedule(trained_betas=betas, beta_schedule="linear", num_train_timesteps=1000)
        assert_same_table(ours.alpha_bar, ddpm_table(trained_betas=betas))
        np.testing.assert_allclose(ours.alpha_bar, [0.99, 0.9603, 0.941094, 0.5646564], rtol=1e-12)
        assert len(ours) == 4
        assert ours.digest == NoiseSchedule.from_betas(betas).digest

    def test_set_alpha_to_one_false_makes_the_lowest_timestep_the_clean_end(self):
        one, lowest = schedule(), schedule(set_alpha_to_one=False)
        assert one.clean == Level(-1, 1, 0)
        assert lowest.clean == lowest.level(0)._replace(t=-1)
        theirs = ddim_scheduler(set_alpha_to_one=False).final_alpha_cumprod
        assert lowest.clean.signal**2 == pytest.approx(float(theirs), rel=1e-6)

    def test_offset_and_spacing_are_read(self):
        assert (schedule().steps_offset, schedule().spacing) == (0, "leading")
        ours = schedule(steps_offset=1, timestep_spacing="trailing")
        assert (ours.steps_offset, ours.spacing) == (1, "trailing")

    def test_keys_that_say_nothing_about_noise_are_ignored(self):
        assert schedule(_class_name="PNDMScheduler", skip_prk_steps=True, clip_sample=True).digest == schedule().digest


class TestLevels:
    @pytest.fixture(params=[*SHAPES, "zero-snr"])
    def any_schedule(self, request: pytest.FixtureRequest) -> NoiseSchedule:
        zero = request.param == "zero-snr"
        return schedule(beta_schedule="linear" if zero else request.param, rescale_betas_zero_snr=zero)

    def test_whole_timesteps_are_the_table(self, any_schedule: NoiseSchedule):
        for t in (0, 1, 500, 998, 999):
            level, alpha_bar = any_schedule.level(t), any_schedule.alpha_bar[t]
            assert level == Level(t, math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))

    def test_real_timesteps_are_ever_noisier(self, any_schedule: NoiseSchedule):
        levels = [any_schedule.level(t) for t in np.linspace(0, 999, 3001)]
        assert all(a.noise < b.noise and a.signal > b.signal for a, b in pairwise(levels))

    def test_real_timesteps_keep_the_variance(self, any_schedule: NoiseSchedule):
        for t in (0.5, 10.25, 998.75):
            level = any_schedule.level(t)
            assert level.t == t
            assert level.signal**2 + level.noise**2 == pytest.approx(1, abs=1e-14)

    @pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
    def test_log_snr_is_linear_between_timesteps(self, linear_schedule: NoiseSchedule, share: float):
        below, above = half_log_snr(linear_schedule.level(41)), half_log_snr(linear_schedule.level(42))
        between = half_log_snr(linear_schedule.level(41 + share))
        assert between == pytest.approx((1 - share) * below + share * above, abs=1e-12)

    def test_log_snr_table_agrees_with_the_levels(self, linear_schedule: NoiseSchedule):
        assert linear_schedule.half_log_snr[300] == pytest.approx(half_log_snr(linear_schedule.level(300)), abs=1e-12)

    def test_below_a_zero_snr_top_the_signal_is_linear(self):
        ours = schedule(rescale_betas_zero_snr=True)
        assert ours.half_log_snr[999] == -math.inf
        assert ours.level(998.5).signal == pytest.approx(ours.level(998).signal / 2, rel=1e-12)

    @pytest.mark.parametrize("t", [-1, -0.001, 999.001, 1000, math.nan])
    def test_timesteps_outside_are_refused(self, linear_schedule: NoiseSchedule, t: float):
        with pytest.raises(ConfigError, match=r"outside the schedule; choose it in \[0, 999\]"):
            linear_schedule.level(t)

    def test_a_schedule_of_one_timestep_has_one_level(self):
        assert NoiseSchedule.from_betas([0.36]).level(0).signal == pytest.approx(0.8)


class TestLevelAt:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("t", [0, 0.4, 17, 500.125, 998.5, 999])
    def test_is_the_inverse_of_level(self, shape: str, t: float):
        ours = schedule(beta_schedule=shape)
        level = ours.level_at(half_log_snr(ours.level(t)))
        assert level.t == pytest.approx(t, abs=1e-6)
        assert half_log_snr(level) == pytest.approx(half_log_snr(ours.level(t)), abs=1e-9)

    def test_ends_below_a_zero_snr_top(self):
        ours = schedule(rescale_betas_zero_snr=True)
        assert ours.level_at(half_log_snr(ours.level(998))).t == pytest.approx(998)
        with pytest.raises(ConfigError, match="outside the schedule"):
            ours.level_at(-50)

    @pytest.mark.parametrize("value", [4.7, -5.1, math.inf, math.nan])
    def test_log_snr_outside_is_refused(self, linear_schedule: NoiseSchedule, value: float):
        with pytest.raises(ConfigError, match=r"outside the schedule; choose it in \[-5\.0\d+, 4\.6\d+\]"):
            linear_schedule.level_at(value)


class TestTrainingPairs:
    t: Any = torch.tensor([0, 20, 999])  # diffusers says IntTensor, but takes and needs int64

    def test_add_noise_is_that_of_diffusers(self, linear_schedule: NoiseSchedule):
        x0, eps = gaussian_noise(0, 3, 3, 4, 4), gaussian_noise(1, 3, 3, 4, 4)
        theirs = ddim_scheduler().add_noise(x0, eps, self.t)
        torch.testing.assert_close(linear_schedule.add_noise(x0, eps, self.t), theirs, rtol=1e-4, atol=1e-5)

    def test_velocity_is_that_of_diffusers(self, linear_schedule: NoiseSchedule):
        x0, eps = gaussian_noise(0, 3, 3, 4, 4), gaussian_noise(1, 3, 3, 4, 4)
        theirs = ddim_scheduler().get_velocity(x0, eps, self.t)
        torch.testing.assert_close(linear_schedule.velocity(x0, eps, self.t), theirs, rtol=1e-4, atol=1e-5)

    def test_each_row_has_its_own_level(self, linear_schedule: NoiseSchedule):
        x0, eps = gaussian_noise(0, 3, 1, 2, 2), gaussian_noise(1, 3, 1, 2, 2)
        x = linear_schedule.add_noise(x0, eps, self.t)
        for row, t in enumerate(self.t.tolist()):
            level = linear_schedule.level(t)
            torch.testing.assert_close(x[row], level.signal * x0[row] + level.noise * eps[row])

    def test_dtype_is_that_of_the_photos(self, linear_schedule: NoiseSchedule):
        x0 = torch.ones(3, 1, 2, 2)
        assert linear_schedule.add_noise(x0, x0, self.t).dtype == torch.float32


class TestDigest:
    def test_changes_with_every_noise_level(self):
        configs = [
            {},
            {"beta_end": 0.021},
            {"beta_schedule": "scaled_linear"},
            {"num_train_timesteps": 999},
            {"rescale_betas_zero_snr": True},
            {"set_alpha_to_one": False},
        ]
        assert len({schedule(**config).digest for config in configs}) == len(configs)

    def test_does_not_change_with_what_a_grid_decides(self):
        assert schedule(steps_offset=1, timestep_spacing="trailing").digest == schedule().digest

    def test_is_pinned(self, linear_schedule: NoiseSchedule):
        assert linear_schedule.digest == "3786f488794661ff"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "quadratic"}, "beta_schedule 'quadratic' is unknown; choose one of linear, scaled_linear"),
        ({"timestep_spacing": "karras"}, "timestep_spacing 'karras' is unknown; choose one of leading, trailing"),
        ({"beta_start": "low"}, "beta_start is 'low' in the scheduler config; it must be a number"),
        ({"steps_offset": [1]}, r"steps_offset is \[1\] in the scheduler config; it must be a number"),
        ({"num_train_timesteps": 0}, "0 timesteps, betas from 0.0001 to 0.02 make no schedule"),
        ({"num_train_timesteps": math.nan}, "nan timesteps"),
        ({"beta_end": 2}, "betas from 0.0001 to 2 make no schedule"),
        ({"beta_schedule": ["linear"]}, "beta_schedule .* is unknown"),
        ({"trained_betas": "0.1"}, "trained_betas must be one row of numbers"),
        ({"trained_betas": [[0.1], [0.2]]}, "trained_betas must be one row of numbers"),
        ({"trained_betas": []}, "alpha_bar must be one row"),
        ({"trained_betas": [0.1, 1.5]}, "alpha_bar must be one row"),
        ({"trained_betas": [0.1, -0.2]}, "alpha_bar must be one row"),
        ({"trained_betas": [0.1, math.nan]}, "alpha_bar must be one row"),
    ],
)
def test_configs_that_make_no_schedule_are_refused(config: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        NoiseSchedule.from_config(config)


@pytest.mark.parametrize("alpha_bar", [[[0.9, 0.8]], [0.5, 0.6], [1.1, 0.5], [0.5, -0.1]])
def test_tables_that_are_no_schedule_are_refused(alpha_bar: object):
    with pytest.raises(ConfigError, match="numbers in \\[0, 1\\] that never rises; check the betas"):
        NoiseSchedule(np.array(alpha_bar))


@pytest.mark.parametrize("clean", [1.5, 0.5, math.nan])
def test_a_clean_end_that_is_noisier_than_t_0_or_beyond_clean_is_refused(clean: float):
    with pytest.raises(ConfigError, match="clean_alpha_bar is"):
        NoiseSchedule.from_betas([0.1, 0.2], clean_alpha_bar=clean)


def test_alpha_bar_may_be_any_row_of_numbers():
    for row in ([0.9, 0.5, 0.1], torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)):
        schedule = NoiseSchedule(row)  # pyright: ignore[reportArgumentType]
        assert schedule.digest == NoiseSchedule(np.array([0.9, 0.5, 0.1])).digest
