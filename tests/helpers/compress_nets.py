"""A teacher and its students as factories, and their pictures; for the recipes that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgepress.benchmarks import Images
from edgepress.compress import Recipe, compress
from edgepress.compress.recipe.settings import Distil
from edgepress.runtime import Bundle, Preprocessing

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 2, padding=1)
        self.last = nn.Linear(width, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.second(x)).mean((2, 3)))

"""
"""A small network of any width, as source."""

NETS = (
    NET
    + """
def teacher():
    torch.manual_seed(0)
    net = Net(96).eval()
    with torch.no_grad():
        net.last.weight *= 40
    return net


def student():
    return Net(8)


def other():
    net = Net(8)
    net.last = nn.Linear(8, 5)
    return net


def renamed():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net(8)

        def forward(self, picture):
            return self.net(picture)

    return Other()
"""
)
PLAIN = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
TOML = "mean = [0.5, 0.4, 0.3]\nstd = [0.2, 0.2, 0.2]\n"
QUICK = Distil(epochs=3, batch=32, lr=0.05, precision="float32", layout="contiguous")
RECIPE = Recipe("quick", (QUICK,))


def nets() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "nets"}
    exec(NETS, names)
    return names


def data(labelled: bool = True) -> Images:
    rng = np.random.default_rng(0)
    tint = rng.uniform(0, 1, (200, 1, 1, 3))
    x = (rng.uniform(0, 255, (200, 16, 16, 3)) * tint).astype(np.uint8)
    with torch.no_grad():
        y = nets()["teacher"]()(torch.from_numpy(PLAIN.tensor(list(x)))).argmax(1).numpy()
    return Images.from_arrays(x, y if labelled else None)


def made(folder: Path, images: Images | None = None, **options: Any) -> Bundle:
    given: dict[str, Any] = {
        "recipe": RECIPE, "student": nets()["student"](), "preprocessing": PLAIN,
        "max_drop": 100, "calibration_size": 20, **options,
    }  # fmt: skip
    return compress(
        given.pop("model", None) or nets()["teacher"](), images or data(), out=folder / "out",
        **given,
    )  # fmt: skip
