"""Rounding weights so that what they get wrong cancels out on real inputs.

What it does: the codes of a layer's weights are chosen one input after another; what rounding one
of them adds to the layer's outputs is made up for by those that are still to come, as far as their
inputs go together. Scales stay as they are, and so does everything at run time. Inputs are those of
the float32 network at places drawn from the calibration pictures; their mean is left out, since the
bias takes care of it (:mod:`edgepress.export.int8.bias_correction`).

When it is exact: never; it is lossy by nature, and cheap.

When it refuses: weights that several nodes read, layers of more than two spatial axes, and layers
whose inputs are more than ``_LARGEST`` numbers for one output, which stay rounded to the nearest;
networks for which it would take longer than calibration (``_MOST_WORK``).

Source: Frantar et al. 2022, "GPTQ: accurate post-training quantization for generative pre-trained
transformers" (arXiv:2210.17323, section 3.3 and algorithm 1), after Hassibi and Stork 1993.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ...runtime.engines.engine import EngineOptions
from ...runtime.engines.onnxruntime import OnnxRuntimeEngine
from ...runtime.tensors import Array
from ..calibration.ranges import FeedBatches, batches_up_to
from ..graph.onnx_graph import Graph, Walk, attribute, give_out, serialize, weight_channel_axis
from .quantized_graph import QuantizedGraph

_PICTURES = 64
_BATCH = 8
_PLACES = 64  # of one picture, drawn from each layer's outputs
_LARGEST = 2304  # inputs of one output: 3x3 of 256 channels
_NUMBERS = 2**24  # of all moments that are held at once
_BLOCK = 64  # inputs that are rounded before the rest is told
_MOST_WORK = 1e11  # multiply-adds: some seconds
_DAMPING = 0.01  # of the mean variance, added to each


@dataclass(frozen=True)
class RoundedLayer:
    """A layer whose weights can be rounded anew.

    Attributes:
        node: It, in the float32 graph.
        weights: The initializer of its weights there.
        codes: The initializer of their codes in the INT8 graph.
        scale: And of their scales.
        groups: Parts that its outputs and inputs are split into.
        inputs: Numbers that one output is a sum over.
        outputs: Channels that it gives.
        kernel: Height and width of a convolution's.
    """

    node: onnx.NodeProto
    weights: str
    codes: str
    scale: str
    groups: int
    inputs: int
    outputs: int
    kernel: tuple[int, ...]


RoundedCodes: TypeAlias = dict[tuple[bytes, str, bytes], Array]
"""Codes that were chosen before, by network, node, and the scales and largest code they are for."""


def round_weights(
    graph: Graph,
    quantized: QuantizedGraph,
    batches: FeedBatches,
    *,
    held: RoundedCodes | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> QuantizedGraph | None:
    """Choose the codes of the weights anew.

    Args:
        graph: The float32 network.
        quantized: The same in a dialect.
        batches: Calibration pictures; 64 of them at most are used.
        held: What was chosen before, for the same pictures, is taken from here; what is chosen now
            is added.
        on_progress: Called with the number of layers that are done, and of all.

    Returns:
        ``None`` where there is nothing to round, or too much.
    """
    model = onnx.load_model_from_string(quantized.model)
    walk, constants = Walk(graph.proto()), {t.name: t for t in model.graph.initializer}
    layers = rounded_layers(walk, model, quantized)
    if not layers or rounding_macs(layers) > _MOST_WORK:
        return None
    network = hashlib.sha256(graph.model).digest()
    known: RoundedCodes = {} if held is None else held
    wanted = {one.node.name: _wanted(network, one, constants) for one in layers}
    missing = [one for one in layers if wanted[one.node.name].key not in known]
    for part in _parts(missing):
        for layer, moments in _moments(graph, part, batches):
            want = wanted[layer.node.name]
            axis = weight_channel_axis(layer.node)
            weights = np.moveaxis(walk.constant(layer.weights), axis, 0)
            split = weights.reshape(layer.groups, -1, layer.inputs).astype(np.float64)
            steps = want.scale.reshape(layer.groups, -1, 1)
            codes = _rounded(split / steps, moments, want.limit).reshape(weights.shape)
            known[want.key] = np.ascontiguousarray(np.moveaxis(codes, 0, axis)).astype(np.int8)
            if on_progress:
                on_progress(sum(one.key in known for one in wanted.values()), len(layers))
    for layer in layers:
        codes = known[wanted[layer.node.name].key]
        constants[layer.codes].CopyFrom(numpy_helper.from_array(codes, layer.codes))
    return replace(quantized, model=serialize(model))


@dataclass(frozen=True)
class _Wanted:
    """What codes are to be for: float64 scales, the largest code, and the key they are held by."""

    scale: NDArray[np.float64]
    limit: int
    key: tuple[bytes, str, bytes]


def _wanted(network: bytes, layer: RoundedLayer, constants: dict[str, onnx.TensorProto]) -> _Wanted:
    old = numpy_helper.to_array(constants[layer.codes])
    scale = numpy_helper.to_array(constants[layer.scale]).astype(np.float64)
    limit = int(max(np.abs(old.astype(np.int32)).max(), 1))
    told = hashlib.sha256(scale.tobytes() + limit.to_bytes(2, "little")).digest()
    return _Wanted(scale, limit, (network, layer.node.name, told))


def rounded_layers(
    walk: Walk, model: onnx.ModelProto, quantized: QuantizedGraph
) -> list[RoundedLayer]:
    """The layers of a quantized graph whose weights can be rounded anew."""
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = Counter(name for node in model.graph.node for name in node.input)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    nodes = {node.name: node for node in walk.model.graph.node}
    found: list[RoundedLayer] = []
    for unit in quantized.units:
        node = nodes[unit.node]
        if unit.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in walk.constants:
            continue
        held = makers[makers[unit.raw].input[1]]
        codes, scale = held.input[0], held.input[1]
        alone = readers[held.output[0]] == readers[codes] == 1
        shape = tuple(walk.constants[node.input[1]].dims)
        if not alone or kinds.get(codes) != onnx.TensorProto.INT8 or len(shape) not in (2, 4):
            continue
        if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", ""):
            continue
        outputs = shape[weight_channel_axis(node)]
        inputs = int(np.prod(shape)) // outputs
        if 1 < inputs <= _LARGEST:
            groups = int(attribute(node, "group", 1))
            found.append(
                RoundedLayer(node, node.input[1], codes, scale, groups, inputs, outputs, shape[2:])
            )
    return found


def rounding_macs(layers: list[RoundedLayer]) -> float:
    """Multiply-adds of the pass, roughly: moments, their inverse, and telling what is to come."""
    return float(
        sum(
            one.groups * one.inputs**2 * (_PICTURES * _PLACES + one.inputs)
            + one.outputs * one.inputs**2
            for one in layers
        )
    )


def _parts(layers: list[RoundedLayer]) -> Iterator[list[RoundedLayer]]:
    """Layers whose moments are held at once."""
    part, held = list[RoundedLayer](), 0
    for layer in layers:
        size = layer.groups * layer.inputs**2
        if part and held + size > _NUMBERS:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    if part:
        yield part


def _moments(
    graph: Graph, layers: list[RoundedLayer], batches: FeedBatches
) -> Iterator[tuple[RoundedLayer, NDArray[np.float64]]]:
    """How each layer's inputs vary together, ``(groups, inputs, inputs)``."""
    model = graph.proto()
    del model.graph.output[:]
    names = {layer.node.input[0] for layer in layers}
    give_out(model, sorted(names - {value.name for value in model.graph.input}))
    if not model.graph.output:
        give_out(model, [layers[0].node.output[0]])
    draws = [np.random.default_rng(zlib.crc32(one.node.name.encode())) for one in layers]
    centres: dict[int, NDArray[np.float32]] = {}  # near the mean: squares lose no digits to it
    sums = [np.zeros((one.groups, one.inputs)) for one in layers]
    squares = [np.zeros((one.groups, one.inputs, one.inputs)) for one in layers]
    counts = [0] * len(layers)
    with OnnxRuntimeEngine(model.SerializeToString(), EngineOptions()) as engine:
        for feeds in batches_up_to(batches, _BATCH, _PICTURES):
            seen = {**feeds, **engine.run(feeds)}
            for i, layer in enumerate(layers):
                patches = _patches(seen[layer.node.input[0]], layer, draws[i])
                if i not in centres:
                    centres[i] = patches.mean(axis=1, keepdims=True)
                patches = patches - centres[i]
                sums[i] += patches.sum(axis=1)
                squares[i] += np.matmul(patches.transpose(0, 2, 1), patches)
                counts[i] += patches.shape[1]
    for layer, total, square, count in zip(layers, sums, squares, counts, strict=True):
        mean = total / count
        yield layer, square / count - mean[:, :, None] * mean[:, None, :]


