import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from ddim_edit import metrics
from ddim_edit.errors import ConfigError, NumericsError
from ddim_edit.metrics import LatentHealth, Quality, advice, compare, latent_health, psnr_of_mean

MEASURES = {f.name: getattr(metrics, f.name) for f in dataclasses.fields(Quality)}
HEALTHY = LatentHealth(rms=1.0, excess_kurtosis=0.0, neighbour_correlation=0.0)


def pictures(photos: int = 3, height: int = 20, width: int = 16) -> Tensor:
    values = np.random.default_rng(0).integers(0, 256, (photos, 3, height, width))
    return torch.from_numpy(values / 127.5 - 1).float()


def noisy(reference: Tensor) -> Tensor:
    """Each photo worse than the one before, and outside [-1, 1] in places."""
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(1))
    return reference + noise * torch.tensor([0.01, 0.05, 0.4])[:, None, None, None]


def unit(x: Tensor) -> np.ndarray:
    return (x.double().numpy() + 1) / 2


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_each_measure_gives_one_float64_per_photo_independent_of_the_batch(measure):
    reference = pictures()
    result = noisy(reference)
    together = measure(reference, result)
    assert together.shape == (3,)
    assert together.dtype == torch.float64
    assert torch.equal(together, torch.cat([measure(reference[i : i + 1], result[i : i + 1]) for i in range(3)]))


@pytest.mark.parametrize(
    ("name", "perfect"), [("mse", 0), ("psnr", math.inf), ("ssim", 1), ("max_error", 0), ("changed_8bit", 0)]
)
def test_equal_pictures_are_perfect(name, perfect):
    assert MEASURES[name](pictures(), pictures()).tolist() == pytest.approx([perfect] * 3)


def test_mse_and_max_error_are_on_the_scale_0_to_1_and_unclamped():
    reference, result = torch.ones(1, 3, 12, 12), torch.ones(1, 3, 12, 12)
    result[0, 0, 0, 0] = 1.5
    assert metrics.max_error(reference, result).item() == 0.25
    assert metrics.mse(reference, result).item() == pytest.approx(0.0625 / 432)


def test_psnr_agrees_with_scikit_image():
    reference = pictures()
    result = noisy(reference)
    want = [peak_signal_noise_ratio(unit(x), unit(y), data_range=1) for x, y in zip(reference, result, strict=True)]
    assert metrics.psnr(reference, result).tolist() == pytest.approx(want, rel=1e-12)


def test_ssim_is_the_gaussian_variant_of_scikit_image_on_the_scale_0_to_1():
    reference = pictures()
    result = noisy(reference)
    flat = {"channel_axis": 0, "data_range": 1}
    gauss = flat | {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = list(zip(unit(reference), unit(result), strict=True))
    got = metrics.ssim(reference, result).tolist()
    assert got == pytest.approx([structural_similarity(x, y, **gauss) for x, y in pairs], rel=1e-12)
    assert got != pytest.approx([structural_similarity(x, y, **flat) for x, y in pairs], rel=1e-4)


@pytest.mark.parametrize("side", [1, 3, 5, 7, 9, 11])
def test_ssim_matches_its_definition_where_the_picture_is_one_window(side):
    reference, result = pictures(1, side, side), noisy(pictures(3, side, side))[:1] * 0.8
    radius = side // 2
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(1.5 * radius / 5, 1e-9)) ** 2)
    w = np.outer(line, line) / line.sum() ** 2
    values = []
    for x, y in zip(unit(reference[0]), unit(result[0]), strict=True):
        mx, my = (w * x).sum(), (w * y).sum()
        vx, vy, cov = (w * x * x).sum() - mx**2, (w * y * y).sum() - my**2, (w * x * y).sum() - mx * my
        values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert metrics.ssim(reference, result).item() == pytest.approx(np.mean(values), rel=1e-9)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (10, 11), (11, 10), (2, 40), (1, 1)])
def test_small_pictures_have_a_quality_too(height, width):
    reference = pictures(3, height, width)
    (perfect, *_), found = compare(reference, reference), compare(reference, noisy(reference))
    assert perfect.ssim == pytest.approx(1)
    assert found[0].ssim > found[2].ssim
    assert found[2].ssim < 0.999


def test_changed_8bit_counts_values_after_clamp_and_rounding():
    reference = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    # By less than half a level, by more, above white, and far below black instead of white.
    result = torch.tensor([-1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 1.7, -1.7])
    shaped = [x.reshape(1, 1, 2, 2).expand(1, 3, 2, 2) for x in (reference, result)]
    assert metrics.changed_8bit(*shaped).item() == 0.5


def test_compare_gives_the_five_measures_of_each_photo():
    reference = pictures()
    result = noisy(reference)
    rows = compare(reference, result)
    assert len(rows) == 3
    for name, measure in MEASURES.items():
        assert [getattr(row, name) for row in rows] == measure(reference, result).tolist()
    assert rows[0].psnr > rows[1].psnr > rows[2].psnr


