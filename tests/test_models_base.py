from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from helpers import gaussian_noise, relative_rms, save_pipeline_folder, tiny_unet
from model_helpers import cpu, mixture_model, photos
from torch import Tensor

import ddim_edit as de
from ddim_edit.denoiser import Condition, Guided, Network, select_rows
from ddim_edit.errors import ConfigError, LatentsError
from ddim_edit.grid import Grid
from ddim_edit.models.base import Labels, weights_hash

X = gaussian_noise(0, 8, 3, 8, 8).float()
SCHEDULE = de.NoiseSchedule.from_config({})


@dataclass
class Watched:
    """Passes calls on to a network and keeps what it was shown."""

    network: Network
    calls: list[tuple[Tensor, Tensor, Condition | None]] = field(
        default_factory=list[tuple[Tensor, Tensor, Condition | None]]
    )

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        self.calls.append((x, t, condition))
        return self.network(x, t, condition)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> de.Model:
    """A tiny U-Net of four classes, the last of which stands for none."""
    folder = save_pipeline_folder(tmp_path_factory.mktemp("labelled") / "pets", tiny_unet(num_class_embeds=4))
    (folder / "labels.json").write_text('{"names": ["cat", "dog", "7", "none"], "null": 3}')
    return cpu(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> de.Model:
    return cpu(save_pipeline_folder(tmp_path_factory.mktemp("plain") / "plain"))


class TestResized:
    def test_the_network_runs_at_another_size(self, plain: de.Model):
        model = plain.resized(16, 12)
        assert (model.shape, model.image_size, model.fingerprint) == ((3, 16, 12), (16, 12), plain.fingerprint)
        assert de.sample(model, [0], grid=2).shape == (1, 3, 16, 12)
        assert plain.shape == (3, 8, 8)

    def test_latents_of_another_size_are_another_space(self, plain: de.Model):
        assert plain.resized(16, 12).space["shape"] == [3, 16, 12]

    @pytest.mark.parametrize(
        ("size", "near"), [((9, 8), "8 x 8"), ((11, 15), "12 x 16"), ((0, 8), "2 x 8"), ((8, -3), "8 x 2")]
    )
    def test_sizes_that_the_network_cannot_take_name_the_nearest(
        self, plain: de.Model, size: tuple[int, int], near: str
    ):
        with pytest.raises(ConfigError, match=f"size {size[0]} x {size[1]} .* multiples of 2; choose {near}"):
            plain.resized(*size)


class TestFromFunction:
    def test_labels_reach_the_function_one_for_each_picture(self):
        seen: list[list[int]] = []

        def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            seen.append(label.tolist())
            return x * label.view(-1, 1, 1, 1)

        labels = de.Labels(3, ("cat", "dog", "none"), null=2)
        model = de.Model.from_function(network, SCHEDULE, (3, 8, 8), labels=labels)
        model.denoiser("dog", guidance=2)(torch.ones(2, 3, 8, 8), SCHEDULE.level(5))
        assert seen == [[1, 1], [2, 2]]

    def test_tensors_go_where_the_function_wants_them(self):
        def made(**given: Any) -> torch.device:
            return de.Model.from_function(lambda x, t: x, SCHEDULE, (3, 8, 8), **given).device

        assert made() == made(device="cpu") == made(device=torch.device("cpu")) == torch.device("cpu")
        with pytest.raises(ConfigError, match="device 'gpu' is not available here"):
            made(device="gpu")


class TestMicroBatched:
    def run(self, model: de.Model, rows: Sequence[int], label: int | None) -> Tensor:
        with torch.no_grad():
            return model.network(X[list(rows)], torch.full((len(rows),), 500.0), model.condition(label))

    @pytest.mark.parametrize("label", [None, 1])
    def test_results_are_the_same_bits_for_every_batch_size(self, labelled: de.Model, label: int | None):
        model = labelled.micro_batched(4)
        whole = self.run(model, range(8), label)
        for rows in ([0], [5], [0, 1, 2], [7, 6, 5], [3, 1, 4, 1, 5], range(8)):
            assert self.run(model, rows, label).equal(whole[list(rows)])
        torch.testing.assert_close(whole, self.run(labelled, range(8), label))

    def test_the_network_only_ever_sees_that_many_rows(self, labelled: de.Model):
        watched = Watched(labelled.network)
        model = replace(labelled, network=watched).micro_batched(4)
        for count in (1, 3, 8):
            assert len(self.run(model, range(count), 0)) == count
        assert [(len(x), len(t)) for x, t, _ in watched.calls] == [(4, 4)] * 4

    def test_labels_and_timesteps_stay_with_their_rows(self, labelled: de.Model):
        labels, t = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([10.0, 200, 300, 400, 900])
        condition = Condition({"label": labels})
        with torch.no_grad():
            got = labelled.micro_batched(4).network(X[:5], t, condition)
            torch.testing.assert_close(got, labelled.network(X[:5], t, condition))

    @pytest.mark.parametrize("rows", [0, -4])
    def test_no_rows_are_refused(self, plain: de.Model, rows: int):
        with pytest.raises(ConfigError, match=f"micro-batch {rows} is not a number of photos"):
            plain.micro_batched(rows)


class TestCondition:
    @pytest.mark.parametrize(("label", "index"), [("cat", 0), (1, 1), ("1", 1), ("7", 2), (3, 3)])
    def test_labels_by_name_before_number(self, labelled: de.Model, label: int | str, index: int):
        condition = labelled.condition(label)
        assert condition is not None
        assert condition.tensors["label"].tolist() == [index]
        assert condition.description == {"label": index}

    def test_no_label_is_the_null_class_and_is_not_recorded(self, labelled: de.Model):
        condition = labelled.condition()
        assert condition is not None
        assert condition.tensors["label"].tolist() == [3]
        assert condition.description == {}

    def test_every_picture_may_have_its_own(self, labelled: de.Model):
        level = labelled.schedule.level(300)
        both = labelled.denoiser(["dog", 2], guidance=2.0)
        apart = [labelled.denoiser(label, guidance=2.0)(X[k : k + 1], level).eps for k, label in enumerate(("dog", 2))]
        assert relative_rms(both(X[:2], level).eps, torch.cat(apart)) < 1e-5
        swapped = select_rows(both, torch.tensor([1, 0]))(X[:2].flip(0), level).eps
        assert relative_rms(swapped.flip(0), torch.cat(apart)) < 1e-5
        with pytest.raises(ConfigError, match="2 labels for 3 pictures; give one for all, or one for each"):
            both(X[:3], level)

    def test_labels_of_their_own_are_given_again_to_decode(self, labelled: de.Model):
        own = labelled.denoiser(["dog", 2])
        latents = de.seed_latents(labelled, [0, 1], grid=3, denoiser=own)
        assert de.decode(labelled, latents, denoiser=own).equal(de.sample(labelled, [0, 1], grid=3, denoiser=own))
        with pytest.raises(LatentsError, match=r"denoiser .*labels.* cannot be restored; give it explicitly"):
            de.decode(labelled, latents)

    def test_unconditional_models_take_no_label(self, plain: de.Model):
        assert plain.condition() is None
        with pytest.raises(ConfigError, match="label 0 was given, but plain is not class-conditional"):
            plain.condition(0)

    def test_a_model_without_a_null_class_needs_a_label(self, labelled: de.Model):
        model = replace(labelled, labels=Labels(4))
        assert model.condition(2) is not None
        with pytest.raises(ConfigError, match=r"pets needs a label .* give --label 0 to 3"):
            model.condition()

    @pytest.mark.parametrize(
        ("label", "match"),
        [("bird", "'bird' is unknown.*cat, dog, 7, none"), (4, "4 is unknown.*0 to 3"), (-1, "-1 is unknown.*0 to 3")],
    )
    def test_unknown_labels_list_the_known(self, labelled: de.Model, label: int | str, match: str):
        with pytest.raises(ConfigError, match=match):
            labelled.condition(label)


class TestDenoiser:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"label": 1},
            {"label": 1, "guidance": 2.5},
            {"label": 0, "guidance": 0.0},
            {"clip_x0": 1.0, "rederive_eps": False},
            {"label": 2, "guidance": 3.0, "threshold": 0.9, "rederive_eps": True},
            {"clip_x0": 0.5, "threshold": 0.9, "rederive_eps": False},
        ],
    )
    def test_its_settings_make_it_again(self, labelled: de.Model, settings: dict[str, float]):
        denoise = labelled.denoiser(**settings)  # pyright: ignore[reportArgumentType]
        assert denoise.settings == settings
        again = labelled.denoiser(**denoise.settings)  # pyright: ignore[reportArgumentType]
        level = labelled.schedule.level(500)
        with torch.no_grad():
            assert all(a.equal(b) for a, b in zip(denoise(X, level)[:2], again(X, level)[:2], strict=True))

    def test_guidance_goes_from_the_null_class_through_the_label(self, labelled: de.Model):
        level = labelled.schedule.level(500)
        with torch.no_grad():
            without, with_, guided = (
                denoise(X, level).eps
                for denoise in (labelled.denoiser(), labelled.denoiser(1), labelled.denoiser(1, guidance=2.5))
            )
        assert not with_.equal(without)
        torch.testing.assert_close(guided, without + 2.5 * (with_ - without))

    def test_guidance_costs_two_and_none_costs_one(self, labelled: de.Model):
        assert labelled.denoiser(1, guidance=2.5).cost == 2
        assert labelled.denoiser(1, guidance=1.0).cost == 1
        assert not isinstance(labelled.denoiser(1, guidance=1.0), Guided)

    def test_guidance_needs_a_label_and_a_null_class(self, labelled: de.Model, plain: de.Model):
        for model, label in ((plain, None), (labelled, None), (replace(labelled, labels=Labels(4)), 1)):
            with pytest.raises(ConfigError, match="guidance 2 needs a label, and a model with a null class"):
                model.denoiser(label, guidance=2)

    def test_guidance_is_a_finite_number(self, labelled: de.Model):
        with pytest.raises(ConfigError, match="guidance nan is no scale; choose a finite number, 1 for none"):
            labelled.denoiser(1, guidance=float("nan"))

    def test_clipping_and_thresholding_reach_x0(self, plain: de.Model):
        level = plain.schedule.level(900)
        with torch.no_grad():
            assert plain.denoiser()(X, level).x0.abs().max() > 2
            assert plain.denoiser(clip_x0=0.5)(X, level).x0.abs().max() == 0.5
            thresholded, clipped = (plain.denoiser(**way)(X, level).x0 for way in ({"threshold": 0.9}, {"clip_x0": 1}))
            assert thresholded.abs().max() == 1
            assert relative_rms(thresholded, clipped) > 0.1  # scaled back, and not only cut off

    def test_eps_is_not_rederived_of_what_nothing_changes(self, plain: de.Model):
        with pytest.raises(ConfigError, match="rederive_eps changes nothing without clip_x0 or threshold"):
            plain.denoiser(rederive_eps=True)

    def test_rederived_eps_agrees_with_the_clipped_photo(self, plain: de.Model):
        level = plain.schedule.level(900)
        with torch.no_grad():
            kept = plain.denoiser(clip_x0=0.5)(X, level)
            made = plain.denoiser(clip_x0=0.5, rederive_eps=True)(X, level)
        torch.testing.assert_close(made.at(level), X)
        assert relative_rms(kept.at(level), X) > 0.01


