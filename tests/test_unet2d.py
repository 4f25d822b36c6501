from pathlib import Path

import pytest
import torch
from helpers import DDPM_CONFIG, gaussian_noise, relative_rms, save_pipeline_folder, tiny_unet
from model_helpers import STEM, cpu, to_bin, with_old_names
from safetensors.torch import load_file, save_file

from ddim_edit.denoiser import PredictionType
from ddim_edit.errors import ModelError
from ddim_edit.inverse import Explicit
from ddim_edit.models import Model
from ddim_edit.models.unet2d import UNet2DNetwork

X = gaussian_noise(0, 2, 3, 8, 8).float()
T = torch.tensor([20.0, 900.0])
NOT_CLIPPED = "the scheduler file asks for clip_sample; it is not applied, because clipping cannot be inverted"


def assert_is(model: Model, seed: int = 0, **overrides: object) -> None:
    """The network computes what the tiny U-Net of this seed computes, bit for bit."""
    with torch.no_grad():
        assert model.network(X, T, None).equal(tiny_unet(seed, **overrides)(X, T).sample)


class TestLayoutsAndFormats:
    @pytest.mark.parametrize("at_root", [False, True])
    @pytest.mark.parametrize("safe", [False, True])
    def test_networks_in_unet_or_at_the_root_as_safetensors_or_bin(self, tmp_path: Path, at_root: bool, safe: bool):
        folder = save_pipeline_folder(tmp_path / "m", tiny_unet(3), at_root=at_root, safe_serialization=safe)
        model = cpu(folder)
        assert_is(model, 3)
        assert model.facts["weights_file"] == f"{STEM}.{'safetensors' if safe else 'bin'}"
        assert (model.name, model.shape, model.image_size, model.size_multiple) == ("m", (3, 8, 8), (8, 8), 2)

    @pytest.mark.parametrize("at_root", [False, True])
    @pytest.mark.parametrize("safe", [False, True])
    def test_attention_layers_under_their_old_names(self, tmp_path: Path, at_root: bool, safe: bool):
        folder = save_pipeline_folder(tmp_path / "m", at_root=at_root)
        expected = cpu(folder).fingerprint
        if safe:
            file = next(folder.rglob(f"{STEM}.safetensors"))
            save_file(with_old_names(load_file(file)), file)
        else:
            to_bin(folder, with_old_names)
        model = cpu(folder)
        assert_is(model)
        assert model.fingerprint == expected

    def test_safetensors_before_bin(self, tmp_path: Path):
        folder = save_pipeline_folder(tmp_path / "m", tiny_unet(1))
        torch.save(tiny_unet(2).state_dict(), folder / "unet" / f"{STEM}.bin")
        assert_is(cpu(folder), 1)

    def test_the_hash_of_the_weights_ignores_format_names_and_precision(self, tmp_path: Path):
        half = tiny_unet(5).half()
        same = [
            cpu(save_pipeline_folder(tmp_path / "fp16", half)),
            cpu(save_pipeline_folder(tmp_path / "fp16 bin", half, safe_serialization=False, at_root=True)),
            cpu(save_pipeline_folder(tmp_path / "fp32", half.float())),
            *(cpu(tmp_path / "fp16", dtype) for dtype in ("bf16", "fp16", "fp64")),
        ]
        assert len({model.fingerprint for model in same}) == 1
        assert len(same[0].fingerprint) == 64
        assert cpu(save_pipeline_folder(tmp_path / "other", tiny_unet(6))).fingerprint != same[0].fingerprint

    def test_half_precision_files_are_run_in_float32(self, tmp_path: Path):
        half = tiny_unet(5).half()
        model = cpu(save_pipeline_folder(tmp_path / "m", half))
        with torch.no_grad():
            assert model.network(X, T, None).equal(half.float()(X, T).sample)
        assert model.facts["dtype"] == "float32"

    @pytest.mark.parametrize("size", [16, [16, 8]])
    def test_sample_size_as_a_number_and_as_a_list(self, tmp_path: Path, size: int | list[int]):
        model = cpu(save_pipeline_folder(tmp_path / "m", tiny_unet(sample_size=size)))
        assert model.shape == ((3, 16, 16) if size == 16 else (3, 16, 8))

    @pytest.mark.parametrize("prediction", list(PredictionType))
    def test_prediction_types(self, tmp_path: Path, prediction: PredictionType):
        config = {**DDPM_CONFIG, "prediction_type": prediction.value}
        assert cpu(save_pipeline_folder(tmp_path / "m", scheduler=config)).prediction is prediction

    def test_old_scheduler_files_mean_epsilon(self, tmp_path: Path):
        config = {key: value for key, value in DDPM_CONFIG.items() if key != "prediction_type"}
        assert cpu(save_pipeline_folder(tmp_path / "m", scheduler=config)).prediction is PredictionType.EPSILON

    def test_learned_sigma_is_split_off(self, tmp_path: Path):
        unet = tiny_unet(out_channels=6)
        model = cpu(save_pipeline_folder(tmp_path / "m", unet))
        level = model.schedule.level(500)
        with torch.no_grad():
            prediction = model.denoiser()(X, level)
            eps, variance = unet(X, torch.full((2,), 500.0)).sample.chunk(2, dim=1)
        assert prediction.eps.equal(eps)
        assert prediction.variance is not None
        assert prediction.variance.equal(variance)
        assert (model.shape, model.facts["learned_sigma"]) == ((3, 8, 8), True)

    @pytest.mark.parametrize(
        ("config", "notes"),
        [
            ({"clip_sample": True}, (NOT_CLIPPED,)),
            ({"clip_sample": False}, ()),
            ({"clip_sample": None, "_class_name": "PNDMScheduler"}, ()),
        ],
    )
    def test_clip_sample_is_noted_and_not_applied(self, tmp_path: Path, config: dict[str, object], notes: tuple[str]):
        model = cpu(save_pipeline_folder(tmp_path / "m", scheduler={**DDPM_CONFIG, **config}))
        assert model.notes == notes
        with torch.no_grad():
            assert model.denoiser()(3 * X, model.schedule.level(999)).x0.abs().max() > 100

    @pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
    def test_these_schedulers_clip_unless_told_otherwise(self, tmp_path: Path, name: str):
        config = {key: value for key, value in DDPM_CONFIG.items() if key != "clip_sample"} | {"_class_name": name}
        assert cpu(save_pipeline_folder(tmp_path / "m", scheduler=config)).notes == (NOT_CLIPPED,)

    def test_dynamic_thresholding_is_noted(self, tmp_path: Path):
        config = {**DDPM_CONFIG, "clip_sample": False, "thresholding": True}
        (note,) = cpu(save_pipeline_folder(tmp_path / "m", scheduler=config)).notes
        assert "thresholding" in note

    def test_facts_say_what_was_loaded(self, tmp_path: Path):
        model = cpu(save_pipeline_folder(tmp_path / "m"))
        assert model.facts["parameters"] == sum(value.numel() for value in tiny_unet().parameters())
        assert model.facts["scheduler"] == DDPM_CONFIG
        assert model.facts["learned_sigma"] is False


