"""A small student, its teacher and their pictures; for the tests of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from edgepress.benchmarks import Images, task
from edgepress.compress.recipe.settings import Distil
from edgepress.compress.training.train import Trained, distil
from edgepress.runtime import Preprocessing

PLAIN = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
ON_CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""For two processes on a machine that may have one GPU."""
QUICK = Distil(epochs=4, batch=32, lr=0.1, precision="float32", layout="contiguous")


class Net(nn.Module):
    """Without normalization over the batch, so that several processes compute the same."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, 2, 1)
        self.second = nn.Conv2d(width, width, 3, 2, 1)
        self.drop = nn.Dropout(dropout)
        self.last = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(self.drop(x.mean((2, 3))))


def net(width: int, seed: int = 0, **options: Any) -> Net:
    torch.manual_seed(seed)
    return Net(width, **options)


def pictures(count: int = 160) -> Any:
    rng = np.random.default_rng(0)
    tint = rng.uniform(0, 1, (count, 1, 1, 3))
    return (rng.uniform(0, 255, (count, 8, 8, 3)) * tint).astype(np.uint8)


def teacher() -> Net:
    """Sure of itself, and of four classes."""
    made = net(24, 1).eval()
    with torch.no_grad():
        made.last.weight *= 40
        made.last.bias -= made(torch.from_numpy(PLAIN.tensor(list(pictures())))).mean(0)
    return made


def data(labelled: bool = True, count: int = 160) -> tuple[Images, Images]:
    """Training and selection pictures, labelled by the teacher."""
    x = pictures(count)
    with torch.no_grad():
        y = teacher()(torch.from_numpy(PLAIN.tensor(list(x)))).argmax(1).numpy()
    images = Images.from_arrays(x, y if labelled else None)
    return images.take(range(count - 32)), images.take(range(count - 32, count))


def trained(settings: Distil = QUICK, labelled: bool = True, **options: Any) -> Trained:
    images, selection = data(labelled)
    given: dict[str, Any] = {
        "student": net(6),
        "teacher": teacher(),
        "images": images,
        "selection": selection,
        "task": task("classification" if labelled else "agreement"),
        "preprocessing": PLAIN,
        **options,
    }
    return distil(given.pop("student"), given.pop("teacher"), given.pop("images"),
                  settings=settings, **given)  # fmt: skip


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in module.state_dict().values()])
