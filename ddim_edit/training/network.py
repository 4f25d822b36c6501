"""The network to train: a new U-Net, or that of a model that is fine-tuned, changed no more than needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from ddim_edit.errors import ConfigError
from ddim_edit.models import Labels, Model, load_model
from ddim_edit.models.previous import FromPrevious
from ddim_edit.models.unet2d import UNet2DNetwork
from ddim_edit.schedule import NoiseSchedule
from ddim_edit.training.config import SCHEDULES, TrainConfig

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

GROUPS = 8  # of the group norms
HEAD_WIDTH = 32  # channels per attention head, where a level has as many


@dataclass(frozen=True)
class Origin:
    """What a run starts from.

    Attributes:
        config: the settings, with nothing left open.
        module: the network, on the CPU in float32.
        labels: its classes, or None.
        scheduler: the config of a diffusers scheduler: betas and prediction type.
    """

    config: TrainConfig
    module: "UNet2DModel"
    labels: Labels | None
    scheduler: Mapping[str, object]

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels."""
        return NoiseSchedule.from_config(self.scheduler)


def make_origin(config: TrainConfig, class_names: tuple[str, ...], *, has_null: bool, model: Model | None) -> Origin:
    """Make the network and everything that belongs to it.

    Args:
        config: the settings, resolved.
        class_names: of the photos, the null class last.
        has_null: whether the null class will be trained.
        model: the model to fine-tune, or None for a new network.

    Raises:
        ConfigError: settings that make no network or do not fit the model.
    """
    labels = Labels(len(class_names), class_names, len(class_names) - 1 if has_null else None)
    labels = labels if config.class_cond else None
    if model is None:
        return Origin(config, _new_network(config, labels), labels, _scheduler(config))
    module = module_of(model)
    if model.labels is not None:
        labels = model.labels  # the table of classes stays; the photos must be of classes that it knows
    module = _adapted(module, config, labels)
    return Origin(config, module, labels, _scheduler_of(model))


def settings_of(model: Model) -> dict[str, Any]:
    """The settings that a model fixes when it is fine-tuned (the keys of OF_MODEL).

    Raises:
        ConfigError: photos of two sizes, or a model that is no U-Net of diffusers.
    """
    config = cast(Mapping[str, Any], module_of(model).config)
    height, width = model.image_size
    if height != width:
        raise ConfigError(f"{model.name} is for photos of {height} x {width}; only square ones can be trained on")
    scheduler = cast(Mapping[str, Any], model.facts["scheduler"])
    betas = str(scheduler.get("beta_schedule")).replace("squaredcos_cap_v2", "cosine")
    return {
        "size": height,
        "channels": tuple(config["block_out_channels"]),
        "layers": config["layers_per_block"],
        "attention": None,
        "diffusion_steps": len(model.schedule),
        "schedule": betas if betas in SCHEDULES else None,
        "target": scheduler.get("prediction_type") or "epsilon",
    }


def load_init(source: str) -> Model:
    """The model to fine-tune, on the CPU."""
    return load_model(source, device="cpu")


def module_of(model: Model) -> "UNet2DModel":
    """The U-Net inside a model.

    Raises:
        ConfigError: it has none.
    """
    network = model.network.inner if isinstance(model.network, FromPrevious) else model.network
    if not isinstance(network, UNet2DNetwork):
        raise ConfigError(f"{model.name} is no UNet2DModel; only such pixel models can be fine-tuned")
    return network.module


def _new_network(config: TrainConfig, labels: Labels | None) -> "UNet2DModel":
    from diffusers.models.unets.unet_2d import UNet2DModel

    assert config.channels
    assert config.size
    assert config.layers
    assert config.attention is not None
    sides = [config.size // 2**level for level in range(len(config.channels))]
    attention = [side <= config.attention for side in sides]
    widths = [width for width, has in zip(config.channels, attention, strict=True) if has] or [config.channels[-1]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return UNet2DModel(
            sample_size=config.size,
            in_channels=3,
            out_channels=6 if config.learn_sigma else 3,
            layers_per_block=config.layers,
            block_out_channels=config.channels,
            down_block_types=tuple("AttnDownBlock2D" if has else "DownBlock2D" for has in attention),
            up_block_types=tuple("AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)),
            attention_head_dim=min(HEAD_WIDTH, *widths),
            norm_num_groups=GROUPS,
            dropout=config.dropout,
            num_class_embeds=labels.count if labels else None,
        )


def _adapted(module: "UNet2DModel", config: TrainConfig, labels: Labels | None) -> "UNet2DModel":
    """The same function with what it lacks added as zeros: a table of classes, a learned sigma."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    changes: dict[str, Any] = {"dropout": config.dropout}
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    if labels is not None and module.config["num_class_embeds"] is None:
        changes["num_class_embeds"] = labels.count
        width = weights["time_embedding.linear_2.weight"].shape[0]
        weights["class_embedding.weight"] = torch.zeros(labels.count, width)
    if module.config["out_channels"] == 6 and not config.learn_sigma:
        raise ConfigError(f"{config.init} has a learned sigma; add --learn-sigma")
    if config.learn_sigma and module.config["out_channels"] == 3:
        changes["out_channels"] = 6
        for name in ("conv_out.weight", "conv_out.bias"):
            weights[name] = torch.cat([weights[name], torch.zeros_like(weights[name])])
    adapted = cast(UNet2DModel, UNet2DModel.from_config({**module.config, **changes}))
    adapted.load_state_dict(weights)
    return adapted


def _scheduler(config: TrainConfig) -> dict[str, object]:
    """The scheduler of a new run; betas are scaled with T as in OpenAI's code, so that the top level stays."""
    assert config.diffusion_steps
    scale = 1000 / config.diffusion_steps
    betas: dict[str, dict[str, object]] = {
        "linear": {"beta_schedule": "linear", "beta_start": 1e-4 * scale, "beta_end": 0.02 * scale},
        "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4 * scale, "beta_end": 0.012 * scale},
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    }
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": config.diffusion_steps,
        **betas[str(config.schedule)],
        "prediction_type": config.target,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
    }


def _scheduler_of(model: Model) -> dict[str, object]:
    """The scheduler of a fine-tuned model: its own, as a DDIMScheduler that does not clip."""
    given = dict(cast(Mapping[str, object], model.facts["scheduler"]))
    if NoiseSchedule.from_config(given).digest != model.schedule.digest:  # given betas are not among the facts
        given["trained_betas"] = model.schedule.betas.tolist()
        given["num_train_timesteps"] = len(model.schedule)
    return {**given, "_class_name": "DDIMScheduler", "clip_sample": False}
