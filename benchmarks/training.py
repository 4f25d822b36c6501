"""Throughput of our training loop beside a plain loop of diffusers' and accelerate's parts, same network and batch.

    python benchmarks/training.py --repeats 5 --steps 10 --threads 1

The plain loop is that of diffusers' training example for unconditional images: DDPMScheduler.add_noise, a DataLoader,
AdamW, EMAModel, the loss logged at every step. Ours is `ddim_edit.training` with the settings that `ddim-edit train`
would use. The two alternate in one process; the ratio is that of the medians. --precision is given to both loops;
--compile and --channels-last are options of ours that the example does not have.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, TensorDataset

from ddim_edit.datasets import PhotoSet
from ddim_edit.training import TrainConfig
from ddim_edit.training.config import PRECISIONS
from ddim_edit.training.network import make_origin
from ddim_edit.training.run import Training


def plain(accelerator: Accelerator, config: TrainConfig, pixels: torch.Tensor) -> Callable[[], None]:
    """A step of the example's loop."""
    network = make_origin(config, ("none",), has_null=True, model=None).module.train()
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, betas=(0.95, 0.999), weight_decay=1e-6)
    rates = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=100_000)
    loader = DataLoader(TensorDataset(pixels.float() / 127.5 - 1), batch_size=config.batch_size, shuffle=True)
    network, optimizer, loader, rates = accelerator.prepare(network, optimizer, loader, rates)
    ema = EMAModel(network.parameters(), decay=config.ema)
    ema.to(accelerator.device)

    def batches():
        while True:
            yield from loader

    photos = batches()

    def step() -> None:
        (x0,) = next(photos)
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),), device=x0.device)
        out = network(scheduler.add_noise(x0, noise, t), t).sample
        loss = torch.nn.functional.mse_loss(out.float(), noise)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        loss.detach().item()

    return step


def ours(accelerator: Accelerator, config: TrainConfig, pixels: torch.Tensor) -> Callable[[], None]:
    origin = make_origin(config, ("none",), has_null=True, model=None)
    training = Training.begin(origin, PhotoSet(pixels, None), accelerator)

    def step() -> None:
        training.advance(1.0)

    return step


def seconds(step: Callable[[], None], steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    pixels = torch.randint(0, 256, (16 * args.batch_size, 3, 64, 64), dtype=torch.uint8)
    base = TrainConfig(steps=1, batch_size=args.batch_size).resolved()
    fast = TrainConfig(
        steps=1,
        batch_size=args.batch_size,
        precision=args.precision,
        compile=args.compile,
        channels_last=args.channels_last,
    ).resolved()
    accelerator = Accelerator(cpu=args.device == "cpu", mixed_precision=PRECISIONS[args.precision])
    steps = plain(accelerator, base, pixels), ours(accelerator, fast, pixels)
    for step in steps:  # warm-up, compiling included
        seconds(step, 2)
    pairs = [[seconds(step, args.steps) for step in steps] for _ in range(args.repeats)]
    images = args.steps * args.batch_size
    theirs, own = (images / statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"plain loop: {theirs:.1f} photos/s; ours: {own:.1f} photos/s (medians of {args.repeats} x {args.steps} steps)"
    )
    print(f"ratio {own / theirs:.3f}; {args.threads} threads on {accelerator.device}, {vars(args)}")


if __name__ == "__main__":
    main()
