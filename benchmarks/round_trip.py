"""The round trip against steps: the README's table, in Markdown.

    python benchmarks/round_trip.py                                    # the photos of scikit-image's wheel
    python benchmarks/round_trip.py PHOTOS --steps 10,20,50,100        # photos, folders, or an .npz
    python benchmarks/round_trip.py PHOTOS --steps 1000 --limit 16

Plain DDIM both ways, as in Table 2 of the DDIM paper, whose figures (CIFAR-10, another model) stand beside ours. Each
row is one `ddim-edit roundtrip --json` run. `--rows FILE` keeps its lines.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from ddim_edit.plots import PAPER_TABLE_2

METHOD = ["--solver", "ddim", "--inverse", "explicit"]


def wheel_photos() -> list[str]:
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [str(folder / name) for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")]


def measure(photos: list[str], steps: int, extra: list[str]) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "ddim_edit", "roundtrip", *photos, "-n", str(steps), "--json", *METHOD, *extra]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", default=wheel_photos())
    parser.add_argument("--steps", default="10,20,50,100")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--model", default="small")
    parser.add_argument("--rows", type=Path)
    args = parser.parse_args()

    extra = ["--batch-size", str(args.batch_size), "--model", args.model]
    extra += ["--limit", str(args.limit)] if args.limit else []
    print("| steps | photos | MSE on [0, 1] | PSNR of it | SSIM | rms of x_T | s per photo | paper's MSE |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for steps in (int(text) for text in args.steps.split(",")):
        rows = measure(args.photos, steps, extra)
        if args.rows:
            with args.rows.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        print(table_row(rows, steps), flush=True)


def table_row(rows: list[dict], steps: int) -> str:
    from ddim_edit.metrics import psnr_of_mean

    mse = statistics.fmean(row["mse"] for row in rows)
    ssim = statistics.fmean(row["ssim"] for row in rows)
    rms = statistics.fmean(row["latent"]["rms"] for row in rows)
    seconds = statistics.fmean(row["seconds"] for row in rows)
    decibels = psnr_of_mean([row["mse"] for row in rows])
    paper = PAPER_TABLE_2.get(steps, "")
    return (
        f"| {steps} | {len(rows)} | {mse:.2g} | {decibels:.1f} dB | {ssim:.3f} | {rms:.3f} | {seconds:.1f} | {paper} |"
    )


if __name__ == "__main__":
    main()
