"""Layers: the convolutions and matrix products of a network, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import (
    _ConvNd,  # pyright: ignore[reportPrivateUsage]
    _ConvTransposeNd,  # pyright: ignore[reportPrivateUsage]
)

from .cutting import is_depthwise, modules_of


@dataclass(frozen=True)
class Layer:
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
        calls: How often a forward runs it.
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
        """Weights and biases, were it so wide."""
        taps = 1
        for side in self.kernel:
            taps *= side
        within = out_width if self.depthwise else in_width * out_width // self.groups
        return taps * within + (out_width if self.bias else 0)


def layers_of(module: nn.Module, feeds: Mapping[str, torch.Tensor]) -> list[Layer]:
    """Convolutions and matrix products in the order in which a forward first meets them."""
    batch = next((tensor.shape[0] for tensor in feeds.values() if tensor.ndim), 1)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    calls: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            if given and isinstance(given[0], torch.Tensor) and isinstance(made, torch.Tensor):
                calls[name] = calls.get(name, 0) + 1
                shapes.setdefault(name, (_one(given[0], batch), _one(made, batch)))

        return hook

    hooks: list[Any] = []
    for name, part in modules_of(module):
        if isinstance(part, (_ConvNd, nn.Linear)):
            held: Any = part
            hooks.append(held.register_forward_hook(note(name)))
    try:
        with torch.inference_mode():
            module(**feeds)
    finally:
        for hook in hooks:
            hook.remove()
    return [_layer(name, module.get_submodule(name), *shapes[name], calls[name]) for name in shapes]


def _one(tensor: torch.Tensor, batch: int) -> tuple[int, ...]:
    shape = list(tensor.shape)
    shape[0] = max(1, shape[0] // batch)
    return tuple(shape)


def _layer(
    name: str, part: nn.Module, taken: tuple[int, ...], made: tuple[int, ...], calls: int
) -> Layer:
    if isinstance(part, nn.Linear):
        bias = part.bias is not None  # pyright: ignore[reportUnnecessaryComparison]
        return Layer(name, "linear", 1, False, taken, made, (), (), (), (), bias, False, calls)
    assert isinstance(part, _ConvNd)
    sides = len(part.kernel_size)
    padding = (0,) * sides
    if isinstance(part.padding, str):
        if part.padding == "same":
            padding = tuple(k // 2 for k in part.kernel_size)
    else:
        padding = tuple(part.padding)
    return Layer(
        name, "conv", part.groups, is_depthwise(part), taken, made, tuple(part.kernel_size),
        tuple(part.stride), padding, tuple(part.dilation), part.bias is not None,
        isinstance(part, _ConvTransposeNd), calls,
    )  # fmt: skip
