"""The PrecisionPlan: for each node int8, fp16 or float32, and why. It runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from ..calibration.ranges import Ranges
from ..graph.onnx_graph import Graph, Walk, attribute, is_standard
from ..graph.precision_plan import UNNAMED, NodePrecision, PrecisionPlan, check_node_names
from .activation_products import has_weights
from .dialect import Dialect
from .residual_additions import skip_inputs


def plan_int8(
    graph: Graph,
    ranges: Ranges,
    dialect: Dialect,
    *,
    keep_float: Sequence[str] = (),
    given: PrecisionPlan | None = None,
) -> PrecisionPlan:
    """INT8 for every node that the dialect has a kernel for, float32 for the rest.

    Args:
        graph: The network.
        ranges: What calibration saw; a node whose tensors it does not know stays float32.
        dialect: Which operators the engine runs in INT8.
        keep_float: Names of nodes that the user keeps in float32.
        given: A plan that was decided before: it is followed wherever the dialect has a kernel, and
            what it does not name stays float32.

    Raises:
        InputError: ``E_RECIPE`` for a name in ``keep_float`` or ``given`` that no node has (the
            nearest are suggested).
    """
    model = graph.proto()
    walk = Walk(model)
    names = [node.name for node in model.graph.node]
    check_node_names(keep_float, names)
    if given is not None:
        check_node_names(list(given.nodes), names, "the precision plan")
    refused = {
        node.name: "kept in float32 by the recipe"
        if node.name in keep_float
        else _why_not(node, walk, ranges, dialect)
        for node in model.graph.node
    }
    if dialect.at_inputs:
        _only_residual(walk, ranges, dialect, refused)
    feeding = _feed_weights(model, walk, dialect, refused)
    chosen: dict[str, NodePrecision] = {}
    for node in model.graph.node:
        reason = refused[node.name]
        if reason is None and given is not None:
            chosen[node.name] = given.nodes.get(node.name, UNNAMED)
            continue
        if reason is None and node.op_type in dialect.elementwise and node.name not in feeding:
            reason = "no INT8 layer reads what it gives: it would cost precision and save little"
        if reason is None:
            chosen[node.name] = NodePrecision(
                "int8", f"{dialect.name} has an INT8 kernel for {node.op_type}"
            )
        else:
            chosen[node.name] = NodePrecision("float32", reason)
    return PrecisionPlan(chosen)


def _only_residual(
    walk: Walk, ranges: Ranges, dialect: Dialect, refused: dict[str, str | None]
) -> None:
    """Refuse additions that are no skip connection around an INT8 convolution."""
    nodes = walk.model.graph.node
    convolutions = {n.name for n in nodes if n.op_type == "Conv" and refused[n.name] is None}
    skips = skip_inputs(walk, ranges.elements, convolutions)
    for node in nodes:
        if node.op_type in dialect.elementwise and node.name not in skips:
            refused[node.name] = refused[node.name] or (
                f"{dialect.name} adds in INT8 only a skip connection to a convolution's result"
            )


def _feed_weights(
    model: onnx.ModelProto, walk: Walk, dialect: Dialect, refused: Mapping[str, str | None]
) -> set[str]:
    """Nodes from which a layer with weights that runs in INT8 is reached."""
    reached: set[str] = set()
    for node in reversed(model.graph.node):
        for name in node.output:
            for reader in walk.consumers.get(name, []):
                weighted = reader.op_type in dialect.weighted and refused[reader.name] is None
                if weighted or reader.name in reached:
                    reached.add(node.name)
    return reached


def _why_not(node: onnx.NodeProto, walk: Walk, ranges: Ranges, dialect: Dialect) -> str | None:
    if not is_standard(node) or node.op_type not in dialect.weighted | dialect.elementwise:
        return f"{dialect.name} has no INT8 kernel for {node.op_type}"
    activations = list(node.input)
    if has_weights(node, walk, dialect):
        reason = why_not_weights(node, walk)
        if reason is not None:
            return reason
        activations = [] if dialect.weight_only else activations[:1]
        if channels_read(node, walk) < dialect.least_channels:
            return f"it reads fewer than {dialect.least_channels} channels"
    if any(not name or name in walk.constants for name in activations):
        return "one of its inputs is a constant"
    tail = walk.folded_activation(node)
    output = tail.output[0] if tail is not None else node.output[0]
    if any(name not in ranges.tensors for name in [*activations, output]):
        return "its tensors are not float32, not finite, or were not seen by the calibration"
    return None


def channels_read(node: onnx.NodeProto, walk: Walk) -> int:
    """Over how many channels, or columns, the weights of ``node`` run."""
    shape = tuple(walk.constants[node.input[1]].dims)
    if node.op_type == "Conv":
        return shape[1] * attribute(node, "group", 1)
    return shape[1] if attribute(node, "transB", 0) else shape[0]


def why_not_weights(node: onnx.NodeProto, walk: Walk) -> str | None:
    """Why the weights or bias of a node do not fit INT8 kernels; ``None`` where they do."""
    weights = node.input[1]
    bias = node.input[2] if len(node.input) > 2 else ""
    if weights not in walk.constants:
        return "its weights are not constant"
    if walk.constants[weights].data_type != onnx.TensorProto.FLOAT:
        return "its weights are not float32"
    shape = tuple(walk.constants[weights].dims)
    if node.op_type == "MatMul" and len(shape) != 2:
        return "its weights are not a matrix"
    if node.op_type == "Gemm" and (
        attribute(node, "transA", 0)
        or attribute(node, "alpha", 1.0) != 1.0
        or (bias and attribute(node, "beta", 1.0) != 1.0)
    ):
        return "it scales or transposes its input"
    if not bias:
        return None
    if bias not in walk.constants:
        return "its bias is not constant"
    channels = shape[0] if node.op_type == "Conv" or attribute(node, "transB", 0) else shape[1]
    dims = tuple(walk.constants[bias].dims)
    one_a_channel = dims[-1:] in ((), (1,), (channels,)) and all(d == 1 for d in dims[:-1])
    return None if one_a_channel else "its bias is not one value for each output channel"
