"""Biases that ONNX Runtime loses: float16 ones around INT8 that become int32 by way of float16.

What it does: between quantizers ONNX Runtime rewrites the bias of a layer as int32 codes at the
product of the scales of its input and its weights. Where floats are float16, the bias over that
product is computed in float16, which ends at 65,504: a larger one becomes infinity, and then the
least code of int32. The file computes something else as soon as it is optimized at all.

When it is exact: for version 1.31.1; others were not tried.

Source: onnxruntime/core/optimizer/qdq_transformer/weight_bias_quantization.cc.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from ...runtime.tensors import Array
from ..graph.onnx_files import constant_tensors
from ..graph.onnx_graph import Walk

_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_ABSORBED = ("Relu", "Clip")
_MOVED = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")
"""Operators that quantizers are moved up over before."""


def lost_biases(model: onnx.ModelProto) -> dict[str, str]:
    """Which layers' biases are lost, and why, by the layer's name.

    Args:
        model: The file, its nodes named.
    """
    walk = Walk(model)
    halves = {
        name: numpy_helper.to_array(tensor)
        for name, tensor in constant_tensors(model)
        if tensor.data_type == onnx.TensorProto.FLOAT16
    }
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type not in _LAYERS or len(node.input) < 3 or not _before_codes(node, walk):
            continue
        bias = halves.get(node.input[2])
        of_input, of_weights = (_scale(name, walk, halves) for name in node.input[:2])
        if bias is None or of_input is None or of_weights is None:
            continue
        with np.errstate(all="ignore"):
            product = of_input * of_weights
            codes = bias / product
        lost = ~np.isfinite(codes)
        if lost.any():
            value = float(bias[lost][0])
            scale = float(np.broadcast_to(product, bias.shape)[lost][0])
            found[node.name] = (
                f"{int(lost.sum())} of {bias.size} values; the first is {value:.3g}, "
                + (
                    f"{abs(value) / scale:,.0f} codes of {scale:.3g}, and float16 ends at 65,504"
                    if scale
                    else "and of the product of its scales float16 makes 0"
                )
            )
    return found


def _before_codes(node: onnx.NodeProto, walk: Walk) -> bool:
    """Whether nothing but a quantizer reads it, through what it absorbs or is moved over."""
    reader = walk.only_consumer(node.output[0])
    if reader is not None and reader.op_type in _ABSORBED:
        reader = walk.only_consumer(reader.output[0])
    while reader is not None and reader.op_type in _MOVED:
        reader = walk.only_consumer(reader.output[0])
    return reader is not None and reader.op_type == "QuantizeLinear"


def _scale(name: str, walk: Walk, halves: Mapping[str, Array]) -> Array | None:
    """The constant float16 scale that ``name`` was dequantized by."""
    maker = walk.producer.get(name)
    if maker is None or maker.op_type != "DequantizeLinear" or maker.input[1] not in halves:
        return None
    return halves[maker.input[1]].reshape(-1)
