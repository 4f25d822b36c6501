"""Targets, losses and timestep samplers, against formulas written from the papers with other tools."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers import gaussian_noise
from torch.distributions import Normal, kl_divergence

from ddim_edit.denoiser import PredictionType, interpret
from ddim_edit.models.previous import FromPrevious
from ddim_edit.schedule import NoiseSchedule
from ddim_edit.training.objectives import TARGETS, Noised, Objective, moments_error, snr_weights
from ddim_edit.training.optimizers import rate_factor
from ddim_edit.training.timesteps import HISTORY, SAMPLERS, LossSecondMoment, Stratified

SCHEDULE = NoiseSchedule.from_config({"beta_schedule": "linear"})
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHA_BAR = (1 - BETAS).cumprod(0)
T_ROWS = torch.tensor([0, 1, 2, 300, 999])


def noised(t: torch.Tensor = T_ROWS) -> Noised:
    """Float64 photos on the 8-bit grid, black and white among their values."""
    levels = np.random.default_rng(0).integers(0, 256, (len(t), 3, 6, 6))
    levels[:, 0] = 0
    levels[:, 1] = 255
    x0 = torch.from_numpy(levels).double() / 127.5 - 1
    eps = gaussian_noise(1, len(t), 3, 6, 6)
    return Noised(x0, eps, SCHEDULE.add_noise(x0, eps, t), t)


def slightly_wrong(data: Noised) -> dict[str, torch.Tensor]:
    """Target -> the output of a network that takes the same wrong photos for the true ones."""
    wrong = data.x0 + 0.01 * gaussian_noise(4, *data.x0.shape)
    signal, noise = SCHEDULE.signal_and_noise(data.t, data.x0)
    eps = (data.x_t - signal * wrong) / noise
    return {"epsilon": eps, "sample": wrong, "v_prediction": signal * eps - noise * wrong}


def posterior_mean(x0: torch.Tensor, x_t: torch.Tensor, t: int) -> torch.Tensor:
    """DDPM eq. 7."""
    before = ALPHA_BAR[t - 1] if t else torch.tensor(1.0).double()
    first = before.sqrt() * BETAS[t] / (1 - ALPHA_BAR[t])
    return first * x0 + (1 - BETAS[t]).sqrt() * (1 - before) / (1 - ALPHA_BAR[t]) * x_t


def bits(row: int, data: Noised, mean: torch.Tensor, v: torch.Tensor | None) -> float:
    """One term of the bound (Improved DDPM eq. 4, 5, 15), in bits per dimension."""
    t = int(data.t[row])
    tilde = (1 - ALPHA_BAR[max(t, 1) - 1]) / (1 - ALPHA_BAR[max(t, 1)]) * BETAS[max(t, 1)]
    share = torch.zeros_like(mean) if v is None else (v + 1) / 2
    model = Normal(mean, (share * BETAS[t].log() + (1 - share) * tilde.log()).exp().sqrt())
    x0 = data.x0[row]
    if t > 0:
        truth = Normal(posterior_mean(x0, data.x_t[row], t), tilde.sqrt())
        return float(kl_divergence(truth, model).mean()) / math.log(2)
    upper, lower = model.cdf(x0 + 1 / 255), model.cdf(x0 - 1 / 255)
    chance = torch.where(x0 == 1, 1 - lower, torch.where(x0 == -1, upper, upper - lower))
    return float(-chance.clamp(min=1e-12).log().mean()) / math.log(2)


class TestBound:
    @pytest.mark.parametrize("learned", [False, True])
    def test_every_term_agrees_with_the_paper(self, learned: bool):
        data = noised()
        said = data.eps + 0.1 * gaussian_noise(2, *data.eps.shape)
        v = gaussian_noise(3, *data.eps.shape) if learned else None
        out = said if v is None else torch.cat([said, v], dim=1)
        found = Objective(SCHEDULE, "epsilon", "vb")(out, data).total
        for row, t in enumerate(T_ROWS.tolist()):
            x0 = (data.x_t[row] - (1 - ALPHA_BAR[t]).sqrt() * said[row]) / ALPHA_BAR[t].sqrt()
            mean = posterior_mean(x0, data.x_t[row], t)
            expected = bits(row, data, mean, None if v is None else v[row])
            assert float(found[row]) == pytest.approx(expected, rel=1e-5, abs=1e-9)

    def test_in_float32_too(self):
        data = noised()
        out = torch.cat([data.eps + 0.1, torch.full_like(data.eps, 0.3)], dim=1)
        exact = Objective(SCHEDULE, "epsilon", "vb")(out, data).total
        single = Noised(*(value.float() for value in data[:3]), data.t)
        found = Objective(SCHEDULE, "epsilon", "vb")(out.float(), single).total
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), exact, rtol=1e-3)

    def test_the_rescaled_bound_is_t_times_the_bound(self):
        data = noised()
        plain, rescaled = (Objective(SCHEDULE, "epsilon", loss)(data.eps + 0.1, data) for loss in ("vb", "rescaled-vb"))
        assert torch.allclose(rescaled.total, 1000 * plain.total)

    @pytest.mark.parametrize("target", TARGETS)
    def test_no_kl_where_the_network_is_right(self, target: str):
        data = noised()
        objective = Objective(SCHEDULE, target, "vb")
        found = objective(objective.target_of(data), data)
        assert found.mse.max() == 0
        assert found.total[1:].abs().max() < 1e-9
        assert found.total[0] > 0  # the likelihood of an 8-bit value is never 1

    def test_hybrid_moves_the_mean_by_the_error_alone_and_the_variance_by_the_bound(self):
        data = noised()

        def gradient(loss: str) -> tuple[torch.Tensor, torch.Tensor]:
            out = torch.cat([data.eps + 0.1, torch.zeros_like(data.eps)], dim=1).requires_grad_()
            Objective(SCHEDULE, "epsilon", loss)(out, data).total.sum().backward()
            assert out.grad is not None
            return out.grad[:, :3], out.grad[:, 3:]

        error, none = gradient("mse")
        _, bound = gradient("rescaled-vb")
        mean, variance = gradient("hybrid")
        assert none.abs().max() == 0
        assert torch.allclose(mean, error)
        assert torch.allclose(variance, bound / 1000)
        assert bound.abs().max() > 0


class TestTargets:
    def test_each_is_what_its_name_says(self):
        data = noised()
        targets = {name: Objective(SCHEDULE, name).target_of(data) for name in TARGETS}
        signal, noise = (
            value.view(-1, 1, 1, 1) for value in (ALPHA_BAR[T_ROWS].sqrt(), (1 - ALPHA_BAR[T_ROWS]).sqrt())
        )
        assert targets["epsilon"].equal(data.eps)
        assert targets["sample"].equal(data.x0)
        assert torch.allclose(targets["v_prediction"], signal * data.eps - noise * data.x0)
        for row, t in enumerate(T_ROWS.tolist()):
            assert torch.allclose(targets["x_prev"][row], posterior_mean(data.x0[row], data.x_t[row], t))

    @pytest.mark.parametrize("target", [str(kind) for kind in PredictionType])
    def test_interpret_finds_photo_and_noise_in_the_target(self, target: str):
        data = noised()
        out = Objective(SCHEDULE, target).target_of(data)
        found = interpret(PredictionType(target), data.x_t, out, *SCHEDULE.signal_and_noise(data.t, data.x0))
        assert torch.allclose(found.x0, data.x0, atol=1e-9)
        assert torch.allclose(found.eps, data.eps, atol=1e-9)

    def test_a_network_of_x_prev_is_told_as_one_of_eps(self):
        data = noised()
        mean = Objective(SCHEDULE, "x_prev").target_of(data)
        rest = torch.ones_like(mean)
        out = FromPrevious(lambda x, t, condition: torch.cat([mean, rest], 1), SCHEDULE)(data.x_t, data.t.float(), None)
        assert torch.allclose(out[:, :3], data.eps, atol=1e-8)
        assert out[:, 3:].equal(rest)

    def test_min_snr_weighs_every_target_as_the_photo(self):
        data = noised()
        outputs = slightly_wrong(data)
        floor = {"snr_floor": 0.02}
        for bounds in (
            {"min_snr": 5.0},
            {"min_snr": 5.0} | floor,
            floor,
            {"high_noise": 1.0},
            {"high_noise": 1.5} | floor,
        ):
            errors = [Objective(SCHEDULE, name, **bounds)(out, data).total for name, out in outputs.items()]
            assert torch.allclose(errors[0], errors[1])
            assert torch.allclose(errors[0], errors[2])
        snr = ALPHA_BAR / (1 - ALPHA_BAR)
        assert np.allclose(snr_weights(SCHEDULE, "sample", most=5), snr.clamp(max=5))
        assert np.allclose(snr_weights(SCHEDULE, "epsilon", most=np.inf, least=1), (1 / snr).clamp(min=1))

    def test_high_noise_leads_from_the_loss_of_eps_to_that_of_v(self):
        data = noised()
        outputs = slightly_wrong(data)
        plain = {name: Objective(SCHEDULE, name)(out, data).total for name, out in outputs.items()}
        weighed = [
            Objective(SCHEDULE, "epsilon", high_noise=p)(outputs["epsilon"], data).total for p in (1e-9, 1.0, 2.0)
        ]
        assert torch.allclose(weighed[0], plain["epsilon"])
        assert torch.allclose(weighed[1], (plain["epsilon"] * plain["v_prediction"]).sqrt())
        assert torch.allclose(weighed[2], plain["v_prediction"])

    def test_weights_stay_finite_where_no_signal_is_left(self):
        schedule = NoiseSchedule(np.array([0.9, 0.5, 0.0]))
        weights = snr_weights(schedule, "v_prediction", most=np.inf, power=1.0)
        assert weights == pytest.approx([0.9**0.5, 0.5**0.5, 4e-5**0.5])

    @pytest.mark.parametrize("least", [0.0, 0.02])
    @pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
    def test_no_schedule_weighs_its_last_levels_more_than_a_linear_one(self, least: float, power: float):
        def largest(schedule: NoiseSchedule) -> float:
            return snr_weights(schedule, "epsilon", most=5, least=least, power=power).max()

        cosine = NoiseSchedule.from_config({"beta_schedule": "squaredcos_cap_v2"})
        assert cosine.alpha_bar[-1] < 1e-8
        assert largest(cosine) <= 1.02 * largest(SCHEDULE)
        assert largest(NoiseSchedule(np.array([0.9, 0.5, 0.0]))) <= 1.02 * largest(SCHEDULE)


class TestMoments:
    """The mean and the size of the noise, which group norms hide."""

    def test_each_counts_in_its_own_units(self):
        eps = gaussian_noise(5, 400, 3, 16, 16)
        seen = torch.zeros(400)
        means = eps.mean((2, 3), keepdim=True)
        blind = moments_error(eps - means, eps, seen).mean()
        assert blind == pytest.approx(1, abs=0.15)  # 1 for the means, and 3 of 768 parts of the size
        sizes = eps.square().mean((1, 2, 3), keepdim=True).sqrt()
        centred = eps - means
        unsized = moments_error(centred / sizes + means, eps, seen).mean()
        assert unsized == pytest.approx(0.5, abs=0.1)  # the variance of the norm of Gaussian noise

    def test_only_they_count(self):
        eps = gaussian_noise(6, 2, 3, 8, 8)
        other = gaussian_noise(7, 2, 3, 8, 8)
        other -= other.mean((2, 3), keepdim=True)
        centred = eps - eps.mean((2, 3), keepdim=True)
        along = (other * centred).sum((1, 2, 3), keepdim=True) / centred.square().sum((1, 2, 3), keepdim=True)
        assert moments_error(eps + other - along * centred, eps, torch.zeros(2)).max() < 1e-20

    def test_they_fade_where_the_photo_hides_them(self):
        eps = gaussian_noise(8, 3, 3, 8, 8)
        error = moments_error(0.9 * eps, eps, torch.tensor([0.0, 4 / 64, 1e6]))
        assert float(error[0]) == pytest.approx(float(moments_error(0.9 * eps, eps, torch.zeros(3))[0]))
        full = moments_error(0.9 * eps, eps, torch.zeros(3))
        assert float(error[1] / full[1]) == pytest.approx(0.5)
        assert error[2] < 1e-5 * full[2]

    def test_they_are_added_for_every_target_alike(self):
        data = noised()
        outputs = slightly_wrong(data)
        eps = outputs["epsilon"]
        snr = ALPHA_BAR[T_ROWS] / (1 - ALPHA_BAR[T_ROWS])
        for name, out in outputs.items():
            more = Objective(SCHEDULE, name, moments=0.1)(out, data)
            plain = Objective(SCHEDULE, name)(out, data)
            assert torch.allclose(more.total - plain.total, 0.1 * moments_error(eps, data.eps, snr))
            assert more.mse.equal(plain.mse)


class TestTimesteps:
    @pytest.mark.parametrize("name", SAMPLERS)
    def test_draws_are_timesteps_and_the_generator_decides(self, name: str):
        sampler = SAMPLERS[name](50)
        draw = partial(sampler.draw, 16)
        first, again, other = (draw(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert first[0].equal(again[0])
        assert not first[0].equal(other[0])
        assert (first[0].dtype, first[0].shape, first[1].tolist()) == (torch.int64, (16,), [1.0] * 16)
        assert 0 <= int(first[0].min()) <= int(first[0].max()) < 50

    def test_strata_are_visited_once(self):
        t, _ = Stratified(1000).draw(20, torch.Generator().manual_seed(0))
        assert sorted((t // 50).tolist()) == list(range(20))

    def test_large_losses_are_drawn_more_and_weigh_less(self):
        sampler = LossSecondMoment(4)
        losses = torch.tensor([1.0, 2.0, 3.0, 10.0])
        for _ in range(HISTORY):
            assert sampler.draw(3, torch.Generator())[1].tolist() == [1.0] * 3  # uniform until all are known
            sampler.learn(torch.arange(4), losses)
        t, weights = sampler.draw(20_000, torch.Generator().manual_seed(0))
        shares = torch.bincount(t, minlength=4) / len(t)
        assert torch.allclose(shares, losses / losses.sum(), atol=0.01)
        assert float((weights * losses[t]).mean()) == pytest.approx(float(losses.mean()), rel=0.01)

    def test_losses_that_are_not_finite_teach_nothing(self):
        sampler = LossSecondMoment(2)
        for _ in range(HISTORY):
            sampler.learn(torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
        before = sampler.chances.clone()
        sampler.learn(torch.tensor([0, 1]), torch.tensor([torch.nan, torch.inf]))
        assert torch.equal(sampler.chances, before)

    def test_the_last_ten_losses_count_and_survive_a_restart(self):
        sampler, again = LossSecondMoment(2), LossSecondMoment(2)
        for loss in range(25):
            sampler.learn(torch.tensor([0, 1]), torch.tensor([float(loss), 1.0]))
        assert sorted(sampler.losses[0].tolist()) == list(range(15, 25))
        again.restore(sampler.state())
        assert again.chances.equal(sampler.chances)


@pytest.mark.parametrize(
    ("step", "done", "expected"), [(0, 0, 0.1), (9, 0.1, 1), (50, 0.5, 1), (80, 0.8, 0.5), (99, 1, 0)]
)
def test_the_learning_rate_rises_stays_and_falls(step: int, done: float, expected: float):
    assert rate_factor(step, done, warmup=10, decay=0.4) == pytest.approx(expected)


def test_a_learning_rate_without_warm_up_and_decay_stays():
    assert rate_factor(0, 0.0, warmup=0, decay=0) == rate_factor(5, 1.0, warmup=0, decay=0) == 1