def _patches(values: Array, layer: RoundedLayer, rng: np.random.Generator) -> NDArray[np.float32]:
    """What a layer sums over, at some places of each picture: ``(groups, places, inputs)``."""
    if layer.node.op_type != "Conv":
        flat = values.reshape(-1, values.shape[-1])
        some = rng.integers(0, len(flat), min(len(flat), _PLACES * values.shape[0]))
        return flat[np.sort(some)][None]
    kernel = layer.kernel
    strides = attribute(layer.node, "strides", [1, 1])
    dilations = attribute(layer.node, "dilations", [1, 1])
    pads = attribute(layer.node, "pads", [0, 0, 0, 0])
    padded = np.pad(values, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = [
        (n - span) // s + 1 for n, span, s in zip(padded.shape[2:], spans, strides, strict=True)
    ]
    places = min(_PLACES, sizes[0] * sizes[1])
    pictures = np.repeat(np.arange(len(values)), places)
    at = [rng.integers(0, size, len(pictures)) * s for size, s in zip(sizes, strides, strict=True)]
    index = [
        place[:, None] + np.arange(k) * d for place, k, d in zip(at, kernel, dilations, strict=True)
    ]
    found = padded[pictures[:, None, None], :, index[0][:, :, None], index[1][:, None, :]]
    found = found.transpose(0, 3, 1, 2).reshape(len(pictures), layer.groups, layer.inputs)
    return found.transpose(1, 0, 2)


def _rounded(
    weights: NDArray[np.float64], moments: NDArray[np.float64], limit: int
) -> NDArray[np.float64]:
    """Codes for weights in units of their scale.

    Args:
        weights: ``(groups, outputs, inputs)``.
        moments: ``(groups, inputs, inputs)``.
        limit: Largest code.
    """
    groups, _, inputs = weights.shape
    diagonal = np.einsum("gii->gi", moments)
    order = np.argsort(-diagonal, axis=1, kind="stable")
    at = np.indices((groups,))[0][:, None]
    moments = moments[at[:, :, None], order[:, :, None], order[:, None, :]]
    damping = _DAMPING * diagonal.mean(axis=1) + 1e-12 * (1 + diagonal.max(axis=1))
    moments = moments + damping[:, None, None] * np.eye(inputs)
    inverse = np.linalg.inv(moments)
    upper = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    left = np.take_along_axis(weights, order[:, None, :], axis=2)
    codes = np.empty_like(left)
    for start in range(0, inputs, _BLOCK):  # what comes behind a block learns of all of it at once
        end = min(start + _BLOCK, inputs)
        errors = np.empty_like(left[:, :, start:end])
        for i in range(start, end):
            codes[:, :, i] = np.clip(np.rint(left[:, :, i]), -limit, limit)
            error = (left[:, :, i] - codes[:, :, i]) / upper[:, None, i, i]
            left[:, :, i + 1 : end] -= error[:, :, None] * upper[:, None, i, i + 1 : end]
            errors[:, :, i - start] = error
        left[:, :, end:] -= np.matmul(errors, upper[:, start:end, end:])
    back = np.argsort(order, axis=1)
    return np.take_along_axis(codes, back[:, None, :], axis=2)
