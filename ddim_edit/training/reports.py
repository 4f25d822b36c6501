"""What a run shows of itself from time to time: its error on photos set aside, and a sheet of samples."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddim_edit.datasets import PhotoSet
from ddim_edit.decoding import sample
from ddim_edit.evaluation import Evaluation, evaluate_model
from ddim_edit.images import visible_scale, write_image
from ddim_edit.models import Model
from ddim_edit.models.unet2d import as_network, prediction_of
from ddim_edit.sheets import sheet
from ddim_edit.training.data import labels_of
from ddim_edit.training.network import Origin

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

SHEET_STEPS = 20
SHEET_COLUMNS = 8
SHEET_CLASSES = 4  # rows of the most frequent classes


@dataclass(frozen=True)
class Watch:
    """Looks at the averaged weights.

    Args:
        model: a model around the module that holds them.
        held_out: photos that are not trained on, or None.
        classes: shown on the sheet.
        batch_size: of evaluation and sampling.
    """

    model: Model
    held_out: PhotoSet | None
    classes: tuple[str, ...]
    batch_size: int

    @classmethod
    def of(cls, module: "UNet2DModel", origin: Origin, photos: PhotoSet, held_out: PhotoSet | None) -> "Watch":
        """Watch this module, which is in eval mode and where it shall run."""
        assert origin.config.size
        device, schedule = next(module.parameters()).device, origin.schedule
        model = Model(
            network=as_network(module, torch.float32, origin.scheduler, schedule),
            schedule=schedule,
            prediction=prediction_of(origin.scheduler),
            shape=(3, origin.config.size, origin.config.size),
            labels=origin.labels,
            name="the network",
            device=device,
        )
        counts = Counter(photos.classes or ()) if origin.labels else Counter[str]()
        classes = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        return cls(model, held_out, tuple(classes[:SHEET_CLASSES]), origin.config.batch_size)

    def evaluate(self) -> Evaluation | None:
        """The error on the photos set aside, without labels where the model can do without."""
        if self.held_out is None:
            return None
        labels = self.model.labels
        own = labels_of(self.held_out, labels).tolist() if labels and labels.null is None else None
        pixels = self.held_out.scaled
        level = 3 * len(self.model.schedule) // 10
        return evaluate_model(self.model, pixels, own, timesteps=[level], draws=2, batch_size=self.batch_size)

    def draw(self, path: Path) -> None:
        """Write a sheet of samples: the same seeds each time, without a label and for the most frequent classes.

        Clipped, as a network in its first steps would otherwise predict values of any size.
        """
        labels = self.model.labels
        shown: list[str | None] = [None, None] if labels is None else [None] * (labels.null is not None)
        shown += [
            name for name in self.classes if labels and (labels.null is None or name != labels.names[labels.null])
        ]
        titles = ["no label" if name is None else name for name in shown] if labels else []
        rows = [self._row(name, SHEET_COLUMNS * k * (labels is None)) for k, name in enumerate(shown)]
        scale = visible_scale(self.model.image_size[1])
        write_image(sheet(rows, row_titles=titles, scale=scale), path)

    def _row(self, label: str | None, first_seed: int) -> list[Tensor]:
        denoiser = self.model.denoiser(label, clip_x0=1.0, rederive_eps=True)
        seeds = range(first_seed, first_seed + SHEET_COLUMNS)
        steps = min(SHEET_STEPS, len(self.model.schedule))
        return list(sample(self.model, seeds, grid=steps, denoiser=denoiser))
