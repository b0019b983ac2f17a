"""Steepest descent by angles: weight matrices are turned towards their orthogonalized momentum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

RATE_OF_REST = 2.0
"""Learning rate of what is not turned, as a multiple of the angle."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 3  # singular values come to lie around 1, which is near enough to choose a direction
_EPSILON = 1e-7
_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Muon(torch.optim.SGD):
    """Turns the weights of groups that say ``turned``; the others are stepped as SGD does.

    A step turns a weight, seen as one vector, by ``lr`` radians towards the direction in which all
    singular vectors of its momentum count the same. Seen as a matrix it has a row for each output
    channel. Turning keeps its length: behind a weight there mostly is a normalization, to which
    only the direction matters. Where the momentum points along the weight itself, length changes.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (momentum
    orthogonalized by a quintic Newton-Schulz iteration, and its coefficients). Steps as angles of
    weights in front of normalizations: Wan et al., "Spherical Motion Dynamics", 2021.

    Args:
        groups: Of parameters; those with ``turned`` true have two dimensions or more, and take no
            weight decay. ``lr`` is in radians there.
        momentum: Nesterov's, of all.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, lr=0.0, momentum=momentum, nesterov=True, fused=True)

    def step(self, closure: Any = None) -> Any:
        """Turn what is to be turned, and step the rest; gradients of the former are used up."""
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"] if group["turned"] else ():
                    if weight.grad is not None:
                        self._turn(weight, group["lr"], group["momentum"])
                        weight.grad = None
        plain: Any = super()  # whose types torch leaves open
        return plain.step(closure)

    def _turn(self, weight: torch.Tensor, angle: float, momentum: float) -> None:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        kept: torch.Tensor = state["momentum_buffer"]
        kept.mul_(momentum).add_(gradient)
        ahead = gradient.add(kept, alpha=momentum).flatten(1)
        way = orthogonalized(ahead).view_as(weight)
        length = _length(weight) / (_length(way) + _EPSILON)
        weight.mul_(math.cos(angle)).sub_(way * length, alpha=math.sin(angle))


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with its singular values brought near to 1.

    In its own precision: in bfloat16, which others take, the last bit of a gradient, and so the
    number of processes, would show in the weights.

    Args:
        matrix: ``(rows, columns)``; zeros stay zeros.

    Returns:
        Of the same shape and type.
    """
    first, third, fifth = _COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    found = wide / (_length(wide) + _EPSILON)
    for _ in range(_ITERATIONS):
        square = found @ found.T
        found = first * found + (third * square + fifth * square @ square) @ found
    return found if wide is matrix else found.T


def _length(values: torch.Tensor) -> torch.Tensor:
    return values.square().sum().sqrt()


def hidden_weights(network: nn.Module, run: Callable[[], dict[str, torch.Tensor]]) -> set[str]:
    """Names of the weights that a Muon step suits: matrices of layers that are no outputs.

    Those of grouped convolutions are no single matrices, and stay out.

    Args:
        network: Whose weights they are.
        run: Runs it once and gives its outputs.
    """
    given: Any = network  # torch leaves the type of named_modules() partly open
    layers = {
        name: one
        for name, one in given.named_modules()
        if isinstance(one, _MATRICES) and getattr(one, "groups", 1) == 1
    }
    seen: dict[str, torch.Tensor] = {}  # held, so that nothing else gets their memory meanwhile

    def keep(name: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, _given: object, made: torch.Tensor) -> None:
            seen[name] = made

        return hook

    handles: list[Any] = [one.register_forward_hook(keep(name)) for name, one in layers.items()]
    try:
        outputs = {one.untyped_storage().data_ptr() for one in run().values()}
    finally:
        for handle in handles:
            handle.remove()
    heads = {name for name, one in seen.items() if one.untyped_storage().data_ptr() in outputs}
    return {f"{name}.weight" for name in layers.keys() - heads}
