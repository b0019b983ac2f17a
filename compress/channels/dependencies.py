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
_LEAST_BOUND = 4096


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
    with warnings.catch_warnings(), torch.enable_grad(), _bounded_reshapes(module):
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


class _MixedChannelsError(Exception):
    """A reshape hands on more channels than any layer has."""


@contextlib.contextmanager
def _bounded_reshapes(module: nn.Module) -> Generator[None]:
    """Inside, a reshape moves channels only where it can, and never more than there are.

    Torch-Pruning 1.6 guesses how a reshape moves channels from the layers around it. It divides by
    a count that may be 0 (shuffled channels); it counts places of a map as channels where these
    are flattened (a detector's heads); and where heads of an attention are split and joined again,
    each round doubles the channels that it follows, for minutes and gigabytes. Where a reshape
    that is left out does move channels, a trial finds it.
    """
    from torch_pruning.dependency import (  # pyright: ignore[reportMissingTypeStubs]
        index_mapping,
    )

    given: Any = index_mapping
    widths = (size for one in module.parameters() for size in one.shape[:2])
    most = 2 * max(_LEAST_BOUND, *widths)  # a layer has no more channels than that
    whole, flatten = given.update_reshape_index_mapping, given._FlattenIndexMapping.__call__

    def update(graph: Any, node: Any) -> None:
        if not _keeps_channels(node.grad_fn):
            with contextlib.suppress(ZeroDivisionError):
                whole(graph, node)

    def bounded(mapping: Any, indices: _Indices) -> list[Any]:
        if not mapping.reverse and len(indices) * mapping._stride > most:
            raise _MixedChannelsError("reshapes mix them with each other, as in an attention")
        return flatten(mapping, indices)

    given.update_reshape_index_mapping = update
    given._FlattenIndexMapping.__call__ = bounded
    try:
        yield
    finally:
        given.update_reshape_index_mapping = whole
        given._FlattenIndexMapping.__call__ = flatten


def _keeps_channels(grad_fn: Any) -> bool:
    """Whether a reshape leaves the batch and the channels, its dimensions 0 and 1, as they are."""
    before = getattr(grad_fn, "_saved_self_sym_sizes", getattr(grad_fn, "_saved_self_sizes", ()))
    after = grad_fn._input_metadata[0].shape if grad_fn is not None else ()
    sizes = [tuple(int(size) for size in shape) for shape in (before, after)]
    return all(len(shape) > 2 for shape in sizes) and sizes[0][:2] == sizes[1][:2]


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
            told = "" if isinstance(error, _MixedChannelsError) else f"{type(error).__name__}: "
            reason = f"its channels cannot be followed ({told}{error})"
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
