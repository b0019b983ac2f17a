"""The cache folder: what may be forgotten and measured or built again, never an artifact."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """Where edgepress keeps what it need not measure or build twice; made by what first writes.

    Args:
        given: The user's own (``--cache``); ``None`` for ``$EDGEPRESS_CACHE``, else the system's:
            ``$XDG_CACHE_HOME`` or ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS,
            ``%LOCALAPPDATA%`` on Windows, each with a folder ``edgepress``.
    """
    given = given or os.environ.get("EDGEPRESS_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "edgepress"
