"""What a pass is given and what it gives: Context and Outcome."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...export.bundle_contents import ShippedModel
from ...export.calibration.ranges import FeedBatches, Ranges, calibrate
from ...export.graph.onnx_graph import Graph
from ...export.int8.adaptive_rounding import RoundedCodes
from ...export.receipt import Receipt, float_receipt
from ...export.sensitivity.measure import Int8Network
from ...runtime.build_shapes import engine_options_for
from ...runtime.engines.engine import EngineOptions, Precision
from ...runtime.progress import Progress
from ...runtime.target import Target
from ...runtime.tensors import Array, Arrays
from .absent_device import STAND_IN, ship_unproven


class RangesCache:
    """What calibration saw of each graph; no engine's, so that several targets share it."""

    def __init__(self) -> None:
        self._held: dict[tuple[bytes, str], Ranges] = {}

    def of(self, graph: Graph, method: str, context: Context) -> Ranges:
        """Ranges of a graph, from the calibration pictures where they are not known yet.

        Args:
            graph: The float32 network.
            method: How activations are clipped, as
                :func:`edgepress.export.calibration.ranges.calibrate` has it.
            context: Of the pass.
        """
        key = (hashlib.sha256(graph.model).digest(), method)
        if key not in self._held:
            add = StageProgress(context, "calibrating", context.calibration_count).add
            self._held[key] = calibrate(graph, context.calibration, method=method, on_progress=add)
        return self._held[key]


@dataclass(frozen=True)
class Context:
    """What a pass may look at besides its subject.

    Attributes:
        target: What it is made for.
        calibration: Calibration pictures.
        calibration_count: How many they are.
        selection: Pictures on which a pass chooses between its own variants.
        macs: Multiply-adds by node.
        progress: Told how far the work is.
        device_here: Whether the target's device is here; where it is not, ONNX Runtime stands in.
        seen: What calibration saw, for other targets too.
        codes: Of weights that were rounded anew, for the next plan that has them.
        floats: What the engine is to compute in what stays float beside INT8.
        example: One sample by input name: the sizes that engines are built for.
        cache: Folder for engines that are built; ``None`` builds them anew each time.
    """

    target: Target
    calibration: FeedBatches
    calibration_count: int
    selection: FeedBatches
    macs: Mapping[str, int]
    progress: Progress
    device_here: bool = True
    seen: RangesCache = field(default_factory=RangesCache, compare=False)
    codes: RoundedCodes = field(default_factory=dict, compare=False)
    floats: Precision = "f32"
    example: Arrays = field(default_factory=dict[str, Array], compare=False)
    cache: str | None = None

    @property
    def engine(self) -> str:
        """The engine that runs things here."""
        return self.target.engine if self.device_here else STAND_IN

    def options(self, model: bytes) -> EngineOptions:
        """How that engine runs a model here, one sample at a time where it is built for that."""
        return engine_options_for(self.engine, model, self.example, cache=self.cache)


@dataclass(frozen=True)
class Outcome:
    """What a pass made.

    Attributes:
        shipped: The model, with its receipt as data.
        changed: Whether anything differs from the float32 graph.
        receipt: What the engine does with it.
        report: What the pass did and saw, JSON values only.
        name: What reports call it.
        trained: Whether its weights were trained on other pictures than the original's.
        stand_in: Whether it is the network as it came, in a precision that the recipe does not name
            and that ships where what it names does not pay.
        written: The network in INT8 as it was written; ``None`` where it is not, and where another
            precision was written beside.
    """

    shipped: ShippedModel
    changed: bool
    receipt: Receipt
    report: dict[str, object] = field(default_factory=dict[str, object])
    name: str = "INT8"
    trained: bool = False
    stand_in: bool = False
    written: Int8Network | None = field(default=None, repr=False, compare=False)


def float32_outcome(graph: Graph, context: Context) -> Outcome:
    """The float32 graph: what every pass is held against, and what ships where none pays."""
    if not context.device_here:
        shipped, receipt = ship_unproven(graph, context.target, context.macs, context.calibration)
        return Outcome(shipped, False, receipt)
    engine = context.target.engine
    receipt = float_receipt(graph, context.macs, engine, context.options(graph.model))
    shipped = ShippedModel(graph.model, "float32", "onnx", engine, receipt.to_dict())
    return Outcome(shipped, False, receipt)


class StageProgress:
    """Adds up the progress of one stage."""

    def __init__(self, context: Context, stage: str, total: int) -> None:
        self._context, self._stage, self._total, self._done = context, stage, total, 0

    def add(self, count: int) -> None:
        """So many more are done; the last batch of a fixed size may count some twice."""
        self._done = min(self._done + count, self._total)
        self._context.progress(self._stage, self._done, self._total)
