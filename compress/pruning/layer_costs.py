"""Costs: what a network as narrow as a choice makes it would take, summed over its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from ..channels.channel_groups import Structure
from ..channels.layer_shapes import LayerShape

Cost: TypeAlias = Callable[[LayerShape, int, int], float]
"""What a layer costs at so many input and output channels."""


def macs_cost(layer: LayerShape, in_width: int, out_width: int) -> float:
    """Multiply-adds for one picture."""
    return float(layer.macs(in_width, out_width))


def parameters_cost(layer: LayerShape, in_width: int, out_width: int) -> float:
    """Weights and biases."""
    return float(layer.parameters(in_width, out_width))


@dataclass(frozen=True)
class Widths:
    """How narrow a network shall be.

    Attributes:
        kept: For each group, how many atoms stay.
        skipped: For each block, whether it leaves.
    """

    kept: tuple[int, ...]
    skipped: tuple[bool, ...]


@dataclass(frozen=True)
class Ports:
    """Which groups make a layer narrower.

    Attributes:
        ins: ``(group, channels an atom takes with it)`` on the input side.
        outs: The same on the output side.
        block: The block that the layer lies in, or ``None``.
    """

    ins: tuple[tuple[int, float], ...]
    outs: tuple[tuple[int, float], ...]
    block: int | None

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups of both sides, each once."""
        return tuple(dict.fromkeys(group for group, _ in (*self.ins, *self.outs)))


@dataclass(frozen=True)
class LayerWidths:
    """A structure seen from its layers: how wide each is under a choice.

    Attributes:
        structure: The network's groups, blocks and layers.
    """

    structure: Structure

    @cached_property
    def ports(self) -> tuple[Ports, ...]:
        """For each layer, in order."""
        sides: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for number, group in enumerate(self.structure.groups):
            for member in group.members:
                taken = sum(len(member.indices[atom]) for atom in group.free) / len(group.free)
                if taken:
                    sides.setdefault((member.module, member.side), []).append((number, taken))
        found: list[Ports] = []
        for layer in self.structure.layers:
            outs = tuple(sides.get((layer.module, "out"), ()))
            ins = outs if layer.depthwise else tuple(sides.get((layer.module, "in"), ()))
            block = next(
                (i for i, b in enumerate(self.structure.blocks) if b.holds(layer.module)), None
            )
            found.append(Ports(ins, outs, block))
        return tuple(found)

    @property
    def whole(self) -> Widths:
        """The choice that leaves everything."""
        kept = tuple(group.width for group in self.structure.groups)
        return Widths(kept, (False,) * len(self.structure.blocks))

    def width(self, full: int, side: Sequence[tuple[int, float]], kept: Sequence[int]) -> int:
        """Channels of a side of a layer under a choice, at least one."""
        groups = self.structure.groups
        gone = sum(taken * (groups[number].width - kept[number]) for number, taken in side)
        return max(1, full - round(gone))

    def widths(self, choice: Widths) -> list[tuple[LayerShape, int, int]]:
        """Each layer that is left, with its input and output channels."""
        return [
            (
                layer,
                self.width(layer.in_width, ports.ins, choice.kept),
                self.width(layer.out_width, ports.outs, choice.kept),
            )
            for layer, ports in zip(self.structure.layers, self.ports, strict=True)
            if ports.block is None or not choice.skipped[ports.block]
        ]

    def total(self, cost: Cost, choice: Widths) -> float:
        """The cost of the network under a choice."""
        return sum(cost(*one) for one in self.widths(choice))
