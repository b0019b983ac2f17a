"""Fake quantizers: in a training, tensors are rounded as they will be where the network ships.

What they do: a forward pass gives the values that codes stand for; a backward pass goes through the
rounding as if it were not there, and stops where values were clipped. An activation's step is
learned with the weights; weights take the largest of each output channel as it is at the time, so
that what is written of them afterwards has the same codes.

Source: Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic
Neurons", 2013 (straight through); Esser et al., "Learned Step Size Quantization", 2020, equations 3
and 4 (the gradient of a step, and its scale). The step is held as its logarithm, as in Jain et al.,
"Trained Quantization Thresholds", 2020, section 3: it stays positive and moves by shares of itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

_SMALLEST = 1e-12
_torch: Any = torch  # where torch's own annotations do not know a function
_plain: Any = torch._C.DisableTorchFunction  # pyright: ignore[reportPrivateUsage] # modes see nothing


class FakeActivations(nn.Module):
    """One step for a whole activation; the code of 0 stays what it is at first.

    Args:
        low: Lower end of the range, at most 0.
        high: Upper end, at least 0.
        symmetric: Whether codes run from -127 to 127 around 0; else from 0 to 255.
    """

    def __init__(self, low: float, high: float, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.off = False
        """While it is true, values go through as they are."""
        self.log_step = nn.Parameter(torch.zeros(1))
        self.register_buffer("zero", torch.zeros(1))
        self.span(low, high)

    @property
    def ends(self) -> tuple[int, int]:
        """The first and the last code."""
        return (-127, 127) if self.symmetric else (0, 255)

    @property
    def range(self) -> tuple[float, float]:
        """What the first and the last code stand for."""
        step, zero = math.exp(self.log_step.item()), round(self._zero.item())
        first, last = self.ends
        return (first - zero) * step, (last - zero) * step

    @property
    def _zero(self) -> torch.Tensor:
        return self.get_buffer("zero")

    def span(self, low: float, high: float) -> None:
        """Take this range."""
        low, high = min(low, 0.0), max(high, 0.0)
        step = max(-low, high) / 127 if self.symmetric else (high - low) / 255
        if step < _SMALLEST:  # nothing but zeros were seen: any step will do
            step = 1.0
        with torch.no_grad():
            self.log_step.fill_(math.log(step))
            self._zero.fill_(0 if self.symmetric else round(-low / step))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Round floats of any shape; whatever else comes along goes through."""
        if self.off or not values.is_floating_point():
            return values
        first, last = self.ends
        with _plain():
            made: torch.Tensor = _torch._fake_quantize_learnable_per_tensor_affine(
                values.float(),
                self.log_step.exp(),
                self._zero,
                first,
                last,
                1 / math.sqrt(max(1, values.numel()) * last),
            )
            return made.to(values.dtype)


class FakeWeights(nn.Module):
    """A step for each output channel: its largest magnitude over the largest code.

    Args:
        axis: Of the output channels; ``None`` for one step in all.
        limit: The largest code.
    """

    def __init__(self, axis: int | None, limit: int) -> None:
        super().__init__()
        self.axis, self.limit = axis, limit
        self.off = False
        """While it is true, weights go through as they are."""

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        """Round weights of any shape that has the axis."""
        if self.off:
            return weights
        others = [at for at in range(weights.ndim) if at != self.axis]
        with _plain():
            values = weights.float()
            step = values.detach().abs().amax(others).div(self.limit).clamp(min=_SMALLEST)
            zero = torch.zeros_like(step, dtype=torch.int32)
            ends = (-self.limit, self.limit)
            made: torch.Tensor = (
                _torch.fake_quantize_per_tensor_affine(values, step, zero, *ends)
                if self.axis is None
                else _torch.fake_quantize_per_channel_affine(values, step, zero, self.axis, *ends)
            )
            return made.to(weights.dtype)


def fake_quantizers(network: nn.Module) -> dict[str, FakeActivations]:
    """The fake quantizers of a network's activations, by name; each once."""
    given: Any = network  # torch leaves the type of named_modules() partly open
    modules: dict[str, nn.Module] = dict(given.named_modules())
    return {name: one for name, one in modules.items() if isinstance(one, FakeActivations)}


def switch_fake_quantizers(network: nn.Module, *, off: bool) -> None:
    """Switch every fake quantizer of a network off, or on again."""
    for one in network.modules():
        if isinstance(one, (FakeActivations, FakeWeights)):
            one.off = off
