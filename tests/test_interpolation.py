import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddim_edit.errors import ConfigError, NumericsError
from ddim_edit.interpolation import along, lerp, slerp

BLENDS = {"slerp": slerp, "lerp": lerp}
laws = settings(max_examples=40, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 10_000)
times = st.floats(0, 1, allow_subnormal=False)
radii = st.sampled_from(["geometric", "linear"])


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (3, 16, 16), generator=generator, dtype=torch.float64).to(dtype)


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def pair(cos: float, rms_a: float = 1.0, rms_b: float = 1.0, shape: tuple[int, ...] = (3, 16, 16), seed: int = 0):
    """Two float64 latents of exactly these rms and this cosine."""
    a, c = noise(seed, *shape, dtype=torch.float64), noise(seed + 1, *shape, dtype=torch.float64)
    a = a / rms(a)
    c = c - (c * a).mean() * a
    b = cos * a + math.sqrt(1 - cos**2) * c / rms(c)
    return rms_a * a, rms_b * b


# The table of known failures of slerp elsewhere, one case a row (the last column is what is right).


def test_identical_inputs_give_themselves_for_500_seeds():
    t = torch.tensor([0.1, 0.5, 0.77])
    for seed in range(500):
        a = noise(seed, 3, 8, 8)
        assert torch.equal(slerp(a, a.clone(), t), a.expand(3, 3, 8, 8))


@pytest.mark.parametrize("angle", [1e-3, 1e-5, 1e-9, 1e-14])
def test_near_parallel_inputs_are_exact(angle):
    a, c = pair(0.0)
    got = slerp(a, math.cos(angle) * a + math.sin(angle) * c, 0.3)
    want = math.cos(0.3 * angle) * a + math.sin(0.3 * angle) * c
    assert float((got - want).abs().max()) < min(1e-6, 1e-3 * angle + 1e-14)


def near_antipodal(angle: float) -> tuple[Tensor, Tensor]:
    a, c = pair(0.0)
    return a, -math.cos(angle) * a + math.sin(angle) * c


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param(*near_antipodal(1e-4), 1.0, id="near-antipodal-1e-4"),
        pytest.param(*(x.half() for x in pair(0.99, 0.972, 0.972, (3, 256, 256))), 0.972, id="float16-3x256x256"),
        pytest.param(*pair(1.0, 1.0, 1.2), 1.0954, id="rms-1-and-1.2-parallel"),
        pytest.param(*pair(0.0, 1.0, 1.2), 1.0954, id="rms-1-and-1.2-orthogonal"),
    ],
)
def test_rms_in_the_middle_is_the_geometric_mean(a, b, expected):
    middle = slerp(a, b, 0.5)
    assert middle.dtype == a.dtype
    assert rms(middle) == pytest.approx(expected, abs=2e-4)


def test_each_item_of_a_batch_of_2_has_its_own_angle():
    items = [pair(0.95, 0.993, 0.993), pair(-0.8, 0.974, 0.974, seed=5)]
    middles = [slerp(a, b, 0.5) for a, b in items]
    assert [rms(m) for m in middles] == pytest.approx([0.993, 0.974], abs=1e-9)
    batch_a, batch_b = (torch.stack(side) for side in zip(*items, strict=True))
    with pytest.raises(ConfigError, match="batch"):
        slerp(batch_a, batch_b, 0.5)


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_antipodal_inputs_raise_and_say_what_to_do(scale):
    a = noise(0)
    with pytest.raises(ConfigError, match=r"great circle .* not determined; change one .* seed="):
        slerp(a, -scale * a, 0.5)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_seeded_great_circle_keeps_the_rms_and_meets_both_ends(seed, dtype):
    a = noise(seed, dtype=dtype)  # float64: the very numbers that a careless use of the seed would draw again
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    frames = slerp(a, -a, t, seed=seed).double()
    assert [rms(f) for f in frames] == pytest.approx([rms(a)] * 5, rel=1e-6)
    assert torch.equal(frames[0], a.double())
    assert torch.equal(frames[-1], -a.double())
    cosines = [float(torch.cosine_similarity(f.flatten(), a.double().flatten(), dim=0)) for f in frames]
    assert cosines == pytest.approx([math.cos(math.pi * s) for s in t.tolist()], abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_direction_drawn_is_no_other_use_of_the_seed(seed):
    """Numpy's own draw from the seed would be the latent itself, which leads nowhere."""
    a = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, 16, 16)))
    half = slerp(a, -a, 0.5, seed=seed)
    assert rms(half) == pytest.approx(rms(a))
    assert float(torch.cosine_similarity(half.flatten(), a.flatten(), dim=0)) == pytest.approx(0, abs=1e-6)


def test_the_seed_decides_the_great_circle_and_touches_no_other_pair():
    a, b = noise(0), noise(1)
    assert torch.equal(slerp(a, -a, 0.5, seed=3), slerp(a, -a, 0.5, seed=3))
    assert not torch.allclose(slerp(a, -a, 0.5, seed=3), slerp(a, -a, 0.5, seed=4), atol=0.1)
    assert torch.equal(slerp(a, b, 0.5, seed=3), slerp(a, b, 0.5))


