import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from ddim_edit.errors import ConfigError, NumericsError
from ddim_edit.interpolation import slerp
from ddim_edit.mixing import analogy, corner_grid, karcher_mean, lol

laws = settings(max_examples=30)
every_mix = pytest.mark.parametrize("mix", [lol, karcher_mean])


def draw(count: int, seed: int = 0, shape: tuple[int, ...] = (3, 16, 16)) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, *shape)))


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def test_lol_of_gaussian_latents_is_gaussian():
    weights = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (100, 8)))
    passed = [
        stats.kstest(lol(draw(8, seed, (3, 16, 16)), weights[seed]).flatten().numpy(), "norm").pvalue > 1e-3
        for seed in range(100)
    ]
    assert sum(passed) >= 99


@every_mix
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_weight_of_one_latent_returns_it_bit_for_bit(mix, dtype):
    latents = draw(3).to(dtype)
    assert torch.equal(mix(latents, torch.tensor([0.0, 0.3, 0.0])), latents[1])
    assert torch.equal(mix(latents, torch.eye(3)), latents)


@every_mix
def test_the_order_of_latents_changes_nothing(mix):
    latents, weights = draw(4), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    want = mix(latents, weights)
    for order in itertools.permutations(range(4)):
        assert float((mix(latents[list(order)], weights[list(order)]) - want).abs().max()) < 1e-12


@every_mix
def test_only_the_ratios_of_weights_count_and_many_mixes_are_one_at_a_time(mix):
    latents, weights = draw(3), torch.tensor([[1.0, 2.0, 0.5], [0.1, 0.1, 0.8]], dtype=torch.float64)
    both = mix(latents, weights)
    assert both.shape == (2, 3, 16, 16)
    for row in range(2):
        torch.testing.assert_close(mix(latents, 7 * weights[row]), both[row], rtol=0, atol=1e-12)


def test_lol_may_subtract():
    a, b = draw(2)
    torch.testing.assert_close(lol(torch.stack([a, b]), torch.tensor([1.0, -1.0])), (a - b) / math.sqrt(2))


@laws
@given(st.integers(0, 10_000), st.floats(0.01, 0.99))
def test_the_karcher_mean_of_two_is_slerp(seed, t):
    latents = draw(2, seed, (2, 3, 3)) * torch.tensor([1.0, 1.7]).view(2, 1, 1, 1)
    mean = karcher_mean(latents, torch.tensor([1 - t, t], dtype=torch.float64))
    torch.testing.assert_close(mean, slerp(latents[0], latents[1], t), rtol=0, atol=1e-6)


def test_the_karcher_mean_has_no_pull_left_and_a_norm_between_those_of_the_keys():
    latents = draw(4, shape=(3, 32, 32)) * torch.tensor([0.8, 0.9, 1.0, 1.3]).view(4, 1, 1, 1)
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    mean = karcher_mean(latents, weights)
    assert 0.8 < rms(mean) < 1.3
    u, m = latents.flatten(1), mean.flatten()
    u, m = u / u.norm(dim=1, keepdim=True), m / m.norm()
    cosines = u @ m
    pulls = (u - cosines[:, None] * m) * (cosines.acos() / (1 - cosines**2).sqrt())[:, None]
    assert float((weights @ pulls).norm()) < 1e-10


def test_the_two_means_of_gaussian_latents_nearly_agree():
    latents, weights = draw(4, shape=(3, 32, 32)), torch.tensor([0.4, 0.3, 0.2, 0.1])
    a, b = (mix(latents, weights).flatten() for mix in (lol, karcher_mean))
    assert float(torch.cosine_similarity(a, b, dim=0)) > 0.99


def test_a_mean_that_is_not_determined_says_so():
    a = draw(1)[0]
    with pytest.raises(ConfigError, match="half a sphere"):
        karcher_mean(torch.stack([a, -a]), torch.tensor([1.0, 1.0]))


@pytest.mark.parametrize(
    ("mix", "weights", "message"),
    [
        (lol, torch.zeros(3), "all weights of a mix are 0"),
        (karcher_mean, torch.zeros(3), "weights of 0 or more, one of them above 0"),
        (karcher_mean, torch.tensor([1.0, -0.1, 1.0]), "weights of 0 or more"),
        (lol, torch.ones(2), r"weights are \(2,\) for 3 latents"),
        (lol, torch.tensor([1.0, math.nan, 1.0]), "give finite"),
        (lol, torch.tensor(1.0), r"weights are \(\) for 3 latents"),
    ],
)
def test_impossible_weights_are_named(mix, weights, message):
    with pytest.raises(ConfigError, match=message):
        mix(draw(3), weights)


@every_mix
def test_latents_that_are_not_finite_are_refused(mix):
    with pytest.raises(NumericsError, match="latents holds 768 values"):
        mix(torch.cat([draw(1), draw(1) / 0]), torch.ones(2))


def test_an_analogy_of_independent_latents_keeps_the_rms():
    a, b, c = draw(3, shape=(3, 64, 64))
    made = analogy(a, b, c)
    assert rms(made) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(made, (a - b + c) / math.sqrt(3))
    with pytest.raises(ConfigError, match="differ; all must come from one model"):
        analogy(a, b, c[:1])


@pytest.mark.parametrize("how", ["slerp", "lol", "karcher"])
def test_a_grid_has_its_corners_bit_for_bit_and_the_paths_between_them_as_edges(how):
    corners = draw(4).float()
    grid = corner_grid(corners, 4, 5, how)
    assert grid.shape == (4, 5, 3, 16, 16)
    for row, column, corner in ((0, 0, 0), (0, -1, 1), (-1, 0, 2), (-1, -1, 3)):
        assert torch.equal(grid[row, column], corners[corner])
    for line, (a, b) in ((grid[0], (0, 1)), (grid[-1], (2, 3)), (grid[:, 0], (0, 2)), (grid[:, -1], (1, 3))):
        t = torch.linspace(0, 1, len(line), dtype=torch.float64)
        ends = corners[[a, b]].double()
        edge = lol(ends, torch.stack([1 - t, t], 1)) if how == "lol" else slerp(ends[0], ends[1], t)
        torch.testing.assert_close(line.double(), edge, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["lol", "karcher"])
def test_bilinear_grids_treat_rows_and_columns_alike(how):
    corners = draw(4, shape=(3, 8, 8))
    grid, turned = corner_grid(corners, 4, 5, how), corner_grid(corners[[0, 2, 1, 3]], 5, 4, how)
    torch.testing.assert_close(turned.transpose(0, 1), grid, rtol=0, atol=1e-9)


def test_impossible_grids_are_named():
    with pytest.raises(ConfigError, match="3 corners, 2 rows, 2 columns; give 4 corners"):
        corner_grid(draw(3), 2, 2)
    with pytest.raises(ConfigError, match="1 rows"):
        corner_grid(draw(4), 1, 2)
    with pytest.raises(ConfigError, match="'nested' is not known; choose slerp, lol, karcher"):
        corner_grid(draw(4), 2, 2, "nested")  # type: ignore[arg-type]


def test_lol_of_one_negative_weight_is_its_opposite():
    x = draw(2)
    assert torch.equal(lol(x, torch.tensor([0.0, -2.0])), -x[1])
