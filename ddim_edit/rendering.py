"""Clips on disk while they are made: a run that was killed goes on where it stopped, and ends with the same files.

A folder beside the output holds the plan of the clip, its key latents, and one PNG per finished picture. A picture is
there whole or not at all; a batch of which one is missing is decoded again in the same company, because the last bits
of a picture depend on it. The video is encoded once, from the PNGs, when all are there.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ddim_edit.errors import LatentsError, OutputError
from ddim_edit.files import atomic
from ddim_edit.grid import Grid
from ddim_edit.images import read_picture, write_image
from ddim_edit.latents import Latents
from ddim_edit.models.base import Model
from ddim_edit.morphing import Morph
from ddim_edit.motion import Motion
from ddim_edit.ode import OnStep

_PLAN, _KEYS = "plan.safetensors", "keys.safetensors"
_COUNTS = ("cost", "looked", "compared")  # of a plan
_OURS = re.compile(r"frame_\d{6,}\.png|plan\.safetensors|keys\.safetensors|\..+\.tmp\.\w+")


@dataclass(frozen=True)
class Checkpoint:
    """The folder of a clip in the making.

    Args:
        folder: where; made when there is something to keep.
        request: a digest of everything that the pictures depend on; the work of another request is not taken up.
    """

    folder: Path
    request: str

    @classmethod
    def beside(cls, output: Path, request: str) -> "Checkpoint":
        """The checkpoint of a clip that will be written to `output`."""
        return cls(output.with_name(f".{output.name}.unfinished"), request)

    def load(self, motion: Motion, grid: Grid) -> Morph | None:
        """The plan of an earlier run with the same request, or None where there is none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.folder / _PLAN, framework="pt") as file:
                facts = file.metadata() or {}
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if facts.get("request") != self.request:
                return None
            latents = Latents.load(self.folder / _KEYS)
        except (OSError, SafetensorError, LatentsError):
            return None
        photos, residuals = tensors.get("photos"), tensors.get("residuals")
        cost, looked, compared = (int(facts.get(name, 0)) for name in _COUNTS)
        return Morph(latents, motion, tensors["positions"], grid, photos, residuals, cost, looked, compared)

    def save(self, plan: Morph) -> None:
        """Keep a plan, in place of whatever another request left.

        Raises:
            OutputError: the folder holds what no run of ours put there, or cannot be written to.
        """
        from safetensors.torch import save

        self.remove()
        tensors = {"positions": plan.positions, "photos": plan.photos, "residuals": plan.residuals}
        given = {name: value.contiguous() for name, value in tensors.items() if value is not None}
        plan.latents.save(self.folder / _KEYS)
        with atomic(self.folder / _PLAN) as temporary:  # last: with it the folder counts
            facts = {"request": self.request, **{name: str(getattr(plan, name)) for name in _COUNTS}}
            temporary.write_bytes(save(given, facts))

    def missing(self, plan: Morph, batch_size: int) -> list[range]:
        """The batches of rows of `plan.positions` of which a picture is not there yet."""
        count = len(plan.positions)
        batches = (range(start, min(start + batch_size, count)) for start in range(0, count, batch_size))
        return [rows for rows in batches if not all(self._path(row).exists() for row in rows)]

    def left(self, plan: Morph, batch_size: int) -> int:
        """How many pictures have to be decoded."""
        return sum(len(rows) for rows in self.missing(plan, batch_size))

    def render(self, plan: Morph, model: Model, *, batch_size: int = 8, on_step: OnStep | None = None) -> None:
        """Decode and write the pictures that are missing."""
        for rows in self.missing(plan, batch_size):
            pictures = plan.frames(model, rows, batch_size=batch_size, on_step=on_step)
            for row, picture in zip(rows, pictures, strict=True):
                write_image(picture, self._path(row))

    def frames(self, plan: Morph) -> Iterator[Tensor]:
        """Read the frames of the finished clip (3, H, W), one at a time, in the order of the clip."""
        return map(self.picture, plan.order)

    def picture(self, row: int) -> Tensor:
        """Read one finished picture (3, H, W), of this row of `plan.positions`."""
        return read_picture(self._path(row))

    def remove(self) -> None:
        """Delete the folder.

        Raises:
            OutputError: it holds what no run of ours put there.
        """
        if not self.folder.exists():
            return
        if strange := [file.name for file in self.folder.iterdir() if not _OURS.fullmatch(file.name)]:
            raise OutputError(f"{self.folder} holds {strange[0]}, which is no part of a clip; move it away")
        shutil.rmtree(self.folder)

    def _path(self, row: int) -> Path:
        return self.folder / f"frame_{row:06d}.png"
