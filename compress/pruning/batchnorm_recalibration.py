"""BatchNorm's statistics, taken anew after a cut.

What it does: the layers behind a cut see other sums than those that their means and variances were
taken of; both are averaged again over pictures, as a training step would, with no weight changed.
When it is exact: never; it only moves statistics to what the cut network really sees.
When it refuses: never; a network without BatchNorm stays as it is.
Source: Li et al. 2020, "EagleEye" (adaptive batch normalization, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from ..channels.cut_verification import NamedTensors


def recalibrate(module: nn.Module, batches: Sequence[NamedTensors]) -> int:
    """Average the statistics of every BatchNorm again, in place.

    Args:
        module: A network; it is left in the mode it came in.
        batches: Pictures by input name; more than one to a batch.

    Returns:
        How many BatchNorms there were.
    """
    norms = [
        part
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
    ]
    kept = [(part.training, part.momentum) for part in norms]
    try:
        for part in norms:
            part.reset_running_stats()
            part.train()
            part.momentum = None  # a plain average over the batches
        if norms:
            with torch.no_grad():
                for feeds in batches:
                    module(**feeds)
    finally:
        for part, (training, momentum) in zip(norms, kept, strict=True):
            part.training, part.momentum = training, momentum
    return len(norms)
