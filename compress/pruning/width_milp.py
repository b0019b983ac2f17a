"""Selection: the widths and blocks that cost the outputs least within bounds; a pure function.

An integer program over tables (a multiple-choice knapsack in which the cost of a layer depends on
two choices, that of its input and that of its output). It is linearized exactly, by a variable for
each pair of choices that meet in a layer (Fortet 1960; McCormick 1976), and solved by HiGHS
(Huangfu and Hall 2018). Where more than two groups meet in a layer (concatenations) their effects
are added, and the bound is moved until the true sum obeys it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import BoundError
from ..channels.layer_shapes import LayerShape
from ..milp_solver import solve_milp
from .layer_costs import Cost, LayerWidths, Ports, Widths
from .output_damage import OutputDamage

_GAP = 0.005
_SECONDS = 30.0
_ROUNDS = 8
_SLACK = 1e-9

_Matrix = NDArray[np.float64]
_Row: TypeAlias = tuple[dict[int, float], float, float]


@dataclass(frozen=True)
class Bound:
    """A ceiling on a sum over the layers.

    Attributes:
        name: What it is called in messages, e.g. ``multiply-adds``.
        cost: What is summed.
        limit: The most it may be.
        option: What the user gave for it, e.g. ``max_macs_ratio``.
        unit: The limit for an option of 1.
        offset: Added to the sum: what does not depend on the choice.
    """

    name: str
    cost: Cost
    limit: float
    option: str
    unit: float = 1.0
    offset: float = 0.0

    @property
    def room(self) -> float:
        """What the layers may come to."""
        return self.limit - self.offset

    @property
    def total(self) -> float:
        """What sums are divided by, so that all bounds are near one."""
        return max(abs(self.limit), _SLACK)

    def of(self, frame: LayerWidths, choice: Widths) -> float:
        """What a choice comes to."""
        return frame.total(self.cost, choice) + self.offset


def choose_widths(
    frame: LayerWidths,
    widths: Sequence[Sequence[int]],
    damage: OutputDamage,
    bounds: Sequence[Bound],
    *,
    blocks: bool = True,
) -> Widths:
    """The choice with the least damage within all bounds.

    Args:
        frame: The network's layers.
        widths: What each group may be cut to, the whole width first.
        damage: What that costs the outputs.
        bounds: Ceilings.
        blocks: Whether whole blocks may leave.

    Returns:
        The choice; the smallest legal network where no other was found in time.

    Raises:
        BoundError: ``E_BOUND`` where the smallest legal network is above a bound.
    """
    smallest = smallest_of(frame, widths, blocks=blocks)
    for bound in bounds:
        least = bound.of(frame, smallest)
        if least > bound.limit:
            option, enough = bound.option.replace("_", "-"), _up(least / bound.unit)
            whole = bound.of(frame, frame.whole)
            raise BoundError(
                "E_BOUND",
                f"no pruning brings the {bound.name} to {bound.limit:.4g}: the smallest legal "
                f"network has {least:.4g}, the whole one {whole:.4g}.",
                mend=f"Give --{option} {enough} or more, or keep fewer modules.",
            )
    program = _Program(frame, widths, damage, bounds, blocks)
    wanted = np.array([bound.room / bound.total for bound in bounds])
    limits = wanted.copy()
    best: Widths | None = None
    for _ in range(_ROUNDS):
        found = program.solve(limits)
        if found is None:
            break
        sums = np.array([frame.total(bound.cost, found) / bound.total for bound in bounds])
        over = sums / np.maximum(wanted, _SLACK)
        if bool((over <= 1 + _SLACK).all()):
            best = found
            break
        limits = limits / np.maximum(over, 1.0) * np.where(over > 1, 0.998, 1.0)
    return best if best is not None else smallest


def smallest_of(frame: LayerWidths, widths: Sequence[Sequence[int]], *, blocks: bool) -> Widths:
    """The smallest legal network: all that may leave has left."""
    kept = tuple(min(each) for each in widths)
    return Widths(kept, (blocks,) * len(frame.structure.blocks))


def _up(value: float) -> str:
    """Rounded up to two digits that count, so that asking for it is enough."""
    digits = 1 - math.floor(math.log10(max(value, _SLACK)))
    return f"{math.ceil(value * 10**digits) / 10**digits:g}"


@dataclass
class _Program:
    """The integer program: columns for choices, rows for what ties them together."""

    frame: LayerWidths
    widths: Sequence[Sequence[int]]
    damage: OutputDamage
    bounds: Sequence[Bound]
    blocks: bool
    objective: list[float] = field(default_factory=list[float])
    integral: list[int] = field(default_factory=list[int])
    upper: list[float] = field(default_factory=list[float])
    rows: list[_Row] = field(default_factory=list[_Row])

    def __post_init__(self) -> None:
        self.first: list[int] = []
        for costs in self.damage.groups:
            self.first.append(len(self.objective))
            columns = [self._column(value, integral=True) for value in costs]
            self._row([(column, 1.0) for column in columns], 1.0, 1.0)
        self.skip = [
            self._column(value, integral=True, upper=1.0 if self.blocks else 0.0)
            for value in self.damage.blocks
        ]
        self.sums: list[dict[int, float]] = [{} for _ in self.bounds]
        self.constant = np.zeros(len(self.bounds))
        for key, tables in self._tables().items():
            self._term(key, tables)
        self.bound_rows = [self._row(list(one.items()), -np.inf, np.inf) for one in self.sums]

    def solve(self, limits: _Matrix) -> Widths | None:
        """The best choice with the sums below ``limits``; ``None`` where there is none."""
        rows = list(self.rows)
        for row, limit in zip(self.bound_rows, limits - self.constant, strict=True):
            rows[row] = (rows[row][0], -np.inf, float(limit))
        found = solve_milp(
            np.array(self.objective) / max(*self.objective, _SLACK),
            rows,
            seconds=_SECONDS,
            gap=_GAP,
            integral=self.integral,
            upper=self.upper,
        )
        if found is None:
            return None
        kept = tuple(
            int(each[int(np.argmax(found[first : first + len(each)]))])
            for first, each in zip(self.first, self.widths, strict=True)
        )
        return Widths(kept, tuple(bool(found[column] > 0.5) for column in self.skip))

    def _tables(self) -> dict[tuple[tuple[int, ...], int | None], list[_Matrix]]:
        """For each set of groups that meet in layers, what these cost at every pair of widths."""
        tables: dict[tuple[tuple[int, ...], int | None], list[_Matrix]] = {}
        layers = zip(self.frame.structure.layers, self.frame.ports, strict=True)
        scales = [bound.total for bound in self.bounds]
        for layer, ports in layers:
            groups = ports.groups
            for number, bound in enumerate(self.bounds):
                for some, table in self._parts(layer, ports, groups, bound.cost, scales[number]):
                    held = tables.setdefault((some, ports.block), [])
                    while len(held) <= number:
                        held.append(np.zeros_like(table))
                    held[number] = held[number] + table
        return tables

    def _parts(
        self, layer: LayerShape, ports: Ports, groups: tuple[int, ...], cost: Cost, scale: float
    ) -> list[tuple[tuple[int, ...], _Matrix]]:
        """A layer's cost as tables over at most two groups each."""
        whole = list(self.frame.whole.kept)

        def at(chosen: dict[int, int]) -> float:
            kept = [chosen.get(number, width) for number, width in enumerate(whole)]
            ins = self.frame.width(layer.in_width, ports.ins, kept)
            outs = self.frame.width(layer.out_width, ports.outs, kept)
            return cost(layer, ins, outs) / scale

        if not groups:
            return [((), np.array(at({})))]
        if len(groups) == 1:
            (one,) = groups
            return [(groups, np.array([at({one: w}) for w in self.widths[one]]))]
        if len(groups) == 2:
            one, two = groups
            rows = [[at({one: v, two: w}) for w in self.widths[two]] for v in self.widths[one]]
            return [(groups, np.array(rows))]
        full = at({})
        parts: list[tuple[tuple[int, ...], _Matrix]] = [((), np.array(full))]
        for one in groups:
            parts.append(((one,), np.array([at({one: w}) - full for w in self.widths[one]])))
        return parts

    def _term(self, key: tuple[tuple[int, ...], int | None], tables: list[_Matrix]) -> None:
        groups, block = key
        if not groups:
            if block is None:
                self.constant += [float(table) for table in tables]
                return
            for number, table in enumerate(tables):
                self.constant[number] += float(table)
                self._add(number, self.skip[block], -float(table))
            return
        if len(groups) == 1 and block is None:
            for number, table in enumerate(tables):
                for option, value in enumerate(table):
                    self._add(number, self.first[groups[0]] + option, float(value))
            return
        shape = tables[0].shape
        columns = np.array(
            [self._column(0.0, integral=False) for _ in range(int(np.prod(shape)))]
        ).reshape(shape)
        held = [(int(column), 1.0) for column in columns.ravel()]
        held += [] if block is None else [(self.skip[block], 1.0)]
        self._row(held, 1.0, 1.0)
        for axis, group in enumerate(groups):
            for option in range(shape[axis]):
                taken = np.take(columns, option, axis=axis).ravel()
                row = [(int(column), 1.0) for column in taken]
                self._row([*row, (self.first[group] + option, -1.0)], -np.inf, 0.0)
        for number, table in enumerate(tables):
            for column, value in zip(columns.ravel(), table.ravel(), strict=True):
                self._add(number, int(column), float(value))

    def _add(self, number: int, column: int, value: float) -> None:
        self.sums[number][column] = self.sums[number].get(column, 0.0) + value

    def _column(self, cost: float, *, integral: bool, upper: float = 1.0) -> int:
        self.objective.append(cost)
        self.integral.append(int(integral))
        self.upper.append(upper)
        return len(self.objective) - 1

    def _row(self, held: Sequence[tuple[int, float]], low: float, high: float) -> int:
        entries: dict[int, float] = {}
        for column, value in held:  # one that is named twice counts twice
            entries[column] = entries.get(column, 0.0) + value
        self.rows.append((entries, low, high))
        return len(self.rows) - 1
