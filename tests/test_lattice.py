"""The bit-exact lattice: whatever the network, the same bytes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import run_cli, save_photo, save_tiny_model
from model_helpers import SIZE, mixture_model, photos
from torch import Tensor

from ddim_edit.decoding import decode
from ddim_edit.errors import ConfigError
from ddim_edit.grid import Grid
from ddim_edit.images import read_image, to_uint8
from ddim_edit.inversion import encode
from ddim_edit.latents import Latents
from ddim_edit.models.base import MicroBatched, Model
from ddim_edit.ode import integrate
from ddim_edit.schedule import NoiseSchedule
from ddim_edit.solvers import Lattice, Leapfrog, State

LINEAR = NoiseSchedule.from_config({})


def odd(dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """A network that nobody trained, folded and kinked, which computes in this precision."""
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(SIZE, SIZE, generator=draw).to(dtype)

    def network(x: Tensor, t: Tensor) -> Tensor:
        y = x.to(dtype)
        return torch.sin(9 * (y @ mix)) + (y.abs() % 0.3) * torch.cos(t).to(dtype).view(-1, 1, 1, 1)

    return network


def bytes_of(pixels: Tensor) -> list[np.ndarray]:
    return [to_uint8(picture) for picture in pixels]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("steps", [2, 3, 10, 50])
def test_every_byte_comes_back_through_any_network(dtype: torch.dtype, steps: int):
    model = Model.from_function(odd(dtype), LINEAR, (3, SIZE, SIZE)).micro_batched(4)
    x = torch.round((photos(3) + 1) * 127.5) / 127.5 - 1
    grid = Grid.build(LINEAR, steps, "quadratic").refined()
    latents = encode(model, x, grid=grid, solver=Lattice())
    for ours, theirs in zip(bytes_of(decode(model, latents)), bytes_of(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for photo in latents.photos:
        assert photo.quality is not None
        assert photo.quality.changed_8bit == 0
        assert photo.quality.max_error <= 2.0**-25
        assert photo.evaluations <= grid.steps + 4


def test_both_states_lie_on_the_lattice():
    model = mixture_model().micro_batched(4)
    latents = encode(model, photos(2), grid=20, solver=Lattice(), check=False)
    for state in (latents.x, *latents.memory):
        assert state.dtype == torch.float64
        assert (state * 2.0**24).frac().eq(0).all()


def test_the_same_batch_or_another_makes_no_difference():
    model = mixture_model().micro_batched(4)
    latents = encode(model, photos(5), grid=20, solver=Lattice(), check=False)
    alone = torch.cat([decode(model, latents.select([row])) for row in range(5)])
    assert alone.equal(decode(model, latents))


def test_a_replaced_state_is_gone_on_from():
    """The pair is started again, with a DDIM step, and stays on the lattice."""
    model, grid = mixture_model(), Grid.build(LINEAR, 10, "quadratic")
    x = photos(2).double()
    state = integrate(
        model.denoiser(),
        Lattice(),
        grid,
        State.start(x),
        toward="noise",
        on_step=lambda step: State.start(0.5 * step.state.x) if step.index == 4 else None,
    )
    assert len(state.memory) == 1
    assert (state.x * 2.0**24).frac().eq(0).all()


def test_it_is_refused_where_the_bits_depend_on_the_batch():
    model = mixture_model()
    with pytest.raises(ConfigError, match=r"sees batches of one size; use model.micro_batched\(4\)"):
        encode(model, photos(1), grid=5, solver=Lattice())
    latents = encode(model.micro_batched(4), photos(1), grid=5, solver=Lattice())
    with pytest.raises(ConfigError, match="solver lattice needs a network that sees batches of one size"):
        decode(model, latents)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dtype: str
):
    """Micro-batches are set by themselves, for encode and for decode, and batch sizes may differ."""
    folder = save_tiny_model(tmp_path / "model")
    for k in range(3):
        save_photo(tmp_path / "in" / f"{k}.png", seed=k, size=(16, 16))
    at = ("--model", folder, "--device", "cpu", "--dtype", dtype)
    made = run_cli(
        *("encode", tmp_path / "in", "-o", tmp_path / "latents", "-n", 6, "--solver", "lattice"),
        *("--batch-size", 2, *at),
        capsys=capsys,
    )
    assert made.code == 0, made.stderr
    assert len(Latents.load(tmp_path / "latents" / "0.safetensors").memory) == 1
    asked: list[int] = []
    call = MicroBatched.__call__

    def counted(self: MicroBatched, x: Tensor, *given: object) -> Tensor:
        asked.append(len(x))
        return call(self, x, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(MicroBatched, "__call__", counted)
    decoded = run_cli("decode", tmp_path / "latents", "-o", tmp_path / "out", "--batch-size", 3, *at, capsys=capsys)
    assert decoded.code == 0, decoded.stderr
    assert asked
    for k in range(3):
        ours, theirs = (read_image(tmp_path / place / f"{k}.png", (16, 16)) for place in ("out", "in"))
        assert ours.equal(theirs)


def test_a_pair_reports_no_solving():
    """The first step takes several looks, which are no inversion."""
    latents = encode(mixture_model(), photos(1), grid=4, solver=Leapfrog(), check=False)
    assert latents.photos[0].inversion is None
