import pytest
import torch
from helpers import Constant, Mixture, Recording, gaussian_noise, relative_rms
from model_helpers import mixture_model
from torch import Tensor

from ddim_edit.denoiser import (
    Condition,
    Denoiser,
    Guided,
    MapX0,
    Network,
    NetworkDenoiser,
    Prediction,
    PredictionType,
    clip,
    dynamic_threshold,
)
from ddim_edit.errors import ConfigError
from ddim_edit.schedule import Level, NoiseSchedule

LEVEL = Level(500, 0.6, 0.8)
X = gaussian_noise(0, 3, 2, 2, 2)


def answer(value: Tensor) -> Network:
    """A network that always says the same."""
    return lambda x, t, condition: value


def predict(prediction: PredictionType, out: Tensor, level: Level = LEVEL) -> Prediction:
    return NetworkDenoiser(answer(out), prediction)(X, level)


class TestPredictionTypes:
    @pytest.mark.parametrize("t", [0, 1, 250, 999])
    @pytest.mark.parametrize("prediction", PredictionType)
    def test_all_agree_with_the_exact_posterior(
        self, mixture: Mixture, linear_schedule: NoiseSchedule, prediction: PredictionType, t: int
    ):
        level, network = linear_schedule.level(t), mixture.network(linear_schedule, prediction)
        exact, ours = mixture(X, level), NetworkDenoiser(network, prediction)(X, level)
        assert relative_rms(ours.x0, exact.x0) < 1e-10
        assert relative_rms(ours.eps, exact.eps) < 1e-10
        assert ours.variance is None

    @pytest.mark.parametrize("prediction", PredictionType)
    @pytest.mark.parametrize("level", [LEVEL, Level(0.3, 0.7, 0.3)], ids=["variance-preserving", "flow"])
    def test_x0_and_eps_put_together_are_x(self, prediction: PredictionType, level: Level):
        made = predict(prediction, gaussian_noise(1, *X.shape), level)
        torch.testing.assert_close(made.at(level), X, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("level", [LEVEL, Level(0.3, 0.7, 0.3)], ids=["variance-preserving", "flow"])
    def test_outputs_mean_what_their_names_say(self, level: Level):
        out = gaussian_noise(1, *X.shape)
        assert predict(PredictionType.EPSILON, out, level).eps is out
        assert predict(PredictionType.SAMPLE, out, level).x0 is out
        v = predict(PredictionType.V, out, level)
        torch.testing.assert_close(level.signal * v.eps - level.noise * v.x0, out)

    def test_where_no_signal_is_left_epsilon_is_refused(self):
        with pytest.raises(ConfigError, match=r"cannot start at t = 999, where no signal is left; use a v or sample"):
            predict(PredictionType.EPSILON, X, Level(999, 0, 1))

    def test_where_no_signal_is_left_sample_and_v_work(self):
        out = gaussian_noise(1, *X.shape)
        sample, v = (predict(kind, out, Level(999, 0, 1)) for kind in (PredictionType.SAMPLE, PredictionType.V))
        assert sample.x0.equal(out)
        assert v.x0.equal(-out)
        assert sample.eps.equal(X)
        assert v.eps.equal(X)

    def test_names_are_those_of_diffusers(self):
        for name in ("epsilon", "sample", "v_prediction"):
            assert PredictionType.parse(name) == name
        with pytest.raises(ConfigError, match="'flow' is unknown; choose one of epsilon, sample, v_prediction"):
            PredictionType.parse("flow")


def test_a_prediction_at_another_level_is_renoised():
    made = Prediction(torch.tensor([2.0]), torch.tensor([5.0])).at(Level(0, 0.8, 0.6))
    torch.testing.assert_close(made, torch.tensor([4.6]))


class TestNetworkDenoiser:
    def test_the_network_is_asked_with_float_timesteps_and_the_condition(self):
        asked: list[tuple[Tensor, Tensor, Condition | None]] = []

        def network(x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
            asked.append((x, t, condition))
            return x

        condition = Condition({"label": torch.tensor([3])}, {"class": "boot"})
        denoise = NetworkDenoiser(network, PredictionType.EPSILON, condition)
        denoise(X, Level(40.25, 0.6, 0.8))
        x, t, passed = asked[0]
        assert x is X
        assert t.equal(torch.full((3,), 40.25))
        assert passed is condition
        assert denoise.settings == {"class": "boot"}
        assert denoise.cost == 1

    def test_without_a_condition_there_is_nothing_to_record(self):
        assert NetworkDenoiser(answer(X), PredictionType.SAMPLE).settings == {}

    @pytest.mark.parametrize("prediction", PredictionType)
    def test_learned_sigma_is_split_off(self, prediction: PredictionType):
        out, variance = gaussian_noise(1, *X.shape), gaussian_noise(2, *X.shape)
        both, alone = predict(prediction, torch.cat([out, variance], dim=1)), predict(prediction, out)
        assert both.x0.equal(alone.x0)
        assert both.eps.equal(alone.eps)
        assert both.variance is not None
        assert both.variance.equal(variance)


class TestGuided:
    @pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
    def test_extrapolates_from_without_to_with(self, scale: float):
        made = Guided(Constant(3.0), Constant(1.0), scale)(X, LEVEL)
        torch.testing.assert_close(made.eps, torch.full_like(X, 1 + scale * 2))
        torch.testing.assert_close(made.x0, (X - LEVEL.noise * made.eps) / LEVEL.signal)

    def test_keeps_the_conditional_variance(self):
        with_, without = (
            NetworkDenoiser(answer(gaussian_noise(seed, 3, 4, 2, 2)), PredictionType.EPSILON) for seed in (1, 2)
        )
        made, expected = Guided(with_, without, 2.0)(X, LEVEL).variance, with_(X, LEVEL).variance
        assert made is not None
        assert expected is not None
        assert made.equal(expected)

    def test_costs_both_branches(self):
        guided = Guided(Constant(1.0), Constant(2.0), 2.0)
        assert guided.cost == 2
        assert Guided(guided, Constant(0.0), 2.0).cost == 3

    def test_both_branches_see_the_same_level(self):
        with_, without = Recording(Constant(1.0)), Recording(Constant(2.0))
        Guided(with_, without, 2.0)(X, LEVEL)
        assert with_.levels == without.levels == [LEVEL]

    def test_settings_are_the_condition_and_the_scale(self):
        with_ = Constant(1.0, settings={"prompt": "a cat"})
        assert Guided(with_, Constant(2.0, settings={"prompt": ""}), 3.0).settings == {
            "prompt": "a cat",
            "guidance": 3.0,
        }


class TestMapX0:
    @pytest.fixture
    def inner(self, mixture: Mixture) -> Denoiser:
        return mixture

    def test_clip_keeps_the_networks_eps(self, inner: Denoiser):
        plain, clipped = inner(X, LEVEL), MapX0(inner, clip(0.5))(X, LEVEL)
        assert clipped.x0.equal(plain.x0.clamp(-0.5, 0.5))
        assert not clipped.x0.equal(plain.x0)
        assert clipped.eps.equal(plain.eps)

    def test_rederived_eps_agrees_with_the_clipped_x0(self, inner: Denoiser):
        clipped = MapX0(inner, clip(0.5), rederive_eps=True)(X, LEVEL)
        assert clipped.x0.equal(inner(X, LEVEL).x0.clamp(-0.5, 0.5))
        torch.testing.assert_close(clipped.at(LEVEL), X)

    def test_a_function_that_changes_nothing_changes_nothing(self, inner: Denoiser):
        for rederive in (False, True):
            made = MapX0(inner, lambda x0: x0, rederive)(X, LEVEL)
            assert relative_rms(made.eps, inner(X, LEVEL).eps) < 1e-12

    def test_the_variance_passes_through(self):
        inner = NetworkDenoiser(answer(gaussian_noise(1, 3, 4, 2, 2)), PredictionType.EPSILON)
        assert MapX0(inner, clip())(X, LEVEL).variance is not None

    def test_cost_and_settings(self):
        inner = Guided(Constant(1.0, settings={"prompt": "a"}), Constant(2.0), 3.0)
        wrapped = MapX0(inner, clip(), added_settings={"clip": 1.0})
        assert wrapped.cost == 2
        assert wrapped.settings == {"prompt": "a", "guidance": 3.0, "clip": 1.0}
        assert MapX0(Constant(1.0), torch.tanh).settings == {"map_x0": "custom"}

    def test_clipping_says_what_it_is_as_the_model_makes_it(self):
        model = mixture_model()
        for made, named in ((clip(0.5), {"clip_x0": 0.5}), (dynamic_threshold(0.9), {"threshold": 0.9})):
            settings = MapX0(model.denoiser(), made, rederive_eps=True).settings
            assert settings == {**named, "rederive_eps": True}
            assert model.denoiser(**settings).settings == settings  # pyright: ignore[reportArgumentType]
        limited = MapX0(model.denoiser(), dynamic_threshold(0.9, 2.0)).settings
        assert limited == {"threshold": 0.9, "maximum": 2.0, "rederive_eps": False}


class TestFunctionsOfX0:
    def test_clip_is_at_one_by_default(self):
        assert clip()(torch.tensor([-3.0, 0.5, 2.0])).tolist() == [-1, 0.5, 1]

    @pytest.mark.parametrize("limit", [0.0, -1.0])
    def test_clip_needs_a_positive_limit(self, limit: float):
        with pytest.raises(ConfigError, match=f"clip limit {limit:g} must be above 0"):
            clip(limit)

    @pytest.mark.parametrize(("ratio", "maximum"), [(0.995, 1.0), (0.9, 1.5), (0.5, 100.0), (1.0, 2.0)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_thresholding_is_that_of_diffusers(self, ratio: float, maximum: float, dtype: torch.dtype):
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=maximum)
        scale = torch.tensor([0.3, 1.0, 4.0]).view(3, 1, 1, 1)  # below 1, about it, above it
        x0 = (gaussian_noise(0, 3, 3, 8, 8) * scale).to(dtype)
        ours = dynamic_threshold(ratio, maximum)(x0)
        theirs = scheduler._threshold_sample(x0)  # pyright: ignore[reportPrivateUsage]
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        assert ours.dtype == dtype

    def test_thresholding_a_photo_does_not_depend_on_its_neighbours(self):
        x0 = 3 * gaussian_noise(0, 4, 3, 8, 8)
        threshold = dynamic_threshold(0.9, 10.0)
        assert threshold(x0)[2:3].equal(threshold(x0[2:3]))

    @pytest.mark.parametrize(("ratio", "maximum"), [(0.0, 1.0), (1.1, 1.0), (0.9, 0.5)])
    def test_thresholds_that_make_no_sense_are_refused(self, ratio: float, maximum: float):
        with pytest.raises(ConfigError, match=f"not {ratio:g} and {maximum:g}"):
            dynamic_threshold(ratio, maximum)


def test_guidance_selects_the_rows_of_both_branches():
    condition = Condition({"label": torch.arange(3)}, {})
    branch = NetworkDenoiser(lambda x, t, c: x, PredictionType.EPSILON, condition)
    chosen = Guided(branch, branch, 2.0).select(torch.tensor([2]))
    for side in (chosen.conditional, chosen.unconditional):
        assert side.condition.tensors["label"].tolist() == [2]  # pyright: ignore
