"""How far a transcoded file lies from the one it was made from, in quantization steps.

Layer by layer: every INT8 layer of the new file is given the values that the given file has at its
inputs, and what it makes of them is compared with the given file's, so that the rounding of one
layer does not hide in, or add to, that of the next. And from end to end, where roundings do add up.

The given file runs unoptimized in ONNX Runtime, which is what its operators say, and the only way
in which that runs some files. The new one runs in the INT8 kernels of the engine that it is for;
for TensorRT, which need not be here, it runs as the given one does. What a dialect of inputs alone
does not round is given to its readers as the given file has it, rounded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import numpy_helper

from ...runtime.engine_registry import open_engine
from ...runtime.engines.engine import EngineOptions
from ...runtime.engines.onnxruntime import OnnxRuntimeEngine
from ...runtime.tensors import Array, Arrays, TensorSpec
from ..graph.onnx_graph import IR_VERSION, Walk, all_names, fresh_name, give_out
from ..graph.random_inputs import run_on_random
from ..int8.quant_params import QuantParams
from ..int8.quantized_graph import QuantizedGraph


@dataclass(frozen=True)
class LayerEquality:
    """How far two files lie apart on random inputs.

    Attributes:
        layer_steps: The largest difference of any layer's output, given that layer's inputs, in
            steps of the coarsest quantizer that it reads or writes.
        worst_tensor: Where that was; empty where nothing could be compared.
        output_steps: The largest difference of an output from end to end, in its quantizer's steps,
            or in 255ths of its range where it has none.
        output_cosine: The least cosine of an output, from end to end.
        unclipped_share: Share of values that the given file clipped at the end of their codes, and
            that the new one represents: it has one scale for all channels, or codes that reach
            further, or none there.
        layers: How many layers were compared.
        not_compared: What could not be, the one way or the other: sizes follow from values there,
            and it is empty, or of another size in the new file than in the given one.
    """

    layer_steps: float
    worst_tensor: str
    output_steps: float
    output_cosine: float
    unclipped_share: float
    layers: int
    not_compared: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return vars(self)


@dataclass(frozen=True)
class ReferenceFile:
    """What is known of the given file.

    Attributes:
        model: The file.
        codes: Its quantizers, by tensor of the float32 graph.
        views: Where each of those tensors is in the file.
        shares: What channels were divided by, by tensor.
        filled: Quantizers that the file does not have; beyond their ends nothing matters to what
            reads the tensor, which the layers behind it prove. What the network gives out matters
            all the same.
    """

    model: onnx.ModelProto
    codes: Mapping[str, QuantParams]
    views: Mapping[str, str]
    shares: Mapping[str, Array]
    filled: Mapping[str, QuantParams]

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the network gives out."""
        return tuple(value.name for value in self.model.graph.output)


def compare_layers(
    truth: ReferenceFile,
    quantized: QuantizedGraph,
    inputs: tuple[TensorSpec, ...],
    engine: str,
    *,
    at_inputs: bool = False,
) -> LayerEquality:
    """Compare the file with what was made of it.

    Args:
        truth: The given file.
        quantized: The new one.
        inputs: The network's inputs.
        engine: What runs the new one.
        at_inputs: Whether that has codes at the inputs of INT8 nodes only. It then runs
            unoptimized.

    Raises:
        EngineError: ``E_BACKEND`` where one of them does not run.
        MissingExtraError: Where the engine is not installed.
    """
    feeds = _feeds(truth, inputs)
    options = EngineOptions(optimize="none") if at_inputs else EngineOptions()
    left_out = truth.codes.keys() - quantized.codes.keys()
    there = left_out & _tensors(quantized.model)
    floats = {name: name for name in there if at_inputs or truth.codes[name].per_channel}
    tensors = {
        name: at for name, at in {**quantized.codes, **floats}.items() if name in truth.views
    }
    seen = _run_given(truth, [truth.views[name] for name in tensors], feeds)
    values = {name: _value(truth, name, seen) for name in tensors}
    layers, unclipped, total, unlike = dict[str, float](), 0, 0, dict[str, None]()
    ranks = {name: value.ndim for name, value in values.items()}
    cut = _cut(quantized.model, tensors, ranks, left_out, at_inputs)
    given: Arrays = dict(feeds)
    given.update({tensor: values[name] for name, tensor in cut.floats.items()})
    for name, tensor in cut.forced.items():
        given[tensor] = values[name]
        if name in cut.meaning:
            meaning = cut.meaning[name]
            given[tensor] = meaning.encode(values[name]).astype(meaning.kind)
    with open_engine(engine)(cut.model, options) as parts:
        ran = {**feeds, **parts.run({spec.name: given[spec.name] for spec in parts.inputs})}
    for name, tensor in tensors.items():
        found = ran[tensor]
        if not _are_alike(found, values[name]):
            unlike[name] = None
            continue
        mine = cut.meaning[name].decode(found) if name in cut.meaning else found
        mine = _within(truth, name, mine)
        apart = _apart(mine, values[name]) / _step(truth, name, cut)
        free = _clipped(truth, name, seen, mine, values[name], at_inputs)
        unclipped, total = unclipped + int(free.sum()), total + free.size
        layers[name] = float(apart[~free].max(initial=0.0))
    with open_engine(engine)(quantized.model, options) as new:
        whole = new.run(feeds)
    end, cosine = 0.0, 1.0
    for name in truth.outputs:
        left, right = seen[name].astype(np.float64), whole[name].astype(np.float64)
        scale = float(truth.codes[name].scale.max()) if name in truth.codes else 0.0
        finite = left[np.isfinite(left)]
        step = scale or (float(np.ptp(finite)) / 255 if finite.size else 0.0) or 1.0
        if _are_alike(left, right):
            end = max(end, float(_apart(left, right).max()) / step)
            both = np.isfinite(left) & np.isfinite(right)
            one, other = left[both], right[both]
            norms = float(np.linalg.norm(one) * np.linalg.norm(other))
            cosine = min(cosine, float(one @ other) / norms if norms else 1.0)
        else:
            unlike[name] = None
        if name in layers or name not in ran:
            continue
        if _are_alike(left, ran[name]):  # float layers at the end, given their inputs
            layers[name] = float(_apart(left, ran[name].astype(np.float64)).max()) / step
        else:
            unlike[name] = None
    worst = max(layers, key=lambda name: layers[name], default="")
    share = unclipped / max(1, total)
    far = layers.get(worst, 0.0)
    return LayerEquality(far, worst, end, cosine, share, len(layers), tuple(unlike))


