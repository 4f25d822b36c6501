"""What a training run is asked to do: one frozen table of settings, checked before anything is loaded."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, cast

from ddim_edit.errors import ConfigError
from ddim_edit.images import FITS, Fit
from ddim_edit.training.objectives import LOSSES, TARGETS
from ddim_edit.training.optimizers import OPTIMIZERS
from ddim_edit.training.timesteps import SAMPLERS

# Widths of the U-Net's levels; parameters with one layer per block at 64 x 64.
NETWORKS: Mapping[str, tuple[int, ...]] = {
    "tiny": (32, 64, 64),  # 1.1 M
    "small": (32, 64, 96, 128, 176),  # 7.4 M
    "base": (64, 128, 192, 256),  # 15 M
    "large": (128, 256, 384, 512),  # 59 M
}
SCHEDULES = ("linear", "scaled_linear", "cosine")
MIN_LINEAR_STEPS = 25  # with fewer, the betas of a linear schedule, scaled to reach the same top, come near 1
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
# Settings that the stored state depends on: they may not change when a run goes on.
FIXED = (
    "size",
    "channels",
    "layers",
    "attention",
    "dropout",
    "class_cond",
    "learn_sigma",
    "diffusion_steps",
    "schedule",
    "target",
    "schedule_sampler",
    "optimizer",
    "init",
    "fit",
    "set_aside",
    "seed",
    "label_dropout",
    "channels_last",  # the optimizer's memory has the layout of the weights
)
# Settings that weigh squared errors.
WEIGHTS = ("min_snr", "snr_floor", "high_noise", "moments")
# Settings that come from the model when one is fine-tuned, with what they are otherwise.
OF_MODEL: Mapping[str, Any] = {
    "size": 64,
    "channels": NETWORKS["small"],
    "layers": 1,
    "attention": 8,
    "diffusion_steps": 1000,
    "schedule": "linear",
    "target": "epsilon",
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. `None` means: as the model that is fine-tuned, or else the default named here.

    Args:
        size: height and width of the photos (64).
        channels: width of each level of the U-Net, from the photo's own size down (those of `small` in NETWORKS).
        layers: residual layers per level (1).
        attention: self-attention in levels of this many pixels a side and below (8).
        dropout: in the residual layers.
        diffusion_steps: T (1000).
        schedule: `linear`, `scaled_linear` or `cosine` (linear).
        target: what the network learns to output: `epsilon`, `sample`, `v_prediction`, or `x_prev`, the mean of
            x_{t-1} (epsilon).
        loss: `mse`, `vb`, `rescaled-vb`, or `hybrid` (with `learn_sigma`).
        learn_sigma: the network also outputs a variance.
        schedule_sampler: how timesteps are drawn: `uniform`, `stratified` or `loss-second-moment`.
        min_snr: gamma of the min-SNR weighting, or None for none.
        snr_floor: least weight of the error of x0, or None for none: learn colours at high noise; 0.02 is much.
        high_noise: power of 1 / signal that weighs the error of eps further, or None for none: the shapes of samples.
            That error falls about as the signal does, so with 1 every noise level counts alike; 2 is the loss of v,
            which a network that predicts v has without it.
        moments: weight of the mean and the size of the noise, or None for none: colours and grain of samples; try 0.05.
        class_cond: learn the photos' classes; the last label is the null class, `none`.
        label_dropout: how often a photo is shown without its class.
        fit: how photos get the network's shape; see `images.read_image`.
        flip: mirror photos, half of them by chance.
        init: a model to fine-tune: a folder, a hub id, or `small`.
        batch_size: photos at once, on each device.
        accumulate: batches per step of the optimizer.
        steps: stop after so many steps.
        minutes: stop after so many minutes. One of the two must be given; with both, the first one counts.
        optimizer: see `OPTIMIZERS`.
        lr: highest learning rate.
        warmup: steps over which it rises.
        decay: last part of the run, in [0, 1], over which it falls to 0; in between it is constant.
        clip_norm: longest gradient.
        ema: decay of the averaged weights, which are the ones that are saved as the model.
        precision: `fp32`, `bf16` or `fp16` of the network's arithmetic; weights and averages are float32.
        store: precision of the saved model, `fp32` or `fp16`.
        compile: compile the network; minutes of waiting first, then faster.
        channels_last: memory layout that GPUs prefer.
        set_aside: photos that are not trained on; the error on them is watched.
        report_every: steps between reports, each with a checkpoint; None for every ten minutes.
        sample_every: steps between sample sheets, drawn with the next report; None for one in every report.
        licence: of the photos, for the model card.
        seed: of everything random.
    """

    size: int | None = None
    channels: tuple[int, ...] | None = None
    layers: int | None = None
    attention: int | None = None
    dropout: float = 0.0
    diffusion_steps: int | None = None
    schedule: str | None = None
    target: str | None = None
    loss: str = "mse"
    learn_sigma: bool = False
    schedule_sampler: str = "stratified"
    min_snr: float | None = None
    snr_floor: float | None = None
    high_noise: float | None = None
    moments: float | None = None
    class_cond: bool = False
    label_dropout: float = 0.1
    fit: Fit = "crop"
    flip: bool = True
    init: str | None = None
    batch_size: int = 16
    accumulate: int = 1
    steps: int | None = None
    minutes: float | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    warmup: int = 200
    decay: float = 0.35
    clip_norm: float = 1.0
    ema: float = 0.999
    precision: str = "fp32"
    store: str = "fp32"
    compile: bool = False
    channels_last: bool = False
    set_aside: int = 0
    report_every: int | None = None
    sample_every: int | None = None
    licence: str = "unknown"
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.channels, list):  # as JSON has them
            object.__setattr__(self, "channels", tuple(self.channels))
        for name, known in (
            ("fit", FITS),
            ("schedule", (*SCHEDULES, None)),
            ("target", (*TARGETS, None)),
            ("loss", LOSSES),
            ("schedule_sampler", tuple(SAMPLERS)),
            ("optimizer", tuple(OPTIMIZERS)),
            ("precision", tuple(PRECISIONS)),
            ("store", ("fp32", "fp16")),
        ):
            if (value := getattr(self, name)) not in known:
                listed = ", ".join(choice for choice in known if choice)
                raise ConfigError(f"{name} {value!r} is unknown; choose one of {listed}")
        _check_ranges(self)
        _check_pairs(self)

    def resolved(self, of_model: Mapping[str, Any] | None = None) -> "TrainConfig":
        """The same with no None among the settings that a model has.

        Args:
            of_model: those settings of the model that is fine-tuned, or None where there is none.

        Raises:
            ConfigError: a setting was given that the fine-tuned model fixes.
        """
        if of_model is not None and (
            given := [name for name in OF_MODEL if getattr(self, name) not in (None, of_model[name])]
        ):
            own = of_model[given[0]] if of_model[given[0]] is not None else "settled"
            raise ConfigError(f"{given[0]} is {own} in {self.init}; leave it out when fine-tuning")
        known = OF_MODEL if of_model is None else of_model
        return replace(self, **{name: known[name] for name in OF_MODEL if getattr(self, name) is None})

    def to_json(self) -> dict[str, object]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "TrainConfig":
        """Read what `to_json` wrote; unknown names are a ConfigError."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"{', '.join(unknown)} is no setting of a training run; update ddim-edit")
        return cls(**cast(dict[str, Any], dict(values)))

    def require_same(self, other: "TrainConfig") -> None:
        """Refuse to go on with a run whose settings differ where its state depends on them.

        Raises:
            ConfigError: names what differs.
        """
        differing = [name for name in FIXED if getattr(self, name) != getattr(other, name)]
        if differing:
            name = differing[0]
            raise ConfigError(
                f"the run began with {name} {getattr(other, name)!r}, not {getattr(self, name)!r}; "
                "give the same settings to --resume, or choose another --output"
            )


# Name of a setting -> the rule that it must follow, and how to say so.
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("size", "layers", "batch_size", "accumulate", "steps", "report_every", "sample_every"),
        (lambda value: isinstance(value, int) and value >= 1, "a whole number above 0"),
    ),
    **dict.fromkeys(
        ("minutes", "lr", "clip_norm", "min_snr", "snr_floor", "moments"), (lambda value: value > 0, "a number above 0")
    ),
    **dict.fromkeys(("attention", "warmup", "set_aside"), (lambda value: value >= 0, "0 or more")),
    "seed": (lambda value: 0 <= value < 2**63, "0 or more, below 2^63"),
    **dict.fromkeys(("dropout", "label_dropout", "ema"), (lambda value: 0 <= value < 1, "a number in [0, 1)")),
    "decay": (lambda value: 0 <= value <= 1, "a number in [0, 1]"),
    "diffusion_steps": (lambda value: value >= 2, "2 or more, usually 1000"),
    "high_noise": (lambda value: 0 < value <= 2, "a number in (0, 2]; 2 weighs as the loss of v does"),
}


def _check_ranges(config: TrainConfig) -> None:
    for name, (holds, rule) in _RULES.items():
        value = getattr(config, name)
        if value is not None and not holds(value):
            raise ConfigError(f"{name} is {value}; choose {rule}")


def _check_pairs(config: TrainConfig) -> None:
    """Settings that only make sense, or make none, together."""
    if config.steps is None and config.minutes is None:
        raise ConfigError("neither steps nor minutes were given; say when the run ends, for example --minutes 60")
    if config.learn_sigma and config.loss == "mse":
        raise ConfigError("loss mse leaves a learned sigma untrained; choose hybrid, vb or rescaled-vb")
    if config.loss == "hybrid" and not config.learn_sigma:
        raise ConfigError("loss hybrid trains a learned sigma; add --learn-sigma, or choose mse")
    weights = {name: getattr(config, name) for name in WEIGHTS if getattr(config, name) is not None}
    if weights and (config.loss not in ("mse", "hybrid") or config.target == "x_prev"):
        name = next(iter(weights))
        raise ConfigError(f"{name} weighs squared errors of epsilon, sample or v; leave it out with vb and x_prev")
    if config.precision == "fp16" and config.optimizer == "muon":
        raise ConfigError("precision fp16 scales gradients for one optimizer, and muon is two; choose bf16 or adamw")
    if {"min_snr", "snr_floor"} <= weights.keys() and weights["snr_floor"] > weights["min_snr"]:
        raise ConfigError(f"snr_floor {config.snr_floor:g} is above min_snr {config.min_snr:g}; choose it below")
    if config.init is None:
        _check_network(config)


def _check_network(config: TrainConfig) -> None:
    """What a model that is fine-tuned has settled already."""
    if config.channels is not None and not (config.channels and all(w >= 8 and w % 8 == 0 for w in config.channels)):
        raise ConfigError(f"channels is {config.channels}; choose widths that are multiples of 8")
    steps = config.diffusion_steps
    if steps is not None and steps < MIN_LINEAR_STEPS and config.schedule != "cosine":
        raise ConfigError(f"diffusion_steps is {steps}; choose {MIN_LINEAR_STEPS} or more, or the cosine schedule")
    size, levels = config.size or OF_MODEL["size"], len(config.channels or OF_MODEL["channels"])
    if size % 2 ** (levels - 1):
        multiple = 2 ** (levels - 1)
        raise ConfigError(f"size {size} cannot be halved {levels - 1} times; choose a multiple of {multiple}")
