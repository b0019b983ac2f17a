"""From the table to a network's latency, and how far that prediction is to be believed.

A network is more than the sum of its layers: a call costs something, activations and shortcuts do,
neighbours share a cache. So whole networks, cut at random, are exported and timed against the whole
one in turns, and the sum is scaled to them: ``ratio = a + b * sum + c * layers``. What is predicted
is the ratio, which a machine's changing speed leaves alone. The networks are kept in the cache
folder beside the table; every network that is timed later joins them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.cache import make_folder
from ...runtime.files import write_file
from ..channels.layer_shapes import LayerShape
from ..milp_solver import fit_nonnegative
from .latency_table import LatencyTable, read_cache
from .layer_costs import LayerWidths, Widths
from .width_milp import Bound

RANDOM_NETWORKS = 6
_RIDGE = 0.02

TimeWidths = Callable[[Sequence[Widths]], list[float]]
"""Times networks as narrow as choices make them; their latency as a share of the whole one's."""


@dataclass
class LatencyModel:
    """Predicts a choice's latency as a share of the whole network's.

    Attributes:
        frame: The network's layers.
        table: What each layer takes.
        seen: Choices whose ratio was measured, with it.
    """

    frame: LayerWidths
    table: LatencyTable
    seen: list[tuple[Widths, float]] = field(default_factory=list[tuple[Widths, float]])

    def __post_init__(self) -> None:
        held: Any = read_cache(self.path)
        whole = self.frame.whole
        for one in held.get("networks", []):
            choice = Widths(tuple(one["kept"]), tuple(one["skipped"]))
            sizes = (len(choice.kept), len(choice.skipped))
            if sizes == (len(whole.kept), len(whole.skipped)) and one["ratio"] > 0:
                self.seen.append((choice, float(one["ratio"])))

    @property
    def path(self) -> Path | None:
        """The file in the cache folder."""
        table = self.table.path
        if table is None:
            return None
        told = repr((self.frame.structure.layers, self.frame.ports))
        digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        return table.with_name(f"{table.stem}-network-{digest}.json")

    def learn(self, choices: Sequence[Widths], timed: TimeWidths) -> list[float]:
        """Time networks, remember them, and keep them in the cache folder.

        Returns:
            Their ratios.
        """
        ratios = timed(choices)
        self.seen += zip(choices, ratios, strict=True)
        path = self.path
        if path is not None:
            make_folder(path.parent)
            networks = [
                {"kept": choice.kept, "skipped": choice.skipped, "ratio": ratio}
                for choice, ratio in self.seen
            ]
            write_file(json.dumps({"networks": networks}).encode(), path, force=True)
        return ratios

    def predict(self, choice: Widths) -> float:
        """The ratio of a choice."""
        return float(self._features(choice) @ self._weights(self.seen))

    def errors(self) -> list[float]:
        """Relative error for each network seen, predicted from all the others."""
        found: list[float] = []
        for number, (choice, ratio) in enumerate(self.seen):
            others = [*self.seen[:number], *self.seen[number + 1 :]]
            found.append(float(self._features(choice) @ self._weights(others)) / ratio - 1)
        return found

    def bound(self, limit: float) -> Bound:
        """A ceiling on the ratio, as a bound over the layers."""
        offset, by_sum, by_count = self._weights(self.seen)
        whole, count = self._whole()

        def cost(layer: LayerShape, in_width: int, out_width: int) -> float:
            share = self.table.cost(layer, in_width, out_width) / whole
            return float(by_sum * share + by_count * layer.calls / count)

        option = "max_latency_ratio"
        return Bound("share of the latency", cost, limit, option, offset=float(offset))

    def _whole(self) -> tuple[float, int]:
        total = self.frame.total(self.table.cost, self.frame.whole)
        return total, sum(layer.calls for layer in self.frame.structure.layers)

    def _features(self, choice: Widths) -> NDArray[np.float64]:
        whole, count = self._whole()
        left = sum(layer.calls for layer, _, _ in self.frame.widths(choice))
        total = self.frame.total(self.table.cost, choice)
        return np.array([1.0, total / whole, left / count])

    def _weights(self, seen: Sequence[tuple[Widths, float]]) -> NDArray[np.float64]:
        """Least squares of the relative error, held near "the sum alone" where little was seen.

        No part may be negative: a wider layer never counts as faster.
        """
        rows = [self._features(self.frame.whole) * 3.0]  # the whole one is known exactly
        wanted = [3.0]
        for choice, ratio in seen:
            rows.append(self._features(choice) / ratio)
            wanted.append(1.0)
        prior = np.array([0.0, 1.0, 0.0])
        for place in range(3):
            row = np.zeros(3)
            row[place] = _RIDGE
            rows.append(row)
            wanted.append(_RIDGE * float(prior[place]))
        return fit_nonnegative(np.array(rows), np.array(wanted))


def random_widths(
    frame: LayerWidths, widths: Sequence[Sequence[int]], count: int, seed: int
) -> list[Widths]:
    """Networks cut at random, from a little to a lot.

    Args:
        frame: The network's layers.
        widths: Of each group, the whole one first.
        count: How many.
        seed: Of the draw.
    """
    draw = np.random.default_rng(seed)
    found: list[Widths] = []
    for number in range(count):
        depth = (number + 0.5) / count
        kept = tuple(
            int(each[min(len(each) - 1, int(draw.uniform(0, 2 * depth) * len(each)))])
            for each in widths
        )
        skipped = tuple(bool(draw.uniform() < 0.4 * depth) for _ in frame.structure.blocks)
        found.append(Widths(kept, skipped))
    return found
