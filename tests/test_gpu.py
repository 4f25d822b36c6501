"""On a CUDA device: the same latents and pictures as on the CPU, within float round-off. Run with -m gpu."""

import pytest
import torch

import ddim_edit as de

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """A picture that the bundled model draws, as a photo."""
    return de.sample(de.load_model("small", device="cpu"), [0], grid=10).clamp(-1, 1)


def test_encode_and_decode_agree_with_the_cpu(photo: torch.Tensor) -> None:
    here, there = (de.load_model("small", device=device) for device in ("cpu", "cuda"))
    latents = de.encode(here, photo, grid=20)
    on_gpu = de.encode(there, photo, grid=20)
    assert on_gpu.x.device.type == "cpu"
    assert (latents.x - on_gpu.x).abs().max() < 1e-3
    assert (de.decode(here, latents) - de.decode(there, latents)).abs().max() < 1e-3


def test_a_seed_draws_the_same_picture_as_on_the_cpu() -> None:
    pictures = [
        de.sample(de.load_model("small", device=device), [3], grid=10, solver=de.Ddim(eta=1.0))
        for device in ("cpu", "cuda")
    ]
    assert (pictures[0] - pictures[1]).abs().max() < 1e-2


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_networks_keep_a_float32_state(photo: torch.Tensor, dtype: str) -> None:
    latents = de.encode(de.load_model("small", device="cuda", dtype=dtype), photo, grid=20)
    assert latents.x.dtype == torch.float32
    quality = latents.photos[0].quality
    assert quality is not None
    assert quality.psnr > 15
