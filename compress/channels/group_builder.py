"""From dependencies to groups: which channels are one atom, which atoms one group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .channel_groups import ChannelAttribute, Group, Member
from .dependencies import DependencyChain

_Cell = tuple[str, str, int]
_BUNDLE = "a chain"  # no module is called so


class _Sets:
    """Disjoint sets of cells (Tarjan 1975), joined by what depends on each other."""

    def __init__(self) -> None:
        self._parent: dict[_Cell, _Cell] = {}

    def find(self, cell: _Cell) -> _Cell:
        """The cell that stands for the set of this one."""
        parent = self._parent.setdefault(cell, cell)
        while parent != cell:
            self._parent[cell] = self._parent[parent]
            cell, parent = parent, self._parent[parent]
        return cell

    def join(self, one: _Cell, other: _Cell) -> None:
        """The sets of both become one."""
        first, second = self.find(one), self.find(other)
        if first != second:
            self._parent[second] = first


def groups_of(chains: Sequence[DependencyChain]) -> list[tuple[Group, str | None]]:
    """Groups, none of them tried yet, each with what stands in its way.

    Channels that any chain ties together are one atom; chains that share an atom are one group. All
    atoms are free and in one segment.

    Args:
        chains: What Torch-Pruning found.
    """
    cells, widths = _Sets(), dict[tuple[str, str], int]()
    for number, chain in enumerate(chains):
        for link in chain.links:
            widths[link.module, link.side] = link.width
            for here, there in link.pairs:
                cells.join(("", str(number), there), (link.module, link.side, here))
    bundles = _Sets()
    for number, chain in enumerate(chains):
        for link in chain.links:
            for here, _ in link.pairs:
                atom = cells.find((link.module, link.side, here))
                bundles.join((_BUNDLE, "", number), atom)
    members: dict[_Cell, dict[_Cell, dict[tuple[str, str], set[int]]]] = {}
    obstacles: dict[_Cell, str] = {}
    for number, chain in enumerate(chains):
        if not chain.links:
            continue
        bundle = bundles.find((_BUNDLE, "", number))
        if chain.obstacle is not None:
            obstacles.setdefault(bundle, chain.obstacle)
        atoms = members.setdefault(bundle, {})
        for link in chain.links:
            for here, _ in link.pairs:
                held = atoms.setdefault(cells.find((link.module, link.side, here)), {})
                held.setdefault((link.module, link.side), set()).add(here)
    return [
        (_group(list(atoms.values()), widths), obstacles.get(bundle))
        for bundle, atoms in members.items()
    ]


def _group(
    atoms: Sequence[dict[tuple[str, str], set[int]]], widths: dict[tuple[str, str], int]
) -> Group:
    keys = list(dict.fromkeys(key for atom in atoms for key in atom))
    makers = [key for key in keys if key[1] == "out"] or keys
    ordered = sorted(atoms, key=lambda atom: _first(atom, makers))
    members = tuple(
        Member(
            module,
            side,
            widths[module, side],
            tuple(tuple(sorted(atom.get((module, side), ()))) for atom in ordered),
        )
        for module, side in keys
    )
    count = len(ordered)
    return Group(makers[0][0], members, tuple(range(count)), (0,) * count)


def _first(atom: dict[tuple[str, str], set[int]], makers: Iterable[tuple[str, str]]) -> list[int]:
    return [min(atom.get(key, {1 << 30})) for key in makers]


def head_group(
    heads: int,
    width: int,
    sources: Sequence[str],
    parts: int,
    reader: str,
    counts: Sequence[ChannelAttribute],
) -> Group:
    """The heads of an attention as a group: a head leaves queries, keys, values and the projection.

    Args:
        heads: How many there are.
        width: Channels of all heads together.
        sources: The layers that make queries, keys and values; one makes ``parts`` of them.
        parts: 3 where one layer makes all, one behind the other, else 1.
        reader: The layer that reads all heads.
        counts: What else says how many there are.
    """
    each = width // heads

    def channels(head: int, count: int) -> tuple[int, ...]:
        return tuple(part * width + head * each + i for part in range(count) for i in range(each))

    made = tuple(
        Member(source, "out", width * parts, tuple(channels(h, parts) for h in range(heads)))
        for source in sources
    )
    read = Member(reader, "in", width, tuple(channels(h, 1) for h in range(heads)))
    return Group(sources[0], (*made, read), tuple(range(heads)), (0,) * heads, tuple(counts))
