"""Bias correction: give each layer back the mean and the spread that quantization took from it.

What it does: layer after layer, in the order of the graph, the mean of every output channel of the
INT8 graph is compared with that of the float32 graph on the same calibration pictures, and the
difference is added to the bias. The layers before it are corrected already, so that each correction
sees the inputs that it will really get. Each channel's standard deviation is brought back too, by
multiplying the scales of its weights and bias, which costs nothing at run time: clipping and
rounding shrink it a little in every layer, and the bias alone would leave logits too small. The
INT8 graph is run piece by piece in ONNX Runtime, in its INT8 kernels; between pieces only codes are
kept.

When it is exact: never; it is lossy by nature, and cheap.

When it refuses: it leaves alone layers without a bias of their own (MatMul).

Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction"
(arXiv:1906.04721, section 4.2, the empirical variant), made sequential, and extended from the first
moment to the second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from ...runtime.engines.engine import EngineOptions
from ...runtime.engines.onnxruntime import OnnxRuntimeEngine
from ...runtime.tensors import Array, Arrays
from ..calibration.malloc_retention import malloc_retained
from ..calibration.ranges import FeedBatches, batches_up_to
from ..graph.onnx_graph import Graph, all_names, fresh_name, give_out, opset_of, rows, serialize
from .quantized_graph import QuantizedGraph, QuantizedNode
from .quantizers import BIAS_LIMIT

BIAS_PICTURES = 256
_CHUNK = 16
_MEMORY_BYTES = 256 * 2**20  # of codes kept between pieces
_GAINS = (0.8, 1.25)  # a channel that needs more is broken in another way
_LEAST_VARIANCE = 1e-4  # of the layer's mean; below it a channel is as good as constant


@malloc_retained()
def correct_biases(
    graph: Graph,
    quantized: QuantizedGraph,
    batches: FeedBatches,
    *,
    largest_tensor: int,
    pictures: int = BIAS_PICTURES,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[QuantizedGraph, dict[str, float]]:
    """Correct the biases of a quantized graph.

    Args:
        graph: The float32 network.
        quantized: The same in a dialect.
        batches: Calibration pictures.
        largest_tensor: Values in one picture's share of the largest activation.
        pictures: How many are used at most; fewer where their tensors are large, so that memory
            does not depend on how many there are.
        on_progress: Called with 1 for each corrected layer.

    Returns:
        The corrected graph, and for each corrected node the root mean square of what was added,
        relative to that of the float32 means.
    """
    units = [unit for unit in quantized.units if unit.bias]
    if not units:
        return quantized, {}
    limit = int(np.clip(_MEMORY_BYTES // max(1, 4 * largest_tensor), 16, pictures))
    chunks = list(batches_up_to(batches, _CHUNK, limit))
    wanted = _float_moments(graph, chunks, units)
    model = onnx.load_model_from_string(quantized.model)
    run = _PieceRunner(model, chunks)
    scales = _Scales(model)
    shifts: dict[str, float] = {}
    for unit in units:
        (mean, variance), found = wanted[unit.node], run.moments_of(unit)
        gain = np.ones_like(mean)
        if scales.are_its_own(unit):
            floor = _LEAST_VARIANCE * float(np.mean(variance)) + 1e-30
            gain = np.clip(np.sqrt((variance + floor) / (found[1] + floor)), *_GAINS)
        shift = scales.correct(unit, gain, mean / gain - found[0])
        size = float(np.sqrt(np.mean(mean**2))) or 1.0
        shifts[unit.node] = float(np.sqrt(np.mean(shift**2))) / size
        if on_progress:
            on_progress(1)
    return replace(quantized, model=serialize(model)), shifts


class _Scales:
    """The scales of weights and biases in a Q/DQ graph, to be changed channel by channel."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._readers = Counter(name for node in model.graph.node for name in node.input)

    def are_its_own(self, unit: QuantizedNode) -> bool:
        """Whether no other node reads the scales of this unit's weights."""
        weights = self._makers[unit.raw].input[1]
        scale = self._makers[weights].input[1]
        return self._readers[weights] == 1 and self._readers[scale] == 1

    def correct(self, unit: QuantizedNode, gain: Array, shift: Array) -> Array:
        """Multiply a unit's output by ``gain`` after adding ``shift`` to it, channel by channel.

        Returns:
            The shift as it is after the gain.
        """
        node = self._makers[unit.raw]
        if unit.bias_scale is None:
            value = (self._value(unit.bias).astype(np.float64) + shift) * gain
            self._set(unit.bias, value.astype(np.float32))
            self._scale_weights(node, gain)
            return shift * gain
        bias = self._makers[node.input[2]]
        scale = self._value(bias.input[1]).astype(np.float64)
        codes = np.rint(self._value(unit.bias).astype(np.float64) + shift / scale)
        self._set(unit.bias, np.clip(codes, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32))
        if np.any(gain != 1.0):
            self._scale_weights(node, gain)
            self._set(bias.input[1], (scale * gain).astype(np.float32))
        return shift * gain

    def _scale_weights(self, node: onnx.NodeProto, gain: Array) -> None:
        name = self._makers[node.input[1]].input[1]
        self._set(name, (self._value(name) * gain).astype(np.float32))

    def _value(self, name: str) -> Array:
        return numpy_helper.to_array(self._constants[name])

    def _set(self, name: str, value: Array) -> None:
        self._constants[name].CopyFrom(numpy_helper.from_array(value, name))


