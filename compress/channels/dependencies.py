"""Torch-Pruning: the only file that imports it, for its dependency graph and nothing else.

Which channels depend on which is read off its groups as plain tuples. Its pruners are not used: the
choice of channels, the cut and the history are ours
(:mod:`edgepress.compress.channels.channel_surgery`). What it reads wrongly, a trial finds
(:mod:`edgepress.compress.channels.cut_verification`).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ...export.graph.torch_capture import flatten_outputs
from .channel_surgery import is_depthwise, why_not, width_of

_Indices = Sequence[Any]


@dataclass(frozen=True)
class DependentSide:
    """One side of one module that loses channels when the first of its chain does.

    Attributes:
        module: Dotted name of a module or parameter.
        side: ``out``, ``in`` or ``dimK``.
        width: Channels on that side.
        pairs: ``(channel here, channel of the first)``.
    """

    module: str
    side: str
    width: int
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class DependencyChain:
    """Everything that depends on one module's output channels, that module first.

    Attributes:
        root: Dotted name of that module.
        links: What can be cut.
        obstacle: What cannot, and why, or ``None``.
    """

    root: str
    links: tuple[DependentSide, ...]
    obstacle: str | None


def dependency_chains(
    module: nn.Module, example: Mapping[str, torch.Tensor]
) -> list[DependencyChain]:
    """The dependencies between the channels of a network.

    Every parameter is made to need a gradient, since Torch-Pruning follows gradients: hand it a
    copy.

    Args:
        module: A network.
        example: Its inputs by name, batch 2 or more.

    Raises:
        Exception: Whatever Torch-Pruning raises on a network that it cannot follow.
    """
    import torch_pruning  # pyright: ignore[reportMissingTypeStubs]

    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with warnings.catch_warnings(), torch.enable_grad(), _reshapes_of_nothing():
        warnings.simplefilter("ignore")
        graph: Any = torch_pruning.DependencyGraph()
        graph.build_dependency(
            module, example_inputs=dict(example), forward_fn=_outputs, verbose=False
        )
        _follow_padding(graph)
        lost = _lose_one_alone(graph)
        found = [_chain(graph, group) for group in graph.get_all_groups() if len(group)]
        return [*found, *lost]


def _outputs(module: nn.Module, example: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    given = flatten_outputs(module(**example)).values()
    found = [tensor for tensor in given if tensor.grad_fn is not None]
    if not found:
        raise ValueError("no gradient flows to any of its outputs")
    return found


@contextlib.contextmanager
def _reshapes_of_nothing() -> Generator[None]:
    """Inside, a reshape whose channels Torch-Pruning counts as none moves none.

    It divides by that count (shuffled channels, in 1.6). Where they do move, a trial finds it.
    """
    from torch_pruning.dependency import (  # pyright: ignore[reportMissingTypeStubs]
        index_mapping,
    )

    given: Any = index_mapping
    whole = given.update_reshape_index_mapping

    def update(graph: Any, node: Any) -> None:
        with contextlib.suppress(ZeroDivisionError):
            whole(graph, node)

    given.update_reshape_index_mapping = update
    try:
        yield
    finally:
        given.update_reshape_index_mapping = whole


def _lose_one_alone(graph: Any) -> list[DependencyChain]:
    """Have a layer that Torch-Pruning fails on be left out, instead of all that come behind it.

    Returns:
        Those layers, each with the reason; they are known when the groups are.
    """
    lost: list[DependencyChain] = []
    whole = graph.get_pruning_group

    def group_of(module: nn.Module, *rest: Any) -> Any:
        try:
            return whole(module, *rest)
        except Exception as error:  # an index out of range, behind channels that are split again
            reason = f"its channels cannot be followed ({type(error).__name__}: {error})"
            lost.append(DependencyChain(str(graph._module2name.get(module, "")), (), reason))
            return ()

    graph.get_pruning_group = group_of
    return lost


class _Shift:
    """Where channels lie behind zero padding of the channels (or, reversed, before it)."""

    def __init__(self, by: int) -> None:
        self._by = by

    def __call__(self, indices: _Indices) -> list[Any]:
        moved = (one._replace(idx=one.idx + self._by) for one in indices)
        return [one for one in moved if one.idx >= 0]


def _follow_padding(graph: Any) -> None:
    """Tell Torch-Pruning how channels move in ``F.pad``; it takes that for an elementwise step."""
    for node in list(graph.module2node.values()):
        pad = getattr(node.grad_fn, "_saved_pad", None)
        if pad is None or len(pad) != 6 or not any(pad[4:]):  # W, H, then channels
            continue
        if len(node.grad_fn._input_metadata[0].shape) != 4:  # what it gives is no (N, C, H, W)
            continue
        for before in node.inputs:
            for dependency in before.dependencies:
                if dependency.target is node:
                    dependency.index_mapping[0] = _Shift(int(pad[4]))
            for dependency in node.dependencies:
                if dependency.target is before:
                    dependency.index_mapping[0] = _Shift(-int(pad[4]))


def _chain(graph: Any, group: Any) -> DependencyChain:
    links: list[DependentSide] = []
    obstacle: str | None = None
    for item in group:
        target = item.dep.target
        held: object = target.module
        if isinstance(held, nn.Parameter):
            name = str(graph._param_to_name[held])
            side = f"dim{target.pruning_dim}"
        elif isinstance(held, nn.Module) and held in graph._module2name:
            name = str(graph._module2name[held])
            reads = graph.is_in_channel_pruning_fn(item.dep.handler)
            makes = graph.is_out_channel_pruning_fn(item.dep.handler)
            side = "in" if reads and not makes and not is_depthwise(held) else "out"
        else:
            continue  # an operation without parameters
        reason = why_not(held, side)
        if reason is not None:
            obstacle = obstacle or f"'{name}': {reason}"
            continue
        width = width_of(held, side)
        pairs = zip(cast("_Indices", item.idxs), cast("_Indices", item.root_idxs), strict=True)
        inside = tuple((int(a), int(b)) for a, b in pairs if a < width)
        if inside:
            links.append(DependentSide(name, side, width, inside))
    root = str(graph._module2name.get(group[0].dep.target.module, ""))
    return DependencyChain(root, tuple(links), obstacle)
