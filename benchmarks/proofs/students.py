"""Students for the CIFAR networks of the proofs, wider and shallower than their teachers.

A ResNet-20 spends most of its multiply-adds at 32x32 on 16 channels. These spend theirs at 16x16 and 8x8, and have fewer
parameters. Input ``(N, 3, 32, 32)``, output logits ``(N, 10)``.
"""

from __future__ import annotations

import torch
from torch import nn


class _Convolution(nn.Sequential):
    def __init__(self, before: int, after: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)
        )


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes (He et al. 2015, option B)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = _Convolution(before, after, 3, stride)
        self.second = _Convolution(after, after, 3)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else _Convolution(before, after, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class Wide(nn.Module):
    """A ResNet of few blocks whose first block already halves the picture.

    Args:
        stem: Channels of the first convolution.
        stages: Channels and blocks of each stage; the first block of each has stride 2.
        classes: Classes told apart.
    """

    def __init__(self, stem: int, stages: tuple[tuple[int, int], ...], classes: int = 10) -> None:
        super().__init__()
        self.stem = _Convolution(3, stem, 3)
        blocks: list[nn.Module] = []
        for width, count in stages:
            blocks += [_Block(width if at else stem, width, 1 if at else 2) for at in range(count)]
            stem = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(stem, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


def wide_27m() -> nn.Module:
    """27 M multiply-adds, 0.20 M parameters."""
    return Wide(16, ((48, 2), (96, 1)))
