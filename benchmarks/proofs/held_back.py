"""Training pictures of CIFAR-10 that are held back to compare defaults on, since ``test_a`` is not for choosing."""

from __future__ import annotations

from torch import nn

from edgepress.benchmarks import Images, task
from edgepress.compress.source.source_network import torch_run
from edgepress.runtime import Preprocessing

from .networks import cifar

COUNT = 4_904
_PICTURES = 49_904


def seen_and_unseen() -> tuple[Images, Images]:
    """What may be pruned and trained with, and what is held back."""
    x, y = cifar("train", _PICTURES)
    return (
        Images.from_arrays(x[:-COUNT], y[:-COUNT]),
        Images.from_arrays(x[-COUNT:], y[-COUNT:]),
    )


def top1(module: nn.Module, unseen: Images, how: Preprocessing) -> float:
    """Top-1 on what was held back, in percent."""
    specs = unseen.specs(["x"])
    run = torch_run(module.eval())
    return task("classification").score(run, lambda: unseen.batches(specs, how, 100), None).value
