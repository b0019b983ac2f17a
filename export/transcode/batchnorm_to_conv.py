"""BatchNormalization between quantizers: a convolution with one weight for each channel.

What it does: codes in, codes out, and in between a factor and an offset for each channel, which is
what a depthwise convolution of size 1 computes, and that has an INT8 kernel. Each weight is the
largest code of a scale of its own.

When it is exact: but for the rounding of its offset to the bias's codes, always.

When it refuses: it is for constant parameters and inputs of three dimensions and more.

Source: Ioffe and Szegedy 2015 (arXiv:1502.03167), in inference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...runtime.tensors import Array


def as_factors(
    gain: Array, offset: Array, mean: Array, variance: Array, epsilon: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a BatchNormalization multiplies each channel by, and what it adds, ``(C,)`` each."""
    factor = gain.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    added = offset - factor * mean
    return factor.astype(np.float32), added.astype(np.float32)
