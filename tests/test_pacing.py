import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddim_edit.errors import ConfigError
from ddim_edit.pacing import (
    EASES,
    Pace,
    Steps,
    bisected,
    dissimilarity,
    eased,
    even_pace,
    gini,
    l2,
    measure_pace,
    measure_pace_at,
    paced_positions,
)

laws = settings(max_examples=40)


def grey(brightness: float) -> Tensor:
    return torch.full((3, 12, 12), brightness, dtype=torch.float64)


def show(where: Callable[[float], float]) -> Callable[[Tensor], Iterator[Tensor]]:
    """A path whose picture is grey, and as bright as `where` says: l2 between two is half their difference."""
    return lambda u: (grey(where(float(value))) for value in u)


def slow_start(u: float) -> float:
    """From -1 to 1 over the first segment, standing still in its first quarter of speed; then back."""
    t = u % 1
    rise = 2 * t**3 - 1
    return rise if u < 1 else 1 - 0.5 * t


def steps(look: Callable[[Tensor], Iterator[Tensor]], u: Tensor) -> np.ndarray:
    return np.array(Steps.of(look(u)).lengths)


def test_equal_steps_of_position_become_equal_steps_of_the_picture():
    look = show(lambda u: 2 * u**2 - 1)
    paces = measure_pace(look, l2, 1, 65)
    even, paced = (steps(look, paced_positions(p, 33)) for p in (even_pace(1), paces))
    assert gini(even) > 0.3
    assert gini(paced) < 0.01 * gini(even)


def test_a_small_pilot_is_almost_as_good():
    look = show(lambda u: math.sin(3 * u - 1.5) / math.sin(1.5))
    even = gini(steps(look, paced_positions(even_pace(1), 33)))
    assert gini(steps(look, paced_positions(measure_pace(look, l2, 1, 9), 33))) < even / 3


def test_the_pilot_looks_once_at_each_place():
    asked: list[float] = []

    def look(u: Tensor) -> Iterator[Tensor]:
        asked.extend(u.tolist())
        return show(slow_start)(u)

    measure_pace(look, l2, 2, 5)
    assert asked == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]


def wavy(u: float) -> float:
    """From -0.9 to 0.9 over two segments, at a speed that changes faster than a pilot can follow."""
    return 0.9 * (u - 1) + 0.004 * math.sin(32 * math.pi * u)


@pytest.mark.parametrize("closed", [False, True])
def test_measured_at_the_frames_themselves_the_steps_become_more_even(closed):
    look = show(wavy)
    place = partial(paced_positions, frames=60 if closed else 61, closed=closed)  # as many steps in both segments
    passes = [place(measure_pace(look, l2, 2, 60))]
    for _ in range(2):
        passes.append(place(measure_pace_at(look, l2, 2, passes[-1])))
    first, second, third = (gini(steps(look, u)) for u in passes)
    assert third < second < first / 3
    assert all({0.0, 1.0} <= set(u.tolist()) for u in passes)


@pytest.mark.parametrize("closed", [False, True])
def test_a_pass_over_the_frames_looks_once_at_each_and_at_the_end_of_a_closed_path(closed):
    asked: list[float] = []

    def look(u: Tensor) -> Iterator[Tensor]:
        asked.extend(u.tolist())
        return show(slow_start)(u)

    positions = paced_positions(measure_pace(look, l2, 2, 5), 7, closed=closed)
    asked.clear()
    measure_pace_at(look, l2, 2, positions)
    assert asked == [*positions.tolist(), *([2.0] if closed else [])]


@laws
@given(st.integers(1, 6), st.integers(0, 60), st.booleans(), st.sampled_from(["global", "segment"]), st.integers(0, 99))
def test_every_key_keeps_its_frame_and_time_never_runs_backwards(segments, more, closed, over, seed):
    bright = np.random.default_rng(seed).uniform(-1, 1, segments + 1)
    paces = measure_pace(show(lambda u: float(np.interp(u, range(segments + 1), bright))), l2, segments, 5)
    keys = segments + (not closed)
    u = paced_positions(paces, keys + more, closed=closed, over=over, ease=EASES["ease-in-out"])
    assert len(u) == keys + more
    assert set(range(keys)) <= set(u.tolist())
    assert (u.diff() > 0).all()
    assert float(u[0]) == 0
    assert float(u[-1]) < segments if closed else float(u[-1]) == segments


