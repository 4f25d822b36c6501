"""How even morphs are, beside the usual ways to make them, on the same latents and the same model.

    python benchmarks/interpolation.py PHOTO PHOTO PHOTO... --steps 20 --frames 60
    python benchmarks/interpolation.py PHOTO... --limit 9 --pairs 6 --frames 33

The first prints one table for one clip through all photos, where the usual ways are written out below: `slerp` with one
dot product and a threshold, as in the helper of diffusers, at uniform alphas; `walk`, the same segment by segment with
both ends in each; and a fade of pixels. The second prints what pacing and the kinds of endpoints do to so many pairs,
and how much contrast the middle keeps, against bars; it fails where one is missed. Smoothness is 1 - Gini of the steps
between frames; steps are L2 on [0, 1]. Without photos it takes those of scikit-image's wheel.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import ddim_edit as de
from ddim_edit.images import to_tensor, to_uint8
from ddim_edit.pacing import Steps, dissimilarity


def usual_slerp(a: Tensor, b: Tensor, t: float, threshold: float = 0.9995) -> Tensor:
    """One dot product over the whole tensor, and lerp where the two are nearly parallel or opposite."""
    dot = float((a * b).sum() / (a.norm() * b.norm()))
    if abs(dot) > threshold:
        return (1 - t) * a + t * b
    theta = float(np.arccos(dot))
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


def usual_path(keys: Tensor, frames: int) -> Tensor:
    """Piece by piece at uniform alphas, every key once."""
    u = np.linspace(0, len(keys) - 1, frames)
    parts = [(min(int(v), len(keys) - 2), v) for v in u]
    return torch.stack([usual_slerp(keys[i], keys[i + 1], v - i) for i, v in parts])


def walk_path(keys: Tensor, frames: int) -> Tensor:
    """Segment by segment from 0 to 1, so that inner keys come twice."""
    count = frames // (len(keys) - 1)
    return torch.cat([usual_path(keys[i : i + 2], count) for i in range(len(keys) - 1)])


def fade(photos: Tensor, frames: int) -> Tensor:
    return de.along(photos, torch.linspace(0, len(photos) - 1, frames, dtype=torch.float64), "lerp")


def decoded(model: de.Model, latents: de.Latents, x: Tensor, steps: int) -> Tensor:
    frames = [
        de.decode(model, de.Latents(part, latents.level, latents.space, latents.how), grid=steps) for part in x.split(8)
    ]
    return torch.cat(frames)


def row(name: str, frames: Sequence[Tensor] | Tensor, photos: Tensor) -> None:
    """One line of the table."""
    shown = [to_tensor(to_uint8(frame)) for frame in frames]  # what a viewer gets: 8 bits
    steps, structure = Steps.of(shown), Steps.of(shown, dissimilarity)
    errors = [min(float((frame - photo).abs().max()) / 2 for frame in shown) for photo in photos]
    sharp = np.array([float(frame.diff(dim=-1).abs().mean() + frame.diff(dim=-2).abs().mean()) for frame in shown])
    print(
        f"| {name:22} | {len(shown):4} | {steps.smoothness:.3f} | {structure.smoothness:.3f} | "
        f"{steps.largest_over_median:5.2f} | {steps.repeated:2} | {max(errors):.4f} | {sharp.min() / sharp.max():.2f} |"
    )


def compare_ways(model: de.Model, photos: Tensor, steps: int, frames: int) -> None:
    latents = de.encode(model, photos, grid=steps, check=False)
    print("| way | frames | smoothness L2 | smoothness SSIM | largest / median | repeated | key error | least detail |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    exact = de.plan_morph(model, latents, frames, de.Motion(endpoints="exact"), photos=photos)
    row("ddim-edit interpolate", list(exact.frames(model)), photos)
    by_structure = de.plan_morph(model, latents, frames, de.Motion(endpoints="exact", pace="ssim"), photos=photos)
    row("the same, --pace ssim", list(by_structure.frames(model)), photos)
    row("the same, decoded ends", list(replace(exact, photos=None).frames(model)), photos)
    row("diffusers-style slerp", decoded(model, latents, usual_path(latents.x, frames), steps), photos)
    row("walk", decoded(model, latents, walk_path(latents.x, frames), steps), photos)
    row("fade of pixels", fade(photos, frames), photos)


def compare_pairs(model: de.Model, photos: Tensor, pairs: int, middles: int, steps: int, frames: int) -> bool:
    """What pacing, kinds of endpoints and the middle do to pairs; whether every bar holds."""
    latents = de.encode(model, photos, grid=steps, check=False)
    found: dict[str, list[float]] = {}
    for a, b in islice(combinations(range(len(photos)), 2), max(pairs, middles)):
        keys, ends, number = latents.select([a, b]), photos[[a, b]], len(found.get("middle, slerp", ()))
        measured = contrast(model, keys, steps)
        if number < pairs:
            measured |= paces(model, keys, frames) | ends_of(model, keys, ends, frames)
        for name, value in measured.items():
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        print(f"{name}: mean {np.mean(values):.4f}, from {min(values):.4f} to {max(values):.4f}, {len(values)} pairs")
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    bars = {
        "gini, pilot = frames, at most 1/10 of uniform": mean["gini, pilot = frames"] <= mean["gini, uniform"] / 10,
        "gini, settled, at most 1/10 of uniform": mean["gini, settled"] <= mean["gini, uniform"] / 10,
        "gini, pilot 9, at most 1/3 of uniform": mean["gini, pilot 9"] <= mean["gini, uniform"] / 3,
        "end step of every exact clip at most 2 medians": max(found["end step, exact"]) <= 2,
        "photos met by every exact clip within 1e-6": max(found["end error, exact"]) <= 1e-6,
        "middle of slerp has at least .85 of the contrast": mean["middle, slerp"] >= 0.85,
    }
    for name, holds in bars.items():
        print(f"{'holds' if holds else 'MISSED'}: {name}")
    return all(bars.values())


def paces(model: de.Model, keys: de.Latents, frames: int) -> dict[str, float]:
    """Gini of the steps between frames: no pilot, a small one, one as long as the clip, a pass over the frames."""
    motions = {
        "uniform": de.Motion(pace="none"),
        "pilot 9": de.Motion(pilot=9),
        "pilot = frames": de.Motion(pilot=frames),
        "settled": de.Motion(pilot=9, settle=1),
    }
    return {
        f"gini, {name}": 1 - Steps.of(list(de.morph(model, keys, frames, motion))).smoothness
        for name, motion in motions.items()
    }


def ends_of(model: de.Model, keys: de.Latents, ends: Tensor, frames: int) -> dict[str, float]:
    """The larger of the first and the last step over the median one, by kind of endpoint."""
    found: dict[str, float] = {}
    for kind in ("decoded", "paste", "exact"):
        motion = de.Motion(endpoints=kind, pilot=9)
        clip = list(de.morph(model, keys, frames, motion, photos=None if kind == "decoded" else ends))
        lengths = Steps.of(clip).lengths
        found[f"end step, {kind}"] = max(lengths[0], lengths[-1]) / float(np.median(lengths))
        if kind == "exact":
            found["end error, exact"] = float((torch.stack([clip[0], clip[-1]]) - ends).abs().max())
    return found


def contrast(model: de.Model, keys: de.Latents, steps: int) -> dict[str, float]:
    """The standard deviation of the pixels halfway, over that of the ends."""
    a, b = keys.x
    pictures = decoded(model, keys, torch.stack([a, b, de.slerp(a, b, 0.5), de.lerp(a, b, 0.5)]), steps)
    std = pictures.std(dim=(1, 2, 3))
    return {f"middle, {name}": float(std[k] / std[:2].mean()) for name, k in (("slerp", 2), ("lerp", 3))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path)
    parser.add_argument("--limit", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=0, help="to pace and to end in every way")
    parser.add_argument("--middles", type=int, default=32, help="pairs whose middle is looked at, with --pairs")
    args = parser.parse_args()

    import skimage

    data = Path(skimage.__file__).parent / "data"
    given = args.photos or [data / name for name in ("astronaut.png", "chelsea.png", "coffee.png")]
    model = de.load_model("small")
    found = de.find_photos(given)
    chosen = found[:: max(1, len(found) // args.limit)][: args.limit]
    photos = torch.stack([photo.read(model.image_size) for photo in chosen])
    print(f"{', '.join(photo.name for photo in chosen)}; {args.steps} steps, {args.frames} frames")
    if not args.pairs:
        compare_ways(model, photos, args.steps, args.frames)
    elif max(args.pairs, args.middles) > (possible := len(photos) * (len(photos) - 1) // 2):
        parser.error(f"{len(photos)} photos make {possible} pairs; give more photos, and a larger --limit")
    elif not compare_pairs(model, photos, args.pairs, args.middles, args.steps, args.frames):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