def _give_moments(model: onnx.ModelProto, taken: set[str], raw: str, op_type: str) -> list[str]:
    """Let a model give out mean and mean square of ``raw``, for each channel, ``(C,)`` each.

    Returns:
        The names of those two outputs.
    """
    axes = [0]
    if op_type == "Conv":  # any number of spatial axes: (N, C, everything else)
        shape = np.array([0, 0, -1], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(shape, fresh_name(taken, "shape")))
        flat = fresh_name(taken, "flat")
        inputs = [raw, model.graph.initializer[-1].name]
        model.graph.node.append(onnx.helper.make_node("Reshape", inputs, [flat]))
        raw, axes = flat, [0, 2]
    square = fresh_name(taken, "square")
    model.graph.node.append(onnx.helper.make_node("Mul", [raw, raw], [square]))
    given: list[str] = []
    for source in (raw, square):
        given.append(fresh_name(taken, "edgepress_moment"))
        node = onnx.helper.make_node("ReduceMean", [source], [given[-1]], keepdims=0)
        if opset_of(model) >= 18:
            values = numpy_helper.from_array(np.array(axes, np.int64), fresh_name(taken, "axes"))
            model.graph.initializer.append(values)
            node.input.append(values.name)
        else:
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
        model.graph.node.append(node)
        kind = onnx.helper.make_tensor_value_info(given[-1], onnx.TensorProto.FLOAT, None)
        model.graph.output.append(kind)
    return given


def _mean_and_variance(parts: list[tuple[Array, Array]], counts: list[int]) -> tuple[Array, Array]:
    """Mean and variance of all rows from the means and mean squares of parts of them."""
    means, squares = (
        np.average([part[i].astype(np.float64) for part in parts], axis=0, weights=counts)
        for i in (0, 1)
    )
    return means, np.maximum(squares - means**2, 0.0)


def _float_moments(
    graph: Graph, chunks: list[Arrays], units: list[QuantizedNode]
) -> dict[str, tuple[Array, Array]]:
    """Mean and variance of each channel of each unit's node in the float32 graph, by node name."""
    model = graph.proto()
    taken, gives = all_names(model), {node.name: node.output[0] for node in model.graph.node}
    del model.graph.output[:]
    moments = {u.node: _give_moments(model, taken, gives[u.node], u.op_type) for u in units}
    parts: dict[str, list[tuple[Array, Array]]] = {unit.node: [] for unit in units}
    with OnnxRuntimeEngine(model.SerializeToString(), EngineOptions()) as engine:
        for feeds in chunks:
            given = engine.run(feeds)
            for node, (mean, square) in moments.items():
                parts[node].append((given[mean], given[square]))
    counts = [rows(feeds) for feeds in chunks]
    return {node: _mean_and_variance(part, counts) for node, part in parts.items()}


