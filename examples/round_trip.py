"""Encode a photo into noise and decode it again: the whole idea of the package in a page.

python examples/round_trip.py photo.jpg out/
"""

import sys
from pathlib import Path

import ddim_edit as de


def main(photo: Path, out: Path, steps: int = 50) -> float:
    """Write the photo, its latent and what comes back; return the PSNR in dB."""
    model = de.load_model("small")
    pixels = de.read_image(photo, model.image_size)[None]  # (1, 3, 64, 64) in [-1, 1]

    latents = de.encode(model, pixels, grid=steps)  # the ODE toward noise, then a self-check
    latents.save(out / "latents.safetensors")

    again = de.Latents.load(out / "latents.safetensors")
    picture = de.decode(model, again)  # the same grid, walked back

    tiles = [[pixels[0], (latents.x[0] / 3).clamp(-1, 1), picture[0].clamp(-1, 1)]]
    titles = ["photo", "x_T", "decoded"]
    de.write_image(de.sheet(tiles, column_titles=titles, scale=3), out / "round_trip.png")
    quality = de.compare(pixels, picture)[0]
    print(f"{photo.name}: {quality.psnr:.1f} dB after {steps} steps each way")
    for line in de.advice(latents.photos[0]):
        print(f"advice: {line}")
    return quality.psnr


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
