"""The suite leans on these, so they are tested too."""

import os
from pathlib import Path

import pytest
import torch
from helpers import DDPM_CONFIG, Mixture, gaussian_noise, save_pipeline_folder, tiny_unet

from ddim_edit.schedule import Level


@pytest.mark.parametrize("level", [Level(0, 0.999, 0.0447), Level(0, 0.6, 0.8), Level(0, 0.01, 0.99995)])
def test_the_mixture_knows_the_score_of_its_own_density(level: Level):
    """Tweedie: eps = -noise * gradient of log p(x), and x0 follows from it."""
    mixture = Mixture.make()
    x = gaussian_noise(0, 5, 2, 2, 2).requires_grad_()
    variance = (level.signal * mixture.stds) ** 2 + level.noise**2
    spread = torch.distributions.Normal(level.signal * mixture.means, variance.sqrt().view(-1, 1, 1, 1))
    log_p = (mixture.weights.log() + spread.log_prob(x[:, None]).flatten(2).sum(2)).logsumexp(dim=1)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    x0, eps, _ = mixture(x.detach(), level)
    torch.testing.assert_close(eps, -level.noise * score)
    torch.testing.assert_close(level.signal * x0 + level.noise * eps, x.detach())


def test_the_mixture_is_finite_at_both_ends():
    x, mixture = gaussian_noise(0, 2, 2, 2, 2), Mixture.make()
    clean, pure = mixture(x, Level(-1, 1, 0)), mixture(x, Level(999, 0, 1))
    torch.testing.assert_close(clean.x0, x)
    assert clean.eps.eq(0).all()
    torch.testing.assert_close(pure.eps, x)
    torch.testing.assert_close(pure.x0[0], torch.einsum("k,kchw->chw", mixture.weights, mixture.means))


def test_photos_come_from_the_mixture():
    mixture = Mixture.make()
    photos = mixture.photos(50_000)
    mean = torch.einsum("k,kchw->chw", mixture.weights, mixture.means)
    torch.testing.assert_close(photos.mean(0), mean, rtol=0, atol=0.03)


def test_tiny_unets_are_small_seeded_and_can_be_changed():
    torch.rand(1)  # the global seed is neither read
    before, a = torch.get_rng_state(), tiny_unet()
    assert torch.get_rng_state().equal(before)  # nor moved
    torch.rand(1)
    b, c = tiny_unet(), tiny_unet(seed=1, out_channels=6, sample_size=16)
    assert sum(p.numel() for p in a.parameters()) < 60_000
    assert all(p.equal(q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    with torch.no_grad():
        assert c(torch.zeros(1, 3, 16, 16), torch.zeros(1)).sample.shape == (1, 6, 16, 16)
    assert not c.training


@pytest.mark.parametrize("at_root", [False, True])
def test_pipeline_folders_are_read_by_diffusers(tmp_path: Path, at_root: bool):
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    folder = save_pipeline_folder(tmp_path / "model", tiny_unet(seed=3), at_root=at_root)
    assert (folder / "model_index.json").is_file()
    read = UNet2DModel.from_pretrained(folder if at_root else folder / "unet")
    assert all(p.equal(q) for p, q in zip(read.parameters(), tiny_unet(seed=3).parameters(), strict=True))
    config = DDIMScheduler.load_config(folder if at_root else folder / "scheduler")
    assert {key: config[key] for key in DDPM_CONFIG} == DDPM_CONFIG  # pyright: ignore


def test_one_thread_a_process():
    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"]