class _PieceRunner:
    """Runs a Q/DQ graph up to one node after another, keeping codes of every picture at the cut."""

    def __init__(self, model: onnx.ModelProto, chunks: list[Arrays]) -> None:
        self.model = model
        self._rows = [rows(feeds) for feeds in chunks]
        self._live: list[Arrays] = [dict(feeds) for feeds in chunks]
        self._done: set[int] = set()
        nodes = model.graph.node
        self._producer = {name: i for i, node in enumerate(nodes) for name in node.output if name}

    def moments_of(self, unit: QuantizedNode) -> tuple[Array, Array]:
        """Mean and variance of each channel of ``unit``'s node over all pictures, ``(C,)`` each.

        Its inputs are those of the INT8 graph, with the biases as they are now.
        """
        goal = self._producer[unit.raw]
        needed = self._needed(goal)
        self._done.update(i for i in needed if i != goal and not self._is_cheap(i))
        keep = self._cut(needed - {goal})
        piece, (mean, square) = self._piece(sorted(needed), keep, unit)
        parts: list[tuple[Array, Array]] = []
        with OnnxRuntimeEngine(piece.SerializeToString(), EngineOptions()) as engine:
            for live in self._live:
                given = engine.run({spec.name: live[spec.name] for spec in engine.inputs})
                parts.append((given.pop(mean), given.pop(square)))
                live.update(given)
        wanted = self._still_read()
        for live in self._live:
            for name in [n for n in live if n not in wanted]:
                del live[name]
        return _mean_and_variance(parts, self._rows)

    def _is_cheap(self, index: int) -> bool:
        """Dequantizers are run again, not kept: a float is four times as large as its code."""
        return self.model.graph.node[index].op_type == "DequantizeLinear"

    def _needed(self, goal: int) -> set[int]:
        live, nodes = self._live[0], self.model.graph.node
        found: set[int] = set()
        stack = [goal]
        while stack:
            index = stack.pop()
            if index in found:
                continue
            found.add(index)
            for name in nodes[index].input:
                if name and name not in live and name in self._producer:
                    stack.append(self._producer[name])
        return found

    def _still_read(self) -> set[str]:
        """Tensors that a node not yet run reads, seen through dequantizers."""
        nodes = self.model.graph.node
        wanted: set[str] = set()
        cheap: set[int] = set()
        for index, node in enumerate(nodes):
            if index in self._done or self._is_cheap(index):
                continue
            for name in node.input:
                maker = self._producer.get(name)
                if maker is not None and self._is_cheap(maker):
                    cheap.add(maker)
                else:
                    wanted.add(name)
        for index in cheap:
            wanted.update(nodes[index].input)
        return wanted

    def _cut(self, ran: set[int]) -> list[str]:
        wanted, nodes = self._still_read(), self.model.graph.node
        made = {name for i in ran if not self._is_cheap(i) for name in nodes[i].output if name}
        return sorted(made & wanted)

    def _piece(
        self, indices: list[int], keep: list[str], unit: QuantizedNode
    ) -> tuple[onnx.ModelProto, list[str]]:
        """The nodes at ``indices`` as a model that gives out ``keep`` and two moments, named."""
        piece = onnx.ModelProto()
        piece.ir_version = self.model.ir_version
        piece.opset_import.extend(self.model.opset_import)
        nodes = [self.model.graph.node[i] for i in indices]
        piece.graph.name = "piece"
        piece.graph.node.extend(nodes)
        made = {name for node in nodes for name in node.output}
        read = {name for node in nodes for name in node.input if name} - made
        piece.graph.initializer.extend([t for t in self.model.graph.initializer if t.name in read])
        for name in sorted(read - {t.name for t in piece.graph.initializer}):
            array = self._live[0][name]
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            shape = [f"{name}_{i}" for i in range(array.ndim)]
            piece.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
        give_out(piece, keep)
        return piece, _give_moments(piece, all_names(piece), unit.raw, unit.op_type)
