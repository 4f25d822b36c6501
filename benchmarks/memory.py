"""Peak memory of a long morph against a short one: frames stream to the file, so length must not matter.

    python benchmarks/memory.py --frames 60,600

Runs `ddim-edit interpolate` once per length, each in a process of its own, and prints its peak resident memory. The
target is 10 % more for ten times the frames, at most.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

RUN = """
import resource, sys
from ddim_edit.cli import main
try:
    main(sys.argv[1:])
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(frames: int, photos: list[str], folder: Path, suffix: str) -> int:
    """Peak resident memory of one run, in KiB."""
    arguments = ["interpolate", *photos, "--frames", str(frames), "-n", "2", "-o", str(folder / f"{frames}{suffix}")]
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout.split("peak")[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", default="60,600")
    parser.add_argument("--suffix", default=".mp4")
    args = parser.parse_args()

    import skimage

    data = Path(skimage.__file__).parent / "data"
    photos = [str(data / name) for name in ("astronaut.png", "chelsea.png", "coffee.png")]
    lengths = [int(text) for text in args.frames.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        peaks = {frames: peak(frames, photos, Path(folder), args.suffix) for frames in lengths}
    for frames, kib in peaks.items():
        print(f"{frames} frames: {kib / 1024:.0f} MiB, {kib / peaks[lengths[0]]:.3f} of the first")


if __name__ == "__main__":
    main()
