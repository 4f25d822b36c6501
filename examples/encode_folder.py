"""Encode a folder of photos, eight at a time, into one latents file each; a bad photo costs no other.

python examples/encode_folder.py photos/ latents/
"""

import sys
from pathlib import Path

import ddim_edit as de


def main(folder: Path, out: Path, batch_size: int = 8) -> tuple[int, int]:
    """Write `out/<name>.safetensors` for every photo that can be encoded; return how many could and could not."""
    model = de.load_model("small")
    recipe = de.Recipe(de.Grid.build(model.schedule, 20, "quadratic"), de.Ddim(), model.denoiser())
    batches = de.PhotoBatches(de.find_photos(folder), model.image_size, batch_size=batch_size)

    done = 0
    for encoded in de.encode_photos(model, batches, recipe, failures=batches.failures):
        for row, photo in enumerate(encoded.latents.photos):
            encoded.latents.select([row]).save(out / f"{photo.name}.safetensors")
            done += 1
            if photo.quality:
                print(f"{photo.name}: comes back with {photo.quality.psnr:.1f} dB")

    for failure in batches.failures:
        print(f"failed: {failure.error}")
    return done, len(batches.failures)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
