"""What the engines tensorrt and tensorrt-rtx share: the driver, building, the cache, running."""

from __future__ import annotations

from .options import BuildOptions

__all__ = ["BuildOptions"]
