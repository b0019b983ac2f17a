"""Passes: steps from a Graph to what might ship. They give an Outcome, never a verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ..benchmarks.running import fixed_batch
from ..export.bias import PICTURES, correct_biases
from ..export.bundling import Shipped
from ..export.dialects import dialect
from ..export.dialects.qdq import Quantized, write_qdq
from ..export.ends import Ends, apart
from ..export.graph import Graph, rows
from ..export.measuring import Whole
from ..export.memory import kept
from ..export.plan import Choice, PrecisionPlan, plan_int8
from ..export.ranges import Batches, Ranges, calibrate, some
from ..export.receipt import Receipt, float_receipt, int8_receipt
from ..export.rounding import Held, round_weights
from ..runtime.engine import EngineOptions, Precision
from ..runtime.engines import open_engine
from ..runtime.nvidia.fitting import fitted
from ..runtime.progress import Progress
from ..runtime.target import Target
from ..runtime.tensors import Array, Arrays
from .settings import Fp16, Int8
from .subject import batch_size
from .unproven import STAND_IN, written

_FEW, _STEP, _WORK = 32, 16, 1.3e11
"""At least so many pictures, in steps, for about so many multiply-adds."""
_DECIBELS = 300.0  # stands for no noise at all


class RangesOnce:
    """What calibration saw of each graph; no engine's, so that several targets share it."""

    def __init__(self) -> None:
        self._held: dict[tuple[bytes, str], Ranges] = {}

    def of(self, graph: Graph, method: str, context: Context) -> Ranges:
        """Ranges of a graph, from the calibration pictures where they are not known yet.

        Args:
            graph: The float32 network.
            method: How activations are clipped, as :func:`edgepress.export.ranges.calibrate` has
                it.
            context: Of the pass.
        """
        key = (hashlib.sha256(graph.model).digest(), method)
        if key not in self._held:
            add = Count(context, "calibrating", context.calibration_count).add
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
    calibration: Batches
    calibration_count: int
    selection: Batches
    macs: Mapping[str, int]
    progress: Progress
    device_here: bool = True
    seen: RangesOnce = field(default_factory=RangesOnce, compare=False)
    codes: Held = field(default_factory=dict, compare=False)
    floats: Precision = "f32"
    example: Arrays = field(default_factory=dict[str, Array], compare=False)
    cache: str | None = None

    @property
    def engine(self) -> str:
        """The engine that runs things here."""
        return self.target.engine if self.device_here else STAND_IN

    def options(self, model: bytes) -> EngineOptions:
        """How that engine runs a model here, one sample at a time where it is built for that."""
        return fitted(self.engine, model, self.example, cache=self.cache)


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

    shipped: Shipped
    changed: bool
    receipt: Receipt
    report: dict[str, object] = field(default_factory=dict[str, object])
    name: str = "INT8"
    trained: bool = False
    stand_in: bool = False
    written: Whole | None = field(default=None, repr=False, compare=False)


def float32(graph: Graph, context: Context) -> Outcome:
    """The float32 graph: what every pass is held against, and what ships where none pays."""
    if not context.device_here:
        shipped, receipt = written(graph, context.target, context.macs, context.calibration)
        return Outcome(shipped, False, receipt)
    engine = context.target.engine
    receipt = float_receipt(graph, context.macs, engine, context.options(graph.model))
    shipped = Shipped(graph.model, "float32", "onnx", engine, receipt.to_dict())
    return Outcome(shipped, False, receipt)


def run_pass(graph: Graph, settings: Int8 | Fp16, context: Context) -> Outcome:
    """Run the pass that some settings are for."""
    if isinstance(settings, Int8):
        return quantize(graph, settings, context)
    from .halves import halve

    return halve(graph, settings, context)


def quantize(graph: Graph, settings: Int8, context: Context) -> Outcome:
    """Post-training INT8.

    What it does: calibrates ranges, writes the target's dialect, equalises channels, rounds weights
    anew and corrects biases where that brings the outputs nearer to float32 on the selection
    pictures. On a target that computes in FP16, what stays float is written in that.
    When it is exact: never.
    When it refuses: names in ``keep_float`` that are no nodes; pictures that make a tensor NaN.
    Source: see :mod:`edgepress.export.ranges`, :mod:`edgepress.export.equalization`,
    :mod:`edgepress.export.rounding`, :mod:`edgepress.export.bias`.
    """
    whole = prepare(graph, settings, context)
    return finish(whole, settings, context)


def prepare(graph: Graph, settings: Int8, context: Context) -> Whole:
    """The network in INT8 as the recipe says, its biases not corrected yet.

    Raises:
        InputError: As :func:`quantize`.
    """
    from .equalizing import equalized
    from .halves import has_fp16, ready
    from .outliers import without_outliers

    speech = dialect(context.target.dialect)
    given = None
    if settings.int8_nodes:
        reason = "the recipe's plan says so"
        given = PrecisionPlan(dict.fromkeys(settings.int8_nodes, Choice("int8", reason)))
    if has_fp16(context):
        graph = ready(graph, context)
    plan_int8(
        graph, Ranges(settings.ranges, 0, {}), speech, keep_float=settings.keep_float, given=given
    )  # names
    ranges = context.seen.of(graph, settings.ranges, context)
    plan = plan_int8(graph, ranges, speech, keep_float=settings.keep_float, given=given)
    plain = write_qdq(graph, ranges, plan, speech, weight_method=settings.weights)
    whole = Whole(graph, ranges, plan, speech, plain, settings.weights)
    whole = without_outliers(whole, settings, context)
    return equalized(whole, settings, context) if settings.equalization else whole