def _are_alike(left: Array, right: Array) -> bool:
    """Whether there is something to compare, value by value."""
    return left.shape == right.shape and left.size > 0


def _apart(left: Array, right: Array) -> Array:
    """How far values lie apart: infinitely where one of them alone is infinite or no number."""
    with np.errstate(invalid="ignore"):
        found = np.abs(left - right)
    found[np.isnan(found)] = np.inf
    found[(left == right) | (np.isnan(left) & np.isnan(right))] = 0
    return found


def _feeds(truth: ReferenceFile, inputs: tuple[TensorSpec, ...]) -> Arrays:
    """Random inputs that fill the range of an input's quantizer, where it has one."""

    def run(feeds: Arrays) -> Arrays:
        for name, codes in truth.codes.items():
            if name in feeds and feeds[name].dtype == np.float32:
                middle, reach = (codes.high + codes.low) / 2, (codes.high - codes.low) / 2
                feeds[name] = np.clip(
                    middle + feeds[name] * np.float32(reach / 2.5), codes.low, codes.high
                ).astype(np.float32)
        _run_given(truth, [], feeds)
        return feeds

    return run_on_random(inputs, run, batches=(2, 1))


def _run_given(truth: ReferenceFile, tensors: list[str], feeds: Arrays) -> Arrays:
    model = onnx.ModelProto()
    model.CopyFrom(truth.model)
    model.ir_version = min(max(model.ir_version, 4), IR_VERSION)
    give_out(model, [name for name in tensors if name not in feeds])
    with OnnxRuntimeEngine(model.SerializeToString(), EngineOptions(optimize="none")) as engine:
        return {**feeds, **engine.run(feeds)}


def _value(truth: ReferenceFile, name: str, seen: Arrays) -> Array:
    """What the given file has at a tensor, as its readers see it, in the new file's scale."""
    value = seen[truth.views[name]]
    if name in truth.codes and np.issubdtype(value.dtype, np.integer):
        value = truth.codes[name].decode(value)
    value = _within(truth, name, value.astype(np.float32))
    if name in truth.shares:
        value = value / truth.shares[name].reshape([1, -1] + [1] * (value.ndim - 2))
    return value


def _within(truth: ReferenceFile, name: str, value: Array) -> Array:
    """What of it can matter to what reads the tensor: up to the ends of a filled-in quantizer."""
    filled = None if name in truth.outputs else truth.filled.get(name)
    return value if filled is None else np.clip(value, filled.low, filled.high)


def _clipped(
    truth: ReferenceFile, name: str, seen: Arrays, mine: Array, value: Array, at_inputs: bool
) -> Array:
    """Where a code ends its range, and what the new file has there goes on beyond it.

    But not beyond 0: a range that ends there does the work of an activation function.
    """
    given, codes = seen[truth.views[name]], truth.codes.get(name)
    ended = codes is not None and codes.per_channel and name not in truth.shares
    if codes is None or not np.issubdtype(given.dtype, np.integer) or not (ended or at_inputs):
        return np.zeros(value.shape, bool)
    above = (given == codes.highest) & (mine > value) & (codes.high > 0)
    return above | ((given == codes.lowest) & (mine < value) & (codes.low < 0))


