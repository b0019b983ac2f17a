"""A small network whose nodes differ in what INT8 costs them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from edgepress.export.graph.normalize import normalize
from edgepress.export.graph.onnx_graph import Graph
from edgepress.runtime.tensors import Array

NETWORK = """
network (float[N,3,32,32] x) => (float[N,6] y)
{
    a = Conv <pads=[1,1,1,1]> (x, stem, b)
    sa = Sigmoid (a)
    s = Mul (a, sa)
    d = Conv <pads=[1,1,1,1], group=16> (s, depth)
    r = Relu (d)
    p = Conv (r, point)
    t = Add (p, s)
    m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (t)
    l = Conv <pads=[1,1,1,1]> (m, last)
    k = Relu (l)
    g = GlobalAveragePool (k)
    f = Flatten <axis=1> (g)
    y = Gemm (f, head)
}
"""


def network(*, loud: float = 1.0, text: str = NETWORK) -> Graph:
    """A small network; one of its first layer's channels is ``loud`` times as large as the rest."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)

    weights = {
        "stem": normal(16, 3, 3, 3),
        "b": rng.normal(0, 0.1, 16).astype(np.float32),
        "depth": normal(16, 1, 3, 3),
        "point": normal(16, 16, 1, 1),
        "last": normal(32, 16, 3, 3),
        "head": normal(6, 32).T.copy(),
        "big": np.full(6, 1e6, np.float32),
    }
    weights["stem"][5] *= loud
    weights["depth"][5] /= loud
    weights["last"][:, 5] /= loud
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]> ' + text.strip())
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return normalize(model, source="the test")
