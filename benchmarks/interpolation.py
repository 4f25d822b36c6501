"""How even morphs are, beside the usual ways to make them, on the same latents and the same model.

    python benchmarks/interpolation.py PHOTO PHOTO PHOTO... --steps 20 --frames 60
    python benchmarks/interpolation.py PHOTO... --pairs 6 --steps 10

The first prints one table for one clip through all photos, where the usual ways are written out below: `slerp` with one
dot product and a threshold, as in the helper of diffusers, at uniform alphas; `walk`, the same segment by segment with
both ends in each; and a fade of pixels. The second prints what pacing, slerp and the kinds of endpoints do to each of
so many pairs. Smoothness is 1 - Gini of the steps between frames; steps are L2 on [0, 1]. Without photos it takes those
of scikit-image's wheel.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import ddim_edit as de
from ddim_edit.images import to_tensor, to_uint8
from ddim_edit.pacing import Steps, dissimilarity, l2


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
    row("the same, decoded ends", list(replace(exact, photos=None).frames(model)), photos)
    row("diffusers-style slerp", decoded(model, latents, usual_path(latents.x, frames), steps), photos)
    row("walk", decoded(model, latents, walk_path(latents.x, frames), steps), photos)
    row("fade of pixels", fade(photos, frames), photos)


def compare_pairs(model: de.Model, photos: Tensor, pairs: int, steps: int, frames: int) -> None:
    latents = de.encode(model, photos, grid=steps, check=False)
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for a, b in islice(permutations(range(len(photos)), 2), pairs):
        keys, ends = latents.select([a, b]), photos[[a, b]]
        for pilot in (0, 9, frames):
            motion = de.Motion(pace="l2" if pilot else "none", pilot=max(2, pilot))
            plan = de.plan_morph(model, keys, frames, motion)
            clip = list(plan.frames(model))
            note(f"gini, {f'pilot {pilot}' if pilot else 'uniform'}", 1 - Steps.of(clip).smoothness)
            if pilot == 9:
                for name, value in end_steps(clip, ends, plan.positions):
                    note(name, value)
        std = torch.stack(list(ends_and_middles(model, keys, steps))).std(dim=(1, 2, 3))
        for name, value in zip(("slerp", "lerp"), std[2:], strict=True):
            note(f"pixel std in the middle over the ends, {name}", float(value / std[:2].mean()))
    for name, values in found.items():
        print(f"{name}: mean {np.mean(values):.3f}, from {min(values):.3f} to {max(values):.3f}, {len(values)} pairs")


def end_steps(clip: list[Tensor], ends: Tensor, u: Tensor) -> Iterator[tuple[str, float]]:
    """The larger of the first and the last step over the median one, for the three kinds of endpoints."""
    residual = ends - torch.stack([clip[0], clip[-1]])
    faded = [frame + (1 - t) * residual[0] + t * residual[1] for frame, t in zip(clip, u.tolist(), strict=True)]
    for name, frames in (
        ("decoded", clip),
        ("paste", [ends[0], *clip[1:-1], ends[1]]),
        ("exact", faded),
    ):
        lengths = Steps.of(frames).lengths
        yield f"end step over median, {name}", max(lengths[0], lengths[-1]) / float(np.median(lengths))
    yield "end error, exact", max(l2(faded[0], ends[0]), l2(faded[-1], ends[1]))


def ends_and_middles(model: de.Model, keys: de.Latents, steps: int) -> Iterator[Tensor]:
    a, b = keys.x
    yield from decoded(model, keys, torch.stack([a, b, de.slerp(a, b, 0.5), de.lerp(a, b, 0.5)]), steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path)
    parser.add_argument("--limit", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=0)
    args = parser.parse_args()

    import skimage

    data = Path(skimage.__file__).parent / "data"
    given = args.photos or [data / name for name in ("astronaut.png", "chelsea.png", "coffee.png")]
    model = de.load_model("small")
    found = de.find_photos(given)
    chosen = found[:: max(1, len(found) // args.limit)][: args.limit]
    photos = torch.stack([photo.read(model.image_size) for photo in chosen])
    print(f"{', '.join(photo.name for photo in chosen)}; {args.steps} steps, {args.frames} frames")
    if args.pairs:
        compare_pairs(model, photos, args.pairs, args.steps, args.frames)
    else:
        compare_ways(model, photos, args.steps, args.frames)


if __name__ == "__main__":
    main()