@laws
@given(st.integers(2, 12), st.integers(0, 200))
def test_at_an_even_pace_frames_are_spread_evenly_and_segments_differ_by_at_most_one(keys, more):
    u = paced_positions(even_pace(keys - 1), keys + more, over="segment")
    at = [u.tolist().index(float(i)) for i in range(keys)]
    assert (at[0], at[-1]) == (0, keys + more - 1)
    lengths = [b - a for a, b in pairwise(at)]
    assert max(lengths) - min(lengths) <= 1
    want = torch.cat([torch.full((n,), 1 / n, dtype=torch.float64) for n in lengths])
    torch.testing.assert_close(u.diff(), want, rtol=0, atol=1e-12)


@laws
@given(st.integers(1, 12), st.integers(0, 100))
def test_a_closed_path_meets_every_key_and_does_not_repeat_the_first(keys, more):
    u = paced_positions(even_pace(keys), keys + more, closed=True, over="segment")
    lengths = np.diff([*(u.tolist().index(float(i)) for i in range(keys)), keys + more])
    assert lengths.max() - lengths.min() <= 1
    assert float(u[-1]) < keys
    assert (u.diff() > 0).all()


def test_the_remainder_of_frames_is_spread_over_the_path():
    u = paced_positions(even_pace(4), 12, over="segment").tolist()
    assert [u.index(float(i)) for i in range(5)] == [0, 3, 6, 8, 11]


def test_over_global_longer_segments_get_more_frames_and_over_segment_all_get_as_many():
    look = show(lambda u: u if u < 1 else 1 - (u - 1) / 4)  # from 0 to 1, then a quarter of the way back
    paces = measure_pace(look, l2, 2, 5)
    for over, first in (("global", 16), ("segment", 10)):
        u = paced_positions(paces, 21, over=over)  # type: ignore[arg-type]
        assert u.tolist().index(1.0) == first
    assert steps(look, paced_positions(paces, 21)) == pytest.approx([1 / 32] * 20)


def test_a_path_on_which_nothing_moves_is_paced_evenly():
    paces = measure_pace(show(lambda u: 0.5), l2, 2, 4)
    assert paced_positions(paces, 9).tolist() == paced_positions(even_pace(2), 9).tolist()


def test_a_path_that_stands_still_for_a_while_skips_it():
    look = show(lambda u: min(1.0, max(0.0, 3 * u - 1)))  # moves in the middle third only
    u = paced_positions(measure_pace(look, l2, 1, 31), 11)
    assert steps(look, u) == pytest.approx([0.05] * 10, abs=5e-3)
    assert float(u[-1]) == 1


def test_halving_ends_when_no_step_is_larger_than_the_bound():
    look = show(slow_start)
    u = bisected(look, l2, 2, 0.06)
    assert steps(look, u).max() <= 0.06
    assert {0.0, 1.0, 2.0} <= set(u.tolist())
    assert len(bisected(look, l2, 2, 0.03)) > len(u) > len(bisected(look, l2, 2, 0.2))
    assert bisected(look, l2, 2, 0.06, closed=True).tolist() == u[:-1].tolist()


def test_a_segment_that_ends_standing_still_ends_at_its_key():
    pace = Pace(np.array([0, 0.5, 1.0]), np.array([0, 1.0, 1.0]))
    assert pace.position(np.array([0.5, 1.0])).tolist() == [0.5, 1.0]


def test_a_step_of_the_bound_itself_is_not_halved():
    assert len(bisected(show(lambda u: u - 0.5), l2, 1, 0.5)) == 2


def test_a_jump_in_a_still_clip_is_no_even_step():
    assert Steps((0.0, 0.0, 0.0, 1.0)).largest_over_median == 1
    assert Steps((0.0, 0.0)).largest_over_median == 0


