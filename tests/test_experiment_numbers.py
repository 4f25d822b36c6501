"""The arithmetic of experiments: intervals, tests, distances and attributes, against laws and other implementations."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from ddim_edit.errors import ConfigError
from ddim_edit.experiments import statistics
from ddim_edit.experiments.attributes import attributes, roughness
from ddim_edit.experiments.base import Experiment, Measure, Results, mean
from ddim_edit.experiments.features import COMPONENTS, Whitening, encoder_features, frechet_from_reference
from ddim_edit.experiments.interpolate import groups_of, path_numbers
from ddim_edit.experiments.reconstruct import ROUNDING_FLOOR, errors_of
from ddim_edit.experiments.statistics import (
    compare_methods,
    correlation,
    interval,
    psnr_of_mean,
    ratio_of_means,
    summarise,
)
from ddim_edit.experiments.tables import best_values, number_text, p_text, paired_csv
from ddim_edit.images import to_tensor, to_uint8
from ddim_edit.metrics import pixels_off

DRAW = np.random.default_rng(0)
TOY = Experiment(
    name="toy",
    title="",
    text="",
    settings=("method", "steps"),
    columns=("error",),
    measures=(Measure("error", "", "", better="lower"),),
    charts=lambda results: [],
    method=("method",),
    tested="error",
)


def toy_rows(values):
    """{(method, steps): errors} as rows."""
    return [
        {"image": str(image), "method": method, "steps": str(steps), "error": str(float(error))}
        for (method, steps), errors in values.items()
        for image, error in enumerate(errors)
    ]


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 399)
    samples = DRAW.exponential(size=(200, 40))
    found = [interval([sample], mean) for sample in samples]
    assert 0.88 <= np.mean([one.low <= 1 <= one.high for one in found]) <= 0.98


def test_the_same_rows_give_the_same_interval():
    values = DRAW.normal(size=30)
    assert interval([values], mean) == interval([values], mean)


@pytest.mark.parametrize("values", [[0.5], [math.inf, 1.0], [math.nan, 1.0]])
def test_where_there_is_no_interval_its_ends_are_nan(values):
    found = interval([np.array(values)], mean)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_values_that_do_not_vary_have_an_interval_of_no_width():
    found = interval([np.full(9, 0.25)], psnr_of_mean)
    assert found.low == found.value == found.high == -10 * math.log10(0.25)


def test_correlation_is_pearsons():
    a, b = DRAW.normal(size=(2, 25))
    assert float(correlation(a, b)) == pytest.approx(stats.pearsonr(a, b)[0])


def test_a_ratio_of_means_is_not_a_mean_of_ratios():
    assert float(ratio_of_means(np.array([1.0, 3.0]), np.array([1.0, 1.0]))) == 2
    assert float(ratio_of_means(np.array([1.0, 1.0]), np.array([1.0, 3.0]))) == 0.5


def test_values_that_differ_by_round_off_have_an_interval_of_no_width():
    for seed in range(20):
        base = np.random.default_rng(seed).normal(size=20)
        found = statistics.interval([base - (base + 0.1)], mean)
        assert found.low == found.high == found.value == pytest.approx(-0.1)


def test_methods_are_compared_image_by_image_within_the_same_rest_of_the_setting():
    base = DRAW.normal(size=20)
    rows = toy_rows({("a", 1): base, ("b", 1): base + 0.1, ("a", 2): base, ("b", 2): base[::-1]})
    same, other = compare_methods(TOY, rows)
    assert (same.context, same.first, same.second) == ({"steps": "1"}, {"method": "a"}, {"method": "b"})
    assert same.difference.value == pytest.approx(-0.1)
    assert same.difference.high == pytest.approx(-0.1)
    assert same.p == pytest.approx(stats.wilcoxon(base - (base + 0.1)).pvalue)
    assert other.p > 0.05


def test_holm_multiplies_the_smallest_p_by_all_hypotheses_and_never_lets_a_larger_p_fall_below_it():
    base = DRAW.normal(size=12)
    shifts = {1: 1.0, 2: 0.4, 3: 0.0}
    rows = toy_rows(
        {("a", s): base for s in shifts} | {("b", s): base + d + DRAW.normal(size=12) / 3 for s, d in shifts.items()}
    )
    pairs = sorted(compare_methods(TOY, rows), key=lambda pair: pair.p)
    assert pairs[0].p_holm == pytest.approx(min(1, 3 * pairs[0].p))
    assert pairs[1].p_holm == pytest.approx(min(1, max(2 * pairs[1].p, pairs[0].p_holm)))
    assert pairs[2].p_holm == pytest.approx(min(1, max(pairs[2].p, pairs[1].p_holm)))


def test_equal_methods_have_p_1_and_an_experiment_without_methods_has_no_pairs():
    rows = toy_rows({("a", 1): [1, 2, 3], ("b", 1): [1, 2, 3]})
    assert compare_methods(TOY, rows)[0].p == 1
    assert summarise(TOY, rows)[0].found["error"].value == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01234, "0.0123"), (1234.6, "1235"), (1.5e-6, "1.50e-06"), (math.nan, "-"), (28.24, "28.2")],
)
def test_numbers_have_three_digits(value, text):
    assert number_text(value) == text
    assert p_text(0.0004) == "< 0.001"


class TestFeatures:
    def test_reference_photos_are_white_and_at_no_distance(self):
        features = DRAW.normal(size=(80, 40)) @ DRAW.normal(size=(40, 40)) + 3
        white = Whitening.of(features)(features)
        assert white.shape == (80, COMPONENTS)
        assert np.allclose(white.mean(0), 0, atol=1e-9)
        assert np.allclose(np.cov(white.T), np.eye(COMPONENTS), atol=1e-9)
        assert float(frechet_from_reference(*white.T)) == pytest.approx(0, abs=1e-9)

    def test_the_distance_is_frechets(self):
        from scipy.linalg import sqrtm

        x = DRAW.normal(size=(60, 4)) @ DRAW.normal(size=(4, 4)) + [1, 0, -1, 2]
        covariance = np.cov(x.T)
        expected = (x.mean(0) ** 2).sum() + np.trace(covariance + np.eye(4) - 2 * sqrtm(covariance).real)
        assert float(frechet_from_reference(*x.T)) == pytest.approx(expected)

    def test_few_photos_are_refused(self):
        with pytest.raises(ConfigError, match="31 reference photos; 32 or more"):
            Whitening.of(DRAW.normal(size=(31, 40)))

    def test_photos_that_are_copies_of_a_few_are_refused(self):
        few = DRAW.normal(size=(5, 40))
        with pytest.raises(ConfigError, match="differ in 4 ways, and 16 are needed; give more different photos"):
            Whitening.of(few[np.arange(40) % 5])

    def test_a_model_that_shows_no_features_is_refused(self, mixture_function_model):
        with pytest.raises(ConfigError, match="does not show its features"):
            encoder_features(mixture_function_model, torch.zeros(1, 3, 12, 12), None)


@pytest.fixture
def mixture_function_model():
    from model_helpers import mixture_model

    return mixture_model()


def disc(hue: float, background: float, radius: float, side: int = 16) -> torch.Tensor:
    """A soft disc on grey, as of `hue`: -1 is blue and 1 is red."""
    row, column = torch.meshgrid(torch.arange(side) - 7.5, torch.arange(side) - 7.5, indexing="ij")
    inside = torch.sigmoid(3 * (radius - (row**2 + column**2).sqrt()))
    colour = torch.tensor([hue, -0.6, -hue])[:, None, None]
    return inside * colour + (1 - inside) * background


def test_attributes_are_those_that_a_disc_was_drawn_with():
    pictures = torch.stack([disc(0.8, -0.5, 3.0), disc(-0.4, 0.2, 5.0)])
    found = attributes(pictures)
    assert found["hue"].tolist() == pytest.approx([1.6, -0.8], abs=0.05)
    assert found["background"].tolist() == pytest.approx([-0.5, 0.2], abs=0.02)
    assert found["area"][1] > 1.8 * found["area"][0]
    assert (roughness(pictures + 0.2 * torch.randn(2, 3, 16, 16)) > roughness(pictures)).all()


def test_float_and_8_bit_errors_are_told_apart():
    photos = to_tensor(np.full((16, 16, 3), 100, np.uint8))[None]
    (found,) = errors_of(photos, photos + 0.4 / 127.5)
    assert found["mse"] > 0
    assert found["mse_8bit"] == found["max_error_8bit"] == found["pixels_off"] == 0
    assert found["psnr_8bit"] == math.inf


def test_the_floor_of_8_bit_is_that_of_rounding():
    values = torch.rand(1, 3, 256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rounded = to_tensor(to_uint8(values)[0]).double()
    assert float(((values - rounded) / 2).square().mean()) == pytest.approx(ROUNDING_FLOOR, rel=0.02)


def test_a_pixel_is_off_when_any_channel_is_off_by_more_than_one_level():
    photo = torch.zeros(1, 3, 4, 4)
    near, far = photo.clone(), photo.clone()
    near[0, 0, 0, 0] += 2 / 255
    far[0, :, 1, 1] += 2.2 / 255
    assert float(pixels_off(photo, near)) == 0
    assert float(pixels_off(photo, far)) == 1 / 16


def test_a_straight_even_path_is_smooth_and_direct():
    frames = torch.linspace(-1, 1, 9).view(9, 1, 1, 1).expand(9, 3, 12, 12) + torch.linspace(0, 0.1, 12)
    found = path_numbers(frames, frames[[0, -1]], torch.ones(9))
    assert found["smoothness"] == pytest.approx(1)
    assert found["largest_step"] == pytest.approx(1)
    assert found["directness"] == pytest.approx(1)
    assert found["path_length"] == pytest.approx(1)
    assert found["end_error"] == 0


def test_groups_of_keys_do_not_share_members_or_names():
    assert groups_of(list("abcdefg"), 3) == {"a-b-c": range(3), "d-e-f": range(3, 6)}
    assert list(groups_of(["a-b", "c", "a", "b-c"], 2)) == ["a-b-c", "a-b-c-2"]


def results_of(experiment, rows):
    return Results(Path(), {}, rows, summarise(experiment, rows), compare_methods(experiment, rows))


@pytest.mark.parametrize(
    ("better", "other", "best"),
    [("lower", 2, {(0, "error")}), ("higher", 2, {(1, "error")}), ("lower", 1, set()), (None, 2, set())],
)
def test_the_best_is_the_lowest_or_the_highest_and_none_where_all_are_alike(better, other, best):
    toy = replace(TOY, measures=(Measure("error", "", "", better=better),))
    rows = toy_rows({("a", 1): [1, 1], ("b", 1): [other, other]})
    assert best_values(toy, results_of(toy, rows)) == best


def test_what_the_others_are_compared_with_is_no_rival():
    b = np.arange(6.0)
    rows = toy_rows({("a", 1): b + 2, ("b", 1): b + 1, ("c", 1): b * 0})
    toy = replace(TOY, measures=(Measure("error", "", "", better="lower"),))
    assert best_values(toy, results_of(toy, rows)) == {(2, "error")}
    toy = replace(toy, references=lambda rows: [{"method": "c", "steps": "1"}])
    results = results_of(toy, rows)
    assert best_values(toy, results) == {(1, "error")}
    assert [(pair.first, pair.second) for pair in results.pairs] == [({"method": "a"}, {"method": "b"})]


def test_the_table_of_pairs_names_the_methods_in_the_order_of_the_difference():
    rows = toy_rows({("a", 1): [1, 2, 3], ("b", 1): [3, 4, 6]})
    (line,) = csv.DictReader(io.StringIO(paired_csv(TOY, results_of(TOY, rows))))
    assert (line["first"], line["second"]) == ("a", "b")
    assert float(line["difference"]) < 0


def test_pairs_without_a_p_do_not_count_as_hypotheses():
    b = np.arange(6.0) ** 2
    rows = toy_rows({("a", 1): b, ("b", 1): b + 1 + b / 9, ("a", 2): [1], ("b", 2): [2]})
    one, none = compare_methods(TOY, rows)
    assert one.p_holm == one.p
    assert math.isnan(none.p_holm)


def test_only_images_that_both_methods_have_are_compared():
    b = np.arange(6.0) ** 2
    (pair,) = compare_methods(TOY, toy_rows({("a", 1): b, ("b", 1): b[:3]}))
    assert pair.images == 3


def test_the_interval_of_two_images_is_the_two_of_them():
    found = interval([np.array([0.0, 1.0])], mean)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
