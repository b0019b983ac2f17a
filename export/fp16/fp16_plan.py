"""Which nodes may compute in FP16, decided from the ranges of real activations. It runs nothing.

What it does: a node stays in float32 where a tensor that it reads or gives comes near the largest
number of FP16 (65504) or lies below its normal ones (6.1e-5), where a sum or a sum of squares
inside of it would overflow, where a constant does not survive, where its operator knows no FP16, or
where sizes are computed. Then nodes that only move values, and cheap ones between float32
neighbours, take the precision that needs the fewest casts.

When it is exact: never; what it cannot foresee is measured, in :mod:`edgepress.export.fp16.fp16`.

When it refuses: names in ``keep_float`` that are no nodes.

Source: IEEE 754 binary16; Micikevicius et al. 2018, "Mixed precision training" (arXiv:1710.03740),
section 3, on what wants float32: sums, normalization, softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import onnx

from ...runtime.tensors import Array
from ..calibration.ranges import Ranges, TensorRange
from ..graph.onnx_graph import Graph, Walk, attribute, is_standard, opset_of, tensor_types
from ..graph.precision_plan import NodePrecision, PrecisionPlan, check_node_names

FP16, FLOAT32 = "fp16", "float32"
FP16_LARGEST = 65504.0
FP16_SMALLEST_NORMAL = 2.0**-14
_MARGIN = 4.0  # other pictures may reach further than those of the calibration
_COARSE = 256.0  # exponents beyond it are rounded to steps of a quarter
_WEIGHT_ERROR = 2.0**-9  # relative, of all weights together
_CONSTANT_ERROR = 0.01  # relative, of one constant such as an epsilon
_PASSES = 8
_BOUNDS = frozenset({"Clip", "Min", "Max", "Where", "Pad"})
"""Operators whose constants only bound: what lies beyond FP16 is clamped to its largest number."""

_SQUARES = frozenset(
    {
        *("LayerNormalization", "InstanceNormalization", "GroupNormalization"),
        *("RMSNormalization", "ReduceSumSquare"),
    }
)
_ROOTS = frozenset({"ReduceL2", "LpPool", "GlobalLpPool"})
"""Operators that give the root of a sum of powers, the second ones where no ``p`` says else."""

_MEANS = frozenset({"ReduceMean", "GlobalAveragePool", "AveragePool"})
_EXPONENTIALS = frozenset({"Softmax", "LogSoftmax", "Exp", "ReduceLogSumExp"})
_HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""What FP16 is for: never given up only to save a cast."""


@dataclass(frozen=True)
class FloatTensors:
    """The float32 tensors of a model, and which inputs of its nodes may be FP16.

    Attributes:
        walk: The model.
        kinds: ONNX element type by tensor name.
        shapes: Sizes by tensor name, 0 for one that is free; only where they are known.
    """

    walk: Walk
    kinds: Mapping[str, int] = field(default_factory=dict[str, int])
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, "tuple[int, ...]"])

    @staticmethod
    def of(model: onnx.ModelProto) -> FloatTensors:
        """Read a model."""
        walk = Walk(model)
        held = {name: tensor.data_type for name, tensor in walk.constants.items()}
        types = tensor_types(model)
        kinds = {name: kind.elem_type for name, kind in types.items()}
        shapes = {name: tuple(d.dim_value for d in kind.shape.dim) for name, kind in types.items()}
        return FloatTensors(walk, {**kinds, **held}, shapes)

    def is_float(self, name: str) -> bool:
        """Whether a tensor is float32."""
        return self.kinds.get(name) == onnx.TensorProto.FLOAT

    def inputs(self, node: onnx.NodeProto) -> list[str]:
        """Float32 inputs that the operator takes in FP16 as well."""
        takes = _takes_half(node, opset_of(self.walk.model))
        return [n for i, n in enumerate(node.input) if n and self.is_float(n) and takes(i)]

    def outputs(self, node: onnx.NodeProto) -> list[str]:
        """Float32 outputs."""
        return [name for name in node.output if name and self.is_float(name)]

    def knows(self, node: onnx.NodeProto) -> bool:
        """Whether the types of all that a node reads and gives are known."""
        return all(name in self.kinds for name in [*node.input, *node.output] if name)


class _TakesHalf:
    """Whether an input of an operator may be FP16, from ONNX's own definition of it."""

    def __init__(self, allowed: Sequence[bool], variadic: bool) -> None:
        self._allowed, self._variadic = allowed, variadic

    def __call__(self, index: int) -> bool:
        if index < len(self._allowed):
            return self._allowed[index]
        return self._variadic and self._allowed[-1]


def _takes_half(node: onnx.NodeProto, opset: int) -> _TakesHalf:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return _TakesHalf([False], True)
    types = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    allowed = [
        "tensor(float16)" in types.get(formal.type_str, [formal.type_str])
        for formal in schema.inputs
    ]
    last = schema.inputs[-1].option if schema.inputs else None
    return _TakesHalf(allowed or [False], last == onnx.defs.OpSchema.FormalParameterOption.Variadic)


