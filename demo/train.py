"""Trains `backbone.fashion_resnet` on Fashion-MNIST, on the CPU.

Run it as

    python train.py --data FOLDER_WITH_THE_IDX_FILES [--epochs 30] [--seed 0] [--out FOLDER]

It writes `weights/fashion_resnet.safetensors` (the weights' moving average, float32) and
`train_log.json` (recipe, seed, figures of each epoch, machine) into the output folder, which is
this script's own folder unless `--out` names another. After each epoch it writes
`checkpoint.pt`; the same command takes up an interrupted run from there, and the file is
removed when the run is complete. `prepare_data.py` says where the idx files come from.

Of the 60,000 official training pictures 5,000 are held out (`prepare_data.split_indices`) to
compare recipes; the other 55,000 are trained on. The weights are those of the last epoch. The
test set is read once, after it.

Recipe: SGD with Nesterov momentum, one-cycle learning rate (linear warm-up, cosine decay to
zero), weight decay on convolution and linear weights, label smoothing, and as augmentation
horizontal flips, random crops of the padded picture and random erasing (Zhong et al. 2017),
computed on whole batches. The forward pass runs under bfloat16 autocast in channels-last
layout; evaluation is float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from backbone import fashion_resnet
from prepare_data import SPLIT_SEED, read_split, split_indices, training_statistics

RECIPE: dict[str, Any] = {
    "batch_size": 128,
    "optimizer": "SGD, Nesterov",
    "momentum": 0.9,
    "peak_learning_rate": 0.1,
    "warmup_share": 0.15,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    "flip_probability": 0.5,
    "crop_padding": 2,
    "erase_probability": 0.5,
    "erase_area": [0.02, 0.25],
    "erase_aspect": [0.4, 2.5],
    "ema_decay": 0.998,
    "autocast": "bfloat16",
    "memory_format": "channels_last",
}


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flips, crops and partly erases a batch of pictures.

    Args:
        x: Pictures, uint8 (N, 28, 28).
        generator: Source of the random numbers.

    Returns:
        New pictures, uint8 (N, 28, 28).
    """
    n, height, width = x.shape

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    flipped = uniform(0.0, 1.0) < RECIPE["flip_probability"]
    x = torch.where(flipped[:, None, None], x.flip(-1), x)

    pad = RECIPE["crop_padding"]
    windows = F.pad(x, (pad, pad, pad, pad)).unfold(1, height, 1).unfold(2, width, 1)
    offsets = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
    x = windows[torch.arange(n), offsets[0], offsets[1]]

    area = uniform(*RECIPE["erase_area"]) * height * width
    aspect = torch.exp(uniform(*(math.log(a) for a in RECIPE["erase_aspect"])))
    box_h = (area * aspect).sqrt().round().clamp(1, height)
    box_w = (area / aspect).sqrt().round().clamp(1, width)
    top = (uniform(0.0, 1.0) * (height - box_h + 1)).floor()
    left = (uniform(0.0, 1.0) * (width - box_w + 1)).floor()
    erased = uniform(0.0, 1.0) < RECIPE["erase_probability"]
    rows = torch.arange(height)[None, :]
    columns = torch.arange(width)[None, :]
    in_rows = (rows >= top[:, None]) & (rows < (top + box_h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + box_w)[:, None])
    box = in_rows[:, :, None] & in_columns[:, None, :] & erased[:, None, None]
    noise = torch.randint(0, 256, x.shape, generator=generator, dtype=torch.uint8)
    return torch.where(box, noise, x)


