import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import Mixture, gaussian_noise, relative_rms
from torch import Tensor

from ddim_edit.denoiser import NetworkDenoiser, PredictionType
from ddim_edit.errors import ConfigError, InversionError
from ddim_edit.grid import Grid
from ddim_edit.noise import GivenNoise, SeededNoise, gaussian
from ddim_edit.ode import integrate
from ddim_edit.schedule import NoiseSchedule, Spacing
from ddim_edit.solvers import Ddim, State
from ddim_edit.solvers.base import StepNoise
from ddim_edit.solvers.ddim import posterior_std, transition_std

X_T = gaussian_noise(0, 3, 2, 2, 2)
BETAS = np.linspace(1e-4, 0.02, 1000)


def sample(mixture: Mixture, grid: Grid, solver: Ddim, noise: StepNoise | None = None, x: Tensor = X_T) -> Tensor:
    return integrate(mixture, solver, grid, State.start(x, noise), toward="clean").x


class TestSeedRow2MinimalSampler:
    """A bare callable that predicts x0, an x_T, a number of steps and betas."""

    @staticmethod
    def textbook(model: Callable[[Tensor, int], Tensor], x: Tensor, steps: int, betas: np.ndarray) -> Tensor:
        alpha_bar = np.cumprod(1 - betas)
        times = list(range(0, len(betas), len(betas) // steps))
        for t, s in zip(times[::-1], [*times[:-1][::-1], None], strict=True):
            x0 = model(x, t)
            eps = (x - math.sqrt(alpha_bar[t]) * x0) / math.sqrt(1 - alpha_bar[t])
            at_s = 1.0 if s is None else alpha_bar[s]
            x = math.sqrt(at_s) * x0 + math.sqrt(1 - at_s) * eps
        return x

    @pytest.mark.parametrize("steps", [1, 10, 50])
    def test_a_few_lines_sample_from_a_bare_callable(self, mixture: Mixture, steps: int):
        def model(x: Tensor, t: Tensor | int) -> Tensor:
            alpha_bar = np.cumprod(1 - BETAS)[int(t if isinstance(t, int) else t[0])]
            return mixture.posterior(x, math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))[0]

        schedule = NoiseSchedule.from_betas(BETAS.tolist())
        grid = Grid.build(schedule, steps, "uniform")
        denoise = NetworkDenoiser(lambda x, t, condition: model(x, t), PredictionType.SAMPLE)
        x0 = integrate(denoise, Ddim(), grid, State.start(X_T), toward="clean").x

        assert relative_rms(x0, self.textbook(model, X_T, steps, BETAS)) < 1e-12

    @pytest.mark.parametrize("prediction", PredictionType)
    def test_the_three_prediction_types_make_one_picture(
        self, mixture: Mixture, linear_schedule: NoiseSchedule, prediction: PredictionType
    ):
        grid = Grid.build(linear_schedule, 20)
        denoise = NetworkDenoiser(mixture.network(linear_schedule, prediction), prediction)
        x0 = integrate(denoise, Ddim(), grid, State.start(X_T), toward="clean").x
        assert relative_rms(x0, sample(mixture, grid, Ddim())) < 1e-9


class TestSeedRow3DdimPaper:
    @staticmethod
    def equation_12(mixture: Mixture, alpha_bar: list[float], noise: Tensor, eta: float, sigma_hat: bool) -> Tensor:
        """The generative process on a sub-sequence: alpha_bar[0] = 1 is clean, noise[k - 1] serves the step from k."""
        x = X_T
        for k in range(len(alpha_bar) - 1, 0, -1):
            a_t, a_s = alpha_bar[k], alpha_bar[k - 1]
            x0, eps = mixture.posterior(x, math.sqrt(a_t), math.sqrt(1 - a_t))
            sigma = eta * math.sqrt((1 - a_s) / (1 - a_t)) * math.sqrt(1 - a_t / a_s)
            scale = math.sqrt(1 - a_t / a_s) if sigma_hat else sigma
            scale = 0 if k == 1 else scale  # no noise in the step that reaches clean
            x = math.sqrt(a_s) * x0 + math.sqrt(max(1 - a_s - sigma**2, 0)) * eps + scale * noise[k - 1]
        return x

    @pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
    @pytest.mark.parametrize("steps", [10, 50])
    @pytest.mark.parametrize(("eta", "sigma_hat"), [(0.0, False), (0.2, False), (1.0, False), (1.0, True)])
    def test_equation_12_on_sub_sequences(
        self,
        mixture: Mixture,
        linear_schedule: NoiseSchedule,
        spacing: Spacing,
        steps: int,
        eta: float,
        sigma_hat: bool,
    ):
        grid = Grid.build(linear_schedule, steps, spacing)
        alpha_bar = [1.0, *np.cumprod(1 - BETAS)[[int(t) for t in grid.timesteps]]]
        noise = gaussian_noise(1, grid.steps, *X_T.shape)
        ours = sample(mixture, grid, Ddim(eta, sigma_hat), GivenNoise(noise))
        assert relative_rms(ours, self.equation_12(mixture, alpha_bar, noise, eta, sigma_hat)) < 1e-10

    def test_one_latent_makes_one_picture_at_any_number_of_steps(
        self, mixture: Mixture, linear_schedule: NoiseSchedule
    ):
        full = sample(mixture, Grid.build(linear_schedule, 1000), Ddim())
        errors = [relative_rms(sample(mixture, Grid.build(linear_schedule, n), Ddim()), full) for n in (10, 50, 200)]
        assert errors == sorted(errors, reverse=True)
        others = relative_rms(full.roll(1, dims=0), full)
        assert errors[0] < others / 3
        assert errors[-1] < 0.02

    def test_eta_1_is_the_ancestral_sampler(self, linear_schedule: NoiseSchedule):
        """The variances of DDPM: fixed small (of the posterior) and fixed large (beta)."""
        for t in (1, 500, 999):
            noisy, clean = linear_schedule.level(t), linear_schedule.level(t - 1)
            alpha_bar, beta = np.cumprod(1 - BETAS), BETAS[t]
            small = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta
            assert posterior_std(noisy, clean) ** 2 == pytest.approx(small, rel=1e-9)
            assert transition_std(noisy, clean) ** 2 == pytest.approx(beta, rel=1e-9)


class TestRandomSteps:
    @pytest.fixture
    def grid(self, linear_schedule: NoiseSchedule) -> Grid:
        return Grid.build(linear_schedule, 10)

    def test_nothing_is_encoded_with_noise(self, mixture: Mixture, grid: Grid):
        with pytest.raises(
            InversionError, match=r"eta = 0\.5 is random, so nothing can be encoded with it; encode wit"
        ):
            integrate(mixture, Ddim(eta=0.5), grid, State.start(X_T), toward="noise")
        assert [Ddim(eta).deterministic for eta in (0.0, 0.5, 1.0)] == [True, False, False]

    def test_noise_must_be_given(self, mixture: Mixture, grid: Grid):
        with pytest.raises(ConfigError, match=r"eta is 0\.5, so the steps need noise; give seeds, or noise="):
            sample(mixture, grid, Ddim(eta=0.5))

    def test_the_same_seeds_make_the_same_picture(self, mixture: Mixture, grid: Grid):
        first, again = (sample(mixture, grid, Ddim(eta=0.5), SeededNoise((1, 2, 3))) for _ in range(2))
        assert first.equal(again)

    def test_another_seed_makes_another_picture_of_its_row_only(self, mixture: Mixture, grid: Grid):
        first = sample(mixture, grid, Ddim(eta=0.5), SeededNoise((1, 2, 3)))
        other = sample(mixture, grid, Ddim(eta=0.5), SeededNoise((1, 7, 3)))
        torch.testing.assert_close(first[[0, 2]], other[[0, 2]])
        assert relative_rms(first[1], other[1]) > 0.01

    def test_a_row_alone_is_the_row_in_a_batch(self, mixture: Mixture, grid: Grid):
        batch = sample(mixture, grid, Ddim(eta=1.0), SeededNoise((1, 2, 3)))
        alone = sample(mixture, grid, Ddim(eta=1.0), SeededNoise((2,)), X_T[1:2])
        torch.testing.assert_close(alone, batch[1:2])

    def test_at_eta_0_noise_changes_nothing(self, mixture: Mixture, grid: Grid):
        assert sample(mixture, grid, Ddim(), SeededNoise((1, 2, 3))).equal(sample(mixture, grid, Ddim()))

    @pytest.mark.parametrize("to_one", [True, False])
    @pytest.mark.parametrize("solver", [Ddim(eta=0.3), Ddim(eta=1.0), Ddim(eta=1.0, sigma_hat=True)])
    def test_every_step_but_the_last_takes_its_own_noise(self, mixture: Mixture, solver: Ddim, to_one: bool):
        schedule = NoiseSchedule.from_config({"set_alpha_to_one": to_one, "steps_offset": 1})
        grid, asked = Grid.build(schedule, 10), list[int]()

        def noise(step: int, like: Tensor) -> Tensor:
            asked.append(step)
            return torch.zeros_like(like)

        sample(mixture, grid, solver, noise)
        assert asked == list(range(10, 1, -1))

    def test_one_step_needs_no_noise(self, mixture: Mixture, linear_schedule: NoiseSchedule):
        grid = Grid.from_timesteps(linear_schedule, [999])
        assert sample(mixture, grid, Ddim(eta=1.0)).equal(sample(mixture, grid, Ddim()))

    @pytest.mark.parametrize(("eta", "zero_snr"), [(0.5, False), (1.0, False), (1.0, True)])
    def test_the_samples_have_the_mean_and_variance_of_the_photos(self, eta: float, zero_snr: bool):
        """With x_T and step noise from streams of the same seeds: a shared stream makes the variance many times off."""
        schedule = NoiseSchedule.from_config({"rescale_betas_zero_snr": zero_snr, "timestep_spacing": "trailing"})
        pixels = Mixture.make(shape=(1, 1, 1), components=2)

        def network(x: Tensor, t: Tensor, condition: object) -> Tensor:
            return pixels.network(schedule, PredictionType.SAMPLE)(x.reshape(-1, 1, 1, 1), t).view_as(x)

        seeds = tuple(range(8))
        start = State.start(gaussian(seeds, (1, 32, 32)).double(), SeededNoise(seeds))
        denoise = NetworkDenoiser(network, PredictionType.SAMPLE)
        made = integrate(denoise, Ddim(eta), Grid.build(schedule, 100), start, toward="clean").x
        photos = pixels.photos(100_000)
        assert float(made.mean()) == pytest.approx(float(photos.mean()), abs=0.05)
        assert float(made.var()) == pytest.approx(float(photos.var()), rel=0.1)


class TestSettings:
    @pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
    def test_eta_lies_between_0_and_1(self, eta: float):
        with pytest.raises(ConfigError, match=f"eta is {eta:g}; choose it in"):
            Ddim(eta=eta)

    @pytest.mark.parametrize("eta", [0.0, 0.5])
    def test_sigma_hat_needs_eta_1(self, eta: float):
        with pytest.raises(ConfigError, match=f"but eta is {eta:g}; set eta to 1"):
            Ddim(eta=eta, sigma_hat=True)

    def test_settings_name_every_field(self):
        assert Ddim(eta=1.0, sigma_hat=True).settings == {"name": "ddim", "eta": 1.0, "sigma_hat": True}
