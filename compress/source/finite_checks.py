"""Numbers that a network can compute with: finite weights, and buffers that are not NaN."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


def not_finite(network: nn.Module, state: Mapping[str, torch.Tensor] | None = None) -> str | None:
    """The name of the first tensor with values that a network cannot compute with.

    Parameters must be finite, and so must the statistics of norms. Another buffer may be infinite,
    as the mask of an attention is, but not NaN.

    Args:
        network: Tells which are which.
        state: Tensors by the names that they have in it; by default its own.
    """
    weights = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    weights |= {name for name, _ in network.named_buffers() if _is_statistic(name)}
    held: Mapping[str, torch.Tensor] = network.state_dict() if state is None else state
    for name, value in held.items():
        if name in weights and not is_finite(value):
            return name
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            return name
    return None


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var")


def is_finite(value: torch.Tensor) -> bool:
    """Whether no value of a tensor is infinite or NaN."""
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
