"""Train the bundled model: garment photos at 64 x 64, class-conditional, epsilon prediction.

    python scripts/train_small.py ../shared/data/garments64_train.npz runs/small --minutes 110 --threads 2

The run stops by the clock, writes its state every few minutes, and goes on from there when the same
command is started again. The learning rate warms up, stays flat, and falls linearly over the last part of
the time, so the time may be chosen freely. A photo in 26 is set aside to watch the error; the test split is
never read. `runs/small/model` is a diffusers folder at every moment, with the averaged (EMA) weights.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.training_utils import EMAModel, compute_snr
from torch.nn.functional import mse_loss

T = 1000
LEVELS = (50, 100, 300, 600)  # where the error on the photos set aside is reported


def make_network(num_labels: int) -> UNet2DModel:
    """The five-level U-Net of 7.4 M parameters: 14.8 MB as float16."""
    return UNet2DModel(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64, 96, 128, 176),
        down_block_types=("DownBlock2D",) * 3 + ("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2 + ("UpBlock2D",) * 3,
        attention_head_dim=32,
        norm_num_groups=8,
        num_class_embeds=num_labels,
    )


def load_photos(path: Path) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Photos (N, 3, 64, 64) uint8, labels (N,) and label names; the last name must be the null class."""
    with np.load(path) as data:
        names = [str(name) for name in data["label_names"]]
        images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(data["labels"].astype(np.int64))
    if names[-1] != "none":
        raise SystemExit(f"{path}: the last label is {names[-1]!r}; it must be 'none', the null class")
    return images, labels, names


def to_model(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


def learning_rate(peak: float, step: int, warmup: int, done: float, decay: float) -> float:
    """Warm-up by steps, then flat, then linear to zero over the last `decay` of the time (`done` in [0, 1])."""
    return peak * min(1.0, (step + 1) / warmup) * min(1.0, max(0.0, (1 - done) / decay))


def draw_batch(images, labels, null: int, size: int, seed: int, step: int):
    """Batch number `step` of this seed: depends on nothing else, so a resumed run sees the same batches."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
    rows = torch.randint(len(images), (size,), generator=draw)
    x0 = to_model(images[rows])
    flip = torch.rand(size, generator=draw) < 0.5
    x0 = torch.where(flip[:, None, None, None], x0.flip(-1), x0)
    y = torch.where(torch.rand(size, generator=draw) < 0.1, null, labels[rows])
    # One t in each of `size` equal parts of the schedule: less variance in the loss than independent draws.
    strata = (torch.randperm(size, generator=draw) + torch.rand(size, generator=draw)) / size
    return x0, y, (strata * T).long().clamp(max=T - 1), torch.randn(x0.shape, generator=draw)


@torch.inference_mode()
def held_out_error(network, scheduler, images, labels) -> dict[str, float]:
    """Mean squared error of eps on the photos set aside, with fixed noise: uniform t, and at LEVELS."""
    draw = torch.Generator().manual_seed(1)
    x0, eps = to_model(images), torch.randn(images.shape, generator=draw)
    uniform = ((torch.arange(len(x0)) + 0.5) / len(x0) * T).long()
    errors = {}
    for name, t in [("uniform", uniform)] + [(f"t{level}", torch.full_like(uniform, level)) for level in LEVELS]:
        noisy = scheduler.add_noise(x0, eps, t)
        parts = zip(noisy.split(50), t.split(50), labels.split(50), strict=True)
        out = torch.cat([network(x, tt, class_labels=y).sample for x, tt, y in parts])
        errors[name] = mse_loss(out, eps).item()
    return errors


def save_model(network, ema, scheduler, names, out: Path) -> None:
    """Write the averaged weights as a diffusers pipeline folder, float16 on disk."""
    copy = make_network(len(names))
    copy.load_state_dict(network.state_dict())
    ema.copy_to(copy.parameters())
    copy.half().save_pretrained(out / "unet")
    scheduler.save_pretrained(out / "scheduler")
    index = {
        "_class_name": "DDIMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / "labels.json").write_text(json.dumps({"names": names, "null": len(names) - 1}, indent=2) + "\n")


def save_atomically(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=110)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--decay", type=float, default=0.35, help="share of the time over which the rate falls to 0")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="a diffusers folder to go on from, with new optimizer state")
    parser.add_argument("--bf16", action="store_true", help="twice as fast where the CPU has AMX or AVX-512 bf16")
    parser.add_argument("--compile", action="store_true", help="1.2 times as fast after minutes of compiling")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    images, labels, names = load_photos(args.photos)
    aside = torch.arange(len(images)) % 26 == 0
    held_out = images[aside], labels[aside]
    images, labels = images[~aside], labels[~aside]

    network = make_network(len(names))
    if args.init:
        start = UNet2DModel.from_pretrained(args.init, subfolder="unet").state_dict()
        network.load_state_dict({name: value.float() for name, value in start.items()})
    ema = EMAModel(network.parameters(), decay=args.ema)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    scheduler = DDIMScheduler(num_train_timesteps=T, clip_sample=False)
    snr = compute_snr(scheduler, torch.arange(T))
    weight = snr.clamp(max=5) / snr  # min-SNR-5 of an epsilon model (arXiv 2303.09556)

    step, minutes = 0, 0.0
    state_file = args.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        step, minutes = state["step"], state["minutes"]
        print(f"goes on at step {step}, {minutes:.1f} minutes", flush=True)

    forward = torch.compile(network) if args.compile else network
    before, loss_sum, logged = minutes, 0.0, step
    started = last_report = time.monotonic()
    while minutes < args.minutes:
        rate = learning_rate(args.lr, step, args.warmup, minutes / args.minutes, args.decay)
        for group in optimizer.param_groups:
            group["lr"] = rate
        x0, y, t, eps = draw_batch(images, labels, len(names) - 1, args.batch_size, args.seed, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            out = forward(scheduler.add_noise(x0, eps, t), t, class_labels=y).sample
        errors = (out.float() - eps).square().mean(dim=(1, 2, 3))
        (weight[t] * errors).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        step, loss_sum = step + 1, loss_sum + errors.mean().item()
        minutes = before + (time.monotonic() - started) / 60

        if time.monotonic() - last_report > 900 or minutes >= args.minutes:
            ema.store(network.parameters())
            ema.copy_to(network.parameters())
            row = {"step": step, "images": step * args.batch_size, "minutes": round(minutes, 2), "lr": rate}
            row |= {"train": loss_sum / (step - logged)} | held_out_error(network, scheduler, *held_out)
            ema.restore(network.parameters())
            loss_sum, logged = 0.0, step
            with (args.out / "metrics.csv").open("a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
            print(" ".join(f"{k} {v:.5g}" for k, v in row.items()), flush=True)
            save_model(network, ema, scheduler, names, args.out / "model")
            state = {"network": network.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomically(state | {"step": step, "minutes": minutes}, state_file)
            last_report = time.monotonic()


if __name__ == "__main__":
    main()
