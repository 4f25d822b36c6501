"""Training and fine-tuning of pixel models: `train` and its settings."""

from ddim_edit.training.config import TrainConfig
from ddim_edit.training.loop import Progress, Watchers, train

__all__ = ["Progress", "TrainConfig", "Watchers", "train"]
