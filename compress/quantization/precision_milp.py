"""Trade: from a Blame to a PrecisionPlan, as an integer program. It runs no network.

What is decided: for each node INT8 or float32. What it minimizes: the predicted time of the whole
network, the time of each node in its precision and the price of every border. What it keeps: for
each output, noise over signal of all that becomes codes at most a bound. A tensor's noise counts
where the tensor becomes codes, a layer's where its weights do.

With ``x_n`` = node ``n`` in INT8, ``q_t`` = tensor ``t`` is quantized at a border, ``d_t`` = its
codes are made floats again, ``y_t`` = it is codes at all, ``p`` the node that makes ``t``, ``r``
any that reads it::

    minimize    sum_n x_n (int8_ms - float_ms) + sum_t q_t quantize_ms + d_t dequantize_ms
    subject to  q_t >= x_r - x_p,  d_t >= x_p - x_r,  y_t >= x_r,  y_t >= x_p
                (y_t >= x_r - x_p alone, where p moves codes or joins them; where p may give float32
                straight out, d_t >= x_p + x_r - x_s - 1 for every two readers r and s)
                sum_n x_n damage_n + sum_t y_t damage_t <= bound        for each output
                x_n = x_m                                               for nodes of one kernel

Source: the integer program over measured costs and additive damage is that of Hubara et al. 2021
(arXiv:2006.10518, section 3.4), here with borders; solved by HiGHS (Huangfu and Hall 2018) through
scipy.optimize.milp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...export.graph.precision_plan import NodePrecision, PrecisionPlan
from ...export.sensitivity.sensitivity_table import (
    NodeSensitivity,
    SensitivityTable,
    TensorSensitivity,
)

_SECONDS = 10.0  # for the solver; what it has by then is near the best
_GAP = 1e-4
_SPARE = 0.01  # of the float32 network's time, which less noise may cost: no prediction is better


@dataclass(frozen=True)
class MixedPlan:
    """A plan and what is predicted of it.

    Attributes:
        plan: Precision of every node that can run in INT8.
        int8: Names of the nodes that it puts in INT8, without those that only move values.
        predicted_ms: The whole network's time: sum over kernels.
        predicted_noise: Noise over signal, the worst output's; 0 where no damage was measured.
        bound: What it had to stay below; ``None`` for any.
    """

    plan: PrecisionPlan
    int8: tuple[str, ...]
    predicted_ms: float
    predicted_noise: float
    bound: float | None

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return {
            "int8_nodes": len(self.int8),
            "predicted_ms": self.predicted_ms,
            "predicted_sqnr_db": decibels(self.predicted_noise),
            "bound_sqnr_db": None if self.bound is None else decibels(self.bound),
        }


def decibels(noise: float) -> float | None:
    """Noise over signal as a signal-to-noise ratio; ``None`` where there is no noise."""
    return -10 * math.log10(noise) if noise > 0 else None


def decide_precisions(blame: SensitivityTable, bound: float | None = None) -> MixedPlan:
    """The fastest plan whose predicted noise stays within a bound.

    Of the plans that are at most 1 % of the float32 network's time slower, the one with the least
    noise.

    Args:
        blame: What was measured.
        bound: Largest noise over signal (powers) at any output; ``None`` for the fastest plan.
    """
    program = _Program(blame)
    chosen = program.solve(bound)
    computing = [node for node in blame.nodes if not node.follows]
    int8 = tuple(node.name for node in computing if node.name in chosen)
    noise = max(_noise(blame, chosen).values(), default=0.0)
    plan = PrecisionPlan({node.name: _choice(node, chosen, blame, bound) for node in computing})
    return MixedPlan(plan, int8, predicted_ms(blame, chosen), noise, bound)


def predicted_ms(blame: SensitivityTable, int8: frozenset[str]) -> float:
    """The whole network's time with the named nodes in INT8: sum over kernels."""
    saved = sum(n.float_ms - n.int8_ms for n in blame.nodes if n.name in int8)
    return blame.float_ms - saved + borders_ms(blame, int8)


