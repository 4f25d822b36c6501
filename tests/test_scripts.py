"""Scripts that made the bundled weights."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest
import torch
from torch import Tensor

import ddim_edit as de

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def open_norm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("open_norm", SCRIPTS / "open_norm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "open_norm", module)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TIMESTEPS", (950, 600, 250, 80, 15))
    monkeypatch.setattr(module, "RESTARTS", 1)
    monkeypatch.setattr(module, "SWAPS", 200)
    return module


class TestOpenNorm:
    """scripts/open_norm.py."""

    def test_constants_make_up_the_share(self, open_norm: ModuleType, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(open_norm, "SHARE", 0.5)
        model = de.load_model("small", device="cpu")
        module, predict = open_norm.network(model)
        photos = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)) / 2
        photos = torch.nn.functional.interpolate(photos, size=64, mode="bicubic").clamp(-1, 1)
        x_t, eps = cast(tuple[Tensor, Tensor], open_norm.noised(model, photos, 950, 1))
        before = predict(x_t, 950)
        seen = open_norm.look(model, photos)
        open_norm.reform(module, seen, open_norm.search(seen))
        seen = open_norm.look(model, photos)
        constant = seen.averaged(seen.mean**2, seen.dealt) - seen.averaged(seen.mean, seen.dealt) ** 2
        share = constant / (constant + seen.averaged(seen.variance, seen.dealt))
        assert share[:2] == pytest.approx(0.5, abs=0.05)
        assert (predict(x_t, 950) - before).square().mean() < 0.01 * eps.square().mean()

    def test_the_readout_finds_what_is_there(self, open_norm: ModuleType, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(open_norm, "RIDGE", 1e-12)
        draw = torch.Generator().manual_seed(0)
        wanted = torch.randn(5, 3, generator=draw, dtype=torch.float64)
        mixed = torch.randn(5, 40, 7, generator=draw, dtype=torch.float64)
        mixed[..., :3] = wanted[:, None] - 2  # the same at every pixel
        weight, bias = open_norm.readout(mixed, wanted, torch.ones(5, dtype=torch.float64))
        assert mixed[:, 0].float() @ weight.T + bias == pytest.approx(wanted.float(), abs=1e-4)
