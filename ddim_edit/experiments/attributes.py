"""What can be said of a picture without another network: three attributes that pixels show, and how rough it is.

They are exact on the synthetic discs of the tests and only indicative on photos of one thing on a plain background.
"""

import torch
from torch import Tensor

ATTRIBUTES = ("hue", "background", "area")


def attributes(pixels: Tensor) -> dict[str, Tensor]:
    """The attributes of pictures (B, 3, H, W) in [-1, 1], each (B,) float64.

    `hue`: mean of red minus blue over the middle sixteenth of the picture. `background`: mean of the four corners.
    `area`: share of pixels that differ from the mean colour of the corners by more than 0.25 in some channel.
    """
    x = pixels.double()
    height, width = x.shape[-2:]
    middle = x[..., height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8]
    h, w = max(1, height // 8), max(1, width // 8)
    corners = torch.cat([x[..., :h, :w], x[..., :h, -w:], x[..., -h:, :w], x[..., -h:, -w:]], dim=-1).mean((-2, -1))
    away = (x - corners[..., None, None]).abs().amax(dim=1) > 0.25
    return {
        "hue": (middle[:, 0] - middle[:, 2]).mean((-2, -1)),
        "background": corners.mean(-1),
        "area": away.double().mean((-2, -1)),
    }


def roughness(pixels: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels (B, 3, H, W) in [-1, 1]: (B,) float64. Noise raises it."""
    x = pixels.double()
    across, down = (x[..., 1:] - x[..., :-1]).abs(), (x[..., 1:, :] - x[..., :-1, :]).abs()
    return (across.mean((1, 2, 3)) + down.mean((1, 2, 3))) / 2
