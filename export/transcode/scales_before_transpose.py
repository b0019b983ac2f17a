"""Scales for each channel behind a Transpose: the quantizers go before it, and keep their channels.

What it does: ``Transpose, QuantizeLinear, DequantizeLinear`` becomes ``QuantizeLinear,
DequantizeLinear, Transpose`` with the axis that the channels had before. Files that were NHWC once
have a Transpose on either side of such a pair, and the two cancel once it is out from between them.
Engines cancel them all the same, and with them the tensor that the scales were on.

When it is exact: always, to the bit: every value is rounded at the same scale.

When it refuses: codes that something else than a DequantizeLinear reads, or that are given out;
a tensor that has quantizers of its own before the Transpose. Those stay where they are.

Source: the definition of the two operators, versions 13 to 23.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

from ..graph.onnx_files import constant_tensors, is_quantized
from ..graph.onnx_graph import Walk, all_names, attribute, fresh_name


def quantize_before_transposes(model: onnx.ModelProto) -> None:
    """Put quantizers with a scale for each channel before the Transposes in front of them."""
    taken = all_names(model)
    sizes = {name: math.prod(tensor.dims) for name, tensor in constant_tensors(model)}
    while _put_one_before(model, taken, sizes):
        pass


def _put_one_before(model: onnx.ModelProto, taken: set[str], sizes: Mapping[str, int]) -> bool:
    walk = Walk(model)
    for node in model.graph.node:
        turned = walk.producer.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if turned is None or turned.op_type != "Transpose" or not _has_channels(node, sizes):
            continue
        order: list[int] = attribute(turned, "perm", [])
        axis = int(attribute(node, "axis", 1))
        readers = walk.consumers.get(node.output[0], [])
        same = all(
            one.op_type == "DequantizeLinear" and attribute(one, "axis", 1) == axis
            for one in readers
        )
        there = -len(order) <= axis < len(order)
        given_out = node.output[0] in walk.output_names
        if given_out or not (same and readers and there) or _is_quantized(turned.input[0], walk):
            continue
        node.input[0] = turned.input[0]
        for one in (node, *readers):
            kept = [item for item in one.attribute if item.name != "axis"]
            del one.attribute[:]
            one.attribute.extend([*kept, onnx.helper.make_attribute("axis", order[axis])])
        for one in readers:
            out, before = one.output[0], fresh_name(taken, f"{one.output[0]}_unturned")
            one.output[0] = before
            at = next(i for i, other in enumerate(model.graph.node) if before in other.output)
            behind = onnx.helper.make_node("Transpose", [before], [out], perm=order)
            model.graph.node.insert(at + 1, behind)
        return True
    return False


def _has_channels(node: onnx.NodeProto, sizes: Mapping[str, int]) -> bool:
    return any(sizes.get(name, 1) > 1 for name in node.input[1:])


def _is_quantized(name: str, walk: Walk) -> bool:
    """Whether a tensor has quantizers, or what it was transposed from."""
    maker = walk.producer.get(name)
    around = [*walk.consumers.get(name, []), *([maker] if maker is not None else [])]
    if any(is_quantized(one) for one in around):
        return True
    return (
        maker is not None and maker.op_type == "Transpose" and _is_quantized(maker.input[0], walk)
    )
