"""Morph through your own photos, and see why slerp and not lerp.

python examples/morph_video.py a.jpg b.jpg c.jpg out/
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import ddim_edit as de


def main(photos: Sequence[Path], out: Path, frames: int = 60, steps: int = 50) -> int:
    """Write morph.webp and a sheet of both paths; return the number of frames in the video."""
    model = de.load_model("small")
    pixels = torch.stack([de.read_image(photo, model.image_size) for photo in photos])
    latents = de.encode(model, pixels, grid=steps, check=False)

    # Frames are decoded when the writer asks for them, so a long video needs no more memory than a short one.
    exact = de.Motion(endpoints="exact", pilot=5)  # meets the photos, and finds an even pace from 5 frames a segment
    clip = de.morph(model, latents, frames, exact, photos=pixels)
    count = de.write_video(clip, out / "morph.webp", fps=30, scale=4)

    plain = [de.Motion(path=path, pace="none") for path in ("slerp", "lerp")]
    rows = [list(de.morph(model, latents, 2 * len(photos) - 1, motion)) for motion in plain]
    tiles = [[frame.clamp(-1, 1) for frame in row] for row in rows]
    de.write_image(de.sheet(tiles, row_titles=["slerp", "lerp"], scale=2), out / "paths.png")
    print(f"{count} frames in {out / 'morph.webp'}")
    return count


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:-1]], Path(sys.argv[-1]))
