"""The cache folder: measurements that may be forgotten and taken again, never an artifact."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """Where edgepress keeps what it need not measure twice; made by what first writes there.

    Args:
        given: The user's own (``--cache``, ``$EDGEPRESS_CACHE``), or ``None`` for the system's:
            ``$XDG_CACHE_HOME`` or ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS,
            ``%LOCALAPPDATA%`` on Windows, each with a folder ``edgepress``.
    """
    if given is not None:
        return Path(given)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "edgepress"
