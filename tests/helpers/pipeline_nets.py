"""A small network as a file, and its preprocessing."""

from __future__ import annotations

from edgepress.runtime import Preprocessing

NETS = '''
import torch
from torch import nn


class Net(nn.Module):
    """Wide enough for INT8 to have something to win."""

    def __init__(self, channels=3, classes=4):
        super().__init__()
        self.first = nn.Conv2d(channels, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 64, 3, 2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(64, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.last(self.drop(torch.relu(self.second(x)).mean((2, 3))))


def net():
    torch.manual_seed(0)
    return Net()
'''


TOML = "mean = [0.5, 0.4, 0.3]\nstd = [0.2, 0.2, 0.2]\n"


PLAIN = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
