"""Kill a long render at random, start it again, and compare its files with those of an undisturbed run.

    python benchmarks/resume.py --frames 1000 --kills 3 --model small

Every kill is a SIGKILL at a random number of finished pictures. Prints how many were there each time, and whether the
mp4, the frames and their manifest are the same byte for byte.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = [sys.executable, "-m", "ddim_edit", "interpolate"]


def start(arguments: list[str], output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*RUN, *arguments, "-o", str(output)], stderr=subprocess.DEVNULL)


def killed(arguments: list[str], output: Path, at: int) -> int:
    """Start the render, kill it when so many pictures are there, and count them."""
    work = output.with_name(f".{output.name}.unfinished")
    process = start(arguments, output)
    while len(list(work.glob("frame_*.png"))) < at and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    return len(list(work.glob("frame_*.png")))


def contents(output: Path) -> list[tuple[str, bytes]]:
    if output.is_file():
        return [("", output.read_bytes())]
    return [(file.name, file.read_bytes()) for file in sorted(output.iterdir())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--model", default="small")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    import skimage

    data = Path(skimage.__file__).parent / "data"
    photos = [str(data / name) for name in ("astronaut.png", "chelsea.png", "coffee.png")]
    arguments = [*photos, "--model", args.model, "-n", "2", "--loop", "--frames", str(args.frames)]
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        for suffix in ("", ".mp4"):
            folder = Path(name)
            disturbed, whole = folder / f"a{suffix}", folder / f"b{suffix}"
            stops = sorted(draw.sample(range(1, args.frames), args.kills))
            counts = [killed(arguments, disturbed, at) for at in stops]
            for output in (disturbed, whole):
                assert start(arguments, output).wait() == 0
            same = contents(disturbed) == contents(whole)
            print(f"{suffix or 'folder'}: killed at {counts} of {args.frames} pictures; equal files: {same}")


if __name__ == "__main__":
    main()
