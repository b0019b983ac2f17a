"""What is in an ONNX file that anybody made, and what ONNX Runtime makes of it."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from ...runtime.engines.onnxruntime import optimized_model
from ...runtime.errors import EdgepressError, EngineError
from ..engine_views.view import is_int8_kernel
from ..graph.onnx_files import check_valid, constant_tensors, is_quantized, read_onnx
from ..graph.onnx_graph import Graph, name_nodes, opset_of, specs
from ..graph.random_inputs import random_inputs
from ..receipt import count_macs

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def inspect_onnx(path: str) -> dict[str, Any]:
    """Inputs, outputs, operators and work of an ONNX file, JSON values only.

    Keys: ``file``, ``size_bytes``, ``opset``, ``ir_version``, ``inputs``, ``outputs``,
    ``parameters``, ``operators``, ``macs`` (one picture; ``None`` where shapes are free or kernels
    are written into the file), ``kernels`` (what ONNX Runtime runs on this machine; ``None`` where
    it refuses the file), ``quantized``, ``int8_kernels``, ``left_over`` (quantizers that no kernel
    absorbed), ``nodes``.

    Raises:
        InputError: ``E_FILE``, ``E_MODEL``, ``E_EXTERNAL`` or ``E_OP``.
    """
    model = read_onnx(path)
    check_valid(model, path)
    opset, ir_version = opset_of(model), model.ir_version
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = specs(value for value in model.graph.input if value.name not in initializers)
    outputs = specs(model.graph.output)
    operators = Counter(node.op_type for node in model.graph.node)
    name_nodes(model)
    data = model.SerializeToString()
    kernels: dict[str, int] | None = None
    try:
        rewritten = onnx.load_model_from_string(optimized_model(data, "all"))
        kernels = dict(Counter(node.op_type for node in rewritten.graph.node).most_common())
    except EngineError:  # told by "kernels": the file is looked at, not run
        kernels = None
    given = kernels or {}
    return {
        "file": path,
        "size_bytes": Path(path).stat().st_size,
        "opset": opset,
        "ir_version": ir_version,
        "inputs": [spec.to_dict() for spec in inputs],
        "outputs": [spec.to_dict() for spec in outputs],
        "parameters": sum(
            math.prod(tensor.dims)
            for _, tensor in constant_tensors(model)
            if tensor.data_type != onnx.TensorProto.INT64  # shapes, axes and indices
        ),
        "operators": dict(operators.most_common()),
        "macs": _macs(Graph(data, inputs, outputs), operators),
        "kernels": kernels,
        "quantized": any(is_quantized(node) for node in model.graph.node),
        "int8_kernels": sum(n for op, n in given.items() if is_int8_kernel(op)),
        "left_over": sum(n for op, n in given.items() if op in _QUANTIZERS),
        "nodes": [
            {
                "name": node.name,
                "op_type": node.op_type,
                "inputs": list(node.input),
                "outputs": list(node.output),
            }
            for node in model.graph.node
        ],
    }


def _macs(graph: Graph, operators: Counter[str]) -> int | None:
    """Multiply-adds for one picture; ``None`` where they cannot be told."""
    free = any(isinstance(size, str) for spec in graph.inputs for size in spec.shape[1:])
    if free or any(is_int8_kernel(op) for op in operators):
        return None
    try:
        return sum(count_macs(graph, random_inputs(graph.inputs, batch=1)).values())
    except EdgepressError:  # it does not run on random inputs
        return None
