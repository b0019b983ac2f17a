"""The cut itself: channels leave one module of a network, by kind of module.

In scope: which tensors and which attributes of a module hold a channel, on which side. Out of
scope: which modules must lose a channel together
(:mod:`edgepress.compress.channels.channel_groups`) and which channels are worth least
(:mod:`edgepress.compress.pruning.importance`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.conv import (
    _ConvNd,  # pyright: ignore[reportPrivateUsage]
    _ConvTransposeNd,  # pyright: ignore[reportPrivateUsage]
)
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils import parametrize

_FILL = {"running_var": 1.0}


@dataclass(frozen=True)
class ChannelCut:
    """Channels that leave one module.

    Attributes:
        module: Dotted name of the module, or of a parameter that lies in none of the known kinds.
        side: ``out`` for what the module makes (and for what it passes on: normalizations,
            depthwise convolutions), ``in`` for what it reads, ``dimK`` for dimension K of a
            parameter.
        width: How many channels there were on that side.
        removed: Which of them leave, in rising order.
    """

    module: str
    side: str
    width: int
    removed: tuple[int, ...]


@dataclass(frozen=True)
class _Part:
    """A tensor of a module that holds the channels along ``dim``, in ``groups`` equal parts."""

    tensor: str
    dim: int
    groups: int = 1


def modules_of(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules in a network with their dotted names, the network itself (``""``) first."""
    held: Any = module
    return list(held.named_modules())


