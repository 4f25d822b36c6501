import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddim_edit.errors import ConfigError
from ddim_edit.noise import GivenNoise, SeededNoise, gaussian

SHAPE = (3, 4, 4)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_noise_is_standard_normal():
    noise = gaussian(range(8), (3, 64, 64)).double()
    assert noise.shape == (8, 3, 64, 64)
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.var()) == pytest.approx(1, abs=0.02)
    assert float((noise**4).mean()) == pytest.approx(3, abs=0.15)


def test_noise_is_float32_on_the_cpu():
    noise = gaussian([0], SHAPE)
    assert (noise.dtype, noise.device.type) == (torch.float32, "cpu")


def test_streams_steps_and_seeds_are_independent():
    shape = (3, 64, 64)
    draws = [gaussian([seed], shape, "latent") for seed in (0, 1)]
    draws += [gaussian([seed], shape, "step", step) for seed in (0, 1) for step in (0, 1, 2)]
    assert all(abs(correlation(a, b)) < 0.04 for a, b in itertools.combinations(draws, 2))


@given(seed=st.integers(0, 2**32 - 1), words=st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_wide_seeds_do_not_reach_into_the_streams(seed: int, words: list[int]):
    wide = seed + sum(word << 32 * (k + 1) for k, word in enumerate(words))
    keys = {(seed, "latent", 0), (wide, "latent", 0), (seed, "step", 0), (seed, "step", 1), (wide, "step", 1)}
    draws = {tuple(gaussian([s], (4,), stream, step)[0].tolist()) for s, stream, step in keys}  # pyright: ignore
    assert len(draws) == len(keys)


def test_the_same_picture_in_any_batch():
    batch = gaussian([7, 3, 7, 11], SHAPE, "step", 5)
    assert batch[0].equal(batch[2])
    for row, seed in enumerate([7, 3, 7, 11]):
        assert gaussian([seed], SHAPE, "step", 5)[0].equal(batch[row])


def test_the_global_seed_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), gaussian([0], SHAPE)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(2)
    assert gaussian([0], SHAPE).equal(first)


def test_negative_seeds_are_refused():
    with pytest.raises(ConfigError, match="seed -2 is negative; choose seeds of 0 or more"):
        gaussian([4, -1, -2], SHAPE)


# Pictures that users have named by a seed must stay as they are.
@pytest.mark.parametrize(
    ("seed", "stream", "step", "values"),
    [
        (0, "latent", 0, [0.9956191, 0.2642377, 1.536166, 1.3092257]),
        (42, "latent", 0, [-0.260727, -1.3362988, -0.2506196, 0.2894867]),
        (42, "step", 1, [-0.4848523, -0.1245234, 0.8327708, 0.2214441]),
        (42, "step", 2, [-0.0551524, -0.3742968, -0.3976127, 2.2378316]),
        (2**40 + 1, "latent", 0, [-1.0954096, -0.4787818, 0.7191753, -1.3186048]),
    ],
)
def test_streams_are_pinned(seed: int, stream: str, step: int, values: list[float]):
    drawn = gaussian([seed], (1, 2, 2), stream, step)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(drawn.flatten(), torch.tensor(values), rtol=1e-6, atol=1e-6)


class TestSeededNoise:
    like = torch.zeros(2, *SHAPE, dtype=torch.float64)

    def test_draws_the_step_stream_of_every_seed(self):
        noise = SeededNoise((5, 6))(3, self.like)
        assert noise.equal(gaussian([5, 6], SHAPE, "step", 3).double())

    def test_follows_the_dtype_and_can_be_asked_again(self):
        noise = SeededNoise((5, 6))
        assert noise(1, self.like).dtype == torch.float64
        assert noise(1, self.like.float()).dtype == torch.float32
        assert noise(1, self.like).equal(noise(1, self.like))


class TestGivenNoise:
    values = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 2, *SHAPE)

    def test_serves_the_value_of_the_step(self):
        like = torch.zeros(2, *SHAPE, dtype=torch.float64)
        for step in (1, 2, 3):
            served = GivenNoise(self.values)(step, like)
            assert served.equal(torch.full_like(like, step - 1))
            assert served.dtype == torch.float64

    @pytest.mark.parametrize("step", [0, 4, -1])
    def test_steps_without_noise_are_refused(self, step: int):
        with pytest.raises(ConfigError, match=f"step {step} has no noise: 3 were given; give one per step"):
            GivenNoise(self.values)(step, self.values[0])