def plan_fp16(
    graph: Graph,
    ranges: Ranges,
    *,
    keep_float: Sequence[str] = (),
    measured: Mapping[str, str] | None = None,
) -> PrecisionPlan:
    """FP16 or float32 for every node that computes with floats, and why.

    Args:
        graph: The float32 network.
        ranges: What calibration saw of it.
        keep_float: Names of nodes that the user keeps in float32.
        measured: Nodes that were found to do damage, and what they did.

    Raises:
        InputError: ``E_RECIPE`` for a name in ``keep_float`` that no node has.
    """
    model = graph.proto()
    check_node_names(keep_float, [node.name for node in model.graph.node])
    floats = FloatTensors.of(model)
    judge = _Judge(floats, ranges)
    found = measured or {}
    reasons: dict[str, str] = {}
    computing: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if not floats.outputs(node) and not floats.inputs(node):
            continue
        computing.append(node)
        reason = "kept in float32 by the recipe" if node.name in keep_float else None
        reason = reason or found.get(node.name) or judge.why_not(node)
        if reason is not None:
            reasons[node.name] = reason
    for name in _save_casts(floats, computing, set(reasons)):
        reasons[name] = "it stands between float32 nodes: this way there are fewer casts"
    return PrecisionPlan(
        {
            node.name: NodePrecision(FLOAT32, reasons[node.name])
            if node.name in reasons
            else NodePrecision(FP16, "what it reads and gives fits into FP16")
            for node in computing
        }
    )


def fp16_nodes(plan: PrecisionPlan) -> frozenset[str]:
    """Names of the nodes that compute in FP16."""
    return frozenset(name for name, one in plan.nodes.items() if one.precision == FP16)


class _Judge:
    def __init__(self, floats: FloatTensors, ranges: Ranges) -> None:
        self._floats, self._walk, self._ranges = floats, floats.walk, ranges.tensors
        self._sizes = _of_sizes(floats.walk)

    def why_not(self, node: onnx.NodeProto) -> str | None:
        """Why a node stays in float32, or ``None``."""
        if not is_standard(node) or not self._floats.knows(node):
            return f"{node.op_type} is not an operator whose types are known"
        if node.name in self._sizes:
            return "it computes sizes, which are whole numbers"
        if self._floats.outputs(node) and not _gives_half(node, self._walk.model):
            return f"{node.op_type} knows no FP16"
        if any(attribute.HasField("t") for attribute in node.attribute):
            return "it holds a constant of its own"
        for name in [*self._floats.inputs(node), *self._floats.outputs(node)]:
            reason = (
                self._constant(node, name) if name in self._walk.constants else self._seen(name)
            )
            if reason is not None:
                return reason
        return self._inside(node)

    def _seen(self, name: str) -> str | None:
        maker = self._walk.producer.get(name)
        if maker is not None and self._walk.folded_activation(maker) is not None:
            return None  # only its activation function reads it, and what that gives was seen
        seen = self._ranges.get(name)
        if seen is None:
            return f"'{name}' is infinite, or was not seen by the calibration"
        largest = _largest(seen)
        if largest * _MARGIN > FP16_LARGEST:
            return f"'{name}' reaches {largest:.4g}; FP16 ends at {FP16_LARGEST:.0f}"
        if 0 < largest < FP16_SMALLEST_NORMAL:
            return f"'{name}' stays below {largest:.2g}, where FP16 has hardly any digits"
        return None

    def _constant(self, node: onnx.NodeProto, name: str) -> str | None:
        value = self._walk.constant(name).astype(np.float64)
        finite = value[np.isfinite(value)]
        if not finite.size:
            return None
        largest = float(np.abs(finite).max())
        if node.op_type in _BOUNDS:
            return None
        if largest > FP16_LARGEST:
            return f"its constant '{name}' reaches {largest:.4g}; FP16 ends at {FP16_LARGEST:.0f}"
        error, size = finite - finite.astype(np.float16), float(np.linalg.norm(finite))
        if self._is_bias(node, name):  # what it is added to tells how exact it has to be
            given = self._ranges.get(node.output[0])
            size = max(size, _largest(given) if given is not None else 1.0)
        allowed = _WEIGHT_ERROR if finite.size > 1 else _CONSTANT_ERROR
        if float(np.linalg.norm(error)) > allowed * size:
            return f"its constant '{name}' ({largest:.2g} and less) is too small for FP16"
        return None

    def _is_bias(self, node: onnx.NodeProto, name: str) -> bool:
        return node.op_type in _HEAVY and name in node.input[2:]

    def _inside(self, node: onnx.NodeProto) -> str | None:
        """Overflow of what is never seen: sums and squares inside of the operator."""
        read = self._ranges.get(node.input[0]) if node.input else None
        given = self._ranges.get(node.output[0])
        if node.op_type in _MEANS and read is not None and given is not None:
            window = read.elements / max(1, given.elements)
            if node.op_type == "AveragePool":  # its windows may overlap
                window = math.prod(attribute(node, "kernel_shape"))
            total = _largest(given) * window
            if total > FP16_LARGEST:
                return f"the sum that it divides reaches {total:.4g}"
        power, total = int(attribute(node, "p", 2)), 0.0
        if node.op_type in _ROOTS and given is not None:
            total = _largest(given) ** power
        elif node.op_type == "LpNormalization" and read is not None:
            total = _largest(read) ** power * self._length(node, read)
        if total > FP16_LARGEST:
            which = "squares" if power == 2 else f"powers of {power}"
            return f"the sum of {which} inside of it reaches {total:.4g}"
        if node.op_type in _SQUARES and read is not None and _largest(read) ** 2 > FP16_LARGEST:
            return f"it squares what reaches {_largest(read):.4g}"
        if node.op_type in _EXPONENTIALS and read is not None and _largest(read) > _COARSE:
            return f"its exponents reach {_largest(read):.4g}, where FP16 rounds to quarters"
        return None

    def _length(self, node: onnx.NodeProto, read: TensorRange) -> int:
        """How many values an LpNormalization takes together; a picture's where that is not told."""
        shape, axis = self._floats.shapes.get(node.input[0]), int(attribute(node, "axis", -1))
        return (shape[axis] if shape else 0) or read.elements