class TestWeightsHash:
    weights = staticmethod(lambda: {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)})

    def test_order_layout_and_precision_do_not_matter(self):
        same = dict(reversed([(key, value.half()) for key, value in self.weights().items()]))
        same["a"] = same["a"].t().contiguous().t()
        assert weights_hash(same) == weights_hash(self.weights())

    @pytest.mark.parametrize(
        "change",
        [
            {"a": torch.arange(6.0).view(3, 2)},
            {"a": torch.arange(1.0, 7.0).view(2, 3)},
            {"c": torch.ones(2)},
        ],
    )
    def test_shapes_values_and_names_matter(self, change: dict[str, Tensor]):
        assert weights_hash({**self.weights(), **change}) != weights_hash(self.weights())
        assert weights_hash({"a": torch.ones(1), "b": torch.ones(1)}) != weights_hash({"a": torch.ones(2)})


def test_a_space_changes_with_what_decoding_depends_on_and_with_nothing_else(plain: de.Model):
    assert replace(plain, name="other", notes=("x",), facts={}).space == plain.space
    changes: dict[str, dict[str, object]] = {
        "weights": {"fingerprint": "other"},
        "schedule": {"schedule": de.NoiseSchedule.from_config({"beta_schedule": "scaled_linear"})},
        "prediction": {"prediction": de.PredictionType.V},
        "shape": {"shape": (3, 8, 16)},
    }
    for key, change in changes.items():
        other = replace(plain, **change)  # pyright: ignore[reportArgumentType]
        assert {name for name in plain.space if plain.space[name] != other.space[name]} == {key}


def test_grids_of_one_model_are_walked_by_another_of_the_same_schedule(plain: de.Model):
    grid = Grid.build(plain.schedule, 3)
    latents = de.encode(mixture_model(), photos(1), grid=grid, inverse=de.Explicit(), check=False)
    assert latents.how["timesteps"] == grid.timesteps
