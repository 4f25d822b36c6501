"""Make the pictures of the READMEs, with the bundled model and photos from scikit-image's wheel.

python scripts/readme_pictures.py docs/
"""

import sys
from pathlib import Path

import skimage
import torch

import ddim_edit as de

PHOTOS = ("astronaut", "chelsea", "coffee")


def main(out: Path) -> None:
    model = de.load_model("small")
    folder = Path(skimage.__file__).parent / "data"
    photos = torch.stack([de.read_image(folder / f"{name}.png", model.image_size) for name in PHOTOS])
    latents = de.encode(model, photos)
    restored = de.decode(model, latents)

    tiles = [
        [photo, (x / 3).clamp(-1, 1), back.clamp(-1, 1), ((back - photo) * 10).clamp(-1, 1)]
        for photo, x, back in zip(photos, latents.x, restored, strict=True)
    ]
    captions = [["", "", f"{record.quality.psnr:.1f} dB", ""] for record in latents.photos if record.quality]
    titles = ["photo", "x_T", "decoded again", "difference x 10"]
    sheet = de.sheet(tiles, row_titles=PHOTOS, column_titles=titles, captions=captions, scale=2)
    de.write_image(sheet, out / "reconstruction.png")

    loop = de.morph(model, latents, 36, de.Motion(loop="closed", endpoints="exact"), photos=photos)
    de.write_video(loop, out / "morph.webp", fps=12, scale=3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