def preprocess(x: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """Turns pictures into the network's input.

    Args:
        x: Pictures, uint8 (N, 28, 28).
        mean: Mean of the training pixels, as a number from 0 to 1.
        std: Standard deviation of the training pixels.

    Returns:
        float32 (N, 1, 28, 28), (x / 255 - mean) / std, in channels-last layout.
    """
    y = (x[:, None].float() / 255.0 - mean) / std
    return y.contiguous(memory_format=torch.channels_last)


def learning_rate(step: int, total: int) -> float:
    """Returns the one-cycle learning rate.

    Args:
        step: Number of the step, from 0.
        total: Number of all steps.

    Returns:
        The rate: linear up to the peak, then a half cosine down to zero.
    """
    warmup = RECIPE["warmup_share"] * total
    peak = RECIPE["peak_learning_rate"]
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Moves the averaged weights and BatchNorm statistics towards the model's.

    Args:
        average: The averaged model, changed in place.
        model: The model being trained.
        step: Number of the step, from 0; early steps count more.
    """
    decay = min(RECIPE["ema_decay"], (step + 1) / (step + 10))
    for a, b in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if a.is_floating_point():
            a.lerp_(b, 1.0 - decay)
        else:
            a.copy_(b)


@torch.no_grad()
def evaluate(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, mean: float, std: float
) -> dict[str, float]:
    """Measures a model in float32.

    Args:
        model: The network.
        x: Pictures, uint8 (N, 28, 28).
        y: Classes, int64 (N,).
        mean: See `preprocess`.
        std: See `preprocess`.

    Returns:
        `accuracy` and mean cross-entropy `loss`.
    """
    was_training = model.training
    model.eval()
    logits = torch.cat([model(preprocess(part, mean, std)) for part in x.split(500)])
    model.train(was_training)
    return {
        "accuracy": (logits.argmax(1) == y).double().mean().item(),
        "loss": F.cross_entropy(logits, y).item(),
    }


def train_epoch(
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    stats: tuple[float, float],
    epoch: int,
    epochs: int,
    seed: int,
) -> float:
    """Trains for one epoch.

    Args:
        model: The network, changed in place.
        average: Its moving average, changed in place.
        optimizer: The optimizer of the network.
        x: Training pictures, uint8 (N, 28, 28).
        y: Their classes, int64 (N,).
        stats: Mean and standard deviation for `preprocess`.
        epoch: Number of the epoch, from 0.
        epochs: Number of all epochs.
        seed: The run's seed; it and the epoch give all random numbers of the epoch.

    Returns:
        The mean training loss.
    """
    batch = RECIPE["batch_size"]
    steps = len(x) // batch
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(len(x), generator=generator)
    model.train()
    total = 0.0
    for i in range(steps):
        step = epoch * steps + i
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, epochs * steps)
        chosen = order[i * batch : (i + 1) * batch]
        inputs = preprocess(augment(x[chosen], generator), *stats)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(inputs)
        loss = F.cross_entropy(logits.float(), y[chosen], label_smoothing=RECIPE["label_smoothing"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_average(average, model, step)
        total += loss.item()
    return total / steps


def machine() -> dict[str, Any]:
    """Describes the machine in words that name no person, host or path."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "processor": model,
        "architecture": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
    }


def main() -> None:
    """Reads the command line, trains, and writes the weights and the log."""
    parser = argparse.ArgumentParser(description="Trains the demo backbone on Fashion-MNIST.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the four idx files")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write into"
    )
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    images, classes = (torch.from_numpy(a.copy()) for a in read_split(args.data, "train"))
    stats = training_statistics(images.numpy())
    kept, held_out = (torch.from_numpy(i) for i in split_indices(len(images)))

    model = fashion_resnet().to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": RECIPE["weight_decay"]}, {"params": others}],
        lr=RECIPE["peak_learning_rate"],
        momentum=RECIPE["momentum"],
        nesterov=True,
    )

    settings = {"seed": args.seed, "epochs": args.epochs, "recipe": RECIPE}
    rows: list[dict[str, float]] = []
    checkpoint = args.out / "checkpoint.pt"
    args.out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["settings"] != settings:
            parser.error(f"{checkpoint} belongs to a run with other settings; remove it first")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        rows = state["rows"]

    for epoch in range(len(rows), args.epochs):
        start = time.perf_counter()
        loss = train_epoch(
            model,
            average,
            optimizer,
            images[kept],
            classes[kept],
            stats,
            epoch,
            args.epochs,
            args.seed,
        )
        seconds = time.perf_counter() - start
        selection = evaluate(average, images[held_out], classes[held_out], *stats)
        row = {
            "epoch": epoch + 1,
            "train_loss": round(loss, 5),
            "selection_loss": round(selection["loss"], 5),
            "selection_accuracy": round(selection["accuracy"], 4),
            "seconds": round(seconds, 1),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
        state = {
            "settings": settings,
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rows": rows,
        }
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(checkpoint)

    test_images, test_classes = (torch.from_numpy(a.copy()) for a in read_split(args.data, "t10k"))
    test = evaluate(average, test_images, test_classes, *stats)
    print(json.dumps({"test": test}), flush=True)

    weights = args.out / "weights" / "fashion_resnet.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in average.state_dict().items()}, weights)
    log = {
        "model": "backbone.fashion_resnet",
        "data": "Fashion-MNIST",
        **settings,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_pictures": len(kept),
        "selection_pictures": len(held_out),
        "split_seed": SPLIT_SEED,
        "mean": stats[0],
        "std": stats[1],
        "per_epoch": rows,
        "training_seconds": round(sum(row["seconds"] for row in rows), 1),
        "test_accuracy": test["accuracy"],
        "test_loss": round(test["loss"], 5),
        "machine": machine(),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
    }
    (args.out / "train_log.json").write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