def finish(whole: Whole, settings: Int8, context: Context) -> Outcome:
    """Correct the biases of a network in INT8 where that pays, and take its receipt."""
    from .halves import halve_floats, has_fp16

    graph, ranges, plain = whole.graph, whole.ranges, whole.quantized
    report: dict[str, object] = {
        "pictures": ranges.pictures,
        "ranges": ranges.method,
        "weights": settings.weights,
        **whole.told,
    }
    quantized = plain
    candidates = _improved(whole, settings, context)
    if len(candidates) > 1:
        sqnr = sqnr_db(graph, candidates, context)
        chosen = max(sqnr, key=lambda name: sqnr[name])
        quantized = candidates[chosen]
        report["sqnr_db_on_selection"] = {name: round(value, 3) for name, value in sqnr.items()}
        report["chosen"] = chosen
    if has_fp16(context):
        return halve_floats(graph, ranges, quantized, whole.plan, settings, report, context)
    engine = context.target.engine
    picture = next(iter(context.selection(1)))
    receipt = int8_receipt(graph, context.macs, quantized, whole.plan, engine, feeds=picture)
    shipped = Shipped(quantized.model, "int8", whole.dialect.name, engine, receipt.to_dict())
    written = replace(whole, quantized=quantized, corrected=None)
    return Outcome(shipped, bool(quantized.units), receipt, report, written=written)


def _improved(whole: Whole, settings: Int8, context: Context) -> dict[str, Quantized]:
    """A network in INT8 as it was calibrated, and what might be nearer to float32, by name."""
    found = {"as calibrated": whole.quantized}
    correct = settings.bias_correction and any(unit.bias for unit in whole.quantized.units)
    if correct:
        found["biases corrected"] = bias_corrected(whole, context)
    if settings.rounding:
        anew = round_weights(
            whole.graph,
            whole.quantized,
            context.calibration,
            held=context.codes,
            on_progress=partial(context.progress, "rounding weights"),
        )
        if anew is not None:
            other = replace(whole, quantized=anew, corrected=None)
            name = "weights rounded anew" + (", biases corrected" if correct else "")
            found[name] = bias_corrected(other, context) if correct else anew
    return found


def bias_corrected(whole: Whole, context: Context) -> Quantized:
    """A network in INT8 with its biases corrected; where that was done before, as it was done."""
    if whole.corrected is not None:
        return whole.corrected
    layers = sum(1 for unit in whole.quantized.units if unit.bias)
    corrected, _ = correct_biases(
        whole.graph,
        whole.quantized,
        context.calibration,
        largest_tensor=max(one.elements for one in whole.ranges.tensors.values()),
        pictures=enough(context),
        on_progress=Count(context, "correcting biases", layers).add,
    )
    return corrected


def enough(context: Context) -> int:
    """Pictures to compare INT8 with float32 on, layer by layer or as a whole.

    Both see the same pictures, so that few show what they differ in: 256, and from 0.5 G
    multiply-adds on fewer, 32 at least.
    """
    affordable = int(_WORK / max(1, sum(context.macs.values()))) // _STEP * _STEP
    return min(max(affordable, _FEW), PICTURES)


class Count:
    """Adds up the progress of one stage."""

    def __init__(self, context: Context, stage: str, total: int) -> None:
        self._context, self._stage, self._total, self._done = context, stage, total, 0

    def add(self, count: int) -> None:
        """So many more are done; the last batch of a fixed size may count some twice."""
        self._done = min(self._done + count, self._total)
        self._context.progress(self._stage, self._done, self._total)


@kept()
def sqnr_db(
    graph: Graph, candidates: Mapping[str, Quantized], context: Context
) -> dict[str, float]:
    """Signal over quantization noise of each candidate's worst output on selection pictures.

    Of whole numbers it is that of what they are made of (:mod:`edgepress.export.ends`). All
    candidates see a batch before the next is read, so that memory does not grow with the outputs.
    """
    signal: dict[str, float] = {}
    noise: dict[str, dict[str, float]] = {name: {} for name in candidates}
    ends = Ends.of(graph)
    models = (graph.model, *(one.model for one in candidates.values()))
    shown = [ends.shown(model) for model in models]
    with ExitStack() as stack:
        engines = [
            stack.enter_context(open_engine(context.engine)(one.model, context.options(one.model)))
            for one in shown
        ]
        runs = [fixed_batch(engine.run, engine.inputs) for engine in engines]
        for feeds in _some(context):
            ran = zip(shown, runs, strict=True)
            wanted, *found = [one.pick(run(feeds), feeds) for one, run in ran]
            for key, value in wanted.items():
                exact = value[np.isfinite(value)].astype(np.float64)
                signal[key] = signal.get(key, 0.0) + float(np.sum(exact**2))
                for sums, outputs in zip(noise.values(), found, strict=True):
                    one, other = apart(value, outputs[key])
                    lost = float(np.sum((one - other) ** 2))
                    sums[key] = sums.get(key, 0.0) + lost
    return {
        name: min((_decibels(signal[key], sums[key]) for key in sums), default=_DECIBELS)
        for name, sums in noise.items()
    }


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return _DECIBELS
    if signal == 0 or not np.isfinite(noise):
        return -_DECIBELS
    return float(np.clip(10 * np.log10(signal / noise), -_DECIBELS, _DECIBELS))


def _some(context: Context) -> Iterator[Arrays]:
    limit = enough(context)
    size, count = batch_size(next(iter(context.selection(1)))), 0
    for feeds in some(context.selection, size if limit == PICTURES else min(size, _STEP), limit):
        yield feeds
        count += rows(feeds)
        context.progress("comparing candidates with float32", count, None)
