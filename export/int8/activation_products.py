"""Products of two activations, as attention has them: queries by keys, weights by values.

Both inputs are read as codes of one scale each, and floats come out, or codes where an INT8 node
reads them. Nothing of such a node is constant: it has no weights to quantize and no bias to
correct.
Source: OpenVINO's low precision transformations (MatMulTransformation), and its CPU plugin, which
runs two such products and the softmax between them as one kernel on codes.
"""

from __future__ import annotations

import onnx

from ..graph.onnx_graph import Walk, is_standard
from .dialect import Dialect


def is_product(node: onnx.NodeProto, walk: Walk, dialect: Dialect) -> bool:
    """Whether a node multiplies two activations, and the engine does that in INT8."""
    multiplies = is_standard(node) and node.op_type in dialect.products
    return multiplies and walk.constants.keys().isdisjoint(node.input)


def has_weights(node: onnx.NodeProto, walk: Walk, dialect: Dialect) -> bool:
    """Whether a node's operator has weights in INT8, and the node is no product."""
    return node.op_type in dialect.weighted and not is_product(node, walk, dialect)
