"""Groups: channels that can only leave a network together, as frozen data.

Measured once (:mod:`edgepress.compress.channels.structure`), then read by everything that decides.
An *atom* is the smallest thing that can leave: mostly one channel, here and there several (one in
each half of a split, a whole attention head), with its place in every module that holds it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from .channel_surgery import ChannelCut
from .cut_history import ChangedAttribute, CutStep
from .layer_shapes import LayerShape


@dataclass(frozen=True)
class Member:
    """One side of one module that holds atoms of a group.

    Attributes:
        module: Dotted name.
        side: As :class:`~edgepress.compress.channels.channel_surgery.ChannelCut` has it.
        width: Channels on that side, those of other groups (before or behind in a concatenation)
            and of none included.
        indices: For each atom, which of those channels it is; none where it is not in there.
    """

    module: str
    side: str
    width: int
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelAttribute:
    """A number of a module that goes down with the atoms, such as ``num_heads``.

    Attributes:
        module: Dotted name.
        name: Of the attribute.
        value: What it is while no atom has left.
        each: What each atom takes away.
    """

    module: str
    name: str
    value: int
    each: int = 1


@dataclass(frozen=True)
class Group:
    """Channels that leave together.

    Attributes:
        name: Of the module that makes them (the first one, where several do).
        members: Every module that holds them.
        free: The atoms that may leave.
        segments: For each atom, the segment it lies in; equally many must leave each segment
            (groups of a grouped convolution).
        counts: Numbers that go down with it.
        exact: Whether a cut gives what silent channels give; not where a normalization over
            channels lies among the members, whose statistics change.
    """

    name: str
    members: tuple[Member, ...]
    free: tuple[int, ...]
    segments: tuple[int, ...]
    counts: tuple[ChannelAttribute, ...] = ()
    exact: bool = True

    @property
    def width(self) -> int:
        """How many atoms there are."""
        return len(self.segments)

    @cached_property
    def free_by_segment(self) -> tuple[tuple[int, ...], ...]:
        """The atoms that may leave, segment by segment."""
        held: dict[int, list[int]] = {segment: [] for segment in self.segments}
        for atom in self.free:
            held[self.segments[atom]].append(atom)
        return tuple(tuple(atoms) for atoms in held.values())

    @cached_property
    def least(self) -> int:
        """The fewest atoms that can stay: the fixed ones, one in each segment and each member."""
        segments, free = self.free_by_segment, set(self.free)
        each = self.width // len(segments)
        leaving = min(min(len(atoms), each - 1) for atoms in segments)
        for member in self.members:
            held = {atom for atom, indices in enumerate(member.indices) if indices}
            if held <= free:
                leaving = min(leaving, (len(held) - 1) // len(segments))
        return self.width - leaving * len(segments)

    @property
    def step(self) -> int:
        """Widths differ by multiples of this: the number of segments."""
        return len(self.free_by_segment)

    def weakest(self, scores: Sequence[float], kept: int) -> tuple[int, ...]:
        """The atoms to remove so that ``kept`` stay: the lowest scores, segment by segment.

        Args:
            scores: One for each atom.
            kept: A width between :attr:`least` and :attr:`width`, a multiple of :attr:`step` below.
        """
        each = (self.width - kept) // self.step
        gone: list[int] = []
        for atoms in self.free_by_segment:
            gone += sorted(atoms, key=lambda atom: (scores[atom], atom))[:each]
        return tuple(sorted(gone))


@dataclass(frozen=True)
class ResidualBlock:
    """A residual block: with nothing in it, it would pass on its input; it can leave as a whole.

    Attributes:
        name: Dotted name of the module.
    """

    name: str

    def holds(self, module: str) -> bool:
        """Whether a module lies in it."""
        return module == self.name or module.startswith(self.name + ".")


@dataclass(frozen=True)
class RefusedModule:
    """What pruning leaves alone.

    Attributes:
        name: Module whose output channels stay.
        reason: Why, in words.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Structure:
    """What can be pruned in a network, and what cannot.

    Attributes:
        groups: Channels that can leave.
        blocks: Residual blocks that can leave.
        layers: All convolutions and matrix products.
        refused: What stays, with the reason.
        notes: Remarks for people.
    """

    groups: tuple[Group, ...]
    blocks: tuple[ResidualBlock, ...]
    layers: tuple[LayerShape, ...]
    refused: tuple[RefusedModule, ...]
    notes: tuple[str, ...] = ()


def cut_step_of(removed: Mapping[Group, Iterable[int]], skipped: Sequence[str] = ()) -> CutStep:
    """The step of a history that takes atoms and blocks out.

    Args:
        removed: For each group, the atoms that leave.
        skipped: Names of blocks that leave; what lies in them needs no cut.
    """
    gone: dict[tuple[str, str], set[int]] = defaultdict(set)
    widths: dict[tuple[str, str], int] = {}
    attributes: list[ChangedAttribute] = []
    blocks = [ResidualBlock(name) for name in skipped]
    for group, atoms in removed.items():
        leaving = sorted(set(atoms))
        if not leaving:
            continue
        for member in group.members:
            if any(block.holds(member.module) for block in blocks):
                continue
            key = (member.module, member.side)
            widths[key] = member.width
            for atom in leaving:
                gone[key].update(member.indices[atom])
        attributes += [
            ChangedAttribute(count.module, count.name, count.value - count.each * len(leaving))
            for count in group.counts
            if not any(block.holds(count.module) for block in blocks)
        ]
    cuts = tuple(
        ChannelCut(module, side, widths[module, side], tuple(sorted(indices)))
        for (module, side), indices in gone.items()
        if indices
    )
    return CutStep(cuts, tuple(attributes), tuple(skipped))
