"""Strides of convolutions that look at single values, taken before them.

What it does: a convolution of 1x1 with strides reads every so manieth value in each direction, and
nothing between them. A MaxPool of single values with these strides leaves the same values, which a
convolution without strides reads.
When it is exact: always.
When it refuses: where something reads the values between, strides stay where they are; and behind a
layer with weights an engine that moves them into that makes it do less.
Source: OpenVINO's StridesOptimization (src/common/transformations/common_optimizations) moves such
strides to where the input is made, and puts a pooling of floats between that and its quantizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from ..graph.onnx_graph import Walk, attribute, fresh_name


def are_moved(node: onnx.NodeProto, walk: Walk) -> bool:
    """Whether a node is a convolution whose strides would be moved through a quantizer.

    Args:
        node: A node with weights.
        walk: The float32 graph.
    """
    if not _over_single_values(node, walk):
        return False
    strides = attribute(node, "strides")
    for reader in walk.consumers[node.input[0]]:
        alike = _over_single_values(reader, walk) and attribute(reader, "strides") == strides
        if not alike:
            return False
    maker = walk.producer.get(node.input[0])
    if maker is not None and maker.op_type in ("Relu", "Clip"):
        maker = walk.producer.get(maker.input[0])
    return maker is not None and maker.op_type not in ("Conv", "Gemm", "MatMul")


def over_single_values(node: onnx.NodeProto, kernel: Sequence[int]) -> bool:
    """Whether a node is a convolution that looks at single values, and not at all of them.

    Args:
        node: Any node.
        kernel: Sizes of its kernel.
    """
    strided = node.op_type == "Conv" and max(attribute(node, "strides", [1])) > 1
    return strided and max(kernel, default=0) == 1 and not any(attribute(node, "pads", [0]))


def _over_single_values(node: onnx.NodeProto, walk: Walk) -> bool:
    weights = node.input[1] if node.op_type == "Conv" else ""
    known = weights in walk.constants
    return known and over_single_values(node, walk.constants[weights].dims[2:])


class Strides:
    """Takes the strides of convolutions before them; those that read the same share a node.

    Args:
        names: Names that are taken; new ones are added.
    """

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self._made: dict[tuple[str, tuple[int, ...]], str] = {}

    def take_before(self, convolution: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Let a convolution read what its strides leave, and all of that.

        Returns:
            What leaves it; nothing where that is there already.
        """
        source, strides = convolution.input[0], attribute(convolution, "strides")
        key, new = (source, tuple(strides)), list[onnx.NodeProto]()
        if key not in self._made:
            self._made[key] = fresh_name(self._names, f"{source}_strided")
            name = fresh_name(self._names, f"{convolution.name}_strided")
            how: dict[str, Any] = {"kernel_shape": [1] * len(strides), "strides": strides}
            new = [onnx.helper.make_node("MaxPool", [source], [self._made[key]], name, **how)]
        kept = [item for item in convolution.attribute if item.name != "strides"]
        del convolution.attribute[:]
        convolution.attribute.extend(kept)
        convolution.input[0] = self._made[key]
        return new