class TestLabels:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return save_pipeline_folder(tmp_path / "m", tiny_unet(num_class_embeds=3))

    def test_labels_are_numbers_where_the_folder_names_none(self, folder: Path):
        labels = cpu(folder).labels
        assert labels is not None
        assert (labels.count, labels.names, labels.null) == (3, (), None)

    def test_names_and_the_null_class_come_from_labels_json(self, folder: Path):
        (folder / "labels.json").write_text('{"names": ["cat", "dog", "none"], "null": 2}')
        labels = cpu(folder).labels
        assert labels is not None
        assert (labels.count, labels.names, labels.null) == (3, ("cat", "dog", "none"), 2)

    def test_the_network_sees_the_label(self, folder: Path):
        model, unet = cpu(folder), tiny_unet(num_class_embeds=3)
        with torch.no_grad():
            for label in range(3):
                expected = unet(X, T, class_labels=torch.tensor([label, label])).sample
                assert model.network(X, T, model.condition(label)).equal(expected)

    @pytest.mark.parametrize(
        "text", ['{"names": ["a", "b"]}', '{"names": "abc"}', "{}", '{"names": ["a", "b", "c"], "null": 3}']
    )
    def test_a_labels_file_that_does_not_fit_the_network(self, folder: Path, text: str):
        (folder / "labels.json").write_text(text)
        with pytest.raises(ModelError, match=r"labels\.json: it needs 'names', a list of 3"):
            cpu(folder)

    def test_unconditional_models_have_no_labels_whatever_lies_there(self, tmp_path: Path):
        folder = save_pipeline_folder(tmp_path / "m")
        (folder / "labels.json").write_text("not even JSON")
        assert cpu(folder).labels is None


@pytest.mark.parametrize(("dtype", "module"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_half_precision_network_leaves_the_state_in_float32(tmp_path: Path, dtype: str, module: torch.dtype):
    from ddim_edit.decoding import decode
    from ddim_edit.inversion import encode

    model = cpu(save_pipeline_folder(tmp_path / "m"), dtype)
    assert isinstance(model.network, UNet2DNetwork)
    assert {value.dtype for value in model.network.module.state_dict().values()} == {module}
    seen: list[torch.dtype] = []
    model.network.module.conv_in.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].dtype))
    latents = encode(model, X.clamp(-1, 1), grid=5, inverse=Explicit(), check=False)
    assert (latents.x.dtype, decode(model, latents).dtype) == (torch.float32, torch.float32)
    assert set(seen) == {module}
    full = encode(cpu(tmp_path / "m"), X.clamp(-1, 1), grid=5, inverse=Explicit(), check=False)
    assert 0 < relative_rms(latents.x, full.x) < 0.05
