"""Progress of long work: told to whoever wants to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, "int | None"], None]
"""Called with the name of a stage, how much is done, and of how much; ``None`` where unknown."""


def silent(stage: str, done: int, total: int | None) -> None:
    """Tells nobody."""
    del stage, done, total
