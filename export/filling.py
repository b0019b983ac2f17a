"""Scales that a file does not have: what the quantizers behind a tensor tell of the one it needs.

What it does: a tensor that INT8 kernels have to write as codes, and that the file leaves in
float32, gets the range beyond which nothing that reads it would change. Values that are only moved
keep the quantizer that reads them; behind an activation function its own ends tell; an operand of a
sum needs what takes the sum from the least to the most that is represented, whatever the other
operand is.

When it is exact: but for the rounding to the new codes, always where both the sum and its other
operand have quantizers; where only the sum has one, values beyond its own reach are clipped.

When it refuses: it gives nothing where something else reads the tensor.

Source: interval arithmetic on the ranges that the given codes represent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from .codes import Codes
from .graph import Walk, clip_bounds

_DEPTH = 16  # of operators between a tensor and the quantizer that tells


@dataclass(frozen=True)
class Telling:
    """What is known of a graph's scales.

    Attributes:
        walk: The float32 graph.
        known: Quantizers by tensor, those of :attr:`filled` among them.
        filled: Tensors whose quantizers were filled in, which tell nothing of their ranges.
        moving: Operators that only move values.
    """

    walk: Walk
    known: Mapping[str, Codes]
    filled: Collection[str]
    moving: Collection[str]

    def codes_for(self, name: str, depth: int = 0) -> Codes | None:
        """A quantizer for a tensor, from what reads it; ``None`` where nothing tells one."""
        if name in self.known:
            return self.known[name]
        found: list[Codes] = []
        for reader in self.walk.consumers.get(name, []) if depth < _DEPTH else []:
            told = self._told_by(reader, name, depth + 1)
            if told is not None and not any(told.same(one) for one in found):
                found.append(told)
        if len(found) < 2:
            return next(iter(found), None)
        return spanning(min(codes.low for codes in found), max(codes.high for codes in found))

    def _told_by(self, reader: onnx.NodeProto, name: str, depth: int) -> Codes | None:
        moves = reader.op_type in self.moving and reader.input[0] == name
        if moves or reader.op_type in ("Identity", "Concat", "Relu"):
            return self.codes_for(reader.output[0], depth)
        if reader.op_type == "Clip" and clip_bounds(reader, self.walk) is not None:
            return self.codes_for(reader.output[0], depth)
        if reader.op_type == "Add":
            return self._operand(reader, name, depth)
        return None

    def _operand(self, add: onnx.NodeProto, name: str, depth: int) -> Codes | None:
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
            return spanning(-reach, reach)
        least, most = self._ends_of(other)
        return spanning(min(low - most, 0.0), max(high - least, 0.0))

    def _ends_of(self, name: str) -> tuple[float, float]:
        """The least and the most that a quantized tensor can be."""
        codes = self.known[name]
        maker = self.walk.producer.get(name)
        while maker is not None and maker.op_type in self.moving:
            maker = self.walk.producer.get(maker.input[0])
        bounds = None
        if maker is not None and maker.op_type in ("Relu", "Clip"):
            bounds = clip_bounds(maker, self.walk)
        low, high = bounds or (-np.inf, np.inf)
        return max(codes.low, low), min(codes.high, high)


def spanning(low: float, high: float) -> Codes:
    """Codes from ``low`` to ``high``, which are not on the same side of 0 and differ."""
    scale = np.asarray((high - low) / 255, np.float32)
    return Codes(scale, np.asarray(round(-low / float(scale)), np.int64), "uint8", 0, 255)
