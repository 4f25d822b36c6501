"""The held-out figures: checked against networks whose error is known and against sums over every timestep."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import LABELS, SIDE, run_cli, save_photo, save_tiny_model
from model_helpers import mixture_model, photos

from ddim_edit.errors import ConfigError, NumericsError
from ddim_edit.evaluation import Estimate, evaluate_model, evaluations_per_photo, low_density, spread_timesteps
from ddim_edit.models import Model
from ddim_edit.models.base import Labels
from ddim_edit.noise import gaussian
from ddim_edit.schedule import NoiseSchedule
from ddim_edit.variational import Posterior, bound_terms, discrete_log_likelihood, prior_term

SCHEDULE = NoiseSchedule.from_config({})
SHORT = NoiseSchedule.from_config({"num_train_timesteps": 12, "beta_end": 0.3})


def constant(value: float, schedule: NoiseSchedule = SCHEDULE) -> Model:
    return Model.from_function(lambda x, _t: torch.full_like(x, value), schedule, (3, 12, 12))


def test_a_network_that_says_nothing_has_an_error_of_one():
    found = evaluate_model(constant(0.0), photos(8), draws=4)
    for estimate in (found.uniform, found.high, *found.levels.values()):
        assert estimate.mean == pytest.approx(1, abs=0.05)
        assert estimate.low is not None
        assert estimate.low < estimate.mean < (estimate.high or 0)
    assert list(found.levels) == [50, 100, 300, 400, 600, 800]


def test_the_exact_network_is_the_best():
    exact = evaluate_model(mixture_model_by_rows(), photos(6), draws=4, timesteps=[300])
    noisy = evaluate_model(constant(0.0), photos(6), draws=4, timesteps=[300])
    assert exact.uniform.mean < 0.7 * noisy.uniform.mean
    assert exact.bits_per_dim is not None
    assert noisy.bits_per_dim is not None
    assert exact.bits_per_dim.mean < noisy.bits_per_dim.mean


def mixture_model_by_rows() -> Model:
    """The exact network takes one t for its batch; this asks it row by row."""
    model = mixture_model()
    return Model.from_function(
        lambda x, t: torch.cat([model.network(x[k : k + 1], t[k : k + 1], None) for k in range(len(x))]),
        model.schedule,
        model.shape,
    )


def test_the_bound_is_the_sum_of_its_terms():
    model, x0 = constant(0.3, SHORT), photos(3)
    found = evaluate_model(model, x0, draws=12)
    assert found.bits_per_dim is not None
    # Averaged over many draws of the noise, at every timestep.
    posterior, totals = Posterior.of(SHORT), prior_term(SHORT, x0)
    for t in range(12):
        times = torch.full((3,), t)
        terms = []
        for step in range(20):
            eps = gaussian(range(100 * step, 100 * step + 3), (3, 12, 12))
            x_t = SHORT.add_noise(x0, eps, times)
            signal, noise = SHORT.signal_and_noise(times, x0)
            predicted = ((x_t - noise * 0.3) / signal).clamp(-1, 1)
            terms.append(bound_terms(posterior, x0, x_t, times, posterior.mean(predicted, x_t, times)))
        totals = totals + torch.stack(terms).mean(0)
    assert found.bits_per_dim.mean == pytest.approx(float(totals.mean()), rel=0.05)


def test_the_prior_is_the_divergence_from_a_gaussian():
    from torch.distributions import Normal, kl_divergence

    x0, top = photos(3).double(), SHORT.level(11)
    nats = kl_divergence(Normal(top.signal * x0, torch.full_like(x0, top.noise)), Normal(0.0, 1.0))
    expected = nats.mean((1, 2, 3)) / math.log(2)
    assert expected.min() > 1e-3
    torch.testing.assert_close(prior_term(SHORT, x0), expected)


def test_a_learned_variance_enters_the_bound():
    def with_variance(raw: float) -> Model:
        return Model.from_function(
            lambda x, _t: torch.cat([torch.full_like(x, 0.3), torch.full_like(x, raw)], 1), SHORT, (3, 12, 12)
        )

    bounds = [
        found.bits_per_dim.mean
        for model in (constant(0.3, SHORT), with_variance(-1.0), with_variance(1.0))
        if (found := evaluate_model(model, photos(3), draws=12)).bits_per_dim
    ]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-4)  # -1 is the posterior's own
    assert abs(bounds[2] - bounds[0]) > 0.01 * bounds[0]


@pytest.mark.parametrize(("count", "draws", "T"), [(7, 3, 100), (96, 20, 1000), (1, 2, 2), (5, 4, 4000)])
def test_timesteps_are_spread_over_every_photo_and_over_all(count, draws, T):
    even, low = spread_timesteps(count, draws, T, seed=3)
    assert even.shape == (count, draws)
    assert (even // (T / draws)).long().equal(torch.arange(draws).expand(count, -1))
    together = even.flatten().sort().values / T
    assert (together - torch.arange(count * draws) / (count * draws)).abs().max() <= 1 / (count * draws) + 1 / T
    assert low.min() >= 1
    assert low.max() < max(T, 2)


def test_low_timesteps_have_the_density_that_they_are_weighted_by():
    assert float(low_density(torch.arange(1, 1000), 1000).sum()) == pytest.approx(1)
    _, low = spread_timesteps(400, 20, 1000, seed=0)
    for t in (1, 2, 10):
        assert float((low == t).double().mean()) == pytest.approx(float(low_density(torch.tensor(t), 1000)), rel=0.1)


def test_the_same_seed_gives_the_same_figures_whatever_the_batch_size():
    model = mixture_model_by_rows()
    runs = [evaluate_model(model, photos(5), draws=2, seed=4, batch_size=size) for size in (2, 2, 5)]
    assert runs[0] == runs[1]
    assert runs[0].uniform.mean == pytest.approx(runs[2].uniform.mean, rel=1e-5)
    other = evaluate_model(model, photos(5), draws=2, seed=5, batch_size=2)
    assert other.uniform != runs[0].uniform


@pytest.mark.parametrize("draws", [2, 5, 8])
def test_the_error_at_high_noise_is_the_mean_over_those_timesteps(draws: int):
    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 2.0 * ((t >= 400) & (t < 500))[:, None, None, None] + 0 * x

    found = evaluate_model(Model.from_function(network, SCHEDULE, (3, 12, 12)), photos(96), draws=draws, timesteps=[9])
    assert found.high.mean == pytest.approx((5 * 100 + 1 * 500) / 600, rel=0.02)  # eps has variance 1, and 2² more


def test_the_interval_is_over_photos():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    estimate = Estimate.of(values)
    margin = 1.96 * float(np.std(values.numpy(), ddof=1)) / 2
    assert (estimate.low, estimate.high) == (pytest.approx(3 - margin), pytest.approx(3 + margin))
    assert Estimate.of(values[:1]) == Estimate(1.0, None, None)


def test_the_calls_are_as_many_as_announced():
    counts: list[int] = []
    evaluate_model(constant(0.0), photos(3), draws=5, timesteps=[1, 2], batch_size=2, on_batch=counts.append)
    assert sum(counts) == 3 * evaluations_per_photo(5, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 1}, "draws=1; choose 2 to 1000"),
        ({"timesteps": [1000]}, r"timestep 1000 is outside the schedule; choose it in \[0, 999\]"),
        ({"labels": [0, 0]}, "labels were given, but custom is not class-conditional"),
        ({"photos": photos(2)[:, :, :4]}, r"photos are \(2, 3, 4, 12\); custom takes \(N, 3, 12, 12\)"),
        ({"photos": photos(2)[:0]}, "N >= 1"),
    ],
)
def test_settings_that_cannot_work(change, message):
    with pytest.raises(ConfigError, match=message):
        evaluate_model(constant(0.0), **({"photos": photos(2)} | change))


def test_a_label_that_the_model_does_not_have():
    model = replace(constant(0.0), labels=Labels(count=3, null=None, names=("a", "b", "c")))
    with pytest.raises(ConfigError, match="label 7 is none of custom; choose 0 to 2"):
        evaluate_model(model, photos(2), [0, 7])


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(NumericsError, match="not finite"):
        evaluate_model(constant(math.nan), photos(2), draws=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "m", labels=LABELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat/a", "cat/b", "dog/a", "c")):
        save_photo(tmp_path / "photos" / f"{name}.png", number)
    return tmp_path / "photos"


class TestCommand:
    def test_prints_a_table(self, model, folder, capsys):
        outcome = run_cli("evaluate-model", model, folder, "--draws", 2, "--timesteps", "300,7", capsys=capsys)
        assert (outcome.code, outcome.stderr) == (0, "")
        lines = outcome.stdout.splitlines()
        assert lines[0] == "MSE of eps, 4 photos, mean and 95 % interval over photos"
        names = [line.split("  ")[0] for line in lines[1:]]
        assert names == ["uniform t", "t >= 0.4 T", "t = 300", "t = 7", "bits/dim"]

    def test_prints_json_and_uses_the_labels_of_the_photos(self, model, folder, capsys):
        def row(*more: object) -> dict[str, object]:
            outcome = run_cli(
                "evaluate-model", model, folder, "--draws", 2, "--timesteps", 5, "--json", *more, capsys=capsys
            )
            assert outcome.code == 0
            return json.loads(outcome.stdout)

        null, true = row(), row("--labels", "true")
        assert list(null) == [
            *("model", "weights", "labels", "seed", "photos", "draws", "eps_mse", "bits_per_dim", "failures")
        ]
        assert null["eps_mse"] != true["eps_mse"]
        assert row() == null

    def test_a_photo_that_cannot_be_read_is_listed(self, model, folder, capsys):
        (folder / "dog" / "bad.jpg").write_text("no photo")
        outcome = run_cli("evaluate-model", model, folder, "--draws", 2, "--timesteps", 5, capsys=capsys)
        assert outcome.code == 3
        assert "MSE of eps, 4 photos" in outcome.stdout
        assert outcome.stderr.startswith("failed: ")
        assert "bad.jpg is not an image" in outcome.stderr

    def test_a_class_that_the_model_does_not_know(self, model, folder, capsys):
        save_photo(folder / "bird" / "a.png")
        outcome = run_cli("evaluate-model", model, folder, "--labels", "true", capsys=capsys)
        assert outcome.code == 2
        assert "label 'bird' is unknown to this model; choose one of: cat, dog, none" in outcome.stderr

    def test_photos_without_a_class_get_the_null_class_whatever_its_name(self, folder, tmp_path, capsys):
        save_photo(folder / "loose.png", size=(SIDE, SIDE))
        model = save_tiny_model(tmp_path / "model", labels={**LABELS, "names": ["cat", "dog", "nothing"]})
        options = ("--draws", 2, "--timesteps", 5, "--labels", "true")
        assert run_cli("evaluate-model", model, folder, *options, capsys=capsys).code == 0

    def test_labels_that_are_not_there(self, model, tmp_path, capsys):
        save_photo(tmp_path / "plain" / "a.png", size=(SIDE, SIDE))
        outcome = run_cli("evaluate-model", model, tmp_path / "plain", "--labels", "true", capsys=capsys)
        assert outcome.code == 2
        assert "the photos have no classes" in outcome.stderr


def test_the_first_variance_is_the_second():
    """At t = 0 it would be 0, and its logarithm is clipped (DDPM's code)."""
    posterior = Posterior.of(SHORT)
    assert posterior.log_small[0] == posterior.log_small[1]


@pytest.mark.parametrize("mean", [-0.98, 0.0, 0.98])
def test_the_likelihoods_of_all_bytes_add_up_to_one(mean: float):
    x = torch.arange(256).double() / 127.5 - 1
    logs = discrete_log_likelihood(x, torch.full_like(x, mean), torch.full_like(x, -6.0))
    assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-6)
