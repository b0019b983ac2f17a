"""BatchNormalization behind a fully connected layer becomes part of that layer.

What it does: ``norm(a @ w + b)`` is ``a @ (w * gain) + ((b - mean) * gain + bias)`` with ``gain =
scale / sqrt(variance + epsilon)``, one value a column. Embedding heads are written so
(people, faces), and ONNX Runtime folds a normalization into convolutions alone. Left there, it
stays float32 behind an INT8 layer, and an engine that folds it by itself loses that layer's name.

When it is exact: always, up to the order of floating-point operations.

When it refuses: weights or statistics that are not constants, a layer that something else reads as
well, a normalization in training mode, a bias that is not one value a column; those stay as they
are.

Source: Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.1.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from .onnx_graph import Walk, all_names, attribute, bias_of, fresh_name, read_with_bias


def fold_norms(model: onnx.ModelProto) -> int:
    """Fold every BatchNormalization behind a Gemm into it, in place.

    Returns:
        How many were folded.
    """
    walk, taken = Walk(model), all_names(model)
    folded: set[str] = set()
    for norm in model.graph.node:
        gemm = walk.producer.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if gemm is None or not _fits(gemm, norm, walk):
            continue
        scale, bias, mean, variance = (walk.constant(name) for name in norm.input[1:5])
        epsilon = float(attribute(norm, "epsilon", 1e-5))
        gain = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        weights, before = walk.constant(gemm.input[1]), bias_of(gemm, walk, len(gain))
        columns = gain[:, None] if attribute(gemm, "transB", 0) else gain
        shifted = (before - mean.astype(np.float64)) * gain + bias.astype(np.float64)
        parts = {
            gemm.input[1]: weights.astype(np.float64) * columns,
            f"{gemm.input[1]}_bias": shifted,
        }
        added = [fresh_name(taken, f"{name}_normed") for name in parts]
        for name, value in zip(added, parts.values(), strict=True):
            tensor = numpy_helper.from_array(value.astype(np.float32), name)
            model.graph.initializer.append(tensor)
        gemm.input[1] = added[0]
        read_with_bias(gemm, added[1])
        gemm.output[0] = norm.output[0]
        folded.add(norm.output[0])
        del walk.producer[norm.input[0]]
    rest = [
        node
        for node in model.graph.node
        if node.op_type != "BatchNormalization" or node.output[0] not in folded
    ]
    del model.graph.node[:]
    model.graph.node.extend(rest)
    return len(folded)


def _fits(gemm: onnx.NodeProto, norm: onnx.NodeProto, walk: Walk) -> bool:
    """Whether a Gemm is read by this normalization alone, and all that both hold is constant."""
    constants = [*gemm.input[1:], *norm.input[1:]]
    return (
        gemm.op_type == "Gemm"
        and walk.only_consumer(gemm.output[0]) is not None
        and len(norm.output) == 1
        and not attribute(norm, "training_mode", 0)
        and not attribute(gemm, "transA", 0)
        and attribute(gemm, "alpha", 1.0) == 1.0
        and (len(gemm.input) < 3 or attribute(gemm, "beta", 1.0) == 1.0)
        and all(name in walk.constants for name in constants if name)
        and walk.constants[gemm.input[1]].data_type == onnx.TensorProto.FLOAT
        and (len(gemm.input) < 3 or not gemm.input[2] or _a_column(gemm.input[2], norm, walk))
    )


def _a_column(bias: str, norm: onnx.NodeProto, walk: Walk) -> bool:
    shape = tuple(walk.constants[bias].dims)
    columns = tuple(walk.constants[norm.input[1]].dims)
    return shape in ((), (1,), (1, 1), columns, (1, *columns))
