"""What the codes of a tensor stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ...runtime.errors import InputError
from ...runtime.tensors import Array
from ..graph.onnx_graph import attribute

CODE_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}
"""The lowest and the highest code of each type that activations and weights may have."""


@dataclass(frozen=True)
class QuantParams:
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

    def same(self, other: QuantParams) -> bool:
        """Whether codes of both stand for the same values."""
        return self.kind == other.kind and self.steps_as(other)

    def steps_as(self, other: QuantParams) -> bool:
        """Whether both have the same scales and zero points, whatever type their codes have."""
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.zero, other.zero)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of ``shape`` has the channels that there are scales for."""
        if not self.per_channel:
            return True
        there = -len(shape) <= self.axis < len(shape)
        return there and {self.scale.size, self.zero.size} <= {1, shape[self.axis]}

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


def read_quant_params(
    node: onnx.NodeProto,
    inputs: Sequence[str],
    constants: Mapping[str, Array],
    path: str,
    *,
    kind: str = "",
    dead: bool = False,
) -> QuantParams:
    """What a quantizer says.

    Args:
        node: A QuantizeLinear, a DequantizeLinear, or an operator on codes.
        inputs: Names of its scale and, where it has one, its zero point.
        constants: The file's, by name.
        path: What messages call the file.
        kind: Type of the codes, where there is no zero point to tell it.
        dead: Whether scales may be 0: a channel of weights that are all 0 may have one.

    Raises:
        InputError: ``E_OP`` for scales that are no constants, not finite or not positive, for
            another number of zero points, and for types other than 8 bits.
    """
    scale_name, zero_name = [*inputs, ""][:2]
    scale = constants.get(scale_name)
    zero = constants.get(zero_name) if zero_name else None
    if scale is None or (zero_name and zero is None):
        raise _refused(
            path,
            f"the scale of '{node.name}' is computed while it runs.",
            "Quantize statically, with calibration: there is no scale to keep otherwise.",
            node.name,
        )
    if zero is not None:
        kind = zero.dtype.name
    kind = kind or declared_code_type(node)
    if kind not in (*CODE_RANGES, "int32") or attribute(node, "block_size", 0):
        raise _refused(
            path,
            f"'{node.name}' quantizes to {kind}{' in blocks' if kind in CODE_RANGES else ''}; "
            "int8 and uint8, a scale for a tensor or a channel, can be rewritten.",
            "Quantize to 8 bits.",
            node.name,
        )
    lowest = 0.0 if dead else np.finfo(np.float32).smallest_subnormal
    if not (np.isfinite(scale).all() and (scale >= lowest).all()):
        raise _refused(
            path,
            f"a scale of '{node.name}' is not positive and finite.",
            "Quantize again; such codes stand for nothing.",
            node.name,
        )
    zero = np.zeros(scale.shape, np.int64) if zero is None else zero.astype(np.int64)
    sizes = {scale.size, zero.size}
    if 0 in sizes or len(sizes - {1}) > 1:
        raise _refused(
            path,
            f"'{node.name}' has {scale.size} scales and {zero.size} zero points.",
            "Quantize again, with one of each for the tensor or for each of its channels.",
            node.name,
        )
    scale, zero = (a.reshape(-1) if a.size > 1 else a.reshape(()) for a in (scale, zero))
    low, high = CODE_RANGES.get(kind, (-(2**31), 2**31 - 1))
    return QuantParams(
        scale.astype(np.float32), zero, kind, low, high, int(attribute(node, "axis", 1))
    )


def check_fits(codes: QuantParams, value: Array, node: onnx.NodeProto, path: str) -> None:
    """Refuse what a quantizer says of a constant that has no such channels.

    Raises:
        InputError: ``E_OP``.
    """
    if not codes.fits(value.shape):
        raise _refused(
            path,
            f"'{node.name}' has {max(codes.scale.size, codes.zero.size)} scales on axis "
            f"{codes.axis} of a constant of shape {value.shape}.",
            "Quantize again, with a scale for the tensor or one for each of its channels.",
            node.name,
        )


def _refused(path: str, message: str, mend: str, name: str) -> InputError:
    return InputError("E_OP", f"'{path}': {message}", mend=mend, path=name)


def declared_code_type(node: onnx.NodeProto) -> str:
    """Type of the codes of a QuantizeLinear that has no zero point."""
    declared = int(attribute(node, "output_dtype", 0))
    if not declared:
        return "uint8"
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(declared)).name)
