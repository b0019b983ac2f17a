"""What the codes of a tensor stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..runtime.tensors import Array


@dataclass(frozen=True)
class Codes:
    """What the codes of one tensor stand for: ``(code - zero) * scale``.

    Attributes:
        scale: float32, ``()`` or one for each channel.
        zero: int64, as ``scale``.
        kind: ``int8`` or ``uint8``; ``int32`` for biases.
        lowest: The lowest code that occurs.
        highest: The highest code that occurs.
        axis: Of the channels.
    """

    scale: Array
    zero: Array
    kind: str
    lowest: int
    highest: int
    axis: int = 1

    @property
    def per_channel(self) -> bool:
        """Whether channels have scales or zero points of their own."""
        return self.scale.size > 1 or self.zero.size > 1

    @property
    def low(self) -> float:
        """The least value that is represented."""
        return float(np.min((self.lowest - self.zero) * self.scale.astype(np.float64)))

    @property
    def high(self) -> float:
        """The largest value that is represented."""
        return float(np.max((self.highest - self.zero) * self.scale.astype(np.float64)))

    def same(self, other: Codes) -> bool:
        """Whether codes of both stand for the same values."""
        return (
            self.kind == other.kind
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
        )

    def decode(self, codes: Array) -> Array:
        """What ``codes`` stand for, float32."""
        scale, zero = self._shaped(codes.ndim)
        return ((codes.astype(np.int64) - zero) * scale.astype(np.float64)).astype(np.float32)

    def encode(self, values: Array) -> Array:
        """The codes nearest to ``values``."""
        scale, zero = self._shaped(values.ndim)
        codes = np.rint(values.astype(np.float32) / scale) + zero
        return np.clip(codes, self.lowest, self.highest).astype(np.int64)

    def _shaped(self, rank: int) -> tuple[Array, Array]:
        shape = [1] * rank
        if self.per_channel:
            shape[self.axis] = -1
            return self.scale.reshape(shape), self.zero.reshape(shape)
        return self.scale.reshape(()), self.zero.reshape(())
