"""What transcoding decides: a file's quantizers in a dialect, and what is told of the change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx

from ...runtime.tensors import Array
from ..graph.onnx_graph import Graph, Walk, is_standard
from ..graph.precision_plan import NodePrecision, PrecisionPlan
from ..int8.activation_products import has_weights
from ..int8.dialect import Dialect
from ..int8.int8_plan import why_not_weights
from ..int8.qdq_placement import QuantizerPlacement, only_moves, place_quantizers
from ..int8.qdq_writer import write_placement
from ..int8.quant_params import QuantParams
from ..int8.quantized_graph import QuantizedGraph
from ..int8.quantizers import PerTensor
from ..int8.stride_hoisting import are_moved
from .fold_channel_scales import fold_channel_scales, widest
from .infer_missing_scales import KnownScales
from .parse_qdq import ParsedQdq
from .weight_grid import has_grid, is_kept, keep_codes


@dataclass(frozen=True)
class Change:
    """What was changed at one node or tensor, and why."""

    where: str
    rule: str
    what: str


@dataclass(frozen=True)
class Liberties:
    """What makes a file faster, and can go too far.

    Attributes:
        gates: Quantizers around activation functions and gates are filled in, or left out.
        one_scale: An activation with scales for each channel gets the widest.
        moved: Values that are only moved keep the scale that they had before, whatever the given
            file has behind.
        signed: Codes around 0 stay int8 in a dialect that reads them.
    """

    gates: bool = True
    one_scale: bool = True
    moved: bool = True
    signed: bool = True


@dataclass
class TranscodePlan:
    """What becomes of one file, taken apart, in a dialect.

    Attributes:
        stripped: The file.
        dialect: How it shall be written.
        liberties: How far to go.
        changes: What is different from the given file, so far.
        kept: Nodes with quantized inputs that stay float32.
        filled: Tensors whose quantizers the file does not have.
        coarser: How many times as coarse a tensor's step is, where its codes had to be made
            symmetric.
    """

    stripped: ParsedQdq
    dialect: Dialect
    liberties: Liberties
    changes: list[Change] = field(default_factory=list[Change])
    kept: list[Change] = field(default_factory=list[Change])
    filled: set[str] = field(default_factory=set[str])
    coarser: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def known(self) -> dict[str, QuantParams]:
        """By tensor name, the given file's quantizers and those filled in."""
        return self.stripped.codes

    def tell_left_out(self) -> None:
        """Tell of tensors that stood under two quantizers."""
        for name, codes in self.stripped.left_out:
            told = f"{codes.kind} from {codes.low:.4g} to {codes.high:.4g} is left out"
            self._note(name, "two quantizers", f"{told}: the wider one is kept for all readers")

    def fold(self) -> dict[str, Array]:
        """Make every scale one for its whole tensor.

        Returns:
            By tensor, what its channels were divided by.
        """
        folded = fold_channel_scales(self.stripped)
        for name in folded:
            self._note(name, "per-channel activation", "its scales went into the weights around it")
        for name, codes in [item for item in self.known.items() if item[1].per_channel]:
            if self.liberties.one_scale:
                self.known[name] = widest(codes)
                told = "one scale for the tensor, the widest range"
            else:
                del self.known[name]
                told = "left out: one scale would be too coarse, and what reads it stays float32"
            self._note(name, "per-channel activation", told)
        walk = Walk(self.stripped.model)
        moving = [n for n in walk.model.graph.node if only_moves(n, walk, self.dialect)]
        for node in reversed(moving):  # before moves are folded away
            source, told = node.input[0], any(name in self.known for name in node.output)
            if told and source not in walk.constants and source not in self.known:
                self._fill_from_readers(source, walk, node.name)
        for node in moving:
            if node.input[0] in self.known:
                for name in set(node.output) - self.known.keys():
                    self.known[name] = self.known[node.input[0]]
                    self.filled.add(name)
        return folded

    def write(self, graph: Graph) -> QuantizedGraph:
        """The graph in the dialect."""
        walk = Walk(graph.proto())
        plan = self._plan(walk)
        for name in self._inside(walk, plan):
            del self.known[name]
            self.filled.discard(name)
            self._note(name, "quantizer inside of a kernel", "left out: what reads it runs there")
        tails = {
            tail.output[0]: node.output[0]
            for node in walk.model.graph.node
            if plan.is_int8(node) and (tail := walk.folded_activation(node)) is not None
        }
        layout = place_quantizers(
            walk,
            self.known,
            plan,
            self.dialect,
            partial(self._quantizer, tails),
            keep=self.known.keys() - self.filled,
            own=frozenset() if self.liberties.moved else self._rescaled(walk),
        )
        return self._written(graph, walk, layout, plan)

    def _written(
        self, graph: Graph, walk: Walk, layout: QuantizerPlacement, plan: PrecisionPlan
    ) -> QuantizedGraph:
        again = {w for w in self.stripped.weights if w in walk.constants} & {
            node.input[1]
            for node in walk.model.graph.node
            if plan.is_int8(node)
            and has_weights(node, walk, self.dialect)
            and not is_kept(walk, node, self.dialect)
        }
        for name in sorted(again):
            self._note(
                name, "weights", f"quantized again: codes end at {self.dialect.weight_limit}"
            )
        for node in walk.model.graph.node if self.dialect.moves_strides else ():
            if plan.is_int8(node) and are_moved(node, walk):
                told = "taken before it: the engine would move them to where its input is made"
                self._note(node.name, "strides over single values", told)
        for name in sorted(self.stripped.raw & walk.output_names & layout.coded):
            half = float(layout.quantizers[name].scale) / 2
            told = f"rounded to its codes, which are {half:.3g} away at most within their range"
            self._note(name, "output that the kernel gives as codes", told)
        pack = partial(keep_codes, uint8_weights=self.dialect.uint8_weights)
        return write_placement(graph, layout, plan, self.dialect, pack)

    def _rescaled(self, walk: Walk) -> set[str]:
        """Moved values whose scale is another than before they were moved."""
        known = self.known
        return {
            name
            for node in walk.model.graph.node
            if only_moves(node, walk, self.dialect) and node.input[0] in known
            for name in node.output
            if name in known and not known[name].same(known[node.input[0]])
        }

    def _inside(self, walk: Walk, plan: PrecisionPlan) -> list[str]:
        """Quantized tensors between an INT8 node and gates that run inside of its kernel."""
        found: list[str] = []
        for name in self.known if self.liberties.gates else ():
            maker, readers = walk.producer.get(name), walk.consumers.get(name, [])
            if maker is None or name in walk.output_names or not readers:
                continue
            gates, floats = self.dialect.gates, self.dialect.free_output
            made = maker.op_type in (floats if plan.is_int8(maker) else gates)
            if made and all(r.op_type in gates and not plan.is_int8(r) for r in readers):
                found.append(name)
        return found

    def _plan(self, walk: Walk) -> PrecisionPlan:
        choices: dict[str, NodePrecision] = {}
        for node in walk.model.graph.node:
            reason = self._why_float(node, walk)
            if reason is None:
                choices[node.name] = NodePrecision("int8", "quantized in the given file")
                continue
            choices[node.name] = NodePrecision("float32", reason)
            computes = node.op_type not in self.dialect.moving | {"Relu", "Clip", "Identity"}
            if computes and any(name in self.known for name in node.input):
                self.kept.append(Change(node.name, "kept in float32", reason))
        return PrecisionPlan(choices)

    def _why_float(self, node: onnx.NodeProto, walk: Walk) -> str | None:
        weighted = has_weights(node, walk, self.dialect)
        kernels = self.dialect.weighted | self.dialect.elementwise
        if not is_standard(node) or node.op_type not in kernels:
            return f"{self.dialect.name} has no INT8 kernel for {node.op_type}"
        if weighted:
            reason = why_not_weights(node, walk)
            if reason is not None:
                return reason
            if not (node.input[1] in self.stripped.weights or has_grid(walk, node)):
                return "the given file has its weights in float32"
        inputs = list(node.input[:1]) if weighted else list(node.input)
        for name in inputs:
            if name in self.stripped.constants and not weighted:
                self.known[name] = self.stripped.constants[name]
            elif not name or name in walk.constants:
                return "one of its inputs is a constant that the given file has in float32"
        if not any(name in self.known for name in inputs):
            return "none of its inputs is quantized in the given file"
        tail = walk.folded_activation(node)
        output = tail.output[0] if tail is not None else node.output[0]
        if tail is not None and output not in self.known and node.output[0] in self.known:
            self.known[output] = self.known[node.output[0]]  # on a grid, rounding and ReLU commute
            self.filled.add(output)
        needed = inputs if node.op_type in self.dialect.free_output else [*inputs, output]
        for name in needed:
            if name not in self.known and not self._fill_from_readers(name, walk, node.name):
                return f"nothing in the given file tells a scale for '{name}'"
        return None

    def _fill_from_readers(self, name: str, walk: Walk, node: str) -> bool:
        telling = KnownScales(walk, self.known, self.filled, self.dialect, self.liberties.gates)
        found = telling.codes_for(name)
        if found is None:
            return False
        self.known[name] = found
        self.filled.add(name)
        told = f"filled in at '{node}' with the scale {float(found.scale):.4g} of what reads it"
        self._note(name, "missing output quantizer", told)
        return True

    def _quantizer(
        self, tails: Mapping[str, str], name: str, clip: tuple[float, float] | None
    ) -> PerTensor:
        """The quantizer of a tensor in the dialect, from the given file's."""
        codes = self.known[name]
        around_zero = (codes.kind, codes.lowest, int(codes.zero)) == ("int8", -128, 0)
        signed = self.liberties.signed and self.dialect.reads_signed
        if signed and around_zero and codes.highest == 127 and clip is None:
            return PerTensor(np.float32(codes.scale), 0, signed=True)
        if codes.kind == "int8" and self.dialect.activation == "uint8":
            self._note(name, "int8 activation", "uint8: the same scale, zero point + 128")
        scale, zero = float(codes.scale), int(codes.zero)
        first, last = codes.lowest - zero, codes.highest - zero  # in steps from 0
        before = after = zero + (128 if codes.kind == "int8" else 0)
        absorbs = clip is not None and name in tails
        if clip is not None and absorbs:
            first, last = max(first, _steps(clip[0], scale)), min(last, _steps(clip[1], scale))
            if np.isfinite(clip[0]):
                after = -first
        if after != before:
            self._note(
                name,
                "zero point behind an activation function",
                f"{before} of 0..255 became {after}, so that '{tails[name]}' can be absorbed",
            )
        ends = (first + after, last + after)
        whole, were_whole = ends == (0, 255), codes.highest - codes.lowest == 255
        if were_whole and not whole:
            told = f"clipped at {ends[1]} of 0..255, where the given file's saturate"
            self._note(name, "codes that end early", told)
        lowest = self.dialect.lowest
        used = (ends[0] + lowest, ends[1] + lowest)
        exact = absorbs or not whole
        return PerTensor(np.float32(scale), after + lowest, used if exact else None)

    def _note(self, where: str, rule: str, what: str) -> None:
        change = Change(where, rule, what)
        if change not in self.changes:
            self.changes.append(change)


def _steps(bound: float, scale: float) -> int:
    """The code, counted from that of 0, that a bound rounds to; far beyond any where it is none."""
    return round(float(np.clip(bound / scale, -1e6, 1e6)))
