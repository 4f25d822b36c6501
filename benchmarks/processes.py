"""Training on a CPU: a process of one thread for every core, beside one process with a thread for every core.

    python benchmarks/processes.py --cores 2 --repeats 3

Both train the bundled model's network for as many steps with as many photos a step, by `ddim-edit train`, in turn;
the ratio is that of the medians of photos per second.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def photos_per_second(photos: Path, processes: int, threads: int, args: argparse.Namespace) -> float:
    """Those of a run of its own, without its start and its reports."""
    several = ("torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m")
    settings = {"--steps": args.steps, "--report-every": args.steps, "--sample-every": 10**6, "--threads": threads}
    settings |= {"--batch-size": args.batch_size * args.cores // processes, "--precision": args.precision}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        subprocess.run(
            [
                *(sys.executable, "-m", *(several if processes > 1 else ()), "ddim_edit", "train", photos),
                *("-o", run, "--init", "small", "--device", "cpu", "--no-progress"),
                *(str(part) for setting in settings.items() for part in setting),
            ],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        with (run / "metrics.csv").open(newline="") as file:
            return float(list(csv.DictReader(file))[-1]["images_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16, help="for each core")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos.npz"
        np.savez(photos, images=np.random.default_rng(0).integers(0, 256, (256, 64, 64, 3), dtype=np.uint8))
        ways = (1, args.cores), (args.cores, 1)
        pairs = [[photos_per_second(photos, *way, args) for way in ways] for _ in range(args.repeats)]
    threads, processes = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{args.cores} threads: {threads:.1f} photos/s; {args.cores} processes: {processes:.1f} photos/s")
    print(f"ratio {processes / threads:.2f}; {vars(args)}")


if __name__ == "__main__":
    main()
