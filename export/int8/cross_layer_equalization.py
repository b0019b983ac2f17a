"""Cross-layer equalisation: channels of one tensor get ranges that one scale fits.

What it does: a layer's output channel is multiplied by a factor, and what the layers behind it read
of that channel divided by the same, so that the network stays what it was. Weights have a scale for
each output channel anyway; an activation has one for all, and a channel that fills a hundredth of
its range is left with two or three codes. Factors bring the channels' ranges together: fully where
depthwise layers read them, whose weights take any factor; by the root where the weights of dense
layers would be pulled apart as far as the activations are brought together.

When it is exact: through ReLU, LeakyReLU and no function at all, up to the order of floating-point
operations. Through a Clip with a ceiling as long as no channel gets half as large again as
calibration saw it; channels that reach the ceiling are left as they are.

When it refuses: tensors that something other than convolutions reads, or that the network gives
out; functions that are not positively homogeneous (SiLU, HardSwish, Sigmoid); channels of zeros.

Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction"
(arXiv:1906.04721, section 4.1), there on the ranges of both layers' weights; here on the ranges of
the activation between them, since weights have a scale for each channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ...runtime.engines.engine import EngineOptions
from ...runtime.engines.onnxruntime import OnnxRuntimeEngine
from ...runtime.tensors import Array
from ..calibration.ranges import FeedBatches, batches_up_to
from ..graph.onnx_graph import (
    Graph,
    Walk,
    all_names,
    attribute,
    clip_bounds,
    fresh_name,
    give_out,
    rows,
    serialize,
)

EQUALIZATION_PICTURES = 256
"""At most so many calibration pictures are looked at."""

_BATCH = 8
_LARGEST = 8.0  # factor: a channel that was quiet so far may be loud in the next picture
_MARGIN = 1.5  # how much nearer to a ceiling a channel may come than was seen
_LEAST_BITS = 0.25  # that channels' ranges lie apart by, on average, or a tensor is left alone
_LEAST_SHARE = 0.25  # of the tensors that could be equalised, or it is not worth trying
_SUFFIX = "_equalized"
_HOMOGENEOUS = ("Relu", "LeakyRelu")


@dataclass(frozen=True)
class EqualizedChain:
    """A tensor between convolutions whose channels can be scaled.

    Attributes:
        tensor: Its name.
        maker: Name of the convolution that gives it, before its activation function.
        readers: Names of the convolutions that read it.
        depthwise: Whether all of those have weights of their own for each channel.
        ceiling: Largest value that its activation function gives.
    """

    tensor: str
    maker: str
    readers: tuple[str, ...]
    depthwise: bool
    ceiling: float


@dataclass(frozen=True)
class EqualizedNetwork:
    """A network whose channels were brought together.

    Attributes:
        graph: It, its nodes and tensors named as before.
        factors: By tensor, what each of its channels was multiplied by, ``(C,)``.
        changed: Names of all tensors that hold other values than before: those, and what their
            layers give before an activation function.
    """

    graph: Graph
    factors: Mapping[str, NDArray[np.float64]]
    changed: frozenset[str]


def equalized_chains(model: onnx.ModelProto) -> list[EqualizedChain]:
    """Every tensor of a model that can be equalised, in the order of the graph."""
    walk, found = Walk(model), list[EqualizedChain]()
    for node in model.graph.node:
        if node.op_type != "Conv" or not _has_weights(node, walk):
            continue
        tensor, ceiling = node.output[0], float("inf")
        tail = walk.only_consumer(tensor)
        if tail is not None and tail.op_type in (*_HOMOGENEOUS, "Clip"):
            bounds = clip_bounds(tail, walk) if tail.op_type == "Clip" else (0.0, ceiling)
            if bounds is None or bounds[0] != 0.0 or bounds[1] <= 0.0:
                continue
            tensor, ceiling = tail.output[0], bounds[1]
        readers = walk.consumers.get(tensor, [])
        fit = all(
            reader.op_type == "Conv"
            and list(reader.input).count(tensor) == 1
            and _has_weights(reader, walk)
            for reader in readers
        )
        if not readers or not fit or tensor in walk.output_names:
            continue
        depthwise = all(walk.constants[r.input[1]].dims[1] == 1 for r in readers)
        names = tuple(reader.name for reader in readers)
        found.append(EqualizedChain(tensor, node.name, names, depthwise, ceiling))
    return found


def _has_weights(node: onnx.NodeProto, walk: Walk) -> bool:
    constants = [name for name in node.input[1:] if name]
    floats = onnx.TensorProto.FLOAT
    return all(n in walk.constants and walk.constants[n].data_type == floats for n in constants)


def channel_peaks(
    graph: Graph,
    chains: Sequence[EqualizedChain],
    batches: FeedBatches,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """What each channel reaches in a picture, on average and at most, by tensor, ``(C,)`` each."""
    model = graph.proto()
    taken = all_names(model)
    peaks = {chain.tensor: fresh_name(taken, f"{chain.tensor}_peak") for chain in chains}
    for tensor, peak in peaks.items():
        size = fresh_name(taken, f"{tensor}_size")
        model.graph.node.append(onnx.helper.make_node("Abs", [tensor], [size]))
        model.graph.node.append(onnx.helper.make_node("GlobalMaxPool", [size], [peak]))
    del model.graph.output[:]
    give_out(model, peaks.values())
    seen: dict[str, list[Array]] = {tensor: [] for tensor in peaks}
    with OnnxRuntimeEngine(model.SerializeToString(), EngineOptions()) as engine:
        for feeds in batches_up_to(batches, _BATCH, EQUALIZATION_PICTURES):
            given = engine.run(feeds)
            for tensor, peak in peaks.items():
                array = given[peak]
                seen[tensor].append(array.reshape(array.shape[:2]).astype(np.float64))
            if on_progress:
                on_progress(rows(feeds))
    whole = {tensor: np.concatenate(parts) for tensor, parts in seen.items()}
    return {tensor: (one.mean(axis=0), one.max(axis=0)) for tensor, one in whole.items()}


def equalization_factors(
    chain: EqualizedChain,
    mean: NDArray[np.float64],
    most: NDArray[np.float64],
    readers: Sequence[tuple[Array, int]],
) -> NDArray[np.float64]:
    """What each channel of a chain is multiplied by, ``(C,)``.

    Args:
        chain: The chain.
        mean: What each channel reaches in a picture on average.
        most: And at most.
        readers: Weights and groups of the layers that read it.
    """
    alive = mean > 0
    safe = np.where(alive, mean, 1.0)
    factors = np.max(mean) / safe
    if not chain.depthwise:
        weight = np.max([_input_peaks(*one) for one in readers], axis=0)
        weight = np.where(weight > 0, weight, 1.0)
        factors = np.sqrt(factors * weight)
        factors *= np.max(mean) / np.max(np.where(alive, factors * mean, 0.0), initial=1e-30)
    factors = np.clip(factors, 1 / _LARGEST, _LARGEST)
    if np.isfinite(chain.ceiling):
        room = chain.ceiling / np.where(alive, _MARGIN * most, chain.ceiling)
        factors = np.where(room <= 1.0, 1.0, np.minimum(factors, room))
    return np.where(alive, factors, 1.0)


def equalize(
    graph: Graph, batches: FeedBatches, *, on_progress: Callable[[int], None] | None = None
) -> EqualizedNetwork | None:
    """Equalise what depthwise layers make or read, as calibration pictures show it to be needed.

    Args:
        graph: The float32 network; it is not modified.
        batches: Calibration pictures, for one pass.
        on_progress: Called with the number of pictures of each batch looked at.

    Returns:
        ``None`` where nothing can be equalised, or channels lie close together already.
    """
    model = graph.proto()
    walk = Walk(model)
    nodes = {node.name: node for node in model.graph.node}
    chains = [chain for chain in equalized_chains(model) if _near_depthwise(chain, nodes, walk)]
    if not chains:
        return None
    peaks = channel_peaks(graph, chains, batches, on_progress)
    factors, changed = dict[str, NDArray[np.float64]](), set[str]()
    for chain in chains:
        mean, most = peaks[chain.tensor]
        if not np.isfinite(most).all():
            continue
        walk = Walk(model)  # anew: a chain before this one may have scaled its layers
        readers = [nodes[name] for name in chain.readers]
        weights = [(walk.constant(r.input[1]), attribute(r, "group", 1)) for r in readers]
        found = equalization_factors(chain, mean, most, weights)
        if np.mean(np.abs(np.log2(found))) < _LEAST_BITS:
            continue
        _scale_outputs(model, nodes[chain.maker], walk, found)
        for reader, (weight, groups) in zip(readers, weights, strict=True):
            by = found.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
            split = weight.reshape(groups, -1, *weight.shape[1:]).astype(np.float64)
            _replace(model, reader, 1, (split / by).reshape(weight.shape))
        factors[chain.tensor] = found
        changed |= {chain.tensor, nodes[chain.maker].output[0]}
    if len(factors) < _LEAST_SHARE * len(chains):
        return None
    equal = replace(graph, model=serialize(_without_unread(model)))
    return EqualizedNetwork(equal, factors, frozenset(changed))


def _near_depthwise(chain: EqualizedChain, nodes: Mapping[str, onnx.NodeProto], walk: Walk) -> bool:
    maker = walk.constants[nodes[chain.maker].input[1]].dims
    return chain.depthwise or (maker[1] == 1 and attribute(nodes[chain.maker], "group", 1) > 1)


def _without_unread(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without constants that nothing reads and that it does not give out."""
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _input_peaks(weight: Array, groups: int) -> NDArray[np.float64]:
    """Largest share that each input channel has of an output channel's largest weight, ``(C,)``."""
    size = np.abs(weight.astype(np.float64))
    split = size.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
    rowwise = split.max(axis=(2, 3), keepdims=True)
    return (split / np.where(rowwise > 0, rowwise, 1.0)).max(axis=(1, 3)).reshape(-1)


def _scale_outputs(
    model: onnx.ModelProto, node: onnx.NodeProto, walk: Walk, factors: NDArray[np.float64]
) -> None:
    weight = walk.constant(node.input[1]).astype(np.float64)
    _replace(model, node, 1, weight * factors.reshape(-1, *[1] * (weight.ndim - 1)))
    if len(node.input) > 2 and node.input[2]:
        _replace(model, node, 2, walk.constant(node.input[2]).astype(np.float64) * factors)


def _replace(model: onnx.ModelProto, node: onnx.NodeProto, index: int, value: Array) -> None:
    """Let a node read a constant of its own: others may share the old one."""
    stem = node.input[index].removesuffix(_SUFFIX)
    name = fresh_name(all_names(model), stem + _SUFFIX)
    model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    node.input[index] = name
