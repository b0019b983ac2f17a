"""Operators that compute on codes (the QOperator form), and what each computes between floats.

Source: ONNX operators QLinearConv and QLinearMatMul; ONNX Runtime's contrib operators (domain
com.microsoft) for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from ...runtime.tensors import Array
from ..graph.onnx_graph import attribute

_OWN = ("channels_last", "opset")  # attributes of these forms alone


@dataclass(frozen=True)
class QOperator:
    """Where an operator's inputs stand.

    Attributes:
        equal: The float operator.
        operands: Places of the codes; scale and zero point follow each.
        result: Place of the result's scale; its zero point follows.
        bias: Place of the int32 bias; beyond the inputs for operators without one.
    """

    equal: str
    operands: tuple[int, ...]
    result: int
    bias: int = 99

    def operands_of(self, node: onnx.NodeProto) -> tuple[int, ...]:
        """As :attr:`operands`, or every third where a node may have any number."""
        return self.operands or tuple(range(self.result + 2, len(node.input), 3))

    def weight_axis(self, node: onnx.NodeProto) -> int:
        """Axis of the output channels of weights with a scale for each."""
        if self.equal == "Conv" or (self.equal == "Gemm" and attribute(node, "transB", 0)):
            return 0
        return 1


QOPERATORS = {
    "QGemm": QOperator("Gemm", (0, 3), 7, 6),
    "QLinearAdd": QOperator("Add", (0, 3), 6),
    "QLinearAveragePool": QOperator("AveragePool", (0,), 3),
    "QLinearConcat": QOperator("Concat", (), 0),
    "QLinearConv": QOperator("Conv", (0, 3), 6, 8),
    "QLinearGlobalAveragePool": QOperator("GlobalAveragePool", (0,), 3),
    "QLinearLeakyRelu": QOperator("LeakyRelu", (0,), 3),
    "QLinearMatMul": QOperator("MatMul", (0, 3), 6),
    "QLinearMul": QOperator("Mul", (0, 3), 6),
    "QLinearSigmoid": QOperator("Sigmoid", (0,), 3),
    "QLinearSoftmax": QOperator("Softmax", (0,), 3),
}


def why_not_plain(node: onnx.NodeProto, opset: int) -> str | None:
    """Why a node has no equal between floats, in an opset; ``None`` where it has one."""
    if attribute(node, "channels_last", 0):
        return "reads its channels last"
    meant = attribute(node, "opset", 13)
    if node.op_type == "QLinearSoftmax" and (meant < 13) != (opset < 13):
        return f"is the Softmax of opset {meant} in a file of opset {opset}"
    return None


def why_not_bias(bias: Array | None, scales: Sequence[Array]) -> str | None:
    """Why an int32 bias at the product of two scales has no value; ``None`` where it has one."""
    if bias is None:
        return "is computed while it runs"
    sizes = {1, *bias.shape[-1:], *(scale.size for scale in scales)}
    return None if len(sizes) < 3 else "does not have one value for each output channel"


def plain_equal(node: onnx.NodeProto, inputs: list[str], output: str) -> onnx.NodeProto:
    """The float node that computes what ``node`` does on codes."""
    equal = QOPERATORS[node.op_type].equal
    plain = onnx.helper.make_node(equal, inputs, [output], name=node.name)
    plain.attribute.extend([item for item in node.attribute if item.name not in _OWN])
    return plain
