"""Gates: numbers that channels are multiplied with where they are read, and what that does.

All of a channel's influence goes through the layers that read it, so a gate there silences it
exactly, and the derivative along a gate is the derivative along the channel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from ..channels.channel_groups import Group, Member
from ..channels.channel_surgery import modules_of
from ..channels.cut_verification import NamedTensors
from ..training.losses import is_distribution, logits_of

Outputs: TypeAlias = Literal["logits", "features"]
"""What a network gives: class scores, softmaxed or not, or numbers whose distances matter."""

TEMPERATURE = 8.0
"""Class scores are divided by it before they become probabilities (Hinton et al. 2015, section 2).
On pictures that a network was trained on it is so sure of itself that hardly any cut would seem to
matter: ResNet-56 at 40 % of its multiply-adds, not trained back, has 69.2 % at 1, 78.9 % at 4 and
79.7 % at 8 (``benchmarks/results/importance_methods.md``)."""


def readers(group: Group, parts: Mapping[str, nn.Module]) -> list[Member]:
    """The members of a group that read its channels: all of its influence goes through them."""
    return [m for m in group.members if m.side == "in" and m.module in parts]


@contextlib.contextmanager
def gates(module: nn.Module, groups: Sequence[Group], rows: int) -> Generator[list[torch.Tensor]]:
    """Inside, each atom is multiplied with a number, 1 at first, wherever it is read.

    Args:
        module: The network; its hooks are gone afterwards.
        groups: Whose atoms.
        rows: Pictures in a batch; every picture has numbers of its own.

    Yields:
        For each group the numbers, ``(rows, atoms)``; they can be differentiated by, or set.
    """
    parts = dict(modules_of(module))
    held = [torch.ones(rows, group.width, requires_grad=True) for group in groups]
    by_module: dict[str, list[tuple[torch.Tensor, Member]]] = {}
    for gate, group in zip(held, groups, strict=True):
        for member in readers(group, parts):
            by_module.setdefault(member.module, []).append((gate, member))
    hooks: list[Any] = []
    for name, gated in by_module.items():
        part: Any = parts[name]
        hooks.append(part.register_forward_pre_hook(_multiply(gated)))
    try:
        yield held
    finally:
        for hook in hooks:
            hook.remove()


def _multiply(gated: Sequence[tuple[torch.Tensor, Member]]) -> Callable[..., tuple[Any, ...]]:
    width = gated[0][1].width
    places: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for gate, member in gated:
        pairs = [(i, atom) for atom, indices in enumerate(member.indices) for i in indices]
        here = torch.tensor([i for i, _ in pairs])
        there = torch.tensor([atom for _, atom in pairs])
        places.append((gate, here, there))

    def hook(part: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        tensor: torch.Tensor = given[0]
        rows = places[0][0].shape[0]
        whole = torch.ones(rows, width)
        for gate, here, there in places:
            whole = whole.index_copy(1, here, gate.index_select(1, there))
        axis = activation_channel_axis(part, tensor)
        if tensor.shape[0] % rows == 0:
            whole = whole.repeat_interleave(tensor.shape[0] // rows, 0)  # windows of one picture
        else:
            whole = whole.mean(0, keepdim=True)
        shape = [1] * tensor.ndim
        shape[0], shape[axis] = whole.shape
        return (tensor * whole.reshape(shape), *given[1:])

    return hook


def activation_channel_axis(part: nn.Module, tensor: torch.Tensor) -> int:
    """The dimension of a layer's input that holds channels."""
    return tensor.ndim - 1 if isinstance(part, nn.Linear) else 1


def log_shares(scores: torch.Tensor, *, softmaxed: bool) -> torch.Tensor:
    """Logarithms of the classes' probabilities ``(N, classes)``, softened.

    Args:
        scores: Class scores.
        softmaxed: Whether they are probabilities already, not softened yet.
    """
    logits = logits_of(scores) if softmaxed else scores.float()
    return (logits / TEMPERATURE).log_softmax(1)


def output_divergence(wanted: NamedTensors, found: NamedTensors, outputs: Outputs) -> float:
    """How far outputs moved, summed over pictures: what a score estimates.

    Args:
        wanted: Outputs of the whole network.
        found: Those with channels or blocks missing.
        outputs: ``logits``: Kullback-Leibler divergence in nats, at :data:`TEMPERATURE`;
            ``features``: squared distance as a share of the mean square.
    """
    total = 0.0
    for key, one in wanted.items():
        if not one.is_floating_point():
            continue
        other = found[key].float()
        if outputs == "logits" and one.ndim == 2:
            softmaxed = is_distribution(one)
            before, after = (log_shares(each, softmaxed=softmaxed) for each in (one, other))
            total += float((before.exp() * (before - after)).sum())
        else:
            flat = one.float().flatten(1)
            scale = float(flat.square().sum(1).mean().clamp_min(1e-12))
            total += float((flat - other.flatten(1)).square().sum()) / scale
    return total
