"""Measure a network node by node: damage and time together, as a Blame.

What it does: writes the network in a dialect with everything in INT8 that can be, measures what
each node and tensor then costs the outputs and what it takes, and the price of every border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import onnx

from ...runtime.engines.engine import PRECISION_WORDS, Precision
from ...runtime.tensors import Arrays
from ..calibration.ranges import Ranges
from ..graph.onnx_graph import Graph, Walk
from ..graph.precision_plan import NodePrecision, PrecisionPlan
from ..int8.activation_products import has_weights
from ..int8.dialect import Dialect
from ..int8.float_outputs import FloatEnds
from ..int8.qdq_placement import QuantizerPlacement, place_quantizers_by_ranges
from ..int8.qdq_writer import write_qdq
from ..int8.quantized_graph import QuantizedGraph
from .node_noise import NodeNoise, NoiseSource, measure_node_noise
from .node_profile import NodeProfile, border_of, profile_graphs
from .sensitivity_table import NodeSensitivity, SensitivityTable, TensorSensitivity


@dataclass(frozen=True)
class Int8Network:
    """A network with everything in INT8 that can be.

    Attributes:
        graph: The float32 network.
        ranges: What calibration saw.
        plan: Everything in INT8 that can be.
        dialect: How it is written.
        quantized: It, written.
        weight_method: How weights were scaled.
        corrected: The same with its biases corrected, where that was done already.
        told: What was tried on the way here, for reports; JSON values only.
    """

    graph: Graph
    ranges: Ranges
    plan: PrecisionPlan
    dialect: Dialect
    quantized: QuantizedGraph
    weight_method: str = "mse"
    corrected: QuantizedGraph | None = None
    told: Mapping[str, object] = field(default_factory=dict[str, object])

    def layout(self, walk: Walk) -> QuantizerPlacement:
        """Which tensors become codes."""
        return place_quantizers_by_ranges(walk, self.ranges, self.plan, self.dialect)


def measure_times(
    whole: Int8Network,
    engine: str,
    feeds: Arrays,
    on_progress: Callable[[int], None] | None = None,
    *,
    floats: Precision = "f32",
) -> SensitivityTable:
    """The Blame with times and no damage yet.

    Args:
        whole: The network.
        engine: What it runs on.
        feeds: One picture, or as many as its batch is fixed to.
        on_progress: Called with 1 for each profile taken, twelve in all.
        floats: What the engine computes floats in, beside INT8 and in the float32 graph.
    """
    graph, dialect = whole.graph, whole.dialect
    walk = Walk(graph.proto())
    layout = whole.layout(walk)
    int8 = [node for node in walk.model.graph.node if whole.plan.is_int8(node)]
    layers = [node.name for node in int8 if has_weights(node, walk, dialect)]
    every_second = set(layers[::2])
    borders = PrecisionPlan(
        {
            name: choice if name in every_second else NodePrecision("float32", "to see borders")
            for name, choice in whole.plan.nodes.items()
        }
    )
    crossed = write_qdq(graph, whole.ranges, borders, dialect, weight_method=whole.weight_method)
    models = (graph.model, whole.quantized.model, crossed.model)
    in_float, in_int8, mixed = profile_graphs(
        engine, graph, models, feeds, precision=floats, on_progress=on_progress
    )
    elements = whole.ranges.elements
    extra = mixed.rest_ms / 2
    to_codes = border_of(mixed.quantizing, elements, extra)
    to_floats = border_of(mixed.dequantizing, elements, extra)
    nodes = _nodes(whole, walk, layout, in_float, in_int8)
    readers = {name for node in nodes for name in node.reads}
    makers = {name for node in nodes for name in node.gives}
    never = _always_float(walk, nodes)
    tensors = tuple(
        TensorSensitivity(
            name,
            elements.get(name, 1),
            name not in makers,
            name in never or name in walk.output_names,
            to_codes.ms(elements.get(name, 1)),
            to_floats.ms(elements.get(name, 1)),
            {},
        )
        for name in layout.quantizers
        if name in readers | makers
    )
    return SensitivityTable(
        dialect.name,
        engine,
        0,
        FloatEnds.of(graph).names,
        nodes,
        tensors,
        in_float.total_ms,
        in_int8.total_ms,
        in_float.wall_ms,
        in_int8.wall_ms,
        0,
        PRECISION_WORDS[floats],
    )


def with_node_noise(
    blame: SensitivityTable,
    whole: Int8Network,
    pictures: Iterable[Arrays],
    on_progress: Callable[[int], None] | None = None,
) -> SensitivityTable:
    """The same Blame with the damage of every node and tensor, measured on some pictures.

    Args:
        blame: With times.
        whole: The network.
        pictures: They are held in memory; see
            :func:`edgepress.export.sensitivity.node_noise.measure_node_noise`.
        on_progress: Called with 1 for each graph that was opened.
    """
    walk = Walk(whole.graph.proto())
    layout = whole.layout(walk)
    blamed = {node.name for node in blame.nodes}
    nodes = [node for node in walk.model.graph.node if node.name in blamed]
    weighted = [node.name for node in nodes if has_weights(node, walk, whole.dialect)]
    found = measure_node_noise(
        whole.graph,
        layout,
        whole.dialect,
        weighted,
        pictures,
        weight_method=whole.weight_method,
        on_progress=on_progress,
    )
    return attach_node_noise(blame, found)


def attach_node_noise(blame: SensitivityTable, found: NodeNoise) -> SensitivityTable:
    """A Blame with what :func:`edgepress.export.sensitivity.node_noise.measure_node_noise` found.

    What a node gives that only moves values has the damage of what it reads.
    """
    empty: Mapping[str, float] = {}
    lost = {
        place: dict(zip(found.outputs, values, strict=True))
        for place, values in found.places.items()
    }
    tensors = {one.name: lost.get(NoiseSource("tensor", one.name), empty) for one in blame.tensors}
    for node in blame.nodes:
        if node.follows:
            tensors.update(dict.fromkeys(node.gives, tensors.get(node.reads[0], empty)))
    return replace(
        blame,
        pictures=found.pictures,
        outputs=found.outputs,
        runs=found.runs,
        nodes=tuple(
            replace(one, damage=lost.get(NoiseSource("weights", one.name), empty))
            for one in blame.nodes
        ),
        tensors=tuple(replace(one, damage=tensors[one.name]) for one in blame.tensors),
    )


def _nodes(
    whole: Int8Network,
    walk: Walk,
    layout: QuantizerPlacement,
    in_float: NodeProfile,
    in_int8: NodeProfile,
) -> tuple[NodeSensitivity, ...]:
    chosen = [
        node
        for node in walk.model.graph.node
        if whole.plan.is_int8(node) or node.name in layout.moving
    ]
    computing = [node.name for node in chosen if node.name not in layout.moving]
    together = _kernels(walk, computing, in_float)
    found: list[NodeSensitivity] = []
    for node in chosen:
        follows = node.name in layout.moving
        tail = walk.folded_activation(node)
        found.append(
            NodeSensitivity(
                node.name,
                node.op_type,
                (node.input[0],) if follows else _codes_read(node, layout),
                tuple(node.output) if tail is None else tuple(tail.output),
                together.get(node.name, (node.name,)),
                follows,
                node.op_type in whole.dialect.free_output,
                in_float.nodes.get(node.name, 0.0),
                in_int8.nodes.get(node.name, 0.0),
                {},
                node.name in layout.joining,
            )
        )
    return tuple(found)


def _codes_read(node: onnx.NodeProto, layout: QuantizerPlacement) -> tuple[str, ...]:
    return tuple(name for name in node.input if name in layout.reads[node.name])


def _kernels(walk: Walk, names: list[str], in_float: NodeProfile) -> dict[str, tuple[str, ...]]:
    """Which nodes run in one kernel: as the profile tells, and those without a kernel of their own.

    Such a node went into that of the one node that reads it.
    """
    leader = {name: name for name in names}

    def root(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for kernel in in_float.kernels:
        known = [name for name in kernel if name in leader]
        for name in known[1:]:
            leader[root(name)] = root(known[0])
    timed = {name for kernel in in_float.kernels for name in kernel}
    for node in walk.model.graph.node:
        if node.name in leader and node.name not in timed:
            partner = _partner(node, walk)
            if partner in leader:
                leader[root(node.name)] = root(partner)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(root(name), []).append(name)
    return {name: tuple(groups[root(name)]) for name in names}


def _partner(node: onnx.NodeProto, walk: Walk) -> str:
    """Whose kernel a node without one went into: a layer that only it reads, else its reader."""
    for name in node.input:
        maker = walk.producer.get(name)
        if maker is not None and maker.op_type == "Conv" and walk.only_consumer(name) is not None:
            return maker.name
    readers = {one.name for name in node.output for one in walk.consumers.get(name, [])}
    return readers.pop() if len(readers) == 1 else ""


def _always_float(walk: Walk, nodes: tuple[NodeSensitivity, ...]) -> set[str]:
    """Tensors that a node reads which can neither run in INT8 nor move codes."""
    known = {node.name for node in nodes}
    tails = {tail.name for node in walk.model.graph.node if (tail := walk.folded_activation(node))}
    return {
        name
        for node in walk.model.graph.node
        if node.name not in known and node.name not in tails
        for name in node.input
    }
