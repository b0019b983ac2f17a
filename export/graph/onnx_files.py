"""ONNX models that somebody else made: read without trusting them, refused where no pass helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from ...runtime.errors import InputError
from .onnx_graph import IR_VERSION, attribute, evaluate_node, tensor_types

_LIMIT_BYTES = 2**31 - 1
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinear", "QGemm")
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")
_CASTS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT64,
)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


def read_onnx(path: str) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        InputError: ``E_FILE`` where it is not there or cannot be read, ``E_MODEL`` where it is no
            ONNX file or is over 2 GiB, ``E_EXTERNAL`` where its weights are in other files,
            ``E_OP`` for control flow or functions of its own.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError("E_FILE", f"there is no file '{path}'.", mend="Check the path.", path=path)
    try:
        size = file.stat().st_size
        data = file.read_bytes() if size <= _LIMIT_BYTES else b""
    except OSError as error:
        raise InputError(
            "E_FILE",
            f"'{path}' cannot be read: {error.strerror or error}.",
            mend="Check that you may read it, or copy it to this disk.",
            path=path,
        ) from error
    if not data:
        raise InputError(
            "E_MODEL",
            f"'{path}' has {size} bytes; an ONNX file has at least one and at most 2 GiB.",
            mend="Copy or export it again, as one file.",
            path=path,
        )
    return parse_onnx(data, path)


def parse_onnx(data: bytes, path: str) -> onnx.ModelProto:
    """A model from bytes; ``path`` is what messages call it. Raises as :func:`read_onnx`."""
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise InputError(
            "E_MODEL",
            f"'{path}' is no ONNX file, or was cut short.",
            mend="Copy or export it again.",
            path=path,
        ) from error
    if not model.graph.node or not model.graph.output:
        raise InputError(
            "E_MODEL",
            f"'{path}' is no ONNX network: it has no nodes or no outputs.",
            mend="Give a trained network in ONNX's format.",
            path=path,
        )
    if any(t.data_location == onnx.TensorProto.EXTERNAL for _, t in constant_tensors(model)):
        raise InputError(
            "E_EXTERNAL",
            f"'{path}' keeps weights in other files.",
            mend="Save it as one file: onnx.save(onnx.load(path), new_path).",
            path=path,
        )
    _check_no_control_flow(model, path)
    return model


def check_float_network(model: onnx.ModelProto, source: str) -> None:
    """Refuse what no pass can start from.

    Raises:
        InputError: ``E_MODEL`` for an invalid or quantized model, ``E_OP`` for control flow,
            ``E_NAN`` for weights that are not finite.
    """
    _check_no_control_flow(model, source)
    check_valid(model, source)
    if any(is_quantized(node) for node in model.graph.node):
        raise InputError(
            "E_MODEL",
            f"{source} is quantized already.",
            mend="Give the float32 model it was made from.",
            path=source,
        )
    read_as_weights = {
        name for node in model.graph.node if node.op_type in _WITH_WEIGHTS for name in node.input
    }
    for name, tensor in constant_tensors(model):
        if tensor.data_type not in _FLOATS:
            continue
        value = numpy_helper.to_array(tensor)
        # Infinity has its uses, in masks and bounds; as a weight, it has none.
        fine = np.isfinite(value) if name in read_as_weights else ~np.isnan(value)
        if not fine.all():
            raise InputError(
                "E_NAN",
                f"the weight '{name}' has {int(np.count_nonzero(~fine))} values that are NaN or "
                "infinite.",
                mend="Train or load the weights again; such a network computes nothing useful.",
                path=name,
            )


def check_valid(model: onnx.ModelProto, source: str) -> None:
    """Refuse what ONNX's checker refuses; the version of the file is no matter.

    Outputs without a type or a shape get what inference tells, in place; where that tells no shape
    they stay without one, as engines take them.

    Raises:
        InputError: ``E_MODEL``.
    """
    _infer_outputs(model)
    shapeless = [value for value in model.graph.output if _has_no_shape(value)]
    checker, version = cast("Any", onnx.checker), model.ir_version
    model.ir_version = min(max(version, 4), IR_VERSION)
    for value in shapeless:
        value.type.tensor_type.shape.SetInParent()
    try:
        checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise InputError(
            "E_MODEL",
            f"{source} is not a valid ONNX model: {str(error).splitlines()[0]}",
            mend="Export it again.",
            path=source,
        ) from error
    finally:
        model.ir_version = version
        for value in shapeless:
            value.type.tensor_type.ClearField("shape")


def _infer_outputs(model: onnx.ModelProto) -> None:
    bare = [v for v in model.graph.output if v.type.WhichOneof("value") is None or _has_no_shape(v)]
    try:
        kinds = tensor_types(model) if bare else {}
    except onnx.shape_inference.InferenceError:  # the checker names what is wrong
        return
    for value in bare:
        if value.name in kinds:
            value.type.tensor_type.CopyFrom(kinds[value.name])


def _has_no_shape(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")


def is_quantized(node: onnx.NodeProto) -> bool:
    """Whether a node makes, reads or computes on INT8 codes."""
    return node.op_type.startswith(_QUANTIZED) or "Integer" in node.op_type


def constant_tensors(model: onnx.ModelProto) -> list[tuple[str, onnx.TensorProto]]:
    """Initializers and what Constant nodes hold, by name; strings and sparse tensors left out."""
    found = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        for item in node.attribute if node.op_type == "Constant" else ():
            if item.type == onnx.AttributeProto.TENSOR:
                found.append((node.output[0], item.t))
            elif item.name.startswith(("value_float", "value_int")):
                kind = np.float32 if item.name.startswith("value_float") else np.int64
                value = np.asarray(onnx.helper.get_attribute_value(item), kind)
                found.append((node.output[0], numpy_helper.from_array(value)))
    return found


def fold_casts(model: onnx.ModelProto) -> None:
    """Make constants of what a Cast or an Identity makes of constants, in place.

    Not of initializers that are inputs, too: those are defaults, which may be given another value.
    """
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    known = {n: numpy_helper.to_array(t) for n, t in constant_tensors(model) if n not in given}
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        casts = node.op_type == "Cast" and attribute(node, "to") in _CASTS
        constant = (casts or node.op_type == "Identity") and node.input[0] in known
        if not constant or node.output[0] in given:
            kept.append(node)
            continue
        value = evaluate_node(node, model.opset_import, {node.input[0]: known[node.input[0]]})
        known[node.output[0]] = value
        model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _check_no_control_flow(model: onnx.ModelProto, path: str) -> None:
    """Refuse functions, and nodes that hold a graph of their own (Loop, Scan, If)."""
    nested = {
        node.op_type
        for node in model.graph.node
        if any(item.HasField("g") or len(item.graphs) for item in node.attribute)
    }
    if nested or len(model.functions):
        raise InputError(
            "E_OP",
            f"'{path}' has {', '.join(sorted(nested)) or 'functions of its own'}, "
            "which no pass understands.",
            mend="Inline functions and unroll control flow, or export the part before it.",
            path=path,
        )
