"""The moving average of a network's weights: what is judged, and what ships."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..source.finite_checks import is_finite

_ema: Any = get_ema_multi_avg_fn  # whose type torch leaves partly open


class AveragedWeights:
    """An exponential moving average of weights and statistics, and a network to run it in.

    The decay grows from 0.1 with the first steps, so that the beginning is forgotten. Whole numbers
    and buffers that are infinite, as masks are, have no mean: they are copied.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; of
    teachers and students, Tarvainen and Valpola, "Mean teachers are better role models", 2017.

    Args:
        network: What is trained.
        decay: Of the average; 0 for the weights themselves.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        """The network with the averaged weights, after :meth:`update`."""
        held = network.state_dict()
        self._copied = {
            name
            for name, value in held.items()
            if not (value.is_floating_point() and is_finite(value))
        }

    def update(self, done: int) -> None:
        """Move towards the trained network's weights.

        Args:
            done: Steps that were made before this one.
        """
        decay = min(self._decay, (done + 1) / (done + 10)) if self._decay else 0.0
        ours, theirs = self.network.state_dict(), self._network.state_dict()
        moved = [name for name in ours if name not in self._copied]
        move = _ema(decay)
        move([ours[name] for name in moved], [theirs[name].detach() for name in moved], done)
        for name in self._copied:
            ours[name].copy_(theirs[name])

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from these averaged weights."""
        self.network.load_state_dict(dict(tensors))
