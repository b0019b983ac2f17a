"""Codes around 0 at the inputs of INT8 nodes: what a given file's quantizers become there.

What it does: a quantizer whose codes, counted from that of 0, lie in -128 to 127 keeps its scale;
any other gets the scale with which 127 reaches its farther end. A quantizer that ends at 0 where
its tensor does not has done the work of an activation function, which is written out again.

When it is exact: where the scale is kept. Else a step is up to 255/127 times as coarse.

When it refuses: never; :mod:`.transcoding` measures what the coarser step does and decides.

Source: NVIDIA TensorRT Developer Guide, "Working with quantized types"; the removal of ReLU and
Clip in front of a quantizer is quantize_static's (onnxruntime/python/tools/quantization).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import numpy_helper

from ...runtime.engines.engine import EngineOptions
from ...runtime.engines.onnxruntime import OnnxRuntimeEngine
from ...runtime.tensors import Array, Arrays
from ..graph.onnx_graph import (
    Graph,
    Walk,
    all_names,
    attribute,
    clip_bounds,
    fresh_name,
    give_out,
    is_standard,
)
from ..graph.precision_plan import NodePrecision, PrecisionPlan
from ..graph.random_inputs import run_on_random
from ..int8.dialect import MOVING
from ..int8.int8_plan import channels_read, why_not_weights
from ..int8.qdq_placement import pads_with_zero, place_quantizers
from ..int8.quant_params import QuantParams
from ..int8.quantized_graph import QuantizedGraph
from ..int8.quantizers import PerTensor
from ..int8.residual_additions import skip_inputs
from .parse_qdq import ParsedQdq
from .transcode_plan import Change, TranscodePlan
from .weight_grid import has_grid

CARRYING = (MOVING - {"Resize"}) | {"Identity", "Relu"}
"""Operators that give no value but 0 and those that they read: a scale holds behind them, too.