def _largest(seen: TensorRange) -> float:
    return max(abs(seen.minimum), abs(seen.maximum))


def _gives_half(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset_of(model), "")
    except onnx.defs.SchemaError:
        return False
    types = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    first = schema.outputs[0].type_str
    return "tensor(float16)" in types.get(first, [first])


def _of_sizes(walk: Walk) -> set[str]:
    """Nodes that read nothing but constants and sizes of tensors."""
    sizes: set[str] = set()
    found: set[str] = set()
    for node in walk.model.graph.node:
        read = [name for name in node.input if name and name not in walk.constants]
        if node.op_type in ("Shape", "Size"):
            sizes.update(node.output)
        elif read and all(name in sizes for name in read):
            sizes.update(node.output)
            found.add(node.name)
    return found


def _save_casts(
    floats: FloatTensors, nodes: Iterable[onnx.NodeProto], fixed: AbstractSet[str]
) -> list[str]:
    """Nodes that go to float32 as well, because there are fewer casts then.

    Each is tried in turn, until none changes, and then what hangs together without a layer that
    FP16 is for: float32 is always safe, so that only casts count.
    """
    nodes = list(nodes)
    walk = floats.walk
    single = set(fixed)
    movable = [n for n in nodes if n.name not in fixed and n.op_type not in _HEAVY]
    readers = {
        name: [one for one in walk.consumers.get(name, []) if name in floats.inputs(one)]
        for node in nodes
        for name in [*floats.inputs(node), *floats.outputs(node)]
    }

    def casts(names: Iterable[str]) -> int:
        count = 0
        for name in names:
            maker = walk.producer.get(name)
            is_single = maker is None or maker.name in single
            wants_half = any(one.name not in single for one in readers[name])
            wants_single = name in walk.output_names or any(
                one.name in single for one in walk.consumers.get(name, [])
            )
            count += wants_half if is_single else wants_single
        return count

    around = {
        node.name: {*floats.inputs(node), *floats.outputs(node)} - walk.constants.keys()
        for node in nodes
    }
    given_up: list[str] = []

    def give_up(group: Sequence[str]) -> None:
        tensors = {name for one in group for name in around[one]}
        now = casts(tensors)
        single.update(group)
        if casts(tensors) < now:
            given_up.extend(group)
        else:
            single.difference_update(group)

    for _ in range(_PASSES):
        before = len(given_up)
        for node in movable:
            if node.name not in single:
                give_up([node.name])
        if len(given_up) == before:
            break
    heavy = {node.name for node in nodes if node.op_type in _HEAVY}
    for group in _connected([n.name for n in nodes if n.name not in single], around):
        if not heavy.intersection(group):
            give_up(group)
    return given_up


def _connected(names: Sequence[str], around: Mapping[str, set[str]]) -> list[list[str]]:
    """Nodes in groups that share no tensor, in order."""
    groups: list[tuple[list[str], set[str]]] = []
    for name in names:
        joined, tensors = [name], set(around[name])
        apart: list[tuple[list[str], set[str]]] = []
        for group, held in groups:
            if held.isdisjoint(tensors):
                apart.append((group, held))
            else:
                joined, tensors = [*group, *joined], tensors | held
        groups = [*apart, (joined, tensors)]
    return [group for group, _ in groups]


def rounded_to_fp16(value: Array) -> Array:
    """A float32 array in FP16, what lies beyond its largest number clamped; infinities stay."""
    clamped = np.where(np.isfinite(value), np.clip(value, -FP16_LARGEST, FP16_LARGEST), value)
    return clamped.astype(np.float16)
