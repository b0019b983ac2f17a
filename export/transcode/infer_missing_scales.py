"""Scales that a file does not have: what the quantizers behind a tensor tell of the one it needs.

What it does: a tensor that INT8 kernels have to write as codes, and that the file leaves in
float32, gets the range beyond which nothing that reads it would change. Values that are only moved
keep the quantizer that reads them; behind an activation function its own ends tell; an operand of a
sum needs what takes the sum from the least to the most that is represented, whatever the other
operand is; in front of ``x * sigmoid(x)`` it is what takes the product there.

When it is exact: but for the rounding to the new codes, always where both the sum and its other
operand have quantizers; where only the sum has one, values beyond its own reach are clipped.

When it refuses: it gives nothing where something else reads the tensor, or the network gives it
out.

Source: interval arithmetic on the ranges that the given codes represent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from ..graph.onnx_graph import Walk, clip_bounds
from ..int8.dialect import Dialect
from ..int8.qdq_placement import only_moves
from ..int8.quant_params import QuantParams

_FAR = 20.0  # a sigmoid there is 0 or 1 to eight digits
_OPEN = 5.6  # a sigmoid there is within a step of 255 of its end
_DEPTH = 16  # of operators between a tensor and the quantizer that tells
_SIZES = ("Shape", "Size")  # they read none of the values


@dataclass(frozen=True)
class KnownScales:
    """What is known of a graph's scales.

    Attributes:
        walk: The float32 graph.
        known: Quantizers by tensor, those of :attr:`filled` among them.
        filled: Tensors whose quantizers were filled in, which tell nothing of their ranges.
        dialect: Which operators move codes.
        gates: Whether to tell what a gate needs.
    """

    walk: Walk
    known: Mapping[str, QuantParams]
    filled: Collection[str]
    dialect: Dialect
    gates: bool = True

    def codes_for(self, name: str, depth: int = 0) -> QuantParams | None:
        """A quantizer for a tensor, from all that reads it; ``None`` where one tells none."""
        if name in self.known:
            return self.known[name]
        if name in self.walk.output_names or depth >= _DEPTH:
            return None
        readers = [one for one in self.walk.consumers.get(name, []) if one.op_type not in _SIZES]
        return _widest(self._told_by(reader, name, depth + 1) for reader in readers)

    def _told_by(self, reader: onnx.NodeProto, name: str, depth: int) -> QuantParams | None:
        walk = self.walk
        if only_moves(reader, walk, self.dialect) and reader.input[0] == name:
            read = walk.consumers.keys() | walk.output_names
            return _widest(self.codes_for(one, depth) for one in reader.output if one in read)
        if reader.op_type in ("Identity", "Concat", "Relu"):
            return self.codes_for(reader.output[0], depth)
        if reader.op_type == "Clip" and clip_bounds(reader, walk) is not None:
            return self.codes_for(reader.output[0], depth)
        if reader.op_type == "Add":
            return self._operand(reader, name, depth)
        if reader.op_type == "Mul" and self.gates:
            return self._gated(reader, name, depth)
        if reader.op_type == "Sigmoid" and self.gates and reader.output[0] not in walk.output_names:
            gated = walk.consumers.get(reader.output[0], [])
            return _widest(
                self._gated(one, name, depth) if one.op_type == "Mul" else None for one in gated
            )
        return None

    def _gated(self, product: onnx.NodeProto, name: str, depth: int) -> QuantParams | None:
        """What ``name`` needs in ``x * sigmoid(x)``, as the one or the other factor."""
        factors = [one for one in product.input if one != name]
        maker = self.walk.producer.get(name)
        if len(factors) != 1:
            return None
        (other,) = factors
        if maker is not None and maker.op_type == "Sigmoid" and maker.input[0] == other:
            return params_spanning(0.0, 1.0)
        gate = self.walk.producer.get(other)
        if gate is None or gate.op_type != "Sigmoid" or gate.input[0] != name:
            return None
        total = self.codes_for(product.output[0], depth)
        if total is None or total.per_channel:
            return None
        # Below `low` the product is nearer to 0 than half a step; above `high` it is clipped.
        half = float(total.scale) / 2
        x = np.linspace(-_FAR, max(_FAR, total.high + 1), 4096)
        y = x / (1 + np.exp(-x))
        low = x[(x < -_OPEN) & (y > -half)].max(initial=-_FAR)
        high = x[y <= total.high].max(initial=_OPEN)
        return params_spanning(float(low), float(high))

    def _operand(self, add: onnx.NodeProto, name: str, depth: int) -> QuantParams | None:
        """What the operand ``name`` of a sum needs."""
        tail = self.walk.folded_activation(add)
        total = self.codes_for(tail.output[0] if tail is not None else add.output[0], depth)
        if total is None:
            return None
        low, high = total.low, total.high
        if tail is not None:
            ends = clip_bounds(tail, self.walk) or (low, high)
            low, high = max(low, ends[0]), min(high, ends[1])
        other = next((one for one in add.input if one != name), name)
        if other not in self.known or other in self.filled:
            reach = max(-low, high)
            return params_spanning(-reach, reach)
        least, most = self._ends_of(other)
        low, high = min(low - most, 0.0), max(high - least, 0.0)
        return params_spanning(low, high) if low < high else None

    def _ends_of(self, name: str) -> tuple[float, float]:
        """The least and the most that a quantized tensor can be."""
        codes = self.known[name]
        maker = self.walk.producer.get(name)
        while maker is not None and only_moves(maker, self.walk, self.dialect):
            maker = self.walk.producer.get(maker.input[0])
        bounds = None
        if maker is not None and maker.op_type in ("Relu", "Clip"):
            bounds = clip_bounds(maker, self.walk)
        low, high = bounds or (-np.inf, np.inf)
        return max(codes.low, low), min(codes.high, high)


def _widest(told: Iterable[QuantParams | None]) -> QuantParams | None:
    """Codes that reach as far as all that are told; ``None`` where one is missing."""
    found: list[QuantParams] = []
    for codes in told:
        if codes is None:
            return None
        if not any(codes.same(one) for one in found):
            found.append(codes)
    if len(found) < 2:
        return next(iter(found), None)
    return params_spanning(min(codes.low for codes in found), max(codes.high for codes in found))


def params_spanning(low: float, high: float) -> QuantParams:
    """Codes from ``low`` to ``high``, which are not on the same side of 0 and differ."""
    scale = np.asarray((high - low) / 255, np.float32)
    return QuantParams(scale, np.asarray(round(-low / float(scale)), np.int64), "uint8", 0, 255)