Of Pad that is one with zeros.
"""

_NEVER_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax"})
_LIKE_INPUTS = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "Mul", "Resize"})


@dataclass(frozen=True)
class Centred:
    """A quantizer with its zero point at 0.

    Attributes:
        quantizer: It.
        coarser: How many times as large its step is as the given file's.
    """

    quantizer: PerTensor
    coarser: float


def centred(codes: QuantParams, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Centred:
    """The symmetric int8 quantizer for what one of a whole tensor represents.

    Args:
        codes: The given file's.
        bounds: What an activation function in front leaves of it.
    """
    scale, zero = float(codes.scale), int(codes.zero)
    low, high = (round(float(np.clip(bound / scale, -1e6, 1e6))) for bound in bounds)
    first, last = max(codes.lowest - zero, low), min(codes.highest - zero, high)
    if first >= -128 and last <= 127:
        return Centred(PerTensor(np.float32(scale), 0), 1.0)
    coarser = max(-first, last) / 127
    return Centred(PerTensor(np.float32(scale * coarser), 0), coarser)


def write_activations(
    stripped: ParsedQdq, in_int8: Callable[[onnx.NodeProto, Walk], bool]
) -> list[str]:
    """Put an activation function where a quantizer alone did the work of one, in place.

    A Clip ends at the quantizer's ends; where only layers that run in INT8 read it, whose own
    quantizers end there, a ReLU does.

    Args:
        stripped: The file.
        in_int8: Whether a node's first input has a quantizer in the new file.

    Returns:
        Names of their tensors.
    """
    model, taken = stripped.model, all_names(stripped.model)
    walk, done = Walk(model), list[str]()
    for name, codes in stripped.codes.items():
        maker = walk.producer.get(name)
        if maker is None or codes.low < 0 < codes.high:
            continue
        if codes.low >= 0 and _never_negative(maker, walk, stripped.codes):
            continue
        raw = fresh_name(taken, f"{name}_unended")
        maker.output[list(maker.output).index(name)] = raw
        readers = walk.consumers.get(name, [])
        plain = codes.low >= 0 and all(
            list(reader.input).index(name) == 0 and in_int8(reader, walk) for reader in readers
        )
        if plain and name not in walk.output_names:
            node = onnx.helper.make_node("Relu", [raw], [name], name=f"Relu_{name}")
        else:
            ends = [fresh_name(taken, f"{name}_low"), fresh_name(taken, f"{name}_high")]
            for end, value in zip(ends, (codes.low, codes.high), strict=True):
                tensor = numpy_helper.from_array(np.array(value, np.float32), end)
                model.graph.initializer.append(tensor)
            node = onnx.helper.make_node("Clip", [raw, *ends], [name], name=f"Clip_{name}")
        at = next(i for i, one in enumerate(model.graph.node) if raw in one.output)
        model.graph.node.insert(at + 1, node)
        done.append(name)
    return done


def _never_negative(maker: onnx.NodeProto, walk: Walk, known: Mapping[str, QuantParams]) -> bool:
    """Whether a node gives nothing below 0 as it is."""
    if maker.op_type in _NEVER_NEGATIVE:
        return True
    if maker.op_type == "Clip":
        bounds = clip_bounds(maker, walk)
        return bounds is not None and bounds[0] >= 0
    carries = _carries(maker, walk)
    overshoots = maker.op_type == "Resize" and attribute(maker, "mode") == b"cubic"
    if overshoots or not (carries or maker.op_type in _LIKE_INPUTS):
        return False
    for name in maker.input[:1] if carries or maker.op_type == "Resize" else maker.input:
        source = walk.producer.get(name)
        if name in known and known[name].low >= 0:
            continue
        if source is None or not _never_negative(source, walk, known):
            return False
    return True


def _carries(node: onnx.NodeProto, walk: Walk) -> bool:
    return node.op_type in CARRYING and (node.op_type != "Pad" or pads_with_zero(node, walk))


def carried_from(name: str, walk: Walk, known: Mapping[str, QuantParams]) -> str | None:
    """The quantized tensor whose values ``name`` holds, moved; ``None`` where there is none."""
    while name not in known:
        maker = walk.producer.get(name)
        if maker is None or not _carries(maker, walk):
            return None
        name = maker.input[0]
    return name


def activation_bounds(name: str, walk: Walk) -> tuple[float, float]:
    """What an activation function leaves of a tensor, through what only moves it."""
    maker = walk.producer.get(name)
    while maker is not None and maker.op_type != "Relu" and _carries(maker, walk):
        maker = walk.producer.get(maker.input[0])
    bounds = None
    if maker is not None and maker.op_type in ("Relu", "Clip"):
        bounds = clip_bounds(maker, walk)
    return bounds or (-np.inf, np.inf)


def tensor_elements(graph: Graph, names: Iterable[str]) -> dict[str, int]:
    """Values that each of some tensors holds, for inputs of one size."""
    model, wanted = graph.proto(), sorted(set(names))
    give_out(model, wanted)

    def run(feeds: Arrays) -> Arrays:
        with OnnxRuntimeEngine(model.SerializeToString(), EngineOptions(optimize="none")) as one:
            return {**feeds, **one.run(feeds)}

    seen = run_on_random(graph.inputs, run)
    return {name: int(seen[name].size) for name in wanted}


class InputQuantizers(TranscodePlan):
    """For a dialect that has codes around 0, at the inputs of INT8 nodes only."""

    def fold(self) -> dict[str, Array]:
        """Write out what only a quantizer did, and make every scale one for its tensor."""
        for name in write_activations(self.stripped, self._ends):
            told = "written before it: a quantizer around 0, or none, does not do its work"
            self._note(name, "activation function in a quantizer", told)
        for name in {one.name for one in self.stripped.model.graph.input}:
            codes = self.stripped.codes.get(name)
            if codes is not None and not codes.low < 0 < codes.high:
                told = f"values of this input beyond {codes.low:.3g} to {codes.high:.3g} go through"
                self._note(name, "activation function in a quantizer", told)
        return super().fold()

    def write(self, graph: Graph) -> QuantizedGraph:
        """The graph in the dialect."""
        walk = Walk(graph.proto())
        adds = [n for n in walk.model.graph.node if n.op_type == "Add" and is_standard(n)]
        sizes = tensor_elements(
            graph, {i for n in adds for i in n.input if i not in walk.constants}
        )
        plan = self._plan_for(walk, sizes)
        choose = partial(self._centred, walk)
        layout = place_quantizers(walk, self.known, plan, self.dialect, choose, elements=sizes)
        order = {name: i for i, name in enumerate(walk.producer)}  # an input comes first
        self.coarser = dict(sorted(self.coarser.items(), key=lambda one: order.get(one[0], -1)))
        for name in sorted(self.known.keys() - self.filled - layout.quantizers.keys()):
            told = "left out: only what INT8 layers read is rounded"
            self._note(name, "quantizer off the inputs", told)
        for node in walk.model.graph.node:
            if plan.is_int8(node) and set(node.input[2:]) & self.stripped.weights:
                self._note(node.name, "Int32 bias", "float32, the same value")
        return self._written(graph, walk, layout, plan)

    def _ends(self, node: onnx.NodeProto, walk: Walk) -> bool:
        """Whether a node surely rounds its input; a sum does so beside a convolution alone."""
        return not self.dialect.weight_only and self._why_float(node, walk) is None

    def _plan_for(self, walk: Walk, sizes: Mapping[str, int]) -> PrecisionPlan:
        reasons = {
            node.name: self._why_float(node, walk)
            for node in walk.model.graph.node
            if node.op_type not in self.dialect.elementwise
        }
        nodes = walk.model.graph.node
        int8 = {n.name for n in nodes if n.op_type == "Conv" and reasons[n.name] is None}
        skips = skip_inputs(walk, sizes, int8)
        choices: dict[str, NodePrecision] = {}
        for node in nodes:
            reason = reasons[node.name] if node.name in reasons else self._why_no_skip(node, skips)
            choices[node.name] = NodePrecision("float32", reason or "")
            if reason is None:
                choices[node.name] = NodePrecision("int8", "quantized in the given file")
            elif node.op_type not in CARRYING and any(name in self.known for name in node.input):
                self.kept.append(Change(node.name, "kept in float32", reason))
        return PrecisionPlan(choices)

    def _why_float(self, node: onnx.NodeProto, walk: Walk) -> str | None:
        if not is_standard(node) or node.op_type not in self.dialect.weighted:
            return f"{self.dialect.name} has no INT8 kernel for {node.op_type}"
        reason = why_not_weights(node, walk)
        if reason is not None:
            return reason
        if not (node.input[1] in self.stripped.weights or has_grid(walk, node)):
            return "the given file has its weights in float32"
        if channels_read(node, walk) < self.dialect.least_channels:
            return f"it reads fewer than {self.dialect.least_channels} channels"
        name = node.input[0]
        if self.dialect.weight_only or name in self.known:
            return None
        source = carried_from(name, walk, self.known)
        if source is None:
            return f"nothing in the given file tells a scale for '{name}'"
        self.known[name] = self.known[source]
        self.filled.add(name)
        self._note(name, "missing input quantizer", f"that of '{source}', moved")
        return None

    def _why_no_skip(self, node: onnx.NodeProto, skips: Mapping[str, str]) -> str | None:
        if node.name not in skips:
            return (
                f"{self.dialect.name} adds in INT8 only a skip connection to a convolution's result"
            )
        if skips[node.name] not in self.known:
            return "its skip connection is float32 in the given file"
        return None

    def _centred(self, walk: Walk, name: str, clip: tuple[float, float] | None) -> PerTensor:
        """The quantizer of a tensor; this dialect's never absorb a ``clip``."""
        del clip
        codes = self.known[name]
        made = centred(codes, activation_bounds(name, walk))
        if made.coarser > 1:
            self.coarser[name] = made.coarser
            told = (
                f"codes {codes.lowest} to {codes.highest} around {int(codes.zero)} became "
                f"symmetric: the step is {made.coarser:.2f} times as coarse"
            )
            self._note(name, "zero point is not 0", told)
        elif codes.kind == "uint8":
            told = f"int8: the same scale, zero point - {int(codes.zero)}"
            self._note(name, "uint8 activation", told)
        return made.quantizer
