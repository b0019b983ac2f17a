"""Residual additions, as TensorRT runs them: inside of the convolution before them.

The kernel adds its result, still exact, to the skip connection; that one is therefore read as
codes, and nothing stands between the convolution and the addition.

Source: NVIDIA TensorRT Developer Guide, "Q/DQ layer-placement recommendations".
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import onnx

from ..graph.onnx_graph import Walk, is_standard


def skip_inputs(
    walk: Walk, elements: Mapping[str, int], convolutions: AbstractSet[str]
) -> dict[str, str]:
    """The skip connection of each residual addition, by the addition's name.

    A residual addition adds two activations of one size, one of which is given by an INT8
    convolution for nobody else. Where both are, the later convolution is the one that the addition
    is fused into: a shortcut's is shorter. The stream of a transformer is none, since matrix
    products are not fused so, and its outliers would be clipped.

    Args:
        walk: The float32 graph.
        elements: Values that each tensor holds, for those that may become codes.
        convolutions: Names of the convolutions that run in INT8.
    """
    found: dict[str, str] = {}
    order = {node.name: i for i, node in enumerate(walk.model.graph.node)}
    for node in walk.model.graph.node:
        if node.op_type != "Add" or not is_standard(node) or len(set(node.input)) != 2:
            continue
        if not all(name in elements for name in node.input):
            continue
        if len({elements[name] for name in node.input}) > 1:
            continue  # one of them is broadcast
        makers = [_convolution(name, walk, convolutions) for name in node.input]
        places = [-1 if maker is None else order[maker.name] for maker in makers]
        if max(places) >= 0:
            found[node.name] = node.input[1 - places.index(max(places))]
    return found


def _convolution(name: str, walk: Walk, convolutions: AbstractSet[str]) -> onnx.NodeProto | None:
    """The INT8 convolution that gives ``name`` for one reader only."""
    maker = walk.producer.get(name)
    if maker is None or maker.name not in convolutions or walk.only_consumer(name) is None:
        return None
    return maker
