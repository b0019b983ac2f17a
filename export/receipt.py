"""Receipts: what the engine really does with a graph, read from it as the engine rewrote it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from ..runtime.engine_registry import open_engine
from ..runtime.engines.engine import HALF_PRECISIONS, PRECISION_WORDS, EngineOptions
from ..runtime.engines.onnxruntime import OnnxRuntimeEngine
from ..runtime.engines.openvino import ExecutedNode
from ..runtime.tensors import Arrays
from .engine_views.kernel_profile import int8_time_share
from .engine_views.open_view import rewritten_graph
from .engine_views.openvino_view import OpenVinoGraph, kernel_title
from .engine_views.tensorrt_view import TensorRtGraph
from .engine_views.view import UNTOLD, RewrittenGraph
from .graph.onnx_graph import Graph, Walk, attribute, give_out, rows
from .graph.precision_plan import PrecisionPlan
from .int8.quantized_graph import QuantizedGraph

_COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class NodeReceipt:
    """What became of one node of the float32 network.

    Attributes:
        name: The node's name.
        op_type: Its operator.
        macs: Multiply-adds for one picture.
        precision: What the engine's kernel computes in: ``int8``, ``fp16``, ``bfloat16``, else
            ``float32``.
        reason: Why it is not INT8, or what the plan said.
    """

    name: str
    op_type: str
    macs: int
    precision: str
    reason: str

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return {
            "name": self.name,
            "op_type": self.op_type,
            "macs": self.macs,
            "precision": self.precision,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Receipt:
    """What the engine really does.

    Attributes:
        engine: Engine and version, and how far it was let to optimize.
        nodes: Every node that computes (all but those that the engine folds away).
        asked_int8: How many nodes the plan wanted in INT8.
        fused_int8: How many of them became INT8 kernels.
        kernels: How often each kernel stands in the graph as the engine rewrote it.
        int8_time_share: Share of the kernels' time that INT8 kernels take on one thread here, 0 to
            1; ``None`` where that was not timed, or the engine does not tell.
        tells: Whether the engine tells what its layers compute in.
    """

    engine: dict[str, object]
    nodes: tuple[NodeReceipt, ...]
    asked_int8: int
    fused_int8: int
    kernels: dict[str, int]
    int8_time_share: float | None = None
    tells: bool = True

    @property
    def macs(self) -> int:
        """Multiply-adds for one picture."""
        return sum(node.macs for node in self.nodes)

    @property
    def int8_share(self) -> float:
        """Share of the multiply-adds that run in INT8 kernels, 0 to 1."""
        return self.share("int8")

    def share(self, precision: str) -> float:
        """Share of the multiply-adds that run in kernels of some precision, 0 to 1."""
        work = sum(node.macs for node in self.nodes if node.precision == precision)
        return work / self.macs if self.macs else 0.0

    def count(self, precision: str) -> int:
        """How many nodes run in kernels of some precision, whether they multiply or not."""
        return sum(1 for node in self.nodes if node.precision == precision)

    def in_short(self) -> dict[str, object]:
        """What is told of a graph that does not ship: the work, and which layers are not INT8.

        Keys: ``int8_macs_share``, ``int8_time_share``, ``asked_int8``, ``fused_int8``;
        ``operators``, for each kind of layer its ``macs`` and how many of them are ``int8_macs``;
        ``float32_layers``, those of :attr:`nodes` with multiply-adds that do not run in INT8.
        """
        operators: dict[str, dict[str, int]] = {}
        layers = [node for node in self.nodes if node.macs]
        for node in layers:
            work = operators.setdefault(node.op_type, {"macs": 0, "int8_macs": 0})
            work["macs"] += node.macs
            work["int8_macs"] += node.macs if node.precision == "int8" else 0
        return {
            "int8_macs_share": round(self.int8_share, 6),
            "int8_time_share": self._time_share,
            "asked_int8": self.asked_int8,
            "fused_int8": self.fused_int8,
            "operators": operators,
            "float32_layers": [node.to_dict() for node in layers if node.precision != "int8"],
        }

    @property
    def _time_share(self) -> float | None:
        return None if self.int8_time_share is None else round(self.int8_time_share, 4)

    def to_dict(self) -> dict[str, object]:
        """JSON form.

        ``bfloat16_macs_share`` and ``bfloat16_nodes`` stand there only where some run in that, the
        same of ``fp16``.
        """
        halves: dict[str, object] = {}
        for word in HALF_PRECISIONS:
            if self.count(word):
                halves[f"{word}_macs_share"] = round(self.share(word), 6)
                halves[f"{word}_nodes"] = self.count(word)
        return {
            "engine": self.engine,
            "macs": self.macs,
            "int8_macs_share": round(self.int8_share, 6),
            "int8_time_share": self._time_share,
            **halves,
            "asked_int8": self.asked_int8,
            "fused_int8": self.fused_int8,
            "kernels": self.kernels,
            "nodes": [node.to_dict() for node in self.nodes],
        }


def float_receipt(
    graph: Graph,
    macs: Mapping[str, int],
    engine: str = "onnxruntime",
    options: EngineOptions | None = None,
) -> Receipt:
    """The receipt of an engine for the float32 graph itself, computed in float32."""
    why = "the whole graph is float32"
    nodes = tuple(
        NodeReceipt(node.name, node.op_type, macs.get(node.name, 0), "float32", why)
        for node in graph.proto().graph.node
    )
    kernels = rewritten_graph(engine, graph.model, options).kernels()
    return Receipt(_facts(engine, graph.model, options), nodes, 0, 0, kernels, 0.0)


def bf16_receipt(graph: Graph, macs: Mapping[str, int], engine: str = "openvino") -> Receipt:
    """The receipt of an engine for the float32 graph, computed in bfloat16.

    Raises:
        EngineError: ``E_PRECISION`` where the engine does not compute in it here.
    """
    options = EngineOptions(precision="bf16")
    facts = _facts(engine, graph.model, options)
    seen = rewritten_graph(engine, graph.model, options)
    nodes: list[NodeReceipt] = []
    for node in graph.proto().graph.node:
        precision, reason = "float32", f"asked for bfloat16, the engine made it {UNTOLD}"
        home = _home(seen, node)
        if home is not None and home.precision == "bf16":
            precision, reason = PRECISION_WORDS["bf16"], f"runs as {kernel_title(home)}"
        elif home is not None:
            reason = f"asked for bfloat16, the engine runs it as {kernel_title(home)}"
        work = macs.get(node.name, 0)
        nodes.append(NodeReceipt(node.name, node.op_type, work, precision, reason))
    return Receipt(facts, tuple(nodes), 0, 0, seen.kernels(), 0.0)


def int8_receipt(
    graph: Graph,
    macs: Mapping[str, int],
    quantized: QuantizedGraph,
    plan: PrecisionPlan,
    engine: str = "onnxruntime",
    half: PrecisionPlan | None = None,
    options: EngineOptions | None = None,
    *,
    feeds: Arrays | None = None,
) -> Receipt:
    """The receipt of an engine for a graph in its dialect.

    Args:
        graph: The float32 network.
        macs: Multiply-adds by node name, from :func:`count_macs`.
        quantized: What ships.
        plan: What was asked for.
        engine: Which engine.
        half: Which of the floats beside INT8 are FP16, where some are.
        options: How the engine runs it: what it computes the other floats in, how it is built.
        feeds: One picture, to time the kernels on; without one they are not.
    """
    options = options or EngineOptions()
    seen = rewritten_graph(engine, quantized.model, options)
    nodes = node_receipts(graph, macs, quantized, plan, seen, half)
    fused = sum(1 for unit in quantized.units if seen.kernel_of(unit)[1])
    facts = _facts(engine, quantized.model, options)
    model = quantized.model
    share = None if feeds is None else int8_time_share(engine, model, feeds, options.precision)
    asked = len(quantized.units)
    return Receipt(facts, nodes, asked, fused, seen.kernels(), share, tells_precision(seen))


def node_receipts(
    graph: Graph,
    macs: Mapping[str, int],
    quantized: QuantizedGraph,
    plan: PrecisionPlan,
    seen: RewrittenGraph,
    half: PrecisionPlan | None = None,
) -> tuple[NodeReceipt, ...]:
    """What became of each node, from what an engine made of the graph; see :func:`int8_receipt`."""
    units = {unit.node: unit for unit in quantized.units}
    nodes: list[NodeReceipt] = []
    for node in graph.proto().graph.node:
        home = _home(seen, node)
        rounded = home is not None and home.precision == "bf16"
        unit = units.get(quantized.absorbed.get(node.name, node.name))
        if unit is not None:
            kernel, is_int8 = seen.kernel_of(unit)
            precision, reason = "int8", f"runs as {kernel}"
            if not is_int8:
                precision = _runs_in(seen, unit.node) or (
                    PRECISION_WORDS["bf16"] if rounded else "float32"
                )
                reason = f"asked for INT8, the engine made it {kernel}"
            if unit.node != node.name:
                reason = f"absorbed by the quantizer of {unit.node}"
        elif node.name in quantized.moved:
            precision, reason = "int8", "moves codes"
        else:
            choices = [one.nodes.get(node.name) for one in (plan, half) if one is not None]
            reasons = dict.fromkeys(one.reason for one in choices if one is not None)
            asked = half.nodes.get(node.name) if half is not None else None
            precision = asked.precision if asked is not None else "float32"
            reason = "; ".join(reasons) or "not in the plan"
            precision, reason = _as_run(seen, node.name, precision, reason)
            if home is not None and rounded:
                precision, reason = (
                    PRECISION_WORDS["bf16"],
                    f"{reason}; runs as {kernel_title(home)}",
                )
        work = macs.get(node.name, 0)
        nodes.append(NodeReceipt(node.name, node.op_type, work, precision, reason))
    return tuple(nodes)


def fp16_receipt(
    graph: Graph,
    macs: Mapping[str, int],
    model: bytes,
    plan: PrecisionPlan,
    engine: str,
    options: EngineOptions | None = None,
) -> Receipt:
    """The receipt of an engine for a graph in FP16.

    Args:
        graph: The float32 network.
        macs: Multiply-adds by node name.
        model: What ships.
        plan: FP16 or float32 by node name, and why.
        engine: Which engine.
        options: How it is built.
    """
    seen = rewritten_graph(engine, model, options)
    nodes: list[NodeReceipt] = []
    for node in graph.proto().graph.node:
        choice = plan.nodes.get(node.name)
        precision, reason = "float32", "it computes with no floats"
        if choice is not None:
            precision, reason = choice.precision, choice.reason
        precision, reason = _as_run(seen, node.name, precision, reason)
        work = macs.get(node.name, 0)
        nodes.append(NodeReceipt(node.name, node.op_type, work, precision, reason))
    facts = _facts(engine, model, options)
    return Receipt(facts, tuple(nodes), 0, 0, seen.kernels(), 0.0, tells_precision(seen))


def tells_precision(seen: RewrittenGraph) -> bool:
    """Whether an engine tells what its layers compute in."""
    return not isinstance(seen, TensorRtGraph) or seen.tells


def _home(seen: RewrittenGraph, node: onnx.NodeProto) -> ExecutedNode | None:
    """What OpenVINO made of a node of the network; ``None`` for another engine."""
    names = (node.name, *node.output)
    return seen.home_of(names, node.op_type) if isinstance(seen, OpenVinoGraph) else None


def _runs_in(seen: RewrittenGraph, node: str) -> str:
    """The type that a node computes in, where the engine tells."""
    return seen.runs_in(node) if isinstance(seen, TensorRtGraph) else ""


def _as_run(seen: RewrittenGraph, node: str, precision: str, reason: str) -> tuple[str, str]:
    """Precision and reason, as the engine tells; as written, where it tells nothing of the node."""
    runs_in = _runs_in(seen, node)
    if not runs_in and isinstance(seen, TensorRtGraph) and precision != "float32":
        return f"{precision} as written", f"{reason}; no layer of the engine tells of it"
    if not runs_in or runs_in == precision:
        return precision, reason
    return runs_in, f"asked for {precision}, the engine runs it in {runs_in}"


def _facts(engine: str, model: bytes, options: EngineOptions | None = None) -> dict[str, object]:
    with open_engine(engine)(model, options) as running:
        return running.facts()


def count_macs(graph: Graph, feeds: Arrays) -> dict[str, int]:
    """Multiply-adds of each node for one picture, from the shapes that really occur.

    Args:
        graph: The network.
        feeds: Any input; the counts are divided by its batch size.

    Returns:
        By node name, for Conv, ConvTranspose, Gemm and MatMul; one multiply-add counts as 1.
    """
    model = graph.proto()
    walk = Walk(model)
    counted = [node for node in model.graph.node if node.op_type in _COUNTED]
    read = {name for node in counted for name in (node.input[1], node.output[0])}
    read |= {node.input[0] for node in counted if node.op_type == "ConvTranspose"}
    give_out(model, sorted(read - walk.constants.keys() - walk.input_names))
    with OnnxRuntimeEngine(model.SerializeToString(), EngineOptions(optimize="basic")) as engine:
        seen = {**feeds, **engine.run(feeds)}

    def shape(name: str) -> tuple[int, ...]:
        return tuple(walk.constants[name].dims) if name in walk.constants else seen[name].shape

    found: dict[str, int] = {}
    for node in counted:
        weights, out = shape(node.input[1]), shape(node.output[0])
        if node.op_type == "Conv":
            work = math.prod(out) * math.prod(weights[1:])
        elif node.op_type == "ConvTranspose":
            work = math.prod(shape(node.input[0])) * math.prod(weights[1:])
        elif node.op_type == "Gemm" and attribute(node, "transB", 0):
            work = math.prod(out) * weights[1]
        else:
            work = math.prod(out) * weights[-2 if len(weights) > 1 else 0]
        found[node.name] = work // rows(feeds)
    return found
