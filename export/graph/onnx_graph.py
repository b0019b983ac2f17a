"""The Graph: a float32 ONNX model, the proof that it computes the same, and how to walk it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import onnx
from google.protobuf.message import Message
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from ...runtime.errors import InputError
from ...runtime.tensors import Array, TensorSpec

IR_VERSION = 10
"""The newest ONNX file version that ONNX Runtime 1.23 (the last one for Python 3.10) reads."""

_PRIVATE = ("doc_string", "metadata_props", "quantization_annotation", "value_info")
_SMALL = 1024  # values of a constant that may tell of shapes
_NUMBERS = set(onnx.TensorProto.DataType.values()) - {
    onnx.TensorProto.UNDEFINED,
    onnx.TensorProto.STRING,
}


@dataclass(frozen=True)
class Parity:
    """How far the graph's outputs lie from those of the network it was taken from.

    Attributes:
        pictures: On how many pictures (or synthetic samples) this was seen.
        real: Whether those were the user's own, or synthetic.
        max_abs: Largest absolute difference, by output.
        cosine: Cosine of all values of an output taken as one vector, by output.
    """

    pictures: int
    real: bool
    max_abs: dict[str, float]
    cosine: dict[str, float]

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return {
            "pictures": self.pictures,
            "real_pictures": self.real,
            "max_abs": self.max_abs,
            "cosine": self.cosine,
        }


@dataclass(frozen=True)
class Graph:
    """A float32 ONNX model in the form that every later step expects.

    Exactly: opset 13 or later, file version 10, constants as initializers, no initializer among the
    inputs, BatchNormalization folded, every node named, nothing in it but the network.

    Attributes:
        model: The bytes of the ONNX file.
        inputs: Named inputs.
        outputs: Named outputs.
        parity: What was compared, or ``None`` where nothing was.
        source: Where it came from, in a few words.
    """

    model: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: Parity | None = None
    source: str = ""

    def proto(self) -> onnx.ModelProto:
        """A fresh, modifiable copy."""
        return onnx.load_model_from_string(self.model)


@dataclass
class Walk:
    """Who makes and who reads each tensor of a model; a view, to be rebuilt after a change."""

    model: onnx.ModelProto
    producer: dict[str, onnx.NodeProto] = field(default_factory=dict[str, onnx.NodeProto])
    consumers: dict[str, list[onnx.NodeProto]] = field(
        default_factory=dict[str, list[onnx.NodeProto]]
    )

    def __post_init__(self) -> None:
        for node in self.model.graph.node:
            for name in node.output:
                if name:
                    self.producer[name] = node
            for name in node.input:
                if name:
                    self.consumers.setdefault(name, []).append(node)

    @cached_property
    def constants(self) -> dict[str, onnx.TensorProto]:
        """Initializers by name."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def input_names(self) -> set[str]:
        """Names of the graph's inputs."""
        return {value.name for value in self.model.graph.input}

    @cached_property
    def output_names(self) -> set[str]:
        """Names of the graph's outputs."""
        return {value.name for value in self.model.graph.output}

    def constant(self, name: str) -> Array:
        """The value of an initializer."""
        return numpy_helper.to_array(self.constants[name])

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads ``name``; ``None`` where several do or the graph gives it out."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.output_names else None

    def folded_activation(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The ReLU or Clip that a quantizer behind ``node`` can absorb, or ``None``.

        Codes always stand for 0 and more than 0, so a Clip that leaves that out is none of those.
        """
        if node.op_type not in ("Conv", "Gemm", "MatMul", "Add", "Concat"):
            return None
        reader = self.only_consumer(node.output[0])
        if reader is None or reader.op_type not in ("Relu", "Clip"):
            return None
        low, high = clip_bounds(reader, self) or (0.0, 0.0)
        return reader if low <= 0 <= high and low < high else None


def clip_bounds(node: onnx.NodeProto, walk: Walk) -> tuple[float, float] | None:
    """Least and largest value that a Relu or Clip gives; ``None`` where they are not constant."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    low, high = [*node.input[1:], "", ""][:2]
    if any(name and name not in walk.constants for name in (low, high)):
        return None
    return (
        float(walk.constant(low).item()) if low else -float("inf"),
        float(walk.constant(high).item()) if high else float("inf"),
    )


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or ``default``."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def weight_channel_axis(node: onnx.NodeProto) -> int:
    """The axis of a Conv's, Gemm's or MatMul's weights that counts its output channels."""
    turned = node.op_type == "MatMul" or (
        node.op_type == "Gemm" and not attribute(node, "transB", 0)
    )
    return 1 if turned else 0


def bias_of(node: onnx.NodeProto, walk: Walk, channels: int) -> NDArray[np.float32]:
    """What a layer adds to each of its output channels, ``(channels,)``; zeros without a bias."""
    bias = np.zeros(channels, np.float32)
    if len(node.input) > 2 and node.input[2]:
        bias += walk.constant(node.input[2]).reshape(-1)
    return bias


def read_with_bias(node: onnx.NodeProto, bias: str) -> None:
    """Let a layer add the tensor ``bias`` as it is, in place of what it added before."""
    kept = [item for item in node.attribute if item.name != "beta"]  # a Gemm's, of its bias
    del node.input[2:], node.attribute[:]
    node.input.append(bias)
    node.attribute.extend(kept)


def evaluate_node(
    node: onnx.NodeProto, opsets: Iterable[onnx.OperatorSetIdProto], feeds: Mapping[str, Array]
) -> Array:
    """What one of ONNX's own nodes, of one output, gives for constants; by its reference.

    Raises:
        InputError: ``E_MODEL`` for constants that it cannot take.
    """
    inputs, outputs = (
        [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name]
        for names in (node.input, node.output)
    )
    graph = onnx.helper.make_graph([node], "constant", inputs, outputs)
    evaluator = cast(
        "Any", ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=list(opsets)))
    )
    try:
        (value,) = evaluator.run(None, dict(feeds))
    except (ValueError, TypeError, IndexError, RuntimeError) as error:  # whatever numpy says
        raise InputError(
            "E_MODEL",
            f"'{node.name or node.output[0]}' ({node.op_type}) cannot take its constants: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
            mend="Export the network again.",
            path=node.name,
        ) from error
    return np.asarray(value)