def own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that a module itself holds, by name; those that others hold as well, too."""
    held: Any = module
    return list(held.named_parameters(recurse=False, remove_duplicate=False))


def why_not(module: nn.Module | nn.Parameter, side: str) -> str | None:
    """Why a module cannot lose channels on a side, in words; ``None`` where it can."""
    if isinstance(module, nn.Parameter):
        return None
    if parametrize.is_parametrized(module):
        return "its weights are computed from others (parametrized)"
    parts = _parts(module, side)
    if parts is None:
        return f"no rule cuts a {type(module).__name__} ({side} side)"
    held = getattr(module, parts[0].tensor, None)
    if held is not None and parts[0].tensor not in dict(own_parameters(module)):
        return f"its '{parts[0].tensor}' is not a parameter of its own"
    return None


def width_of(module: nn.Module | nn.Parameter, side: str) -> int:
    """Channels of a module on a side."""
    if isinstance(module, nn.Parameter):
        return module.shape[int(side.removeprefix("dim"))]
    if isinstance(module, _ConvNd):
        return module.in_channels if side == "in" else module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features if side == "in" else module.out_features
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.PReLU):
        return module.num_parameters
    assert isinstance(module, (_BatchNorm, _InstanceNorm))
    return module.num_features


def segments_of(module: nn.Module | nn.Parameter) -> int:
    """Into how many equal parts its channels are split that must stay equally wide; mostly 1."""
    if isinstance(module, _ConvNd) and not is_depthwise(module):
        return module.groups
    return module.num_groups if isinstance(module, nn.GroupNorm) else 1


def is_depthwise(module: nn.Module | nn.Parameter) -> bool:
    """Whether each input channel of a convolution goes into output channels of its own alone."""
    return isinstance(module, _ConvNd) and module.groups == module.in_channels > 1


def apply_cuts(root: nn.Module, cuts: Iterable[ChannelCut]) -> None:
    """Take channels out of a network, in place; what is trained keeps its values.

    Raises:
        ValueError: For a module that is not there or has another width: another network.
    """
    for one in cuts:
        found = _find(root, one)
        kept = _kept(one)
        if isinstance(found, nn.Parameter):
            owner, _, name = one.module.rpartition(".")
            dim = int(one.side.removeprefix("dim"))
            index = torch.tensor(kept, device=found.device)
            _replace(root.get_submodule(owner), name, found.index_select(dim, index))
            continue
        for part in _parts(found, one.side) or ():
            tensor = _tensor(found, part.tensor)
            if tensor is not None:
                _replace(found, part.tensor, _select(tensor, part, kept, one.width))
        _tell(found, one, len(kept))


def zero_cuts(root: nn.Module, cuts: Iterable[ChannelCut]) -> None:
    """Silence channels instead of taking them out, in place: the same function, as wide as before.

    A normalization over channels (LayerNorm, GroupNorm) counts the silent ones in its statistics,
    so that there the two differ.

    Raises:
        ValueError: As :func:`apply_cuts`.
    """
    with torch.no_grad():
        for one in cuts:
            found = _find(root, one)
            if isinstance(found, nn.Parameter):
                dim = int(one.side.removeprefix("dim"))
                found.index_fill_(dim, torch.tensor(one.removed, device=found.device), 0.0)
                continue
            for part in _parts(found, one.side) or ():
                tensor = _tensor(found, part.tensor)
                if tensor is not None:
                    _silence(tensor, part, one)


def _find(root: nn.Module, one: ChannelCut) -> nn.Module | nn.Parameter:
    owner, _, name = one.module.rpartition(".")
    found: Any
    try:
        found = getattr(root.get_submodule(owner), name) if one.module else root
    except AttributeError as error:
        raise ValueError(f"it has no '{one.module}'") from error
    if not isinstance(found, (nn.Module, nn.Parameter)) or why_not(found, one.side):
        raise ValueError(f"'{one.module}' is a {type(found).__name__}, which cannot be cut so")
    width = width_of(found, one.side)
    if width != one.width or not one.removed or one.removed[-1] >= width:
        raise ValueError(f"'{one.module}' has {width} channels ({one.side}), {one.width} expected")
    return found


def _parts(module: nn.Module, side: str) -> tuple[_Part, ...] | None:
    """The tensors of a module that hold the channels of a side; ``None`` where no rule is known."""
    if isinstance(module, _ConvNd):
        transposed = isinstance(module, _ConvTransposeNd)
        if is_depthwise(module):
            if module.out_channels != module.in_channels:
                return None
            return (_Part("weight", 0), _Part("bias", 0))
        across, within = (1, 0) if transposed else (0, 1)  # out is dimension 0, or 1 transposed
        if transposed and module.groups > 1:
            return None
        if side == "in":
            return (_Part("weight", within, module.groups),)
        return (_Part("weight", across), _Part("bias", 0))
    if isinstance(module, nn.Linear):
        return (_Part("weight", 1),) if side == "in" else (_Part("weight", 0), _Part("bias", 0))
    if isinstance(module, (_BatchNorm, _InstanceNorm)):
        names = ("weight", "bias", "running_mean", "running_var")
        return tuple(_Part(name, 0) for name in names)
    if isinstance(module, nn.LayerNorm):
        return (_Part("weight", 0), _Part("bias", 0)) if len(module.normalized_shape) == 1 else None
    if isinstance(module, nn.GroupNorm):
        return (_Part("weight", 0), _Part("bias", 0))
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return (_Part("weight", 0),)
    return None


def _tensor(module: nn.Module, name: str) -> torch.Tensor | None:
    held = getattr(module, name, None)
    return held if isinstance(held, torch.Tensor) else None


def _kept(one: ChannelCut) -> list[int]:
    gone = set(one.removed)
    return [index for index in range(one.width) if index not in gone]


def _select(tensor: torch.Tensor, part: _Part, kept: Sequence[int], width: int) -> torch.Tensor:
    if part.groups == 1:
        return tensor.index_select(part.dim, torch.tensor(kept, device=tensor.device))
    each, rows = width // part.groups, tensor.chunk(part.groups, 0)  # (out, in / groups, ...)
    pieces: list[torch.Tensor] = []
    for group, piece in enumerate(rows):
        own = [index - group * each for index in kept if index // each == group]
        pieces.append(piece.index_select(part.dim, torch.tensor(own, device=tensor.device)))
    if len({piece.shape[part.dim] for piece in pieces}) != 1:
        raise ValueError("the groups of a convolution would not be equally wide")
    return torch.cat(pieces, 0)


def _silence(tensor: torch.Tensor, part: _Part, one: ChannelCut) -> None:
    value = _FILL.get(part.tensor, 0.0)
    if part.groups == 1:
        tensor.index_fill_(part.dim, torch.tensor(one.removed, device=tensor.device), value)
        return
    each = one.width // part.groups
    rows = tensor.chunk(part.groups, 0)
    for index in one.removed:
        rows[index // each].select(part.dim, index % each).fill_(value)


def _replace(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put another tensor in the place of a parameter or buffer, with its switches."""
    old = getattr(module, name)
    fresh = value.detach().clone()
    if isinstance(old, nn.Parameter):
        fresh = nn.Parameter(fresh, requires_grad=old.requires_grad)
    setattr(module, name, fresh)


def _tell(module: nn.Module, one: ChannelCut, width: int) -> None:
    """Set the attributes of a module that say how wide it is."""
    held = cast("Any", module)
    if isinstance(module, _ConvNd):
        if is_depthwise(module):
            held.in_channels = held.out_channels = held.groups = width
        elif one.side == "in":
            held.in_channels = width
        else:
            held.out_channels = width
    elif isinstance(module, nn.Linear):
        setattr(module, "in_features" if one.side == "in" else "out_features", width)
    elif isinstance(module, nn.LayerNorm):
        held.normalized_shape = (width,)
    elif isinstance(module, nn.GroupNorm):
        held.num_channels = width
    elif isinstance(module, nn.PReLU):
        held.num_parameters = width
    else:
        held.num_features = width
