"""Scales that an activation has for each channel: into the weights around it, or made one.

What it does: the layer that gives the tensor is divided by its channels' shares of the largest
scale, the depthwise convolutions that read it are multiplied by them. Codes of activations, weights
and biases stay what they were.

When it is exact: always, where it is done: with nothing between but a ReLU, or a Clip from 0 on,
whose end is made that of all channels.

When it refuses: where something other than depthwise convolutions reads the tensor, or channels
differ in their zero points; :func:`widest` is left then.

Source: Nagel et al. 2019 (arXiv:1906.04721), section 4.1, used on scales instead of ranges.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from ...runtime.tensors import Array
from ..graph.onnx_graph import Walk, all_names, attribute, clip_bounds, fresh_name
from ..int8.quant_params import QuantParams
from .parse_qdq import ParsedQdq

_LEAST_SHARE = 1e-6  # a channel of nothing but zeros


def fold_channel_scales(stripped: ParsedQdq) -> dict[str, Array]:
    """Fold what can be folded, in place.

    Returns:
        By tensor, what each of its channels was divided by.
    """
    folded: dict[str, Array] = {}
    for name, codes in list(stripped.codes.items()):
        if not codes.per_channel or codes.axis != 1:
            continue
        walk = Walk(stripped.model)
        share = _fold(stripped, walk, name, codes)
        if share is not None:
            folded[name] = share
    return folded


def widest(codes: QuantParams) -> QuantParams:
    """One scale and zero point that reach as far as every channel's."""
    low, high = min(codes.low, 0.0), max(codes.high, 0.0)
    levels = codes.highest - codes.lowest
    scale = np.asarray((high - low) / levels, np.float32)
    zero = np.asarray(round(codes.lowest - low / float(scale)), np.int64)
    return QuantParams(scale, zero, codes.kind, codes.lowest, codes.highest)


def _fold(stripped: ParsedQdq, walk: Walk, name: str, codes: QuantParams) -> Array | None:
    maker = walk.producer.get(name)
    tail = maker if maker is not None and maker.op_type in ("Relu", "Clip") else None
    if tail is not None:
        maker = walk.producer.get(tail.input[0])
        if maker is None or walk.only_consumer(tail.input[0]) is None:
            return None
    if maker is None or maker.op_type != "Conv" or name in walk.output_names:
        return None
    readers = walk.consumers.get(name, [])
    constants = [n for node in [maker, *readers] for n in node.input[1:] if n]
    if any(constant not in walk.constants for constant in constants) or not readers:
        return None
    channels = int(walk.constants[maker.input[1]].dims[0])
    if codes.scale.size not in (1, channels) or len(set(codes.zero.reshape(-1).tolist())) > 1:
        return None
    if not all(_is_depthwise(reader, walk, name, channels) for reader in readers):
        return None
    zero = int(codes.zero.reshape(-1)[0])
    scale = np.broadcast_to(codes.scale, (channels,)).astype(np.float64)
    if tail is not None:
        bounds = clip_bounds(tail, walk)
        if bounds is None or bounds[0] != 0 or zero != codes.lowest:
            return None
        scale = np.minimum(scale, bounds[1] / (codes.highest - zero))
    share = np.maximum(scale / scale.max(), _LEAST_SHARE)
    _multiply(stripped, walk, maker, 1 / share, with_bias=True)
    for reader in readers:
        outputs = int(walk.constants[reader.input[1]].dims[0])
        _multiply(stripped, walk, reader, np.repeat(share, outputs // channels), with_bias=False)
    if tail is not None and tail.op_type == "Clip":  # all channels end at one value now
        _end(stripped, tail, float(scale.max()) * (codes.highest - zero))
    one = np.asarray(scale.max(), np.float32)
    at = np.asarray(zero, np.int64)
    stripped.codes[name] = QuantParams(one, at, codes.kind, codes.lowest, codes.highest)
    if tail is not None:
        stripped.views.pop(tail.input[0], None)
    stripped.views.pop(maker.output[0] if tail is not None else "", None)
    return share.astype(np.float32)


def _end(stripped: ParsedQdq, clip: onnx.NodeProto, highest: float) -> None:
    """Let a Clip end at 0 and there; a dialect whose quantizer ends there leaves it out."""
    taken = all_names(stripped.model)
    ends = [fresh_name(taken, f"{clip.output[0]}_{which}") for which in ("low", "high")]
    for end, value in zip(ends, (0.0, highest), strict=True):
        held = numpy_helper.from_array(np.asarray(value, np.float32), end)
        stripped.model.graph.initializer.append(held)
    del clip.input[1:], clip.attribute[:]
    clip.input.extend(ends)


def _is_depthwise(node: onnx.NodeProto, walk: Walk, name: str, channels: int) -> bool:
    if node.op_type != "Conv" or node.input[0] != name or list(node.input).count(name) > 1:
        return False
    shape = walk.constants[node.input[1]].dims
    return attribute(node, "group", 1) == channels and shape[1] == 1


def _multiply(
    stripped: ParsedQdq, walk: Walk, node: onnx.NodeProto, factor: Array, *, with_bias: bool
) -> None:
    """Multiply the output channels of a convolution, in constants of its own."""
    taken = all_names(stripped.model)
    for at in (1, 2) if with_bias and len(node.input) > 2 and node.input[2] else (1,):
        value = walk.constant(node.input[at])
        shaped = factor.reshape([-1] + [1] * (value.ndim - 1))
        name = fresh_name(taken, f"{node.input[at]}_folded")
        product = (value.astype(np.float64) * shaped).astype(np.float32)
        stripped.model.graph.initializer.append(numpy_helper.from_array(product, name))
        if node.input[at] in stripped.weights:
            stripped.weights.add(name)
        node.input[at] = name
