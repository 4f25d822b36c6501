"""How much time encode and decode spend outside the network.

    python benchmarks/overhead.py --repeats 5

Measures encode + decode of one photo (50 steps each, no self-check, no padding) against the same 100 bare network
calls, alternating in one process, and prints the ratio of the medians. The target is 1.03 at most.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import ddim_edit as de

STEPS = 50


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = de.load_model(args.model, device=args.device)
    photo = de.sample(model, [0], grid=10).clamp(-1, 1)
    grid = de.Grid.build(model.schedule, STEPS)
    x, condition = photo.to(model.device), model.condition()
    times = [torch.full((1,), t, device=model.device) for t in grid.timesteps]

    def bare() -> None:
        with torch.no_grad():
            for t in times + times:
                model.network(x, t, condition)

    def ours() -> None:
        de.decode(model, de.encode(model, photo, grid=grid, inverse=de.Explicit(), check=False))

    bare(), ours()  # warm-up
    pairs = [(seconds(bare), seconds(ours)) for _ in range(args.repeats)]
    network, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{2 * STEPS} bare network calls: {network:.2f} s; encode + decode: {whole:.2f} s (medians of {args.repeats})"
    )
    print(f"ratio {whole / network:.3f}; {args.threads} threads on {model.device}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
