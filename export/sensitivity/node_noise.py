"""Damage: how much noise each tensor and each layer's weights bring to the outputs, measured.

Only rounding and clipping are put into the float32 graph, at the places that are asked about, and
the outputs are compared with those of the graph as it was. A first graph has all of them, the next
two each a half in the order of the network, and so on: what is split next is the part that does
most, until the number of graphs is spent or nothing is left that matters. The noise of parts that
do little is shared out evenly among their members.

Source: adding up noise powers as in Lin et al. 2016 (arXiv:1511.06393, section 4), which is right
while the parts' errors are small and independent; bisection instead of one run for each layer.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from ...runtime.engines.engine import EngineOptions
from ...runtime.engines.onnxruntime import OnnxRuntimeEngine
from ...runtime.tensors import Array, Arrays
from ..graph.onnx_graph import (
    Graph,
    Walk,
    all_names,
    bias_of,
    fresh_name,
    rows,
    weight_channel_axis,
)
from ..int8.dialect import Dialect
from ..int8.float_outputs import FloatEnds, comparable
from ..int8.qdq_placement import QuantizerPlacement
from ..int8.quantizers import PerTensor, weight_quantizer

SESSIONS = 64
"""Graphs that are opened at most."""

_BATCH = 8
_SMALL = 1e-3  # of the whole; a part that does less is not looked into


@dataclass(frozen=True)
class NoiseSource:
    """Where quantization may bring noise: a tensor, or a node's weights."""

    kind: str
    name: str


@dataclass(frozen=True)
class NodeNoise:
    """Noise over signal (powers), by place and output of the network.

    Attributes:
        outputs: Names of the outputs, or of what those of whole numbers are made of
            (:mod:`edgepress.export.int8.float_outputs`).
        places: By place, one value for each output.
        whole: Everything quantized at once, one value for each output.
        runs: How many graphs were opened.
        pictures: On how many pictures.
    """

    outputs: tuple[str, ...]
    places: Mapping[NoiseSource, tuple[float, ...]]
    whole: tuple[float, ...]
    runs: int
    pictures: int


def measure_node_noise(
    graph: Graph,
    layout: QuantizerPlacement,
    dialect: Dialect,
    weighted: Sequence[str],
    pictures: Iterable[Arrays],
    *,
    weight_method: str = "mse",
    sessions: int = SESSIONS,
    on_progress: Callable[[int], None] | None = None,
) -> NodeNoise:
    """Measure the damage of every tensor and of every layer's weights.

    Args:
        graph: The float32 network.
        layout: Which tensors become codes where everything that can runs in INT8.
        dialect: Of those codes.
        weighted: Names of the nodes whose weights become codes.
        pictures: Some; they are held in memory, with the outputs that belong to them.
        weight_method: As the writer's.
        sessions: Graphs that are opened at most, one more for the original.
        on_progress: Called with 1 for each graph.
    """
    feeds = list(pictures)
    probe = _Probe(graph, layout, dialect, weighted, weight_method)
    places, ends = probe.places, FloatEnds.of(graph)
    names = ends.names
    shown = ends.shown(graph.model)
    with OnnxRuntimeEngine(shown.model, EngineOptions()) as engine:
        wanted = [shown.pick(engine.run(one), one) for one in feeds]
    signal = [max(sum(_power(one[name]) for one in wanted), 1e-30) for name in names]

    def noise(part: Sequence[NoiseSource]) -> tuple[float, ...]:
        lost = [0.0] * len(names)
        shown = ends.shown(probe.model(part))
        with OnnxRuntimeEngine(shown.model, EngineOptions()) as engine:
            for given, exact in zip(feeds, wanted, strict=True):
                found = shown.pick(engine.run(given), given)
                for i, name in enumerate(names):
                    one, other = comparable(exact[name], found[name])
                    lost[i] += _power(other - one)
        if on_progress:
            on_progress(1)
        return tuple(value / power for value, power in zip(lost, signal, strict=True))

    runs, found = 0, dict[NoiseSource, tuple[float, ...]]()
    count = sum(map(rows, feeds))
    if not places or not names:
        return NodeNoise(names, found, (0.0,) * len(names), runs, count)
    whole = noise(places)
    runs = 1
    queue: list[tuple[float, int, int, tuple[float, ...]]] = [(-max(whole), 0, len(places), whole)]
    floor = _SMALL * max(whole)
    while queue:
        worst, start, end, lost = heapq.heappop(queue)
        if end - start == 1 or runs + 2 > sessions or -worst <= floor:
            for place in places[start:end]:
                found[place] = tuple(value / (end - start) for value in lost)
            continue
        middle = (start + end) // 2
        for low, high in ((start, middle), (middle, end)):
            part = noise(places[low:high])
            heapq.heappush(queue, (-max(part), low, high, part))
        runs += 2
    return NodeNoise(names, found, whole, runs, count)


