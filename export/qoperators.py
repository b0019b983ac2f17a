"""Operators that compute on codes (the QOperator form), and what each computes between floats."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from .graph import attribute


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

    def weight_axis(self, node: onnx.NodeProto) -> int:
        """Axis of the output channels of weights with a scale for each."""
        if self.equal == "Conv" or (self.equal == "Gemm" and attribute(node, "transB", 0)):
            return 0
        return 1


QOPERATORS = {
    "QLinearConv": QOperator("Conv", (0, 3), 6, 8),
    "QLinearMatMul": QOperator("MatMul", (0, 3), 6),
    "QLinearAdd": QOperator("Add", (0, 3), 6),
    "QLinearMul": QOperator("Mul", (0, 3), 6),
    "QGemm": QOperator("Gemm", (0, 3), 7, 6),
}


def plain_equal(node: onnx.NodeProto, inputs: list[str], output: str) -> onnx.NodeProto:
    """The float node that computes what ``node`` does on codes."""
    equal = QOPERATORS[node.op_type].equal
    plain = onnx.helper.make_node(equal, inputs, [output], name=node.name)
    plain.attribute.extend(node.attribute)
    return plain
