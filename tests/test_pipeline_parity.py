"""Whole folders through the public API against a loop over diffusers' own `UNet2DModel` and `DDIMScheduler.step`.

Both sides read the same folder of random weights; nothing of ours is used on diffusers' side. What single scheduler
switches do is compared in test_diffusers_parity.py, in float64 and without a U-Net.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
import torch
from helpers import DDPM_CONFIG, gaussian_noise, relative_rms, save_pipeline_folder, tiny_unet
from model_helpers import STEM, cpu
from torch import Tensor

import ddim_edit as de
from ddim_edit.noise import GivenNoise
from ddim_edit.ode import Step
from ddim_edit.recipe import Recipe

TYPES = [str(kind) for kind in de.PredictionType]
BETAS: dict[str, Mapping[str, object]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
}
NETWORKS: dict[str, Mapping[str, object]] = {
    "plain": {},
    "learned sigma": {"out_channels": 6},
    "class-conditional": {"num_class_embeds": 3},
}
# One level instead of two, for long runs.
SLIM = {"block_out_channels": (8,), "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
X_T = gaussian_noise(0, 2, 3, 8, 8).float()
LABEL = 1
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Folder:
    """A pipeline folder of random weights, and the two ways to run it."""

    path: Path
    network: str = "plain"
    at_root: bool = False
    switches: Mapping[str, object] = field(default_factory=dict[str, object])  # laid over the scheduler file

    @classmethod
    def make(
        cls,
        path: Path,
        network: str = "plain",
        config: Mapping[str, object] = DDPM_CONFIG,
        *,
        at_root: bool = False,
        slim: bool = False,
    ) -> "Folder":
        unet = tiny_unet(seed=7, **NETWORKS[network], **(SLIM if slim else {}))
        save_pipeline_folder(path, unet, {**DDPM_CONFIG, **config}, at_root=at_root)
        return cls(path, network, at_root)

    @property
    def label(self) -> int | None:
        return LABEL if self.network == "class-conditional" else None

    def diffusers_steps(
        self, x: Tensor, steps: int, noise: Tensor | None = None, **given: object
    ) -> list[tuple[Tensor, Tensor]]:
        """(x_t, predicted x0) after every step of the pipeline, its scheduler exchanged for DDIM."""
        from diffusers.models.unets.unet_2d import UNet2DModel
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        unet = UNet2DModel.from_pretrained(self.path if self.at_root else self.path / "unet")
        config = DDIMScheduler.load_config(self.path if self.at_root else self.path / "scheduler")
        config = {**config, "clip_sample": False, **self.switches}  # pyright: ignore
        scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(config))
        scheduler.set_timesteps(steps)
        labels = None if self.label is None else torch.full((len(x),), self.label)
        visited: list[tuple[Tensor, Tensor]] = []
        for row, t in zip(reversed(range(steps)), scheduler.timesteps, strict=True):
            with torch.no_grad():
                out: Tensor = unet(x, t, class_labels=labels).sample[:, :3]
            step = None if noise is None else noise[row]
            made = scheduler.step(out, t, x, variance_noise=step, **given)  # pyright: ignore
            x = cast(Tensor, made.prev_sample)  # pyright: ignore[reportAttributeAccessIssue]
            visited.append((x, cast(Tensor, made.pred_original_sample)))  # pyright: ignore[reportAttributeAccessIssue]
        return visited

    def our_steps(self, x: Tensor, steps: int, **settings: float) -> list[tuple[Tensor, Tensor]]:
        """The same, seen from outside of `sample`."""
        model = cpu(self.path)
        visited: list[tuple[Tensor, Tensor]] = []
        denoiser = model.denoiser(self.label, **settings)  # pyright: ignore[reportArgumentType]

        def watch(step: Step) -> None:
            visited.append((step.state.x, step.prediction.x0))

        pictures = de.sample(model, x, grid=steps, denoiser=denoiser, on_step=watch)
        assert pictures.equal(visited[-1][0])
        return visited


def assert_same(ours: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor]]) -> None:
    assert len(ours) == len(theirs)
    for (x, x0), (their_x, their_x0) in zip(ours, theirs, strict=True):
        assert relative_rms(x, their_x) <= TOLERANCE
        assert relative_rms(x0, their_x0) <= TOLERANCE


class TestSeedRow4DiffusersFolders:
    @pytest.mark.parametrize("betas", BETAS)
    @pytest.mark.parametrize("network", NETWORKS)
    @pytest.mark.parametrize("prediction", TYPES)
    def test_ten_steps_of_every_network_and_schedule(self, tmp_path: Path, prediction: str, network: str, betas: str):
        folder = Folder.make(tmp_path, network, {"prediction_type": prediction, **BETAS[betas]})
        assert_same(folder.our_steps(X_T, 10), folder.diffusers_steps(X_T, 10))

    @pytest.mark.parametrize("betas", BETAS)
    @pytest.mark.parametrize("steps", [50, 100])
    @pytest.mark.parametrize(("prediction", "network"), list(zip(TYPES, NETWORKS, strict=True)))
    def test_fifty_and_a_hundred_steps(self, tmp_path: Path, prediction: str, network: str, steps: int, betas: str):
        folder = Folder.make(tmp_path, network, {"prediction_type": prediction, **BETAS[betas]}, slim=True)
        x = X_T[:1]
        assert_same(folder.our_steps(x, steps), folder.diffusers_steps(x, steps))

    @pytest.mark.parametrize("prediction", TYPES)
    def test_decode_of_given_latents(self, tmp_path: Path, prediction: str):
        folder = Folder.make(tmp_path, config={"prediction_type": prediction})
        model = cpu(tmp_path)
        recipe = Recipe(de.Grid.build(model.schedule, 10), de.Ddim(), model.denoiser())
        latents = de.Latents(X_T, recipe.grid[10], model.space, recipe.to_json())
        latents.save(tmp_path / "x_T.safetensors")
        pictures = de.decode(model, de.Latents.load(tmp_path / "x_T.safetensors"))
        assert relative_rms(pictures, folder.diffusers_steps(X_T, 10)[-1][0]) <= TOLERANCE

    @pytest.mark.parametrize(
        "config",
        [
            {"steps_offset": 1},
            {"steps_offset": 1, "set_alpha_to_one": False, **BETAS["scaled_linear"]},
            {"timestep_spacing": "trailing"},
            {"beta_schedule": "squaredcos_cap_v2"},
            {"trained_betas": [1e-3 + 2e-4 * k for k in range(100)], "num_train_timesteps": 100},
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        ],
        ids=["offset", "Stable Diffusion", "trailing", "cosine", "given betas", "zero SNR"],
    )
    def test_the_conventions_of_the_scheduler_file(self, tmp_path: Path, config: dict[str, object]):
        folder = Folder.make(tmp_path, config={"_class_name": "DDIMScheduler", **config})
        assert_same(folder.our_steps(X_T, 10), folder.diffusers_steps(X_T, 10))

    @pytest.mark.parametrize("rederive", [False, True])
    def test_clipping_where_it_is_asked_for(self, tmp_path: Path, rederive: bool):
        folder = Folder(Folder.make(tmp_path).path, switches={"clip_sample": True})
        ours = folder.our_steps(X_T, 10, clip_x0=1.0, rederive_eps=rederive)
        assert_same(ours, folder.diffusers_steps(X_T, 10, use_clipped_model_output=rederive))
        assert relative_rms(ours[-1][0], folder.our_steps(X_T, 10)[-1][0]) > 0.01

    @pytest.mark.parametrize("eta", [0.5, 1.0])
    def test_random_steps_with_given_noise(self, tmp_path: Path, eta: float):
        folder = Folder.make(tmp_path, config={"steps_offset": 1})
        noise = gaussian_noise(1, 10, *X_T.shape).float()
        ours = de.sample(cpu(tmp_path), X_T, grid=10, solver=de.Ddim(eta), noise=GivenNoise(noise))
        theirs = folder.diffusers_steps(X_T, 10, noise, eta=eta)[-1][0]
        # DDIM's own last step: no noise at the clean end, where diffusers adds none either (its variance is 0 there).
        assert relative_rms(ours, theirs) <= TOLERANCE


class TestSeedRow1DdpmPipelineWithItsSchedulerExchanged:
    """google/ddpm-*: a DDPM pipeline, everything at the root of the folder; 40 DDIM steps, a batch of 4."""

    x_t = gaussian_noise(2, 4, 3, 8, 8).float()
    steps, every = 40, 8

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Folder:
        folder = Folder.make(tmp_path / "ddpm-pets", at_root=True, slim=True)
        assert (folder.path / f"{STEM}.safetensors").is_file()
        return folder

    def test_the_pictures_and_everything_on_the_way(self, folder: Folder):
        assert_same(folder.our_steps(self.x_t, self.steps), folder.diffusers_steps(self.x_t, self.steps))

    def test_diffusers_own_pipeline_loads_the_same_folder(self, folder: Folder):
        """Started from the noise that the pipeline itself draws, with clipping as its scheduler file says."""
        from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
        from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        theirs = DDPMPipeline.from_pretrained(folder.path)
        scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(theirs.scheduler.config))
        pipeline = DDIMPipeline(theirs.unet, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        draw = torch.Generator().manual_seed(0)
        pictures = pipeline(batch_size=4, generator=draw, num_inference_steps=10, output_type="np").images  # pyright: ignore
        x_t = torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(0))
        model = cpu(folder.path)
        ours = de.sample(model, x_t, grid=10, denoiser=model.denoiser(clip_x0=1.0))
        assert relative_rms((ours / 2 + 0.5).clamp(0, 1), torch.from_numpy(pictures).permute(0, 3, 1, 2)) <= TOLERANCE

    def test_current_x_beside_predicted_x0_every_few_steps(self, folder: Folder):
        model = cpu(folder.path)
        panels: list[tuple[int, Tensor, Tensor]] = []

        def watch(step: Step) -> None:
            if step.index % self.every == 0:
                panels.append((step.index, step.state.x, step.prediction.x0))

        pictures = de.sample(model, self.x_t, grid=self.steps, on_step=watch)
        assert [index for index, _, _ in panels] == [8, 16, 24, 32, 40]
        theirs = folder.diffusers_steps(self.x_t, self.steps)
        for index, x, x0 in panels:
            assert relative_rms(x, theirs[index - 1][0]) <= TOLERANCE
            assert relative_rms(x0, theirs[index - 1][1]) <= TOLERANCE
        assert panels[-1][1].equal(pictures)  # the last current x is the picture
        drawn = de.sheet([[x[0], x0[0]] for _, x, x0 in panels], column_titles=["current x", "predicted x0"], scale=4)
        assert drawn.shape[0] == 3
        assert drawn.shape[1] > 5 * 4 * 8
