"""Which tensors of a graph the quantizers of a torch network see: those with the same values.

Names do not tell: the exporter folds BatchNorm and renames. Where two tensors hold the same values,
both are meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ...export.calibration.ranges import Ranges, expose_activations
from ...export.graph.onnx_graph import Graph
from ...export.graph.torch_capture import evaluating, tensors_from
from ...runtime.engines.engine import EngineOptions
from ...runtime.engines.onnxruntime import OnnxRuntimeEngine
from ...runtime.tensors import Array, Arrays
from .fake_quantize import fake_quantizers, switch_fake_quantizers

_CLOSE = 1e-3  # of the largest value: what another order of additions may change


def tensors_of_quantizers(
    network: nn.Module, graph: Graph, feeds: Arrays
) -> dict[str, tuple[str, ...]]:
    """By name of a fake quantizer, the tensors of the graph that it stands for.

    Args:
        network: With fake quantizers, see
            :func:`~edgepress.compress.quantization.nncf_quantizers.with_quantizers`.
        graph: The same network without them.
        feeds: Some pictures by input name.
    """
    seen = _seen(network, feeds)
    exposed, names = expose_activations(graph)
    with OnnxRuntimeEngine(exposed.SerializeToString(), EngineOptions()) as engine:
        found: dict[str, Array] = {**feeds, **engine.run(feeds)}
    return {
        place: tuple(name for name in names if any(_same(found[name], one) for one in values))
        for place, values in seen.items()
    }


def initialize_steps(
    network: nn.Module, known: Mapping[str, tuple[str, ...]], ranges: Ranges
) -> int:
    """Give every fake quantizer the range that calibration chose for its tensor.

    Args:
        network: With fake quantizers.
        known: What :func:`tensors_of_quantizers` found.
        ranges: Of the same graph.

    Returns:
        How many were known; the others keep what they have.
    """
    count = 0
    for name, one in fake_quantizers(network).items():
        met = [ranges.tensors[place] for place in known[name] if place in ranges.tensors]
        if met:
            low, high = min(seen.low for seen in met), max(seen.high for seen in met)
            reach = max(seen.magnitude for seen in met)
            one.span(*((-reach, reach) if one.symmetric else (low, high)))
            count += 1
    return count


def learned_ranges(
    network: nn.Module, known: Mapping[str, tuple[str, ...]], ranges: Ranges
) -> Ranges:
    """The ranges of a graph, with those that its quantizers learned in their place.

    Args:
        network: With fake quantizers, trained.
        known: What :func:`tensors_of_quantizers` found.
        ranges: What calibration saw of the trained network.
    """
    tensors = dict(ranges.tensors)
    for name, one in fake_quantizers(network).items():
        low, high = one.range
        for place in known[name]:
            if place in tensors:
                reach = max(-low, high)
                tensors[place] = replace(tensors[place], low=low, high=high, magnitude=reach)
    return replace(ranges, method="learned", tensors=tensors)


def _seen(network: nn.Module, feeds: Arrays) -> dict[str, list[Array]]:
    """What comes to every fake quantizer while all of them are off."""
    seen: dict[str, list[Array]] = {name: [] for name in fake_quantizers(network)}
    with ExitStack() as stack:
        stack.enter_context(evaluating(network))
        stack.enter_context(torch.no_grad())
        switch_fake_quantizers(network, off=True)
        stack.callback(switch_fake_quantizers, network, off=False)
        for name, one in fake_quantizers(network).items():

            def look(_: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
                seen[name].append(given[0].detach().float().cpu().numpy())

            stack.callback(one.register_forward_pre_hook(look).remove)
        network(**tensors_from(feeds))
    return seen


def _same(one: Array, other: Array) -> bool:
    if one.shape != other.shape or one.dtype.kind != "f":
        return False
    reach = float(np.max(np.abs(other), initial=0.0))
    return bool(np.max(np.abs(one - other), initial=0.0) <= _CLOSE * reach)