def test_halving_looks_once_at_each_place_and_compares_each_pair_once():
    asked: list[float] = []
    compared: list[tuple[float, float]] = []

    def look(u: Tensor) -> Iterator[Tensor]:
        asked.extend(u.tolist())
        return show(slow_start)(u)

    def distance(a: Tensor, b: Tensor) -> float:
        compared.append((float(a[0, 0, 0]), float(b[0, 0, 0])))
        return l2(a, b)

    u = bisected(look, distance, 2, 0.1)
    assert sorted(asked) == u.tolist()
    assert len(compared) == len(set(compared))


def test_a_jump_cannot_be_halved_away():
    with pytest.raises(
        ConfigError, match=r"between keys 0 and 1 .* is still 0.5, above max_step=0.1; choose a larger one"
    ):
        bisected(show(lambda u: float(u > 0.3)), l2, 1, 0.1)
    with pytest.raises(ConfigError, match="max_step=0; choose a distance above 0"):
        bisected(show(slow_start), l2, 1, 0)


@pytest.mark.parametrize("name", EASES)
def test_curves_rise_from_0_to_1(name):
    t = np.linspace(0, 1, 101)
    made = eased(t, EASES[name])
    assert (made[0], made[-1]) == (0, 1)
    assert (np.diff(made) > 0).all()


def test_curves_are_those_of_css():
    t = np.linspace(0, 1, 11)
    assert eased(t, EASES["linear"]) is t
    assert eased(t, EASES["smoothstep"]) == pytest.approx(3 * t**2 - 2 * t**3, abs=1e-12)
    assert eased(t, EASES["ease-in"]) == pytest.approx(1 - eased(1 - t, EASES["ease-out"]), abs=1e-12)
    assert eased(np.array([0.25]), EASES["ease-in-out"])[0] == pytest.approx(0.1292, abs=1e-4)  # as browsers have it


def test_a_curve_that_leaves_the_keys_is_refused():
    with pytest.raises(ConfigError, match="give x1, y1, x2, y2"):
        eased(np.array([0.5]), (0.5, -0.5, 0.5, 1.5))


@pytest.mark.parametrize(("x", "expected"), [([1, 1, 1], 0), ([0, 0, 1], 2 / 3), ([1, 1, 2], 1 / 6), ([], 0), ([0], 0)])
def test_gini(x, expected):
    assert gini(x) == pytest.approx(expected)


def test_gini_knows_neither_order_nor_scale():
    x = np.random.default_rng(0).uniform(size=20)
    assert gini(x.tolist()) == pytest.approx(gini((3 * x[::-1]).tolist()))


def test_distances_are_on_the_scale_0_to_1_and_0_for_equal_pictures():
    a, b = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert l2(grey(-1), grey(1)) == 1
    assert l2(a, b) == pytest.approx(float((a - b).square().mean().sqrt()) / 2)
    assert l2(a, a) == dissimilarity(a, a) == 0
    assert 0.5 < dissimilarity(a, b) < 1.5


def test_steps_of_a_loop_have_a_seam():
    pictures = [grey(value) for value in (0, 0.2, 0.2, 0.5)]
    line, loop = Steps.of(pictures), Steps.of(iter(pictures), loop=True)
    assert line.lengths == pytest.approx((0.1, 0, 0.15))
    assert loop.lengths == pytest.approx((0.1, 0, 0.15, 0.25))
    assert line.seam_over_median is None
    assert loop.seam_over_median == loop.largest_over_median == pytest.approx(2)
    assert (line.repeated, loop.to_json()["repeated"]) == (1, 1)
    assert loop.smoothness == 1 - gini(loop.lengths)


def test_impossible_numbers_are_named():
    with pytest.raises(ConfigError, match="frames=2 but there are 3 keys"):
        paced_positions(even_pace(2), 2)
    with pytest.raises(ConfigError, match="pilot=1 but a distance needs two pictures"):
        measure_pace(show(slow_start), l2, 1, 1)
