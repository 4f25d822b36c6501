"""The demo: what the package does, as five pictures, with the bundled model and photos from scikit-image."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ddim_edit.decoding import sample
from ddim_edit.errors import MissingExtraError
from ddim_edit.grid import Grid
from ddim_edit.images import read_image, write_image
from ddim_edit.inverse import Exact, Explicit
from ddim_edit.inversion import default_grid, round_trip
from ddim_edit.latents import Latents
from ddim_edit.metrics import Quality, compare
from ddim_edit.models import Model, load_model
from ddim_edit.morphing import morph
from ddim_edit.motion import Motion
from ddim_edit.noise import SeededNoise
from ddim_edit.plots import error_figure, latent_figure
from ddim_edit.recipe import Recipe
from ddim_edit.sheets import sheet, strip
from ddim_edit.solvers import Ddim
from ddim_edit.video import check_video_path, write_video

PICTURES = ("1_reconstruction.png", "2_latent.png", "3_morph.png", "4_consistency.png", "5_error_vs_steps.png")
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png")
STEPS = 20
CURVE = (10, 20, 50)  # plain DDIM both ways, beside the exact inverse at EXACT_CURVE
EXACT_CURVE = (10,)  # besides STEPS
FRAMES, FRAME_STEPS = 9, 15
COLUMNS = (10, 20, 50, 100)


def outputs(folder: Path) -> list[Path]:
    """Every file that `run_demo` writes there: the five pictures, and the morph as a video."""
    return [*(folder / name for name in PICTURES), _video_path(folder / PICTURES[2])]


def run_demo(folder: Path) -> Iterator[tuple[Path, str]]:
    """Make the pictures one by one; yields each path with one line on what it shows."""
    model = load_model("small")
    photos = torch.stack([read_image(_sample_photos() / name, model.image_size) for name in PHOTOS])
    names = [Path(name).stem for name in PHOTOS]
    paths = [folder / name for name in PICTURES]
    latents, restored = round_trip(model, photos, _exact(model, STEPS))
    assert restored is not None
    quality = compare(photos, restored.pixels)
    yield paths[0], _draw_reconstruction(photos, latents, restored.pixels, quality, names, paths[0])
    latent_figure(latents.x, [_visible(x) for x in latents.x], names, paths[1])
    yield paths[1], "what the photos become: x_T, and its histogram against N(0, 1)"
    yield paths[2], _draw_morph(model, latents, paths[2])
    yield paths[3], _draw_consistency(model, latents.x[:1], names[0], paths[3])
    yield paths[4], _draw_curve(model, photos, quality, paths[4])


def _exact(model: Model, steps: int) -> Recipe:
    return Recipe(default_grid(model.schedule, steps), Ddim(), model.denoiser(), Exact())


def _sample_photos() -> Path:
    import skimage

    return Path(skimage.__file__).parent / "data"


def _visible(x: Tensor) -> Tensor:
    """A latent as a picture: three standard deviations fill the range."""
    return (x / 3).clamp(-1, 1)


def _draw_reconstruction(
    photos: Tensor, latents: Latents, restored: Tensor, quality: list[Quality], names: list[str], path: Path
) -> str:
    columns = ["photo", "x_T", "decoded again", "difference x 10"]
    difference = ((restored - photos) * 10).clamp(-1, 1)
    tiles = [
        [photo, _visible(x), back.clamp(-1, 1), error]
        for photo, x, back, error in zip(photos, latents.x, restored, difference, strict=True)
    ]
    captions = [["", "", f"{q.psnr:.1f} dB", ""] for q in quality]
    write_image(sheet(tiles, row_titles=names, column_titles=columns, captions=captions, scale=3), path)
    mean = sum(q.psnr for q in quality) / len(quality)
    return f"photos encoded into noise and decoded again by plain DDIM in {STEPS} steps: {mean:.1f} dB on average"


def _draw_morph(model: Model, latents: Latents, path: Path) -> str:
    levels = default_grid(model.schedule, FRAME_STEPS)
    frames = [frame.clamp(-1, 1) for frame in morph(model, latents, FRAMES, Motion(pace="none"), grid=levels)]
    write_image(strip(frames[::2], scale=2), path)
    video = _video_path(path)
    write_video(frames + frames[-2:0:-1], video, fps=8, scale=4)
    return f"a morph through the photos, on a spline through their latents; {video.name} shows it moving"


def _video_path(picture: Path) -> Path:
    """Beside the picture: an mp4, or a WebP where mp4 cannot be written."""
    try:
        check_video_path(picture.with_suffix(".mp4"))
    except MissingExtraError:
        return picture.with_suffix(".webp")
    return picture.with_suffix(".mp4")


def _draw_consistency(model: Model, x: Tensor, name: str, path: Path) -> str:
    grids = [default_grid(model.schedule, steps) for steps in COLUMNS]  # all start where x_T is
    same = [sample(model, x, grid=grid) for grid in grids]
    other = [sample(model, x, grid=grid, solver=Ddim(eta=1.0), noise=SeededNoise((0,))) for grid in grids]
    rows = [[pictures[0].clamp(-1, 1) for pictures in row] for row in (same, other)]
    titles = [f"{name}\neta 0", f"{name}\neta 1"]
    columns = [f"{steps} steps" for steps in COLUMNS]
    write_image(sheet(rows, row_titles=titles, column_titles=columns, scale=3), path)
    return "the same x_T decoded in 10 to 100 steps is the same picture at eta 0, and another each time at eta 1"


def _draw_curve(model: Model, photos: Tensor, quality: list[Quality], path: Path) -> str:
    def error(found: list[Quality]) -> float:
        return sum(q.mse for q in found) / len(found)

    def measured(recipe: Recipe) -> float:
        restored = round_trip(model, photos, recipe)[1]
        assert restored is not None
        return error(compare(photos, restored.pixels))

    explicit = {
        steps: measured(Recipe(Grid.of(model.schedule, steps), Ddim(), model.denoiser(), Explicit())) for steps in CURVE
    }
    exact = {steps: measured(_exact(model, steps)) for steps in EXACT_CURVE} | {STEPS: error(quality)}
    error_figure({"plain DDIM inversion": explicit, "exact inversion, the default": exact}, path)
    told = ", ".join(f"{steps}: {value:.4f}" for steps, value in explicit.items())
    return f"error of the round trip against steps: {told}; with exact inversion, {STEPS}: {exact[STEPS]:.1e}"
