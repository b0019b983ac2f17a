"""FP16 that was measured: planned from ranges, written, rounded like FP16 and held against float32.

What it does: writes what :mod:`edgepress.export.fp16.fp16_plan` decided, runs its simulation on
real pictures, and compares every output with float32; of whole numbers, what they are made of
(:mod:`edgepress.export.int8.float_outputs`). Where one falls short of the bound, the nodes that add
most noise are put back to float32 and it is measured again, more of them each time; where nothing
helps, nothing is left in FP16 and that is said.

When it is exact: never; the bound is signal over noise of the worst output.

When it refuses: a graph whose operators ONNX Runtime cannot run.

Source: the blame is noise over signal of a node's outputs less that of its inputs, both measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from ...runtime.engines.engine import EngineOptions
from ...runtime.engines.onnxruntime import OnnxRuntimeEngine
from ...runtime.tensors import Array, Arrays
from ..calibration.ranges import FeedBatches, Ranges, batches_up_to
from ..graph.onnx_graph import Graph, Walk, give_out
from ..graph.precision_plan import PrecisionPlan
from ..int8.float_outputs import FloatEnds, comparable, of_no_fixed_size
from .fp16_plan import FP16, FloatTensors, fp16_nodes, plan_fp16
from .fp16_writer import Fp16Graph, fp16_simulation, scales_below_fp16, write_fp16

BOUND_DB = 40.0
"""Signal over noise that every output keeps: noise of 1 % of it, a cosine of 0.99995."""

_PICTURES = 16
_CHUNK = 4  # pictures whose every activation is held at once
_ROUNDS = 10
_FIRST_SHARE = 0.02  # of the FP16 nodes that go back at first; twice as many each time after
_BESIDE_INT8_DB = 3.0  # below what INT8 left: values next to an edge of codes fall to either side
_NOTHING = 1e-30


@dataclass(frozen=True)
class OutputNoise:
    """How far an output is from float32: signal over noise in decibels, and cosine."""

    sqnr_db: float
    cosine: float


@dataclass(frozen=True)
class SettledFp16:
    """FP16 as it was settled.

    Attributes:
        half: What was written; no FP16 nodes where nothing could be kept.
        plan: Which node runs in what, and why.
        outputs: How far each output is from float32, or what an output of whole numbers is made of.
        bound_db: What was asked of the worst of them.
        rounds: How often nodes were put back.
        held: Whether the bound holds; float32 holds it by itself, so that this is only false
            beside INT8.
    """

    half: Fp16Graph
    plan: PrecisionPlan
    outputs: Mapping[str, OutputNoise]
    bound_db: float
    rounds: int
    held: bool

    def report(self) -> dict[str, object]:
        """JSON form, in short; the plan has the rest."""
        kept = {k: one.reason for k, one in self.plan.nodes.items() if one.precision != FP16}
        return {
            "fp16_nodes": len(self.half.nodes),
            "float32_nodes": kept,
            "casts": self.half.casts,
            "clamped_constants": dict(self.half.clamped),
            "bound_db": round(self.bound_db, 3),
            "rounds": self.rounds,
            "held": self.held,
            "outputs": {
                name: {"sqnr_db": round(one.sqnr_db, 3), "cosine": one.cosine}
                for name, one in self.outputs.items()
            },
        }


def settle_fp16(
    graph: Graph,
    ranges: Ranges,
    batches: FeedBatches,
    *,
    quantized: bytes | None = None,
    keep_float: Sequence[str] = (),
    bound_db: float = BOUND_DB,
    on_progress: Callable[[int], None] | None = None,
) -> SettledFp16:
    """Write a network in FP16, and nodes back to float32 until its outputs keep the bound.

    Args:
        graph: The float32 network.
        ranges: What calibration saw of it.
        batches: Real pictures; 16 of them are used.
        quantized: The same with quantizers in it, whose floats shall be FP16; of opset 19 at least.
        keep_float: Names of nodes that stay in float32.
        bound_db: Signal over noise that every output shall keep; beside INT8 no output need be
            better than 3 dB below what INT8 left of it.
        on_progress: Called with 1 for each time that it was measured.

    Raises:
        InputError: ``E_RECIPE`` for a name in ``keep_float`` that no node has; ``E_OPSET`` for a
            quantized graph of an older opset.
        EngineError: ``E_BACKEND`` where ONNX Runtime cannot run the graph.
    """
    source = graph.model if quantized is None else quantized
    measured = {} if quantized is None else scales_below_fp16(quantized)
    chunks, ends = list(batches_up_to(batches, _CHUNK, _PICTURES)), FloatEnds.of(graph)
    exact = _ends(graph.model, ends, chunks)
    floor = math.inf
    if quantized is not None:
        already = _compare(exact, _ends(quantized, ends, chunks))
        floor = min((one.sqnr_db for one in already.values()), default=math.inf) - _BESIDE_INT8_DB
    bound, count = min(bound_db, floor), 0
    while True:
        plan = plan_fp16(graph, ranges, keep_float=keep_float, measured=measured)
        half = write_fp16(source, plan)
        simulated = fp16_simulation(half.model)
        noise = _compare(exact, _ends(simulated, ends, chunks))
        if on_progress:
            on_progress(1)
        held = all(one.sqnr_db >= bound for one in noise.values())
        if held or not half.nodes:
            return SettledFp16(half, plan, noise, bound, count, held)
        if count == _ROUNDS:
            why = "no choice of nodes kept the outputs in bounds"
            measured.update(dict.fromkeys(fp16_nodes(plan), why))
            continue  # nothing is left in FP16, and the next round ends it
        share = _FIRST_SHARE * 2**count
        worst = _blame(source, simulated, half.nodes, chunks[:1])  # every activation is held
        for name, added in worst[: max(1, math.ceil(share * len(half.nodes)))]:
            measured[name] = f"measured: in FP16 it adds noise of {added:.2g} of its signal"
        count += 1


@dataclass
class _Sums:
    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    energy: float = 0.0

    def add(self, exact: Array, found: Array) -> None:
        one, other = comparable(exact, found)
        with np.errstate(all="ignore"):
            self.signal += float(one @ one)
            self.noise += float(np.sum((one - other) ** 2))
            self.product += float(one @ other)
            self.energy += float(other @ other)

    def ratio(self) -> float:
        """Noise over signal; infinite where the noise is not finite."""
        if not math.isfinite(self.noise):
            return math.inf
        return self.noise / max(self.signal, _NOTHING) if self.noise else 0.0

    def told(self) -> OutputNoise:
        ratio = self.ratio()
        if ratio == 0:
            return OutputNoise(300.0, 1.0)
        if not math.isfinite(ratio):
            return OutputNoise(-300.0, -1.0)
        size = math.sqrt(max(self.signal, _NOTHING) * max(self.energy, _NOTHING))
        return OutputNoise(float(np.clip(-10 * math.log10(ratio), -300, 300)), self.product / size)


def _compare(exact: list[Arrays], found: list[Arrays]) -> dict[str, OutputNoise]:
    sums = {name: _Sums() for name in exact[0]}
    for one, other in zip(exact, found, strict=True):
        for name, held in sums.items():
            held.add(one[name], other[name])
    return {name: held.told() for name, held in sums.items()}


def _ends(model: bytes, ends: FloatEnds, chunks: Iterable[Arrays]) -> list[Arrays]:
    shown = ends.shown(model)
    with OnnxRuntimeEngine(shown.model, EngineOptions(optimize="basic")) as engine:
        return [shown.pick(engine.run(feeds), feeds) for feeds in chunks]


@dataclass(frozen=True)
class _Traced:
    """One FP16 node and the float tensors around it."""

    name: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    makers: tuple[str, ...] = field(default=())


def _blame(
    source: bytes, simulated: bytes, half: frozenset[str], chunks: list[Arrays]
) -> list[tuple[str, float]]:
    """FP16 nodes and the noise over signal that each adds, the most first.

    Noise that shows behind a float32 node was made before it: what that node reads was rounded. It
    is then told of the FP16 nodes that it reads from.
    """
    model = onnx.load_model_from_string(source)
    traced = _trace(model)
    tensors = sorted({name for one in traced for name in one.gives})
    give_out(model, tensors)
    shown = onnx.load_model_from_string(simulated)
    give_out(shown, tensors)
    sums = {name: _Sums() for name in tensors}
    with (
        OnnxRuntimeEngine(model.SerializeToString(), EngineOptions(optimize="none")) as one,
        OnnxRuntimeEngine(shown.SerializeToString(), EngineOptions(optimize="none")) as other,
    ):
        for feeds in chunks:
            exact, found = one.run(feeds), other.run(feeds)
            for name, held in sums.items():
                held.add(exact[name], found[name])
    ratios = {name: held.ratio() for name, held in sums.items()}
    added: dict[str, float] = {}
    for node in traced:
        before = max((ratios.get(name, 0.0) for name in node.reads), default=0.0)
        after = max(ratios[name] for name in node.gives)
        if not after > before:
            continue
        grown = after - before if math.isfinite(after) else math.inf
        for name in [node.name] if node.name in half else node.makers:
            if name in half:
                added[name] = max(added.get(name, 0.0), grown)
    order = {node.name: i for i, node in enumerate(traced)}
    return sorted(added.items(), key=lambda item: (-item[1], order[item[0]]))


def _trace(model: onnx.ModelProto) -> list[_Traced]:
    floats, found, loose = FloatTensors.of(model), list[_Traced](), of_no_fixed_size(model)
    walk: Walk = floats.walk
    for node in model.graph.node:
        gives = tuple(name for name in floats.outputs(node) if name not in loose)
        if not gives or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        reads = tuple(name for name in node.input if floats.is_float(name))
        makers = tuple(walk.producer[name].name for name in reads if name in walk.producer)
        found.append(_Traced(node.name, reads, gives, makers))
    return found
