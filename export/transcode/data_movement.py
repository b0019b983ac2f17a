"""Codes that are moved between two quantizers: what moves the floats that they stand for alike.

What it does: the node reads floats in place of codes. Codes that a file has as constants, to be
put behind others or around them, are dequantized at the one scale there is. A Pad without a value
pads with code 0, which stands for 0.0 only where the zero point is 0.

When it is exact: always.

When it refuses: codes of several scales, or one for each channel, and parts that are computed while
it runs.

Source: ONNX operators Concat and Pad, versions 11 to 23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx

from ...runtime.errors import InputError
from ...runtime.tensors import Array
from ..graph.onnx_graph import attribute
from ..int8.quant_params import QuantParams

_GIVE_QDQ = "Give the Q/DQ form of the network."


def move_codes(
    node: onnx.NodeProto,
    coded: Mapping[str, tuple[str, QuantParams]],
    constants: Mapping[str, Array],
    keep: Callable[[str, QuantParams, Array], str],
    path: str,
) -> tuple[onnx.NodeProto, QuantParams]:
    """The node on floats, and what the codes that it gives stand for.

    Args:
        node: What moves codes.
        coded: By codes, the float tensor and what they stand for.
        constants: Of the file, by name.
        keep: Keeps what a constant of codes stands for, under a name like the one that it is given,
            and tells the name.
        path: What messages call the file.

    Raises:
        InputError: ``E_OP``.
    """
    read = [coded[name][1] for name in node.input if name in coded]
    codes = read[0]
    if codes.per_channel or not all(codes.same(one) for one in read):
        raise _refused(path, node, "moves codes of different scales")
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for i, name in enumerate(node.input):
        copy.input[i] = coded[name][0] if name in coded else name
    for i in _added(node):
        name = node.input[i] if i < len(node.input) else ""
        if name in coded:
            continue
        value = constants.get(name) if name else np.zeros((), codes.kind)
        if value is None:
            raise _refused(path, node, "adds codes that are computed while it runs")
        copy.input.extend([""] * (i + 1 - len(copy.input)))
        copy.input[i] = keep(f"{name or node.output[0]}_float", codes, value)
    return copy, codes


def _added(node: onnx.NodeProto) -> Iterable[int]:
    """Places of the inputs that hold codes."""
    if node.op_type == "Concat":
        return range(len(node.input))
    pads = node.op_type == "Pad" and attribute(node, "mode", b"constant") == b"constant"
    return (2,) if pads else ()


def _refused(path: str, node: onnx.NodeProto, what: str) -> InputError:
    message = f"'{path}': '{node.name}' ({node.op_type}) {what}."
    return InputError("E_OP", message, mend=_GIVE_QDQ, path=node.name)
