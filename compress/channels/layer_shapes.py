"""Layers: the convolutions and matrix products of a network, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.conv import (
    _ConvNd,  # pyright: ignore[reportPrivateUsage]
    _ConvTransposeNd,  # pyright: ignore[reportPrivateUsage]
)

from .channel_surgery import is_depthwise, modules_of

_Met: TypeAlias = tuple[str, tuple[int, ...], tuple[int, ...]]  # name, what it read, what it made


@dataclass(frozen=True)
class LayerShape:
    """A convolution or a matrix product, as one picture meets it.

    Attributes:
        module: Dotted name.
        kind: ``conv`` or ``linear``.
        groups: Of a convolution; 1 otherwise.
        depthwise: Whether it is a depthwise convolution.
        in_shape: Shape of what it reads, batch 1, ``(1, C, H, W)`` for a convolution.
        out_shape: Shape of what it makes.
        kernel: Sides of the kernel.
        stride: Of the convolution, side by side.
        padding: Of the convolution, on both ends of each side.
        dilation: Of the convolution.
        bias: Whether it has one.
        transposed: Whether it is a transposed convolution.
        calls: How often a forward runs it on what has this shape.
        owns: Whether its parameters are counted here: a module that meets several shapes, like a
            head that levels of a pyramid share, is a layer for each.
    """

    module: str
    kind: str
    groups: int
    depthwise: bool
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    bias: bool
    transposed: bool
    calls: int
    owns: bool = True

    @property
    def in_width(self) -> int:
        """Channels that it reads."""
        return self.in_shape[1] if self.kind == "conv" else self.in_shape[-1]

    @property
    def out_width(self) -> int:
        """Channels that it makes."""
        return self.out_shape[1] if self.kind == "conv" else self.out_shape[-1]

    @property
    def positions(self) -> int:
        """Places at which it computes all its output channels (transposed: reads its input)."""
        shape, width = (
            (self.in_shape, self.in_width) if self.transposed else (self.out_shape, self.out_width)
        )
        size = 1
        for side in shape:
            size *= side
        return size // width

    def macs(self, in_width: int, out_width: int) -> int:
        """Multiply-adds for one picture, were it so wide."""
        taps = 1
        for side in self.kernel:
            taps *= side
        within = out_width if self.depthwise else in_width * out_width // self.groups
        return self.calls * self.positions * taps * within

    def parameters(self, in_width: int, out_width: int) -> int:
        """Weights and biases, were it so wide; 0 where another layer counts them."""
        if not self.owns:
            return 0
        taps = 1
        for side in self.kernel:
            taps *= side
        within = out_width if self.depthwise else in_width * out_width // self.groups
        return taps * within + (out_width if self.bias else 0)


def layer_shapes(module: nn.Module, feeds: Mapping[str, torch.Tensor]) -> list[LayerShape]:
    """Convolutions and matrix products in the order in which a forward first meets them.

    A :class:`torch.nn.MultiheadAttention` is two: what makes queries, keys and values goes by its
    own name, and its projection, which is never called, by that of the module that holds it.
    """
    batch = next((tensor.shape[0] for tensor in feeds.values() if tensor.ndim), 1)
    calls: dict[_Met, int] = {}

    def note(name: str, given: torch.Tensor, made: Sequence[int]) -> None:
        met = (name, _one(given.shape, batch), _one(made, batch))
        calls[met] = calls.get(met, 0) + 1

    def plain(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            if given and isinstance(given[0], torch.Tensor) and isinstance(made, torch.Tensor):
                note(name, given[0], made.shape)

        return hook

    def attention(name: str) -> Any:
        def hook(
            part: nn.MultiheadAttention, given: tuple[Any, ...], named: dict[str, Any], _made: Any
        ) -> None:
            query, key = (
                named.get(word, *given[at : at + 1]) for at, word in enumerate(("query", "key"))
            )
            wide = part.embed_dim
            if key.shape == query.shape:
                note(name, query, (*query.shape[:-1], 3 * wide))
            else:
                note(name, query, (*query.shape[:-1], wide))
                note(name, key, (*key.shape[:-1], 2 * wide))
            note(f"{name}.out_proj".strip("."), query, (*query.shape[:-1], wide))

        return hook

    hooks: list[Any] = []
    for name, part in modules_of(module):
        held: Any = part
        if isinstance(part, (_ConvNd, nn.Linear)):
            hooks.append(held.register_forward_hook(plain(name)))
        elif isinstance(part, nn.MultiheadAttention):
            hooks.append(held.register_forward_hook(attention(name), with_kwargs=True))
    try:
        with torch.inference_mode():
            module(**feeds)
    finally:
        for hook in hooks:
            hook.remove()
    seen: set[str] = set()
    found: list[LayerShape] = []
    for (name, taken, made), count in calls.items():
        part = module.get_submodule(name)
        owns = name not in seen or isinstance(part, nn.MultiheadAttention)
        found.append(_layer(name, part, taken, made, count, owns))
        seen.add(name)
    return found


def _one(given: Sequence[int], batch: int) -> tuple[int, ...]:
    shape = list(given)
    shape[0] = max(1, shape[0] // batch)
    return tuple(shape)


def _layer(
    name: str,
    part: nn.Module,
    taken: tuple[int, ...],
    made: tuple[int, ...],
    calls: int,
    owns: bool,
) -> LayerShape:
    if isinstance(part, (nn.Linear, nn.MultiheadAttention)):
        held = part.bias if isinstance(part, nn.Linear) else part.in_proj_bias
        bias = held is not None  # pyright: ignore[reportUnnecessaryComparison]
        return LayerShape(
            name, "linear", 1, False, taken, made, (), (), (), (), bias, False, calls, owns
        )
    assert isinstance(part, _ConvNd)
    sides = len(part.kernel_size)
    padding = (0,) * sides
    if isinstance(part.padding, str):
        if part.padding == "same":
            reach = zip(part.kernel_size, part.dilation, strict=True)
            padding = tuple(far * (k - 1) // 2 for k, far in reach)
    else:
        padding = tuple(part.padding)
    return LayerShape(
        name, "conv", part.groups, is_depthwise(part), taken, made, tuple(part.kernel_size),
        tuple(part.stride), padding, tuple(part.dilation), part.bias is not None,
        isinstance(part, _ConvTransposeNd), calls, owns,
    )  # fmt: skip
