"""Which optimizer teaches a student most in few epochs: one with random weights, and one that was cut out of its teacher?

::

    python -m edgepress.benchmarks.proofs.student_optimizers [--epochs 2] [--scales 1]

Both learn from a ResNet-20 on CIFAR-10: ``students.wide_27m``, which is random, and the ResNet-20 cut to 65 % of its
multiply-adds. Each optimizer at its own learning rate, or at multiples of it, everything else being what ``distil``
does by default. What is scored chooses nothing: pictures of the training set that no student saw. The teacher
knows them, so the figures of what was cut out of it are too good, and only compare one way with another.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgepress.benchmarks import Images, task
from edgepress.benchmarks.latency.fingerprint import fingerprint
from edgepress.compress import Backbone, prune
from edgepress.compress.recipe.settings import Distil
from edgepress.compress.training.optimizers import RATES
from edgepress.compress.training.train import distil

from . import students
from .held_back import COUNT, seen_and_unseen, top1
from .networks import NETWORKS
from .peers.peer_table import print_machine

_NETWORK = NETWORKS["resnet20"]
_SHARE = 0.65
_STUDENTS = ("random", "cut")


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--scales", default="1", metavar="SCALE,...")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/student_optimizers"))
    given = parser.parse_args()
    path = given.out.with_suffix(".json")
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    seen, unseen = seen_and_unseen()
    for at, name in enumerate(_STUDENTS):
        for scale in map(float, given.scales.split(",")):
            for optimizer, rates in RATES.items():
                key = f"{name} {optimizer} {scale:g} {given.epochs}"
                if key in told["rows"]:
                    continue
                print(key, flush=True)
                settings = Distil(
                    epochs=given.epochs,
                    optimizer=optimizer,
                    lr=rates[at] * scale,
                    precision="bfloat16",
                    layout="channels_last",
                    compiled="no",
                )
                found = one(name, settings, seen, unseen)
                told["rows"][key] = found
                told["fingerprint"] = fingerprint()
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(told, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(markdown(told))
    print(markdown(told))


def one(name: str, settings: Distil, seen: Images, unseen: Images) -> dict[str, Any]:
    """One training."""
    how = _NETWORK.how()
    whole = Backbone.open(*_NETWORK.files())
    part = seen.split(300, 0, True, training=True)
    trained = distil(
        student(name, whole, part.training),
        whole.module,
        part.training,
        selection=part.selection,
        task=task("classification"),
        settings=settings,
        preprocessing=how,
    )
    return {
        "student": name,
        "optimizer": settings.optimizer,
        "lr": settings.lr,
        "epochs": settings.epochs,
        "score": top1(trained.module, unseen, how),
        "loss": trained.log["epochs"][-1]["loss"],
        "seconds": trained.log["seconds"],
    }


def student(name: str, whole: Backbone, pictures: Images | None) -> nn.Module:
    """The student that is called so, always the same."""
    if name == "random":
        torch.manual_seed(0)
        return students.wide_27m()
    cut = prune(whole, pictures, preprocessing=_NETWORK.how(), max_macs_ratio=_SHARE)
    return cut.module


def markdown(told: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# How a student is trained: optimizers compared",
        "",
        "Made by `python -m edgepress.benchmarks.proofs.student_optimizers`: students of a ResNet-20 on CIFAR-10, the recipe `distil` "
        "with other optimizers.",
        f"Top-1 on {COUNT:,} training pictures that no student saw (their teacher did: what was cut out of it "
        "remembers them, and such figures",
        "only compare one way with another); the loss on its outputs in the last epoch, augmented pictures. One training each.",
        "",
    ]
    print_machine(lines, told["fingerprint"])
    lines += [
        "",
        "| student | optimizer | largest learning rate | epochs | top-1 | loss | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in told["rows"].values():
        lines.append(
            f"| {row['student']} | {row['optimizer']} | {row['lr']:g} | {row['epochs']} | {row['score']:.2f} % | "
            f"{row['loss']['outputs']:.3f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