@pytest.mark.parametrize("zero", ["a", "b"])
def test_a_zero_latent_is_refused_by_name(zero):
    ends = {"a": noise(0), "b": noise(1), zero: torch.zeros(3, 16, 16)}
    with pytest.raises(ConfigError, match=f"^{zero} is all zeros"):
        slerp(ends["a"], ends["b"], 0.5)


# Laws.


@laws
@given(seeds, times, st.floats(0.1, 10), radii)
def test_the_norm_stays_between_those_of_the_ends(seed, t, scale, radius):
    a, b = noise(seed, 2, 3, 3, dtype=torch.float64), scale * noise(seed + 1, 2, 3, 3, dtype=torch.float64)
    low, high = sorted([rms(a), rms(b)])
    assert low * (1 - 1e-12) <= rms(slerp(a, b, t, radius=radius)) <= high * (1 + 1e-12)


@laws
@given(seeds, times, st.sampled_from(["geometric", "linear", "keep"]))
def test_swapping_the_ends_mirrors_the_path(seed, t, radius):
    a, b = noise(seed, 2, 3, 3, dtype=torch.float64), 2 * noise(seed + 1, 2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(slerp(a, b, t, radius=radius), slerp(b, a, 1 - t, radius=radius), rtol=0, atol=1e-9)


@laws
@given(seeds, times, radii)
def test_slerp_commutes_with_rotations(seed, t, radius):
    rotation = torch.linalg.qr(noise(seed + 2, 18, 18, dtype=torch.float64))[0]
    a, b = noise(seed, 18, dtype=torch.float64), noise(seed + 1, 18, dtype=torch.float64)
    want = rotation @ slerp(a, b, t, radius=radius)
    torch.testing.assert_close(slerp(rotation @ a, rotation @ b, t, radius=radius), want, rtol=0, atol=1e-12)


@laws
@given(seeds, times)
def test_slerp_of_equal_norms_agrees_with_the_formula_of_ddim(seed, t):
    a, b = pair(0.0, shape=(2, 3, 3), seed=seed)
    b = 0.3 * a + math.sqrt(1 - 0.09) * b
    theta = math.acos(0.3)
    want = (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)
    for radius in ("geometric", "linear", "keep"):
        torch.testing.assert_close(slerp(a, b, t, radius=radius), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("radius", "expected"),
    [
        ("geometric", 1.5**0.25),
        ("linear", 1.125),
        ("keep", math.hypot(math.sin(0.75 * math.pi / 2), 1.5 * math.sin(0.25 * math.pi / 2))),
    ],
)
def test_radius_chooses_the_norm_at_a_quarter_of_the_way(radius, expected):
    a, b = pair(0.0, 1.0, 1.5)
    assert rms(slerp(a, b, 0.25, radius=radius)) == pytest.approx(expected, rel=1e-12)


def test_keep_of_identical_inputs_is_the_input_and_of_opposite_ones_an_error_even_with_a_seed():
    a = noise(0)
    assert torch.equal(slerp(a, a, 0.4, radius="keep"), a)
    with pytest.raises(ConfigError, match="exactly opposite"):
        slerp(a, -a, 0.4, radius="keep", seed=1)


@pytest.mark.parametrize("blend", BLENDS.values(), ids=BLENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ends_are_the_inputs_bit_for_bit_in_every_dtype(blend, dtype):
    a, b = noise(0, dtype=dtype), noise(1, dtype=dtype)
    path = blend(a, b, torch.tensor([1.0, 0.5, 0.0]))
    assert path.dtype == dtype
    assert torch.equal(path[0], b)
    assert torch.equal(path[2], a)
    assert torch.equal(blend(a, b, 0.0), a)
    assert torch.equal(blend(a, b, 1.0), b)


@pytest.mark.parametrize("blend", BLENDS.values(), ids=BLENDS)
def test_many_positions_at_once_equal_one_at_a_time(blend):
    a, b, t = noise(0), noise(1), torch.tensor([0.9, 0.0, 0.3, 0.3], dtype=torch.float64)
    assert torch.equal(blend(a, b, t), torch.stack([blend(a, b, s) for s in t.tolist()]))
    assert blend(a, b, t[0]).shape == a.shape


@pytest.mark.parametrize("blend", BLENDS.values(), ids=BLENDS)
def test_inputs_are_neither_changed_nor_shared(blend):
    a, b = noise(0, dtype=torch.float64), noise(1, dtype=torch.float64)
    before = a.clone(), b.clone()
    for t in (0.0, 0.5, 1.0):
        blend(a, b, t).zero_()
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_lerp_is_the_straight_line_and_dips_where_slerp_does_not():
    a, b = pair(0.0)
    torch.testing.assert_close(lerp(a, b, 0.3), 0.7 * a + 0.3 * b)
    assert rms(lerp(a, b, 0.5)) == pytest.approx(math.sqrt(0.5))
    assert rms(slerp(a, b, 0.5)) == pytest.approx(1)


@pytest.mark.parametrize("blend", BLENDS.values(), ids=BLENDS)
@pytest.mark.parametrize(
    ("a", "b", "t", "error", "message"),
    [
        (noise(0), noise(1, 3, 8, 8), 0.5, ConfigError, r"\(3, 16, 16\) and b \(3, 8, 8\)"),
        (noise(0), noise(1) / 0, 0.5, NumericsError, "b holds 768 values that are not finite"),
        (torch.full((3,), math.nan), torch.ones(3), 0.5, NumericsError, "a holds 3 values"),
        (noise(0), noise(1), 1.5, ConfigError, r"t=1.5 is outside \[0, 1\]"),
        (noise(0), noise(1), torch.tensor([0.5, -0.1]), ConfigError, r"t=-0.1 is outside"),
        (noise(0), noise(1), math.nan, ConfigError, "t=nan is outside"),
        (noise(0), noise(1), torch.zeros(0), ConfigError, r"t has shape \(0,\)"),
        (noise(0), noise(1), torch.zeros(2, 2), ConfigError, r"t has shape \(2, 2\)"),
        (torch.ones(3, dtype=torch.int64), torch.ones(3), 0.5, ConfigError, "a holds torch.int64"),
        (noise(0, 2, 3, 4, 4), noise(1, 2, 3, 4, 4), 0.5, ConfigError, "looks like a batch"),
    ],
)
def test_errors_name_the_value(blend, a, b, t, error, message):
    with pytest.raises(error, match=message):
        blend(a, b, t)


def test_one_latent_may_keep_its_batch_dimension():
    a, b = noise(0, 1, 3, 4, 4), noise(1, 1, 3, 4, 4)
    assert torch.equal(slerp(a, b, 0.3)[0], slerp(a[0], b[0], 0.3))


def test_unknown_options_are_refused_with_the_choices():
    with pytest.raises(ConfigError, match="'none' is not known; choose geometric, linear or keep"):
        slerp(noise(0), noise(1), 0.5, radius="none")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'cubic' is not known; choose slerp, squad, catmull-rom, lerp, lerp-norm"):
        along(noise(0, 2, 3, 4, 4), torch.zeros(1), "cubic")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seed=-1 is negative"):
        slerp(noise(0), -noise(0), 0.5, seed=-1)


# Paths.


@pytest.mark.parametrize("how", BLENDS)
def test_a_path_is_its_segments_in_any_order(how):
    keys, u = noise(0, 4, 3, 8, 8), torch.tensor([2.75, 0.5, 1.25, 0.25, 3.0], dtype=torch.float64)
    want = [
        BLENDS[how](keys[i], keys[min(i + 1, 3)], t) for i, t in [(2, 0.75), (0, 0.5), (1, 0.25), (0, 0.25), (3, 0.0)]
    ]
    assert torch.equal(along(keys, u, how), torch.stack(want))


@pytest.mark.parametrize("how", BLENDS)
def test_whole_positions_return_their_keys_bit_for_bit_even_zero_or_opposite_ones(how):
    first = noise(0, 3, 8, 8)
    keys = torch.stack([first, -first, torch.zeros(3, 8, 8)]).half()
    path = along(keys, torch.tensor([2.0, 0.0, 1.0, 1.0]), how)
    assert path.dtype == keys.dtype
    assert torch.equal(path, keys[[2, 0, 1, 1]])


def test_a_path_leaves_its_keys_alone():
    keys = noise(0, 2, 3, 8, 8)
    before = keys.clone()
    along(keys, torch.tensor([0.0, 0.5, 1.0])).zero_()
    assert torch.equal(keys, before)


def test_one_key_makes_a_constant_path():
    keys = noise(0, 1, 3, 8, 8)
    assert torch.equal(along(keys, torch.zeros(5)), keys.expand(5, 3, 8, 8))


@pytest.mark.parametrize(
    ("keys", "u", "error", "message"),
    [
        (noise(0, 3, 2, 2, 2), torch.tensor([0.0, 2.5]), ConfigError, r"u=2.5 is outside \[0, 2\]"),
        (noise(0, 3, 2, 2, 2), torch.tensor([-0.5]), ConfigError, r"u=-0.5 is outside \[0, 2\]"),
        (noise(0, 3, 2, 2, 2), torch.tensor(0.5), ConfigError, r"u has shape \(\)"),
        (torch.zeros(0, 2, 2, 2), torch.zeros(1), ConfigError, "at least one key"),
        (torch.ones(3), torch.zeros(1), ConfigError, r"\(N, C, h, w\)"),
        (noise(0, 3, 2, 2, 2) / 0, torch.zeros(1), NumericsError, "keys holds 24 values"),
    ],
)
def test_path_errors_name_the_value(keys, u, error, message):
    with pytest.raises(error, match=message):
        along(keys, u)