@pytest.mark.parametrize("measure", [*MEASURES.values(), compare], ids=[*MEASURES, "compare"])
@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (pictures(2), ConfigError, r"\(3, 3, 20, 16\) and result \(2, 3, 20, 16\)"),
        (pictures() / 0, NumericsError, "result holds 2880 values that are not finite"),
        (pictures().int(), ConfigError, r"result holds torch.int32; pass floats in \[-1, 1\]"),
    ],
)
def test_errors_name_the_value(measure, result, error, message):
    with pytest.raises(error, match=message):
        measure(pictures(), result)


@pytest.mark.parametrize("shape", [(3, 3, 16), (1, 1, 16, 16)])
def test_only_batches_of_colour_pictures_are_compared(shape):
    with pytest.raises(ConfigError, match=r"\(B, 3, H, W\)"):
        metrics.mse(torch.zeros(shape), torch.zeros(shape))


def test_psnr_of_mean_is_not_the_mean_of_the_psnrs():
    errors = torch.tensor([0.001, 0.1], dtype=torch.float64)
    assert psnr_of_mean(errors) == psnr_of_mean(errors.tolist()) == pytest.approx(-10 * math.log10(0.0505))
    assert psnr_of_mean([0.001, 0.1]) < np.mean([30, 10])
    assert psnr_of_mean([0.0, 0.0]) == math.inf


@pytest.mark.parametrize(
    ("errors", "error"), [([], ConfigError), ([0.1, -0.1], ConfigError), ([math.nan], NumericsError)]
)
def test_psnr_of_mean_refuses_what_is_no_mse(errors, error):
    with pytest.raises(error, match="errors="):
        psnr_of_mean(errors)


def test_gaussian_noise_is_healthy():
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    bound = 4 / math.sqrt(3 * 64 * 64)
    for health in latent_health(x):
        assert abs(health.rms - 1) < bound
        assert abs(health.neighbour_correlation) < bound
        assert abs(health.excess_kurtosis) < bound * math.sqrt(24)
        assert advice(health) is None


def test_health_agrees_with_numpy_and_scipy():
    x = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(0)) ** 3
    for latent, health in zip(x.double().numpy(), latent_health(x), strict=True):
        assert health.rms == pytest.approx(np.sqrt((latent**2).mean()))
        assert health.excess_kurtosis == pytest.approx(kurtosis(latent, axis=None))


@pytest.mark.parametrize("turned", [False, True])
def test_neighbour_correlation_sees_right_and_lower_neighbours(turned):
    noise = torch.randn(1, 1, 256, 257, generator=torch.Generator().manual_seed(0))
    blurred = noise[..., 1:] + noise[..., :-1]  # correlation 1/2 along one direction, 0 along the other
    (health,) = latent_health(blurred.mT if turned else blurred)
    assert health.neighbour_correlation == pytest.approx(0.25, abs=0.02)


def test_neighbour_correlation_ignores_scale_and_offset():
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(dim=-1)
    (plain,), (moved,) = latent_health(x), latent_health(5 * x + 100)
    assert moved.neighbour_correlation == pytest.approx(plain.neighbour_correlation)
    assert moved.excess_kurtosis == pytest.approx(plain.excess_kurtosis)


def test_a_constant_latent_is_unhealthy_and_not_nan():
    (health,) = latent_health(torch.ones(1, 3, 8, 8))
    assert health == LatentHealth(rms=1.0, excess_kurtosis=-3.0, neighbour_correlation=0.0)
    assert advice(health) is not None


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("rms", 0.93, 0.92),
        ("rms", 1.07, 1.08),
        ("excess_kurtosis", 0.5, 0.51),
        ("excess_kurtosis", -0.5, -0.51),
        ("neighbour_correlation", 0.15, 0.16),
        ("neighbour_correlation", -0.15, -0.16),
    ],
)
def test_advice_names_what_is_outside_its_threshold_and_the_remedy_in_one_line(name, inside, outside):
    assert advice(dataclasses.replace(HEALTHY, **{name: inside})) is None
    line = advice(dataclasses.replace(HEALTHY, **{name: outside}))
    assert line is not None
    assert f"{name.replace('_', ' ')} {outside:{'.2f' if name == 'rms' else '+.2f'}} (" in line
    assert "more steps" in line
    assert "outside the model's domain" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 8, 8), ConfigError, r"\(3, 8, 8\)"),
        (torch.zeros(1, 3, 1, 1), ConfigError, "at least 2"),
        (torch.full((1, 1, 2, 2), math.inf), NumericsError, "x holds 4 values"),
    ],
)
def test_health_errors_name_the_value(x, error, message):
    with pytest.raises(error, match=message):
        latent_health(x)
