"""One step of training: that every setting reaches the gradient, checked against one written out here."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers import relative_rms
from torch import Tensor, nn

from ddim_edit.datasets import PhotoSet
from ddim_edit.errors import ConfigError
from ddim_edit.noise import gaussian, generator
from ddim_edit.schedule import NoiseSchedule
from ddim_edit.training import TrainConfig, train
from ddim_edit.training.config import PRECISIONS
from ddim_edit.training.data import Batches
from ddim_edit.training.network import make_origin
from ddim_edit.training.objectives import Objective
from ddim_edit.training.run import Training
from ddim_edit.training.timesteps import LossSecondMoment, Uniform

SIZE, T = 8, 50
FIRST_BETA = 0.9  # of AdamW: after one step its first moment is a tenth of the gradient


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate settles on one precision for a process; tests want several."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def photos() -> PhotoSet:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, SIZE, SIZE), dtype=torch.uint8, generator=draw)
    return PhotoSet(pixels, ("cat", "dog", "hat") * 4)


def begun(photos: PhotoSet, **changes: Any) -> Training:
    given = {"size": SIZE, "channels": (8,), "diffusion_steps": T, "batch_size": 4, "class_cond": True, "steps": 9}
    config = TrainConfig(**(given | changes)).resolved()
    origin = make_origin(config, photos.class_names, has_null=True, model=None)
    return Training.begin(origin, photos, Accelerator(cpu=True, mixed_precision=PRECISIONS[config.precision]))


def gradient(training: Training) -> list[Tensor]:
    """That of the step just made, as the optimizer saw it."""
    states = training.optimizers[0].state_dict()["state"].values()
    return [state["exp_avg"] / (1 - FIRST_BETA) for state in states]


def unevenly(sampler: LossSecondMoment) -> None:
    """Losses known for every timestep, very different ones."""
    sampler.losses.copy_(torch.linspace(0.1, 5, T).double()[:, None].expand_as(sampler.losses))
    sampler.counts.fill_(sampler.losses.shape[1])


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({}, {}),
        ({"clip_norm": 1e-3}, {}),
        ({"min_snr": 0.5}, {"min_snr": 0.5}),
        ({"snr_floor": 2.0}, {"snr_floor": 2.0}),
        ({"high_noise": 1.0}, {"high_noise": 1.0}),
        ({"moments": 1.0}, {"moments": 1.0}),
        ({"accumulate": 3}, {}),
        ({"schedule_sampler": "loss-second-moment"}, {}),
    ],
    ids=str,
)
def test_a_step_follows_the_gradient_of_what_was_asked_for(photos: PhotoSet, changes, weights):
    training = begun(photos, **changes)
    if isinstance(training.sampler, LossSecondMoment):
        unevenly(training.sampler)
    before = deepcopy(training.module)
    parts, size = training.config.accumulate, training.config.batch_size
    batches = [training.batches.draw(part, part * size, training.sampler) for part in range(parts)]
    loss, mse = training.advance(1.0).tolist()

    objective = Objective(training.origin.schedule, "epsilon", "mse", **weights)
    expected = torch.zeros(2)
    for batch in batches:
        noised = batch.noised
        out = before(noised.x_t, noised.t, class_labels=batch.labels).sample
        total = (batch.weights * objective(out, noised).total).mean() / parts
        plain = (batch.weights * (out - noised.eps).square().mean((1, 2, 3))).mean() / parts
        total.backward()
        expected += torch.stack([total, plain]).detach()
    nn.utils.clip_grad_norm_(before.parameters(), training.config.clip_norm)
    assert [loss, mse] == pytest.approx(expected.tolist(), rel=1e-5)
    for found, parameter in zip(gradient(training), before.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-7)


def test_the_settings_of_the_test_above_make_different_gradients(photos: PhotoSet):
    """So that none of them would pass for another."""
    found: list[Tensor] = []
    weights = ({"min_snr": 0.5}, {"snr_floor": 2.0}, {"high_noise": 1.0}, {"moments": 1.0})
    for changes in ({}, {"clip_norm": 1e-3}, *weights):
        training = begun(photos, **changes)
        training.advance(1.0)
        found.append(torch.cat([value.flatten() for value in gradient(training)]))
    for row, one in enumerate(found):
        for other in found[:row]:
            assert (one - other).norm() > 0.01 * one.norm()


def test_bfloat16_and_channels_last_are_used_and_change_little(photos: PhotoSet):
    exact = begun(photos)
    plain = exact.advance(1.0)
    AcceleratorState._reset_state(reset_partial_state=True)
    training = begun(photos, precision="bf16", channels_last=True)
    layouts: list[bool] = []
    training.module.register_forward_pre_hook(
        lambda _, given: layouts.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    rounded = training.advance(1.0)
    assert layouts == [True]
    assert not rounded.equal(plain)
    torch.testing.assert_close(rounded, plain, rtol=0.03, atol=0.0)


def test_one_process_trains_in_one_precision(photos: PhotoSet, tmp_path):
    config = {"size": SIZE, "channels": (8,), "diffusion_steps": T, "batch_size": 4, "steps": 1}
    train(photos, tmp_path / "a", TrainConfig(**config), device="cpu")
    with pytest.raises(ConfigError, match="another precision before; start a new one"):
        train(photos, tmp_path / "b", TrainConfig(**config, precision="bf16"), device="cpu")


def test_dropout_leaves_the_random_numbers_of_others_alone(photos: PhotoSet):
    training = begun(photos, dropout=0.5)
    torch.manual_seed(3)
    first = torch.rand(1)
    torch.manual_seed(3)
    training.advance(1.0)
    assert torch.rand(1).equal(first)


def test_what_is_dropped_is_independent_of_what_is_drawn(photos: PhotoSet):
    training = begun(photos, dropout=0.5)
    seeds: list[int] = []
    with training._dropping(0):
        seeds.append(torch.initial_seed())
    assert seeds != [generator(training.config.seed, "training", 0).initial_seed()]
    assert seeds == [generator(training.config.seed, "dropout", 0).initial_seed()]


def drawn(photos: PhotoSet, **changes: Any) -> Batches:
    labels = torch.zeros(len(photos), dtype=torch.int64)
    schedule = NoiseSchedule.from_config({"num_train_timesteps": T})
    given = {"pixels": photos.pixels, "labels": labels, "null": 7, "schedule": schedule, "size": 12, "seed": 1}
    return Batches(**(given | changes))


def test_every_second_photo_is_mirrored_unless_told_not_to(photos: PhotoSet):
    known = photos.scaled
    for flip, expected in ((True, 0.5), (False, 0.0)):
        mirrored: list[bool] = []
        for number in range(40):  # one epoch a batch: every photo, in some order
            for x0 in drawn(photos, flip=flip).draw(number, 12 * number, Uniform(T)).noised.x0:
                mirrored.append(bool((x0.flip(-1) == known).flatten(1).all(1).any()))
                assert mirrored[-1] or bool((x0 == known).flatten(1).all(1).any())
        assert sum(mirrored) / len(mirrored) == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_classes_are_hidden_at_the_rate_asked_for(photos: PhotoSet, rate: float):
    labels = [drawn(photos, dropout=rate).draw(number, 0, Uniform(T)).labels for number in range(60)]
    hidden = torch.stack([values for values in labels if values is not None]) == 7
    assert float(hidden.double().mean()) == pytest.approx(rate, abs=0.05)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
class TestMuon:
    def step_of(self, training: Training) -> dict[str, Tensor]:
        """What every weight moves by where its gradient is noise, drawn by its name."""
        before = {name: value.detach().clone() for name, value in training.module.named_parameters()}
        slopes = {
            name: gaussian([len(name) + sum(map(ord, name))], tuple(value.shape))[0] for name, value in before.items()
        }
        sum((value * slopes[name]).sum() for name, value in training.module.named_parameters()).backward()
        for optimizer in training.optimizers:
            optimizer.step()
        return {name: value.detach() - before[name] for name, value in training.module.named_parameters()}

    def test_weights_inside_take_orthogonal_steps_and_all_others_those_of_adamw(self, photos: PhotoSet):
        steps, plain = (self.step_of(begun(photos, optimizer=name, lr=1e-3)) for name in ("muon", "adamw"))
        inside = 0
        for name, step in steps.items():
            if step.ndim == 1 or name.startswith(("conv_in", "conv_out", "class_embedding")):
                torch.testing.assert_close(step, plain[name])
                continue
            sizes = torch.linalg.svdvals(step.flatten(1).double())
            assert float(sizes.max() / sizes.median()) < 1.7  # Newton and Schulz come that near
            rms = float(step.square().mean().sqrt())
            assert rms == pytest.approx(0.2e-3, rel=0.4)  # about that of AdamW's on a trained network
            inside += 1
        assert inside > 10

    def test_the_layout_of_memory_changes_nothing(self, photos: PhotoSet):
        ours, theirs = (self.step_of(begun(photos, optimizer="muon", channels_last=last)) for last in (False, True))
        for name, step in ours.items():
            assert relative_rms(theirs[name], step) < 0.02

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_it_sees_gradients_where_they_are_added_up(self, photos: PhotoSet, channels_last: bool):
        training = begun(photos, optimizer="muon", accumulate=2, channels_last=channels_last)
        for part in range(2):
            training._backward(training._batch(part))
        shared = {value.grad.data_ptr() for value in training.module.parameters() if value.grad is not None}
        matrices = training.optimizers[0].param_groups[0]["params"]
        assert len(matrices) > 10
        assert {matrix.grad.data_ptr() for matrix in matrices} < shared
        training.advance(1.0)
        assert all(value.grad is None for value in training.module.parameters())
        assert all(matrix.grad is None for matrix in matrices)

    def test_a_torch_without_it_is_told(self, photos: PhotoSet, monkeypatch):
        monkeypatch.delattr(torch.optim, "Muon")
        with pytest.raises(ConfigError, match=r"has no Muon; install torch 2\.9 or later, or take adamw"):
            begun(photos, optimizer="muon")