def borders_ms(blame: SensitivityTable, int8: frozenset[str]) -> float:
    """What the borders between the precisions take."""
    makers, readers = _makers(blame), _readers(blame)
    total = 0.0
    for tensor in blame.tensors:
        maker = makers.get(tensor.name)
        made = maker is not None and maker.name in int8
        read = [reader.name in int8 for reader in readers.get(tensor.name, ())]
        if any(read) and not made:
            total += tensor.quantize_ms
        free = maker is not None and maker.free_output and not any(read)
        if made and not free and (tensor.float_reader or not all(read)):
            total += tensor.dequantize_ms
    return total


def noise_of(blame: SensitivityTable, int8: frozenset[str]) -> float:
    """Predicted noise over signal with the named nodes in INT8, the worst output's."""
    return max(_noise(blame, int8).values(), default=0.0)


def noise_by_node(blame: SensitivityTable) -> dict[str, float]:
    """Noise over signal that each node brings, by its weights and by what it gives."""
    tensors = {tensor.name: tensor for tensor in blame.tensors}
    found: dict[str, float] = {}
    for node in blame.nodes:
        if not node.follows:
            given = [tensors[name] for name in node.gives if name in tensors]
            lost = sum(max(one.damage.values(), default=0.0) for one in given)
            found[node.name] = max(node.damage.values(), default=0.0) + lost
    return found


def _noise(blame: SensitivityTable, int8: frozenset[str]) -> dict[str, float]:
    makers, readers = _makers(blame), _readers(blame)
    total = dict.fromkeys(blame.outputs, 0.0)
    for node in blame.nodes:
        if node.name in int8:
            for output, lost in node.damage.items():
                total[output] += lost
    for tensor in blame.tensors:
        maker = makers.get(tensor.name)
        made = maker is not None and maker.name in int8
        read = any(reader.name in int8 for reader in readers.get(tensor.name, ()))
        if maker is not None and maker.carries:  # codes that are moved bring no noise of their own
            noisy = read and not made
        else:
            noisy = read or (made and not (maker is not None and maker.free_output))
        if noisy:
            for output, lost in tensor.damage.items():
                total[output] += lost
    return total


def _makers(blame: SensitivityTable) -> dict[str, NodeSensitivity]:
    return {name: node for node in blame.nodes for name in node.gives}


def _readers(blame: SensitivityTable) -> dict[str, list[NodeSensitivity]]:
    readers: dict[str, list[NodeSensitivity]] = {}
    for node in blame.nodes:
        for name in dict.fromkeys(node.reads):
            readers.setdefault(name, []).append(node)
    return readers


def _choice(
    node: NodeSensitivity, chosen: frozenset[str], blame: SensitivityTable, bound: float | None
) -> NodePrecision:
    """Why a node is in what it is in: the time and the noise of all that shares its kernel."""
    kernel = [one for one in blame.nodes if one is node or one.name in node.together]
    saves = sum(one.float_ms - one.int8_ms for one in kernel)
    if node.name in chosen:
        return NodePrecision("int8", f"measured: saves {saves:.3f} ms of {blame.float_ms:.3f} ms")
    tensors = {one.name: one for one in blame.tensors}
    around = dict.fromkeys(name for one in kernel for name in (*one.reads, *one.gives))
    near = [tensors[name] for name in around if name in tensors]
    lost = sum(max(one.damage.values(), default=0.0) for one in (*kernel, *near))
    if saves == 0:
        return NodePrecision("float32", "measured: INT8 is no faster here")
    if saves < 0:
        return NodePrecision("float32", f"measured: INT8 is {-saves:.3f} ms slower here")
    if bound is not None and lost > bound / 4:
        share = 100 * lost
        return NodePrecision("float32", f"measured: INT8 here would bring noise of {share:.2g} %")
    return NodePrecision(
        "float32", f"measured: saves {saves:.3f} ms, less than its borders or noise cost"
    )


