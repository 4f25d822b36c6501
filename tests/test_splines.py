import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddim_edit.errors import ConfigError
from ddim_edit.interpolation import How, along, slerp
from ddim_edit.splines import spline

SMOOTH = ("squad", "catmull-rom")
laws = settings(max_examples=25)
every_spline = pytest.mark.parametrize("how", SMOOTH)
open_and_closed = pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])


def draw(count: int, seed: int = 0, shape: tuple[int, ...] = (3, 8, 8), spread: float = 0.0) -> Tensor:
    """Gaussian latents, float64, with norms that differ by a factor of up to exp(spread)."""
    numbers = np.random.default_rng(seed)
    stretch = np.exp(spread * numbers.uniform(size=(count, 1, 1, 1)))
    return torch.from_numpy(numbers.standard_normal((count, *shape)) * stretch)


def norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def turns(keys: Tensor, how: str, closed: bool, h: float = 1e-5) -> list[float]:
    """The angle in degrees between arriving at and leaving each key that has a way in and a way out."""
    found: list[float] = []
    for k in range(0 if closed else 1, len(keys) if closed else len(keys) - 1):
        u = torch.tensor([k - h, k, k + h], dtype=torch.float64) % (len(keys) if closed else math.inf)
        path = along(keys, u, how, closed=closed).flatten(1)  # type: ignore[arg-type]
        directions = path / path.norm(dim=1, keepdim=True)
        coming, going = (step / step.norm() for step in directions.diff(dim=0))
        found.append(math.degrees(2 * math.atan2(float((coming - going).norm()), float((coming + going).norm()))))
    return found


@every_spline
@open_and_closed
@pytest.mark.parametrize("count", [3, 4, 6, 20])
def test_a_spline_meets_its_keys_without_turning_there(how, closed, count):
    keys = draw(count, seed=count, spread=0.3)
    at_keys = spline(keys, torch.arange(count).double(), how, closed=closed)
    assert float((at_keys - keys).abs().max()) < 1e-6
    assert max(turns(keys, how, closed)) < 1


def test_great_circles_turn_at_keys_by_almost_a_right_angle():
    assert min(turns(draw(6, shape=(3, 32, 32)), "slerp", closed=True)) > 80


@every_spline
@open_and_closed
def test_a_repeated_key_is_met_without_a_turn_too(how, closed):
    keys = draw(5)
    keys[2] = keys[1]
    assert max(turns(keys, how, closed)) < 1
    path = along(keys, torch.linspace(0, 4, 81, dtype=torch.float64), how, closed=closed)
    assert path.isfinite().all()


@laws
@given(st.integers(2, 8), st.integers(0, 10_000), st.booleans(), st.sampled_from(SMOOTH))
def test_the_norm_stays_between_those_of_the_two_keys_beside(count, seed, closed, how):
    keys = draw(count, seed, (2, 3, 3), spread=1.0)
    u = torch.linspace(0, count if closed else count - 1, 25, dtype=torch.float64)
    length, r = norms(along(keys, u, how, closed=closed)), norms(keys)
    i = u.floor().long()
    beside = torch.stack([r[i % count], r[(i + 1) % count]])
    beside[1] = torch.where(u == i, beside[0], beside[1])
    assert (length >= beside.amin(0) * (1 - 1e-9)).all()
    assert (length <= beside.amax(0) * (1 + 1e-9)).all()


@every_spline
def test_keys_of_one_norm_keep_it(how):
    keys = draw(6, spread=0.5)
    keys = keys / norms(keys).view(-1, 1, 1, 1)
    path = along(keys, torch.linspace(0, 6, 50, dtype=torch.float64), how, closed=True)
    assert float((norms(path) - 1).abs().max()) < 1e-6


@every_spline
def test_two_keys_give_their_great_circle(how):
    keys, t = draw(2, spread=0.5), torch.linspace(0, 1, 9, dtype=torch.float64)
    want = slerp(keys[0], keys[1], t)
    torch.testing.assert_close(spline(keys, t, how), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(along(keys, 2 - t, how, closed=True), want, rtol=0, atol=1e-12)


@every_spline
@open_and_closed
def test_the_path_of_reversed_keys_is_the_reversed_path(how, closed):
    keys = draw(5, spread=0.4)
    u = torch.linspace(0, 4, 33, dtype=torch.float64)
    there = along(keys, u, how, closed=closed)
    torch.testing.assert_close(along(keys.flip(0), 4 - u, how, closed=closed), there, rtol=0, atol=1e-9)


@every_spline
def test_a_closed_path_may_begin_at_any_key(how):
    keys = draw(5, spread=0.4)
    u = torch.linspace(0, 5, 41, dtype=torch.float64)
    there = along(keys, u, how, closed=True)
    torch.testing.assert_close(along(keys.roll(-2, 0), (u - 2) % 5, how, closed=True), there, rtol=0, atol=1e-9)
    assert torch.equal(there[0], keys[0])
    assert torch.equal(there[-1], keys[0])


@every_spline
def test_a_spline_turns_with_its_keys(how):
    rotation = torch.linalg.qr(draw(1, 9, (1, 18, 18))[0, 0])[0]
    keys, u = draw(4, shape=(1, 1, 18)), torch.tensor([0.3, 1.7, 2.5], dtype=torch.float64)
    torch.testing.assert_close(along(keys @ rotation, u, how), along(keys, u, how) @ rotation, rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", get_args(How))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_keys_give_the_path_of_float64_rounded_once(how, dtype):
    keys = draw(4).to(dtype)
    u = torch.linspace(0, 3, 13, dtype=torch.float64)
    path = along(keys, u, how)
    assert path.dtype == dtype
    assert path.equal(along(keys.double(), u, how).to(dtype))
    assert torch.equal(path[::4], keys)


@every_spline
def test_opposite_and_zero_keys_are_refused(how):
    keys = draw(3)
    with pytest.raises(ConfigError, match="exactly opposite"):
        along(torch.stack([keys[0], -keys[0], keys[1]]), torch.tensor([0.5]), how)
    with pytest.raises(ConfigError, match=r"keys\[1\] is all zeros"):
        along(torch.stack([keys[0], 0 * keys[0], keys[1]]), torch.tensor([0.5]), how)
