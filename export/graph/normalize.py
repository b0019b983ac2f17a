"""Exact rewrites: the same function, in the form that every later step expects.

What it does: constants become initializers and leave the inputs, opsets before 13 are raised to 18,
BatchNormalization and padding are folded into convolutions (and the former into fully connected
layers), dead nodes go, a mean over the spatial
axes becomes GlobalAveragePool (which has an INT8 kernel), every node and free dimension gets a
name.

When it is exact: always, up to the order of floating-point additions; :func:`normalize` proves it
on the spot by running both models on one random input.

When it refuses: files that the ONNX checker rejects, weights that are not finite, models over
2 GiB, control flow, models that are quantized already, outputs that differ.

Source: the folding is ONNX Runtime's own basic level (semantics-preserving, ONNX operators only);
the opset conversion is onnx.version_converter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import onnx
from onnx import version_converter

from ...runtime.engines.engine import EngineOptions
from ...runtime.engines.onnxruntime import OnnxRuntimeEngine, optimized_model
from ...runtime.errors import EngineError, InputError
from ...runtime.tensors import Array, Arrays, TensorSpec
from .fold_batchnorm import fold_norms
from .onnx_files import check_float_network, constant_tensors
from .onnx_graph import (
    IR_VERSION,
    Graph,
    Walk,
    all_names,
    attribute,
    fresh_name,
    give_out,
    name_nodes,
    opset_of,
    serialize,
    specs,
    tensor_types,
)
from .random_inputs import TRIED_SIZES, has_free_dimension, run_on_random

_OLDEST_OPSET = 13  # per-axis DequantizeLinear came with it
_RAISED_OPSET = 18
_RELATIVE_TOLERANCE = 1e-3


def normalize(
    model: onnx.ModelProto,
    *,
    source: str,
    example: Mapping[str, Array] | None = None,
    keep: Iterable[str] = (),
    picture: tuple[int, int] | None = None,
) -> Graph:
    """The Graph of an ONNX model; its batch is fixed where it is free and runs with one alone.

    Args:
        model: Any valid float model; it is not modified.
        source: Where it came from, in a few words, for messages and reports.
        example: Inputs to prove the rewrites on, by name; random ones without it.
        keep: Tensors that nothing is folded across.
        picture: Height and width that free dimensions are meant for, where that is known.

    Raises:
        InputError: ``E_MODEL`` for an invalid model, one already quantized, or one that the
            rewrites change; ``E_OP`` for control flow; ``E_NAN`` for weights that are not finite;
            ``E_SHAPE`` where its inputs have free dimensions and no size that was tried fits.
        EngineError: ``E_BACKEND`` where ONNX Runtime cannot load or run it.
    """
    original = onnx.ModelProto()
    original.CopyFrom(model)
    initializers_are_not_inputs(original)
    # Before 4 initializers had to be inputs; what came after 10 is nothing that a network needs.
    original.ir_version = min(max(original.ir_version, 4), IR_VERSION)
    check_float_network(original, source)
    before = original.SerializeToString()
    work = original
    if opset_of(work) < _OLDEST_OPSET:
        work = _convert(work, _RAISED_OPSET, source)
    inputs, outputs = list(work.graph.input), list(work.graph.output)
    work.ir_version = IR_VERSION
    give_out(work, keep)
    work = onnx.load_model_from_string(optimized_model(work.SerializeToString(), "basic"))
    fold_norms(work)  # while what `keep` names is given out, which is not folded across
    del work.graph.input[:], work.graph.output[:]
    work.graph.input.extend(inputs)
    work.graph.output.extend(outputs)
    _spatial_mean_is_a_pool(work)
    _drop_unused(work)
    name_nodes(work)
    _name_free_dimensions([*work.graph.input, *work.graph.output])
    feeds, wanted = _first_run(before, specs(work.graph.input), example, source, picture)
    if example is None:
        _fix_batch(work, feeds)
    return _proved(work, feeds, wanted, source)


def with_opset(graph: Graph, opset: int, feeds: Mapping[str, Array]) -> Graph:
    """The same Graph in another version of ONNX's operators, proved on ``feeds``.

    Raises:
        InputError: ``E_OPSET`` where an operator in it has no equal in that version.
    """
    model, checker = graph.proto(), cast("Any", onnx.checker)
    if opset_of(model) == opset:
        return graph
    with OnnxRuntimeEngine(graph.model, EngineOptions(optimize="none")) as engine:
        wanted = engine.run(feeds)
    while (now := opset_of(model)) != opset:
        step = now + (1 if opset > now else -1)
        try:
            model = _convert(model, step, graph.source)
        except InputError:  # the converter lacks steps where operators only learned new types
            del model.opset_import[:]
            model.opset_import.append(onnx.helper.make_opsetid("", step))
    try:
        checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(
            "E_OPSET",
            f"{graph.source} cannot be written in opset {opset}: {str(error).splitlines()[0]}",
            mend=f"Export the network in opset {max(opset, _RAISED_OPSET)} or later: edgepress "
            "export --opset N; compress takes that file as well.",
            path=graph.source,
        ) from error
    _constants_are_initializers(model)
    _drop_unused(model)
    name_nodes(model)
    return _proved(model, dict(feeds), wanted, graph.source)


def initializers_are_not_inputs(model: onnx.ModelProto) -> None:
    """Take initializers from the list of the graph's inputs, where old files have them, too."""
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def _constants_are_initializers(model: onnx.ModelProto) -> None:
    """Lift what Constant nodes hold; the converter writes such nodes."""
    made = {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    lifted = {name: tensor for name, tensor in constant_tensors(model) if name in made}
    for name, tensor in lifted.items():
        model.graph.initializer.append(tensor)
        model.graph.initializer[-1].name = name
    kept = [node for node in model.graph.node if not lifted.keys() & set(node.output)]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _convert(model: onnx.ModelProto, opset: int, source: str) -> onnx.ModelProto:
    model.ir_version = max(model.ir_version, 8)
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:  # RuntimeError, and the C++ converter's own types
        raise InputError(
            "E_MODEL",
            f"{source} is of opset {opset_of(model)} and cannot be brought to {opset}: "
            f"{(str(error).splitlines() or [type(error).__name__])[0]}",
            mend=f"Export it again with opset {_OLDEST_OPSET} or later.",
            path=source,
        ) from error


def _spatial_mean_is_a_pool(model: onnx.ModelProto) -> None:
    """ReduceMean over the last two of four axes -> GlobalAveragePool.

    A Flatten stands behind it where the mean drops those axes.
    """
    if not any(node.op_type == "ReduceMean" for node in model.graph.node):
        return
    kinds = tensor_types(model)
    taken, walk, nodes = all_names(model), Walk(model), list[onnx.NodeProto]()
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or not _is_spatial(node, kinds, walk):
            nodes.append(node)
            continue
        keep = bool(attribute(node, "keepdims", 1))
        pooled = node.output[0] if keep else fresh_name(taken, f"{node.output[0]}_pooled")
        nodes.append(onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled]))
        if not keep:
            nodes.append(onnx.helper.make_node("Flatten", [pooled], [node.output[0]], axis=1))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _is_spatial(
    mean: onnx.NodeProto, kinds: Mapping[str, onnx.TypeProto.Tensor], walk: Walk
) -> bool:
    """Whether a mean is taken over the last two of four axes, of float32."""
    kind = kinds.get(mean.input[0])
    if kind is None or kind.elem_type != onnx.TensorProto.FLOAT or len(kind.shape.dim) != 4:
        return False
    axes: list[int] = attribute(mean, "axes", [])
    if len(mean.input) > 1 and mean.input[1] in walk.constants:
        axes = walk.constant(mean.input[1]).tolist()
    return sorted(axis % 4 for axis in axes) == [2, 3]


