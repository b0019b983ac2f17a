"""Importance: what a channel is worth. One seam, ``(network, groups, pictures) -> scores``.

The default, ``fisher``, asks how far the network's own outputs would move were a channel silent,
and needs no labels: to second order the divergence between the outputs before and after is a
quadratic form whose matrix is the Fisher information of the outputs, so that a channel costs half
the mean square of the derivative along it (Theis et al. 2018, "Faster gaze prediction with dense
networks and Fisher pruning", equation 4). Its unit is that of the divergence, nats for class
scores: scores of different layers can be added and weighed against each other.

It is the default since it keeps most (``benchmarks/results/importance_methods.md``, one training
each): a ResNet-20 at half of its multiply-adds has 72.0 % before training back, by the others at
most 70.4 %, and after an epoch 93.9 % against at most 93.5 %. Where blocks may leave, too, it has
71.1 % and the others at most 70.4 %, and after an epoch no difference is told (92.9 to 93.2 %).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from ...export.graph.torch_capture import flatten_outputs
from ...runtime.errors import InputError
from ..channels.channel_groups import Group, Member
from ..channels.channel_surgery import modules_of
from ..training.losses import is_distribution
from .channel_gates import (
    NamedTensors,
    Outputs,
    activation_channel_axis,
    gates,
    log_shares,
    readers,
)

Scores: TypeAlias = "list[NDArray[np.float64]]"
"""For each group, one number for each of its atoms; those that cost least go first."""

Importance: TypeAlias = Callable[
    [nn.Module, Sequence[Group], Sequence[NamedTensors], Outputs, int], Scores
]
"""What a method is: network, groups, batches, what the outputs are, seed -> scores."""


def fisher(
    module: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[NamedTensors],
    outputs: Outputs,
    seed: int,
) -> Scores:
    """Half the mean square of the derivative of the outputs' likelihood along each atom.

    For class scores the label is drawn from the network's own prediction, once a picture; for
    features the derivative is taken along a random direction, scaled so that the score is a share
    of the features' mean square.

    Args:
        module: The network in evaluation mode; it is left as it is.
        groups: What is scored.
        batches: Pictures by input name.
        outputs: What the network gives.
        seed: Of the labels or directions that are drawn.
    """
    means = _derivatives(module, groups, batches, outputs, seed, torch.square)
    return [mean / 2 for mean in means]


def taylor(
    module: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[NamedTensors],
    outputs: Outputs,
    seed: int,
) -> Scores:
    """The mean size of the outputs' likelihood's change to first order, were an atom silent.

    A channel's activation times the derivative along it, summed over places (Molchanov et al. 2017,
    "Pruning convolutional neural networks for resource efficient inference", equations 7 and 8);
    labels are drawn as for :func:`fisher`, whose arguments it has.
    """
    return _derivatives(module, groups, batches, outputs, seed, torch.abs)


def _derivatives(
    module: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[NamedTensors],
    outputs: Outputs,
    seed: int,
    size: Callable[[torch.Tensor], torch.Tensor],
) -> Scores:
    """The mean over the pictures of the size of the likelihood's derivative along each atom."""
    draw = torch.Generator().manual_seed(seed)
    totals = [torch.zeros(group.width, dtype=torch.float64) for group in groups]
    count = 0
    for feeds in batches:
        rows = next(iter(feeds.values())).shape[0]
        with gates(module, groups, rows) as held, torch.enable_grad():
            given = flatten_outputs(module(**feeds))
            _likelihood(given, outputs, draw).backward()  # pyright: ignore[reportUnknownMemberType]
            for total, gate in zip(totals, held, strict=True):
                if gate.grad is not None:
                    total += size(gate.grad.double()).sum(0)
        count += rows
    return [total.numpy() / max(1, count) for total in totals]


def magnitude(
    module: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[NamedTensors],
    outputs: Outputs,
    seed: int,
) -> Scores:
    """The norm of the weights that make a channel, relative to the layer's mean (Li et al. 2017).

    Looks at no pictures. Arguments as :func:`fisher` has them.
    """
    del batches, outputs, seed
    parts = dict(modules_of(module))
    found: Scores = []
    for group in groups:
        score = np.zeros(group.width)
        for member in group.members:
            part = parts.get(member.module)
            if member.side == "out" and isinstance(part, (nn.Linear, _ConvNd)):
                weight: Any = part.weight.detach()
                rows = weight.double().flatten(1).square().sum(1).sqrt().numpy()
                rows = rows / max(float(rows.mean()), 1e-12)
                score += [sum(rows[i] for i in indices) for indices in member.indices]
        found.append(score)
    return found


def activation(
    module: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[NamedTensors],
    outputs: Outputs,
    seed: int,
) -> Scores:
    """The mean square of a channel where it is read, relative to its layer's.

    Arguments as :func:`fisher` has them.
    """
    del outputs, seed
    totals: dict[Member, torch.Tensor] = {}
    hooks: list[Any] = []
    parts = dict(modules_of(module))

    def add(member: Member) -> Callable[..., None]:
        def hook(part: nn.Module, given: tuple[Any, ...]) -> None:
            square = given[0].detach().double().square()
            axis = activation_channel_axis(part, square)
            mean = square.movedim(axis, 0).flatten(1).mean(1)
            totals[member] = totals.get(member, torch.zeros_like(mean)) + mean

        return hook

    for group in groups:
        for member in readers(group, parts):
            held: Any = parts[member.module]
            hooks.append(held.register_forward_pre_hook(add(member)))
    try:
        with torch.inference_mode():
            for feeds in batches:
                module(**feeds)
    finally:
        for hook in hooks:
            hook.remove()
    found: Scores = []
    for group in groups:
        score = np.zeros(group.width)
        for member in readers(group, parts):
            total = totals[member].numpy()
            total = total / max(float(total.mean()), 1e-12)
            score += [sum(total[i] for i in indices) for indices in member.indices]
        found.append(score)
    return found


IMPORTANCES: dict[str, Importance] = {
    "fisher": fisher,
    "taylor": taylor,
    "magnitude": magnitude,
    "activation": activation,
}


def importance(name: str) -> Importance:
    """The importance called ``name``.

    Raises:
        InputError: ``E_USAGE`` for a name that is none.
    """
    if name not in IMPORTANCES:
        raise InputError(
            "E_USAGE", f"unknown importance '{name}'.", mend="Known: " + ", ".join(IMPORTANCES)
        )
    return IMPORTANCES[name]


def _likelihood(given: NamedTensors, outputs: Outputs, draw: torch.Generator) -> torch.Tensor:
    """A number whose derivative's mean square is the Fisher information of the outputs."""
    total = torch.zeros(())
    for value in given.values():
        if not value.is_floating_point():
            continue
        if outputs == "logits" and value.ndim == 2:
            logs = log_shares(value, softmaxed=is_distribution(value))
            drawn = torch.multinomial(logs.detach().exp(), 1, generator=draw)
            total = total + logs.gather(1, drawn).sum()
        else:
            flat = value.float().flatten(1)
            scale = (2.0 / flat.detach().square().sum(1).mean().clamp_min(1e-12)).sqrt()
            total = total + (scale * torch.randn(flat.shape, generator=draw) * flat).sum()
    return total
