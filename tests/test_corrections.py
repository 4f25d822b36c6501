import numpy as np
import pytest
import torch
from torch import Tensor

from ddim_edit.corrections import CLIP, corrected
from ddim_edit.errors import ConfigError


def draw(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 3, 16, 16))).float()


KEYS = draw(3) * torch.tensor([0.8, 1.0, 1.3]).view(3, 1, 1, 1) + 0.2
U = torch.tensor([0.0, 0.25, 1.0, 2.0, 2.5], dtype=torch.float64)


def test_none_changes_nothing():
    x = draw(5, 1)
    assert corrected(x, "none", keys=KEYS, u=U) is x


def test_radius_gives_the_norm_of_gaussian_noise():
    x = 0.7 * draw(5, 1)
    made = corrected(x, "radius", keys=KEYS, u=U)
    assert made.dtype == x.dtype
    torch.testing.assert_close(made.square().mean((1, 2, 3)), torch.ones(5))
    torch.testing.assert_close(torch.cosine_similarity(made.flatten(1), x.flatten(1)), torch.ones(5))


def test_adain_gives_every_channel_the_statistics_between_those_of_the_keys():
    made = corrected(draw(5, 1), "adain", keys=KEYS, u=U)
    mean, std = KEYS.mean((2, 3)), KEYS.std((2, 3), correction=0)
    pairs = [(0, 0, 0.0), (0, 1, 0.25), (1, 1, 0.0), (2, 2, 0.0), (2, 0, 0.5)]  # closed: behind key 2 comes key 0
    for row, (a, b, t) in zip(made, pairs, strict=True):
        torch.testing.assert_close(row.mean((1, 2)), (1 - t) * mean[a] + t * mean[b], rtol=0, atol=1e-5)
        torch.testing.assert_close(row.std((1, 2), correction=0), (1 - t) * std[a] + t * std[b], rtol=0, atol=1e-5)


def test_adain_leaves_the_keys_alone():
    made = corrected(KEYS, "adain", keys=KEYS, u=torch.arange(3).double())
    torch.testing.assert_close(made, KEYS, rtol=0, atol=1e-5)


def test_clip_cuts_the_tails_only():
    x = 2 * draw(5, 1)
    made = corrected(x, "clip", keys=KEYS, u=U)
    assert float(made.abs().max()) == CLIP
    inside = x.abs() <= CLIP
    assert torch.equal(made[inside], x[inside])


def test_an_unknown_correction_names_the_known_ones():
    with pytest.raises(ConfigError, match="'whiten' is not known; choose none, radius, adain, clip"):
        corrected(draw(5), "whiten", keys=KEYS, u=U)  # type: ignore[arg-type]
