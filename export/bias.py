"""Bias correction: give each layer back the mean that quantization took from it.

What it does: layer after layer, in the order of the graph, the mean of every output channel of the
INT8 graph is compared with that of the float32 graph on the same calibration pictures, and the
difference is added to the bias. The layers before it are corrected already, so that each correction
sees the inputs that it will really get. The INT8 graph is run piece by piece in ONNX Runtime, in
its INT8 kernels; between pieces only codes are kept.

When it is exact: never; it is lossy by nature, and cheap.

When it refuses: it leaves alone layers without a bias of their own (MatMul).

Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction"
(arXiv:1906.04721, section 4.2, the empirical variant), made sequential.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from ..runtime.engine import EngineOptions
from ..runtime.engines.onnxruntime import OnnxRuntimeEngine
from ..runtime.tensors import Array, Arrays
from .dialects.qdq import Quantized, Unit
from .dialects.quantizers import BIAS_LIMIT
from .graph import Graph, all_names, fresh, give_out, opset_of, rows, serialize
from .ranges import Batches

_PICTURES = 256
_CHUNK = 16
_MEMORY_BYTES = 256 * 2**20  # of codes kept between pieces


def correct_biases(
    graph: Graph,
    quantized: Quantized,
    batches: Batches,
    *,
    largest_tensor: int,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Quantized, dict[str, float]]:
    """Correct the biases of a quantized graph.

    Args:
        graph: The float32 network.
        quantized: The same in a dialect.
        batches: Calibration pictures; 256 of them at most are used, fewer where their tensors are
            large, so that memory does not depend on how many there are.
        largest_tensor: Values in one picture's share of the largest activation.
        on_progress: Called with 1 for each corrected layer.

    Returns:
        The corrected graph, and for each corrected node the root mean square of what was added,
        relative to that of the float32 means.
    """
    units = [unit for unit in quantized.units if unit.bias]
    if not units:
        return quantized, {}
    limit = int(np.clip(_MEMORY_BYTES // max(1, 4 * largest_tensor), 16, _PICTURES))
    chunks = _some(batches, limit)
    wanted = _float_means(graph, chunks, units)
    model = onnx.load_model_from_string(quantized.model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    run = _PieceRunner(model, chunks)
    shifts: dict[str, float] = {}
    for unit in units:
        shift = wanted[unit.node] - run.mean_of(unit)
        assert unit.bias_scale is not None
        codes = numpy_helper.to_array(constants[unit.bias]).astype(np.float64)
        codes = np.rint(codes + shift / unit.bias_scale.astype(np.float64))
        fixed = np.clip(codes, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
        constants[unit.bias].CopyFrom(numpy_helper.from_array(fixed, unit.bias))
        size = float(np.sqrt(np.mean(wanted[unit.node] ** 2))) or 1.0
        shifts[unit.node] = float(np.sqrt(np.mean(shift**2))) / size
        if on_progress:
            on_progress(1)
    return replace(quantized, model=serialize(model)), shifts


def _some(batches: Batches, limit: int) -> list[Arrays]:
    chunks: list[Arrays] = []
    count = 0
    for feeds in batches(_CHUNK):
        chunks.append(feeds)
        count += rows(feeds)
        if count >= limit:
            break
    return chunks


def _give_mean(model: onnx.ModelProto, taken: set[str], raw: str, op_type: str) -> str:
    """Let a model give out the mean of ``raw`` over everything but its channels, ``(C,)``.

    Returns:
        The name of that output.
    """
    mean = fresh(taken, "edgepress_mean")
    axes = [0]
    if op_type == "Conv":  # any number of spatial axes: (N, C, everything else)
        shape = np.array([0, 0, -1], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(shape, fresh(taken, "shape")))
        flat = fresh(taken, "flat")
        inputs = [raw, model.graph.initializer[-1].name]
        model.graph.node.append(onnx.helper.make_node("Reshape", inputs, [flat]))
        raw, axes = flat, [0, 2]
    node = onnx.helper.make_node("ReduceMean", [raw], [mean], keepdims=0)
    if opset_of(model) >= 18:
        values = numpy_helper.from_array(np.array(axes, np.int64), fresh(taken, "axes"))
        model.graph.initializer.append(values)
        node.input.append(values.name)
    else:
        node.attribute.append(onnx.helper.make_attribute("axes", axes))
    model.graph.node.append(node)
    kind = onnx.helper.make_tensor_value_info(mean, onnx.TensorProto.FLOAT, None)
    model.graph.output.append(kind)
    return mean


def _float_means(graph: Graph, chunks: list[Arrays], units: list[Unit]) -> dict[str, Array]:
    """Mean of each output channel of each unit's node in the float32 graph, by node name."""
    model = graph.proto()
    taken, gives = all_names(model), {node.name: node.output[0] for node in model.graph.node}
    del model.graph.output[:]
    means = {u.node: _give_mean(model, taken, gives[u.node], u.op_type) for u in units}
    total: dict[str, Array] = {}
    with OnnxRuntimeEngine(model.SerializeToString(), EngineOptions()) as engine:
        for feeds in chunks:
            given = engine.run(feeds)
            for node, name in means.items():
                part = given[name].astype(np.float64) * rows(feeds)
                total[node] = total[node] + part if node in total else part
    count = sum(map(rows, chunks))
    return {node: value / count for node, value in total.items()}


class _PieceRunner:
    """Runs a Q/DQ graph up to one node after another, keeping codes of every picture at the cut."""

    def __init__(self, model: onnx.ModelProto, chunks: list[Arrays]) -> None:
        self.model = model
        self._rows = [rows(feeds) for feeds in chunks]
        self._live: list[Arrays] = [dict(feeds) for feeds in chunks]
        self._done: set[int] = set()
        nodes = model.graph.node
        self._producer = {name: i for i, node in enumerate(nodes) for name in node.output if name}

    def mean_of(self, unit: Unit) -> Array:
        """Mean of each output channel of ``unit``'s node over all pictures, ``(C,)``.

        Its inputs are those of the INT8 graph, with the biases as they are now.
        """
        goal = self._producer[unit.raw]
        needed = self._needed(goal)
        self._done.update(i for i in needed if i != goal and not self._is_cheap(i))
        keep = self._cut(needed - {goal})
        piece, mean = self._piece(sorted(needed), keep, unit)
        parts: list[Array] = []
        with OnnxRuntimeEngine(piece.SerializeToString(), EngineOptions()) as engine:
            for live in self._live:
                given = engine.run({spec.name: live[spec.name] for spec in engine.inputs})
                parts.append(given.pop(mean).astype(np.float64))
                live.update(given)
        wanted = self._still_read()
        for live in self._live:
            for name in [n for n in live if n not in wanted]:
                del live[name]
        return np.average(parts, axis=0, weights=self._rows)

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
        self, indices: list[int], keep: list[str], unit: Unit
    ) -> tuple[onnx.ModelProto, str]:
        """The nodes at ``indices`` as a model that gives out ``keep`` and the mean; its name."""
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
        return piece, _give_mean(piece, all_names(piece), unit.raw, unit.op_type)
