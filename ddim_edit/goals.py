"""How well a photo must come back: the goal of an inverse, checked on what is decoded."""

from dataclasses import dataclass

from torch import Tensor

from ddim_edit.errors import ConfigError
from ddim_edit.metrics import changed_8bit, mse

EVERY_BYTE_RMS = 3e-4  # on [0, 1]: small enough that the largest error of a photo usually stays below half a byte


@dataclass(frozen=True)
class Goal:
    """How well a photo must come back.

    Args:
        rms: error of the decoded photo, root mean square on the scale [0, 1].
        every_byte: besides, every 8-bit value must be that of the photo.
    """

    rms: float
    every_byte: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.rms < 1:
            raise ConfigError(f"tolerance {self.rms:g} is no RMS error on [0, 1]; choose it between 0 and 1, like 1e-3")

    @classmethod
    def of_psnr(cls, decibels: float) -> "Goal":
        """At least this PSNR in dB."""
        return cls(10 ** (-decibels / 20))

    def measured(self, pixels: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) RMS errors on [0, 1], and (B,) bool, whether the goal is reached."""
        rms = mse(pixels, restored).sqrt()
        return rms, changed_8bit(pixels, restored) == 0 if self.every_byte else rms <= self.rms


EIGHT_BIT = Goal(EVERY_BYTE_RMS, every_byte=True)