def _tensors(model: bytes) -> set[str]:
    return all_names(onnx.load_model_from_string(model))


@dataclass(frozen=True)
class _Layers:
    """The new file with its layers cut apart: what read codes now takes them in.

    Attributes:
        model: Its bytes.
        forced: By tensor of the float32 graph, the input that takes its codes.
        floats: And the input that takes its floats, for readers of these where others read codes.
        meaning: What the codes of each tensor mean.
        reads: The tensors that the layer that gives a tensor reads, those among them whose
            quantizers were left out.
    """

    model: bytes
    forced: dict[str, str]
    floats: dict[str, str]
    meaning: dict[str, QuantParams]
    reads: dict[str, set[str]]


def _cut(
    new: bytes,
    tensors: Mapping[str, str],
    ranks: Mapping[str, int],
    left_out: Collection[str],
    at_inputs: bool,
) -> _Layers:
    model = onnx.load_model_from_string(new)
    walk, taken = Walk(model), all_names(model)
    owners = {tensor: name for name, tensor in tensors.items()}
    coded = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    meaning = {name: _meaning(walk, tensor) for name, tensor in coded.items()}
    also = {name: name for name in coded if at_inputs}  # read as floats as well
    owners.update(also)
    reads = {name: _reads(walk, tensor, owners, left_out) for name, tensor in tensors.items()}

    def force(name: str, tensor: str, held: str) -> dict[str, str]:
        """Let an input take the place of a tensor, but for what makes its codes."""
        made = tensors[name]
        readers = [node for node in walk.consumers.get(tensor, []) if made not in node.output]
        if not readers:
            return {}
        given = fresh_name(taken, f"{tensor}_given")
        for node in readers:
            for i, read in enumerate(node.input):
                if read == tensor:
                    node.input[i] = given
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(held))
        shape = [f"{given}_{i}" for i in range(ranks[name])]
        model.graph.input.append(onnx.helper.make_tensor_value_info(given, kind, shape))
        return {name: given}

    forced, floats = dict[str, str](), dict[str, str]()
    for name, tensor in tensors.items():
        forced |= force(name, tensor, meaning[name].kind if name in meaning else "float32")
    for name in also:
        floats |= force(name, name, "float32")
    give_out(model, [tensor for tensor in tensors.values() if tensor in walk.producer])
    return _Layers(model.SerializeToString(), forced, floats, meaning, reads)


def _meaning(walk: Walk, tensor: str) -> QuantParams:
    """What codes of the new file mean: its quantizer, or that of what they were moved from."""
    node = walk.producer[tensor]
    while node.op_type != "QuantizeLinear":
        readers = walk.consumers.get(node.output[0], [])
        reader = next((one for one in readers if one.op_type == "DequantizeLinear"), None)
        moved = next(name for name in node.input if name in walk.producer)  # others are constant
        node = walk.producer[moved] if reader is None else reader
        if reader is not None:
            break
    scale = numpy_helper.to_array(walk.constants[node.input[1]])
    zero = numpy_helper.to_array(walk.constants[node.input[2]])
    low, high = (0, 255) if zero.dtype == np.uint8 else (-128, 127)
    return QuantParams(scale, zero.astype(np.int64), zero.dtype.name, low, high)


def _reads(
    walk: Walk, tensor: str, owners: Mapping[str, str], left_out: Collection[str]
) -> set[str]:
    """The tensors whose codes the layer that gives ``tensor`` reads, those left out among them."""
    found: set[str] = set()
    todo = [walk.producer[tensor]] if tensor in walk.producer else []
    while todo:
        for name in todo.pop().input:
            if owners.get(name, owners[tensor]) != owners[tensor]:
                found.add(owners[name])
            elif name in walk.producer:
                found |= {name} & set(left_out)
                todo.append(walk.producer[name])
    return found


def _step(truth: ReferenceFile, name: str, layers: _Layers) -> float:
    """The step to measure a layer's output in: the coarsest that it reads or writes."""
    steps = [float(layers.meaning[name].scale)] if name in layers.meaning else []
    if name in truth.codes and not (steps and name in truth.shares):
        steps.append(_step_given(truth, name))
    for read in layers.reads[name]:
        meant, given = layers.meaning.get(read), truth.codes.get(read)
        if meant is None:  # a quantizer of the given file that was left out
            steps.append(_step_given(truth, read))
        elif read in truth.filled or (given is not None and meant.scale > given.scale.max()):
            steps.append(float(meant.scale))
    return max(steps)


def _step_given(truth: ReferenceFile, name: str) -> float:
    """The coarsest step that the given file has at a tensor, in the new file's scale."""
    return float((truth.codes[name].scale / truth.shares.get(name, np.float32(1))).max())
