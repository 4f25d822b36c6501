import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import gaussian_noise, relative_rms, save_pipeline_folder, tiny_unet
from model_helpers import bundled_model, cpu, mixture_model, small_mixture
from torch import Tensor, nn

import ddim_edit as de
from ddim_edit.errors import ConfigError, ModelError
from ddim_edit.models import BUNDLED, load_model
from ddim_edit.models.base import choose_device, weights_hash
from ddim_edit.schedule import NoiseSchedule

REPO = "some-owner/tiny.model_1"


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Take the network away, and count who asks for it."""
    asked: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        asked.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def add_to_cache(cache: Path, seed: int, ref: str, commit: str, *, safe: bool = True) -> None:
    """A snapshot of REPO as huggingface_hub lays it out."""
    repo = cache / f"models--{REPO.replace('/', '--')}"
    save_pipeline_folder(repo / "snapshots" / commit, tiny_unet(seed), at_root=True, safe_serialization=safe)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / ref).write_text(commit)


def hash_of(seed: int) -> str:
    return weights_hash(tiny_unet(seed).state_dict())


class TestSources:
    def test_the_bundled_model_is_complete(self):
        model = bundled_model()
        assert model.name == "small"
        assert model.image_size == model.shape[1:] == (64, 64)
        assert model.labels is not None
        assert model.labels.null is not None
        assert model.notes == ()
        assert model.condition() is not None

    def test_the_bundled_model_is_a_folder_like_any_other(self):
        assert cpu(BUNDLED["small"]).fingerprint == bundled_model().fingerprint

    def test_folders_are_named_without_their_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        folder = save_pipeline_folder(tmp_path / "cats")
        monkeypatch.chdir(folder)
        assert [load_model(given, device="cpu").name for given in (folder, str(folder), ".")] == ["cats"] * 3

    @pytest.mark.parametrize("source", ["nothing-here", "a/b/c", "./a/b", "../a", "a b/c", Path("a/b")])
    def test_what_is_no_folder_and_no_hub_id_is_refused_without_asking_the_network(
        self, source: str | Path, attempts: list[object]
    ):
        with pytest.raises(ModelError, match="no folder, no hub id"):
            load_model(source, device="cpu")
        assert attempts == []

    def test_unknown_dtypes_and_devices(self):
        with pytest.raises(ConfigError, match="dtype 'int8' is unknown; choose one of fp32, bf16, fp16, fp64"):
            load_model("small", dtype="int8")
        for device in ("toaster", "cpu:x"):
            with pytest.raises(ConfigError, match=f"device {device!r} is not available here"):
                load_model("small", device=device)

    def test_auto_is_some_device_of_this_machine(self):
        assert choose_device().type in ("cpu", "cuda", "mps")
        assert choose_device("cpu") == torch.device("cpu")


class TestHub:
    def test_a_cached_repository_needs_no_network(self, tmp_path: Path, attempts: list[object]):
        add_to_cache(tmp_path, 3, "main", "a" * 40)
        model = load_model(REPO, device="cpu", cache_dir=tmp_path, local_files_only=True)
        assert (model.fingerprint, model.name) == (hash_of(3), REPO)
        assert attempts == []

    def test_the_cache_serves_when_the_network_is_down(self, tmp_path: Path, attempts: list[object]):
        add_to_cache(tmp_path, 3, "main", "a" * 40)
        assert load_model(REPO, device="cpu", cache_dir=tmp_path).fingerprint == hash_of(3)
        assert attempts

    @pytest.mark.parametrize(("revision", "seed"), [(None, 3), ("main", 3), ("v2", 4), ("b" * 40, 4)])
    def test_revisions_by_branch_and_by_commit(
        self, tmp_path: Path, attempts: list[object], revision: str | None, seed: int
    ):
        add_to_cache(tmp_path, 3, "main", "a" * 40)
        add_to_cache(tmp_path, 4, "v2", "b" * 40, safe=False)
        model = load_model(REPO, device="cpu", cache_dir=tmp_path, revision=revision, local_files_only=True)
        assert model.fingerprint == hash_of(seed)
        assert attempts == []

    @pytest.mark.parametrize("local_files_only", [True, False])
    def test_what_is_neither_cached_nor_reachable(self, tmp_path: Path, attempts: list[object], local_files_only: bool):
        with pytest.raises(ModelError, match=f"{REPO} cannot be fetched and is not in the cache") as caught:
            load_model(REPO, device="cpu", cache_dir=tmp_path, local_files_only=local_files_only)
        assert "\n" not in str(caught.value)
        assert bool(attempts) is not local_files_only

    @pytest.mark.parametrize("safe", [True, False])
    def test_settings_are_passed_on_and_pickles_are_fetched_only_without_safetensors(
        self, tmp_path: Path, safe: bool, monkeypatch: pytest.MonkeyPatch
    ):
        folder = save_pipeline_folder(tmp_path / "m", safe_serialization=safe)
        calls: list[dict[str, object]] = []

        def download(repo: str, **settings: object) -> str:
            calls.append({"repo": repo, **settings})
            return str(folder)

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        load_model(REPO, device="cpu", revision="v3", token="secret", cache_dir=tmp_path, local_files_only=True)
        patterns = [call.pop("allow_patterns") for call in calls]
        settings = {"revision": "v3", "token": "secret", "cache_dir": tmp_path, "local_files_only": True}
        assert calls == [{"repo": REPO, **settings}] * (1 if safe else 2)
        assert {name.rsplit(".")[-1] for name in patterns[0]} == {"json", "safetensors"}  # pyright: ignore
        assert patterns[1:] == ([] if safe else [[f"{at}diffusion_pytorch_model.bin" for at in ("", "unet/")]])

    @pytest.mark.parametrize("error", [OSError, ValueError, RuntimeError])
    def test_errors_of_the_hub_become_ours(self, error: type[Exception], monkeypatch: pytest.MonkeyPatch):
        def download(repo: str, **settings: object) -> str:
            raise error("several\nlines")

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        with pytest.raises(ModelError, match=f"{REPO} cannot be fetched .*{error.__name__}.*HF_ENDPOINT"):
            load_model(REPO, device="cpu")


class TestSeedRow2MinimalSampler:
    """A function of a bare model, x_T, the number of steps and betas; here for networks of all three kinds."""

    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    noise = gaussian_noise(1, 2, 3, 12, 12)

    def note(self, network: Callable[[Tensor, Tensor], Tensor], steps: int) -> Tensor:
        """The sampler written out, for a network that predicts x0."""
        alpha_bar = (1 - self.betas).cumprod(0)
        x, times = self.noise, [1000 // steps * k for k in range(steps)]
        for t, s in zip(reversed(times), [*reversed(times[:-1]), None], strict=True):
            x0 = network(x, torch.full((len(x),), float(t)))
            eps = (x - alpha_bar[t].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()
            x = x0 if s is None else alpha_bar[s].sqrt() * x0 + (1 - alpha_bar[s]).sqrt() * eps
        return x

    @pytest.mark.parametrize("prediction", list(de.PredictionType))
    @pytest.mark.parametrize("steps", [1, 7, 50])
    def test_a_few_lines_do_the_same(self, prediction: de.PredictionType, steps: int):
        schedule = de.NoiseSchedule.from_betas(self.betas.tolist())
        network = small_mixture().network(schedule, prediction)

        model = de.Model.from_function(network, schedule, (3, 12, 12), prediction=prediction)
        pictures = de.sample(model, self.noise, grid=steps)

        expected = self.note(small_mixture().network(schedule, de.PredictionType.SAMPLE), steps)
        assert relative_rms(pictures, expected) < 1e-9

    def test_a_plain_module_will_do(self):
        class Zero(torch.nn.Module):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                assert t.shape == (len(x),)
                assert t.is_floating_point()
                return torch.zeros_like(x)

        schedule = de.NoiseSchedule.from_config({})
        assert str(de.Model.from_function(Zero(), schedule, (3, 12, 12)).device) == "cpu"
        model = de.Model.from_function(Zero(), schedule, (3, 12, 12), prediction="sample")
        assert de.sample(model, [0, 1], grid=5).eq(0).all()

    def test_learned_sigma_is_split_off(self):
        schedule = de.NoiseSchedule.from_config({})
        eps = small_mixture().network(schedule)
        model = de.Model.from_function(lambda x, t: torch.cat([eps(x, t), 9 * x], 1), schedule, (3, 12, 12))
        assert de.sample(model, self.noise, grid=5).equal(de.sample(mixture_model(), self.noise, grid=5))

    def test_unknown_predictions_are_refused(self):
        schedule = de.NoiseSchedule.from_config({})
        network = small_mixture().network(schedule)
        with pytest.raises(ConfigError, match="prediction_type 'x0' is unknown; choose one of epsilon, sample"):
            de.Model.from_function(network, schedule, (3, 12, 12), prediction="x0")

    def test_networks_of_other_names_do_not_share_latents(self):
        schedule = de.NoiseSchedule.from_config({})
        network = small_mixture().network(schedule)
        a, b = (de.Model.from_function(network, schedule, (3, 12, 12), name=name) for name in "ab")
        assert {key for key in a.space if a.space[key] != b.space[key]} == {"weights"}


class Odd(NamedTuple):
    sample: torch.Tensor


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, t: x[0], r"answers \(3, 3, 12, 12\) with \(3, 12, 12\); it must give the same shape"),
        (lambda x, t: x[:, :1], r"with \(3, 1, 12, 12\)"),
        (lambda x, t: x[:1], r"with \(1, 3, 12, 12\)"),
        (lambda x, t: x.mean(), r"with \(\)"),
        (lambda x, t: Odd(x), r"mine gives a Odd, and no tensor; wrap it, as in lambda x, t: net\(x, t\)\.sample"),
        (lambda x, t: None, "mine gives a NoneType, and no tensor"),
    ],
)
def test_a_function_that_gives_something_else_is_told_what(function, message):
    model = de.Model.from_function(function, NoiseSchedule.from_config({}), (3, 12, 12), name="mine")
    with pytest.raises(ModelError, match=message):
        de.encode(model, torch.zeros(3, 3, 12, 12), grid=3)


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.BatchNorm2d(3)])
def test_a_module_whose_answers_are_random_is_refused_until_it_is_in_eval_mode(layer):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), layer)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x)

    module, schedule = Net(), NoiseSchedule.from_config({})
    with pytest.raises(ConfigError, match=r"mine is in training mode, where its answers are random; call its eval\(\)"):
        de.Model.from_function(module, schedule, (3, 12, 12), name="mine")
    de.Model.from_function(module.eval(), schedule, (3, 12, 12), name="mine")


def test_fp32_means_fp32(tmp_path, monkeypatch):
    """TF32, which torch's convolutions use unless told not to, would cost three digits of every round trip."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    folder = save_pipeline_folder(tmp_path / "model")
    load_model(folder, device="cpu", dtype="bf16")
    assert torch.backends.cudnn.allow_tf32
    load_model(folder, device="cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