def _drop_unused(model: onnx.ModelProto) -> None:
    needed = {value.name for value in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if any(name in needed for name in node.output):
            needed.update(name for name in node.input if name)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)


def _name_free_dimensions(values: Iterable[onnx.ValueInfoProto]) -> None:
    """Name free dimensions: without a name they would be told by their place in the list."""
    for value in values:
        word = "".join(c if c.isalnum() else "_" for c in value.name)
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value <= 0 and not dim.dim_param.isidentifier():
                dim.dim_param = "N" if i == 0 else f"{word}_{i}"


def _fix_batch(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> None:
    """Say that the batch is one where no two were found to run: a size frozen at export."""
    values = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    loose = {
        dims[0].dim_param
        for name, dims in values.items()
        if dims and dims[0].dim_value <= 0 and feeds[name].shape[0] == 1
    }
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in loose:
                dim.dim_value = 1


def _first_run(
    model: bytes,
    inputs: tuple[TensorSpec, ...],
    example: Mapping[str, Array] | None,
    source: str,
    picture: tuple[int, int] | None,
) -> tuple[Arrays, Arrays]:
    """Inputs that the model takes, and what it gives for them."""
    with OnnxRuntimeEngine(model, EngineOptions(optimize="none")) as engine:
        if example is not None:
            return dict(example), engine.run(example)
        try:
            return run_on_random(
                inputs, lambda feeds: (feeds, engine.run(feeds)), batches=(2, 1), picture=picture
            )
        except EngineError as error:
            if not has_free_dimension(inputs, slice(1, None)):
                raise
            raise InputError(
                "E_SHAPE",
                f"{source} has free dimensions and runs with none of the sizes "
                f"{', '.join(map(str, [*filter(None, [picture]), *TRIED_SIZES]))}: {error.message}",
                mend="Export it with the sizes that it is meant for.",
                path=source,
            ) from error


def _proved(model: onnx.ModelProto, feeds: Arrays, wanted: Arrays, source: str) -> Graph:
    """The Graph of a model in its final form, once it gives ``wanted`` for ``feeds``."""
    data = serialize(model)
    with OnnxRuntimeEngine(data, EngineOptions(optimize="none")) as engine:
        inputs, outputs, found = engine.inputs, engine.outputs, engine.run(feeds)
    worst = largest_relative(wanted, found)
    if not worst <= _RELATIVE_TOLERANCE:
        raise InputError(
            "E_MODEL",
            f"{source} computes something else once its constants are folded "
            f"(outputs differ by {worst:.2g} of their largest value on a random input).",
            mend="Please report this network; nothing was written.",
            path=source,
        )
    shapes = {spec.name: spec.shape for spec in outputs}
    for value in model.graph.output:
        if not value.type.tensor_type.HasField("shape"):  # behind operators that ONNX does not know
            kind, rank = value.type.tensor_type.elem_type, found[value.name].ndim
            shape = shapes[value.name] if len(shapes[value.name]) == rank else [None] * rank
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, shape))
            _name_free_dimensions([value])
            data, outputs = serialize(model), specs(model.graph.output)
    return Graph(data, inputs, outputs, source=source)


def largest_relative(wanted: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Largest difference of any output, relative to that output's largest finite magnitude.

    Infinite where one output is not finite and the other is something else there.
    """
    worst = 0.0
    for name, value in wanted.items():
        left, right = value.astype(np.float64), found[name].astype(np.float64)
        if left.shape != right.shape:
            return float("inf")
        finite = np.isfinite(left)
        if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
            return float("inf")
        if not np.isfinite(right[finite]).all():
            return float("inf")
        if finite.any():
            scale = float(np.max(np.abs(left[finite]))) or 1.0
            worst = max(worst, float(np.max(np.abs(left[finite] - right[finite]))) / scale)
    return worst
