"""A small network to prune, and what the tests of choosing and of timing see of it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch_pruning")
import torch
from torch import nn
from torch.nn import functional

from edgepress.compress.channels.structure import structure_of
from edgepress.compress.pruning.layer_costs import LayerWidths


class Residual(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(width, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.two = nn.Conv2d(inner, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.two(functional.relu(self.norm(self.one(x)))))


class Net(nn.Module):
    """A stem, two residual blocks, a depthwise convolution, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first, self.second = Residual(16, 24), Residual(16, 8)
        self.depthwise = nn.Conv2d(16, 16, 3, 2, 1, groups=16)
        self.last, self.head = nn.Conv2d(16, 32, 1), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(functional.relu(self.stem(x))))
        x = functional.relu(self.last(functional.relu(self.depthwise(x))))
        return self.head(x.mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def batch(count: int = 16) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {"x": torch.randn(count, 3, 12, 12, generator=draw)}


def framed(module: nn.Module) -> LayerWidths:
    return LayerWidths(structure_of(module, {"x": batch(2)["x"].numpy()}))