class _Program:
    """The integer program of a Blame: columns are nodes, then q, d and y of each tensor."""

    def __init__(self, blame: SensitivityTable) -> None:
        self._blame = blame
        self._nodes = {node.name: i for i, node in enumerate(blame.nodes)}
        self._makers, self._readers = _makers(blame), _readers(blame)
        count, tensors = len(blame.nodes), len(blame.tensors)
        self._q, self._d, self._y = count, count + tensors, count + 2 * tensors
        self._width = count + 3 * tensors
        self._rows: list[tuple[dict[int, float], float, float]] = []
        for index, tensor in enumerate(blame.tensors):
            self._tensor(index, tensor)
        for node in blame.nodes:
            self._node(node)

    def solve(self, bound: float | None) -> frozenset[str]:
        """Names of the nodes in INT8."""
        from ..milp_solver import solve_milp

        blame, cost = self._blame, np.zeros(self._width)
        for i, node in enumerate(blame.nodes):
            cost[i] = node.int8_ms - node.float_ms
        for i, tensor in enumerate(blame.tensors):
            cost[self._q + i] = tensor.quantize_ms
            cost[self._d + i] = tensor.dequantize_ms
            cost[self._y + i] = 1e-9  # of two equal plans the one with fewer codes
        rows, noise = list(self._rows), np.zeros(self._width)
        for output in blame.outputs:
            lost = self._lost(output)
            noise += lost / max(float(lost.sum()), 1e-30)
            if bound is not None:
                # In units of the bound: noise powers are far below what a solver takes for zero.
                noisy, most = np.flatnonzero(lost), 1.0 if bound > 0 else 0.0
                entries = {int(k): float(lost[k]) / bound if bound > 0 else 1.0 for k in noisy}
                rows.append((entries, -math.inf, most))
        found = solve_milp(cost, rows, seconds=_SECONDS, gap=_GAP)
        if found is None:  # float32 throughout is a plan, too
            return frozenset()
        if noise.any():
            most = float(cost @ found) + _SPARE * blame.float_ms
            rows.append(({int(k): float(cost[k]) for k in np.flatnonzero(cost)}, -math.inf, most))
            calmer = solve_milp(noise + 1e-6 * cost, rows, seconds=_SECONDS, gap=_GAP)
            found = found if calmer is None else calmer
        return frozenset(name for name, i in self._nodes.items() if found[i] > 0.5)

    def _lost(self, output: str) -> NDArray[np.float64]:
        """Noise at an output that each variable stands for."""
        lost = np.zeros(self._width)
        for i, node in enumerate(self._blame.nodes):
            lost[i] = node.damage.get(output, 0.0)
        for i, tensor in enumerate(self._blame.tensors):
            lost[self._y + i] = tensor.damage.get(output, 0.0)
        return lost

    def _tensor(self, index: int, tensor: TensorSensitivity) -> None:
        q, d, y = (start + index for start in (self._q, self._d, self._y))
        readers = [self._nodes[one.name] for one in self._readers.get(tensor.name, ())]
        maker = self._makers.get(tensor.name)
        if maker is None:
            for read in readers:
                self._at_least({q: 1.0, read: -1.0})
                self._at_least({y: 1.0, read: -1.0})
            return
        made = self._nodes[maker.name]
        for read in readers:
            self._at_least({q: 1.0, read: -1.0, made: 1.0})
            self._at_least({y: 1.0, read: -1.0} | ({made: 1.0} if maker.carries else {}))
        if maker.free_output:  # codes only where somebody reads codes, then floats for the others
            for read in readers:
                if tensor.float_reader:
                    self._at_least({d: 1.0, made: -1.0, read: -1.0}, -1.0)
                for other in readers:
                    if other != read:
                        entries = {d: 1.0, made: -1.0, read: -1.0, other: 1.0}
                        self._at_least(entries, -1.0)
            return
        if not maker.carries:
            self._at_least({y: 1.0, made: -1.0})
        if tensor.float_reader:
            self._at_least({d: 1.0, made: -1.0})
        for read in readers:
            self._at_least({d: 1.0, made: -1.0, read: 1.0})

    def _node(self, node: NodeSensitivity) -> None:
        mine = self._nodes[node.name]
        for other in node.together:
            if other != node.name:
                self._rows.append(({mine: 1.0, self._nodes[other]: -1.0}, 0.0, 0.0))
        if node.follows:  # it moves codes only where codes are wanted behind it
            behind = [r for name in node.gives for r in self._readers.get(name, ())]
            entries = {mine: -1.0}
            for reader in behind:
                entries[self._nodes[reader.name]] = 1.0
            self._at_least(entries)

    def _at_least(self, entries: Mapping[int, float], low: float = 0.0) -> None:
        self._rows.append((dict(entries), low, math.inf))