def _power(values: Array) -> float:
    flat = values.astype(np.float64).ravel()
    finite = flat[np.isfinite(flat)]
    return float(finite @ finite)


class _Probe:
    """The float32 graph with rounding and clipping at chosen places."""

    def __init__(
        self,
        graph: Graph,
        layout: QuantizerPlacement,
        dialect: Dialect,
        weighted: Sequence[str],
        weight_method: str,
    ) -> None:
        self._graph, self._dialect = graph, dialect
        source = graph.proto()
        walk = Walk(source)
        moved = {
            name for node in source.graph.node if node.name in layout.moving for name in node.output
        }
        self._quantizers = {n: q for n, q in layout.quantizers.items() if n not in moved}
        self._rounded: dict[str, tuple[str, Array]] = {}
        layers, order = set(weighted), list[NoiseSource]()
        order += [
            NoiseSource("tensor", v.name) for v in source.graph.input if v.name in self._quantizers
        ]
        for node in source.graph.node:
            if node.name in layers:
                self._rounded[node.name] = self._round(node, walk, layout, weight_method)
                order.append(NoiseSource("weights", node.name))
            order += [
                NoiseSource("tensor", name) for name in node.output if name in self._quantizers
            ]
        self.places = tuple(order)

    def model(self, part: Sequence[NoiseSource]) -> bytes:
        """The bytes of the graph with nothing but ``part`` quantized."""
        model = self._graph.proto()
        taken = all_names(model)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        nodes = {node.name: node for node in model.graph.node}
        tensors = [place.name for place in part if place.kind == "tensor"]
        for place in part:
            if place.kind == "weights":
                name, values = self._rounded[place.name]
                copy = fresh_name(taken, f"{name}_rounded")
                model.graph.initializer.append(numpy_helper.from_array(values, copy))
                nodes[place.name].input[1] = copy
        made: dict[str, list[onnx.NodeProto]] = {}
        renamed: dict[str, str] = {}
        outputs = {value.name for value in model.graph.output}
        for name in tensors:
            made[name], renamed[name] = self._round_tensor(name, taken, model, constants)
        ordered: list[onnx.NodeProto] = []
        for value in model.graph.input:
            ordered += made.get(value.name, [])
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = renamed.get(name, name)
            behind = [one for name in node.output for one in made.get(name, [])]
            for i, name in enumerate(node.output):
                if name in renamed and name in outputs:  # the graph gives out what is rounded
                    node.output[i] = fresh_name(taken, f"{name}_exact")
                    made[name][0].input[0] = node.output[i]
                    made[name][-1].output[0] = name
                    del renamed[name]
            ordered += [node, *behind]
        del model.graph.node[:]
        model.graph.node.extend(ordered)
        return model.SerializeToString()

    def _round_tensor(
        self,
        name: str,
        taken: set[str],
        model: onnx.ModelProto,
        constants: dict[str, onnx.TensorProto],
    ) -> tuple[list[onnx.NodeProto], str]:
        quantizer: PerTensor = self._quantizers[name]
        parts: list[str] = []
        zero_point = np.array(quantizer.zero_point, quantizer.kind(self._dialect))
        for value in (np.array(quantizer.scale, np.float32), zero_point):
            tensor = numpy_helper.from_array(value, fresh_name(taken, f"{name}_probe"))
            model.graph.initializer.append(tensor)
            constants[tensor.name] = tensor
            parts.append(tensor.name)
        codes, back, apart = (fresh_name(taken, f"{name}_{word}") for word in ("q", "d", "s"))
        # A sum of one term stands between: engines turn what reads dequantized codes into INT8.
        return [
            onnx.helper.make_node("QuantizeLinear", [name, *parts], [codes]),
            onnx.helper.make_node("DequantizeLinear", [codes, *parts], [back]),
            onnx.helper.make_node("Sum", [back], [apart]),
        ], apart

    def _round(
        self, node: onnx.NodeProto, walk: Walk, layout: QuantizerPlacement, method: str
    ) -> tuple[str, Array]:
        name = node.input[1]
        weights, axis = walk.constant(name), weight_channel_axis(node)
        packed = weight_quantizer(
            weights,
            axis,
            self._dialect.weight_limit,
            method=method,
            bias=bias_of(node, walk, weights.shape[axis]),
            input_scale=float(layout.quantizers[node.input[0]].scale),
        )
        shape = [1] * weights.ndim
        shape[axis] = -1
        return name, packed.codes.astype(np.float32) * packed.scale.reshape(shape)
