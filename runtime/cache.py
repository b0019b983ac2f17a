"""The cache folder: what may be forgotten and measured or built again, never an artifact."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .errors import InputError


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


def make_folder(folder: Path, name: str = "") -> Path:
    """A folder of the cache, made where it is not there: the cache for this user alone.

    Engines lie there, and those are taken only where nobody else may write.

    Args:
        folder: The cache.
        name: Of a folder in it.

    Raises:
        InputError: ``E_WRITE`` where it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InputError(
            "E_WRITE",
            f"the cache folder '{folder}' cannot be made: {error.strerror or error}.",
            mend="Name another with --cache or $EDGEPRESS_CACHE.",
            path=str(folder),
        ) from error
    return folder / name