def is_standard(node: onnx.NodeProto) -> bool:
    """Whether a node's operator is one of ONNX itself, not of some engine's own."""
    return node.domain in ("", "ai.onnx")


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model is written in."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def fresh_name(taken: set[str], wanted: str) -> str:
    """A name like ``wanted`` that is not in ``taken``; it is added there."""
    name, count = wanted, 1
    while name in taken:
        name, count = f"{wanted}_{count}", count + 1
    taken.add(name)
    return name


def all_names(model: onnx.ModelProto) -> set[str]:
    """Every tensor name in a model."""
    names = {t.name for t in model.graph.initializer} | {v.name for v in model.graph.input}
    for node in model.graph.node:
        names.update(node.output)
        names.update(node.input)
    return names


def rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors of a model; where another one has such a name already, that one makes way.

    Args:
        model: Changed in place.
        names: New names by the old ones, each once.
    """
    taken = all_names(model)
    aside = taken.intersection(names.values()) - names.keys()
    taken.update(names.values())
    every = {**{name: fresh_name(taken, name) for name in sorted(aside)}, **names}
    for node in model.graph.node:
        for part in (node.input, node.output):
            part[:] = [every.get(name, name) for name in part]
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = every.get(value.name, value.name)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own, by its operator and output where it has none."""
    taken: set[str] = set()
    for node in model.graph.node:
        node.name = fresh_name(taken, node.name or f"{node.op_type}_{node.output[0]}")


def give_out(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Add tensors to the graph's outputs; the engine finds out their types and shapes."""
    present = {value.name for value in model.graph.output}
    for name in names:
        if name not in present:
            present.add(name)
            model.graph.output.append(onnx.ValueInfoProto(name=name))


def tensor_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Element type and shape of every tensor but small constants, as far as inference can tell.

    The large ones do not go through it: only what shapes are made of matters to it.
    """
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, given = light.graph, model.graph
    graph.name = given.name
    for part in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, part).extend(getattr(given, part))
    known = {value.name for value in given.input}
    for tensor in given.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(kind)
    inferred = onnx.shape_inference.infer_shapes(light).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {v.name: v.type.tensor_type for v in values if v.type.HasField("tensor_type")}


def rows(feeds: Mapping[str, Array]) -> int:
    """How many pictures a batch holds: the length of the first input that has one."""
    return next((array.shape[0] for array in feeds.values() if array.ndim), 1)


def specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """The named inputs or outputs of a model.

    Raises:
        InputError: ``E_MODEL`` for one that is not a tensor (a sequence, a map) or not of numbers.
    """
    found: list[TensorSpec] = []
    for value in values:
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or kind.elem_type not in _NUMBERS:
            raise InputError(
                "E_MODEL",
                f"'{value.name}' is not a tensor of numbers; only those can go in and out.",
                mend="Export the part of the network between its tensors.",
                path=value.name,
            )
        shape: list[int | str] = []
        for i, dim in enumerate(kind.shape.dim):
            free = dim.dim_param or ("N" if i == 0 else f"{value.name}_{i}")
            shape.append(dim.dim_value if dim.dim_value > 0 else free)
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
        found.append(TensorSpec(value.name, dtype, tuple(shape)))
    return tuple(found)


def serialize(model: onnx.ModelProto) -> bytes:
    """The bytes of a model, with nothing in it that tells of the machine it was made on.

    Source lines, file paths, shapes inferred on the way and notes of exporters are removed; opsets
    that no node uses are dropped; the file version is set to 10.
    """
    _scrub(model)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.domain = "edgepress", "", ""
    model.model_version = 0
    model.graph.name = "network"
    used = {node.domain if node.domain != "ai.onnx" else "" for node in model.graph.node}
    opsets = [o for o in model.opset_import if (o.domain or "") in used | {""}]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    return model.SerializeToString(deterministic=True)


def _scrub(message: Message) -> None:
    """Clear notes of every kind, in the message and in all that it holds."""
    for name in _PRIVATE:
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None or descriptor.name in ("raw_data", "dims"):
            continue
        for part in [value] if isinstance(value, Message) else value:
            _scrub(part)
