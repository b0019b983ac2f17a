"""A network that bfloat16 has something to win on, and what passes want of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgepress.benchmarks.latency.measurement import Preset
from edgepress.compress import Backbone
from edgepress.compress.evaluation.evaluator import Evaluator
from edgepress.compress.recipe.pass_context import Context
from edgepress.compress.source.data_and_task import open_data_and_task
from edgepress.compress.source.source_network import SourceNetwork, first_rows, make_source_network
from edgepress.export.receipt import count_macs
from edgepress.runtime import Preprocessing
from edgepress.runtime.engines.engine import Precision
from edgepress.runtime.target import target

BLINK = Preset("blink", 0.05, 64, 0.2, 1, 5.0)


PLAIN = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Net(nn.Module):
    """Enough work for bfloat16 to have something to win."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.second = nn.Conv2d(64, 64, 3, padding=1)
        self.third = nn.Conv2d(64, 64, 3, padding=1)
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second, self.third):
            x = torch.relu(layer(x))
        return self.last(x.mean((2, 3)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def noise(folder: Path) -> Path:
    """Pictures without labels."""
    x = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3)).astype(np.uint8)
    np.savez(folder / "data.npz", x=x)
    return folder / "data.npz"


def worked_on(
    pictures: Path, floats: Precision = "f32"
) -> tuple[SourceNetwork, Context, Evaluator, Any]:
    """The network, and all that passes and judges want of it, for OpenVINO."""
    material = open_data_and_task(pictures, None, "agreement", 8, 0, training=False)
    part = material.split.calibration
    subject = make_source_network(
        "net", Backbone(net(), "net", preprocessing=PLAIN), None, part, 18
    )
    graph = subject.graph
    example = first_rows(part, graph.inputs, subject.preprocessing, 1)

    def quiet(*_: object) -> None:
        return None

    def batches(size: int) -> Any:
        return (b.inputs for b in part.batches(graph.inputs, subject.preprocessing, size))

    macs = count_macs(graph, example)
    context = Context(
        target("openvino-cpu"), batches, len(part), batches, macs, quiet, floats=floats
    )
    judge = Evaluator(graph, material.task, subject.preprocessing, example, quiet, "openvino")
    return subject, context, judge, material
