"""Show what a model draws: samples without a class, rows of classes, and the nearest training photos of some samples.

python scripts/model_pictures.py ../shared/data/garments64_train.npz docs/ --model small

The last sheet shows whether the model has learned photos by heart: each sample stands above the training photo, plain
or mirrored, that is nearest to it (RMS distance at half size).
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

import ddim_edit as de
from ddim_edit.datasets import read_photo_set

CLASSES = ("T-Shirt", "Dress", "Pants", "Shoes", "Hat")
STEPS, GUIDANCE, BATCH = 50, 2.0, 16


def draw(model: de.Model, count: int, label: str | None = None) -> Tensor:
    """(count, 3, H, W) from the seeds 0, 1, ..."""
    denoiser = model.denoiser(label, guidance=GUIDANCE if label else 1.0)
    seeds = [part.tolist() for part in torch.arange(count).split(BATCH)]
    return torch.cat([de.sample(model, part, grid=STEPS, denoiser=denoiser) for part in seeds]).clamp(-1, 1)


def nearest(samples: Tensor, photos: Tensor) -> tuple[Tensor, Tensor]:
    """The photo nearest to each sample, (B, 3, H, W), and its RMS distance on [0, 1], (B,)."""
    both = torch.cat([photos, photos.flip(-1)])
    small, smaller = (avg_pool2d(x, 2).flatten(1) for x in (samples, both))
    distance, row = torch.cdist(small, smaller).min(dim=1)
    return both[row], distance / 2 / smaller.shape[1] ** 0.5


def write(tiles: Tensor, columns: int, path: Path, **titles: object) -> None:
    rows = [list(part) for part in tiles.split(columns)]
    de.write_image(de.sheet(rows, **titles), path)  # pyright: ignore[reportArgumentType]
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="small")
    args = parser.parse_args()
    model = de.load_model(args.model)

    samples = draw(model, 64)
    write(samples, 8, args.out / "samples.png")
    write(torch.cat([draw(model, 16, name) for name in CLASSES]), 16, args.out / "classes.png", row_titles=CLASSES)

    pixels = read_photo_set(args.photos, model.image_size).scaled
    alike, distances = nearest(samples[:16], pixels)
    captions = [[""] * 8, [f"{d:.3f}" for d in distances[:8]], [""] * 8, [f"{d:.3f}" for d in distances[8:]]]
    pairs = torch.cat([samples[:8], alike[:8], samples[8:16], alike[8:]])
    titles = ["drawn", "nearest photo"] * 2
    write(pairs, 8, args.out / "nearest.png", row_titles=titles, captions=captions)


if __name__ == "__main__":
    main()
