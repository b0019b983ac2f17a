"""Engines that were built, kept for the next time: a private folder, keyed by all that made them.

An engine is native code. A cached one is taken only where its key, its bytes, its owner and its
mode are as they were when it was written; anything else is built again.

    FOLDER/engines/KEY.plan   the engine; by a key of their own, kernels compiled as it was loaded
    FOLDER/engines/KEY.json   what it was made of, and the SHA-256 of its bytes
    FOLDER/timing/KEY.cache   what the builder measured on this GPU
    FOLDER/builds/KEY.json    how the engine of a model was last asked to be built
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..cache import make_folder
from ..engines.build_options import BuildOptions
from ..errors import InputError
from ..files import write_file

_LAYOUT = "1"  # of this folder; part of every key
_FOLDERS = ("engines", "timing", "builds")
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_key(made_of: Mapping[str, object]) -> str:
    """The key of what was made of these: SHA-256 of their canonical JSON, in hex.

    Args:
        made_of: Everything that makes a difference, JSON values only.
    """
    text = json.dumps({"layout": _LAYOUT, **made_of}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class EngineCache:
    """A folder of engines.

    Args:
        folder: Made, for this user alone, where it is not there.

    Raises:
        InputError: ``E_WRITE`` where it cannot be made; ``E_CACHE`` where it is somebody else's, or
            others may write in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in _FOLDERS:
            make_folder(folder, name)
        for path in (folder, *(folder / name for name in _FOLDERS)):
            if not _is_ours(path):
                raise InputError(
                    "E_CACHE",
                    f"the cache folder '{path}' belongs to somebody else, or others may write in "
                    "it; what lies there would be run as native code.",
                    mend=f"Take it over (chmod 700 '{path}'), or name another with --cache.",
                    path=str(path),
                )

    def find(self, made_of: Mapping[str, object]) -> bytes | None:
        """The engine that was made of these, or ``None`` where none can be trusted."""
        key = cache_key(made_of)
        plan, told = self._engine(key), self._told(key)
        try:
            if not (_is_ours(plan) and _is_ours(told)):
                return None
            facts: Any = json.loads(told.read_text(encoding="utf-8"))
            data = plan.read_bytes()
        except (OSError, ValueError):
            return None
        wanted = {"sha256": hashlib.sha256(data).hexdigest(), "made_of": _plain(made_of)}
        return data if facts == wanted else None

    def put(self, made_of: Mapping[str, object], plan: bytes) -> None:
        """Keep an engine.

        Raises:
            InputError: ``E_WRITE`` where the disk is full or may not be written.
        """
        key = cache_key(made_of)
        told = {"sha256": hashlib.sha256(plan).hexdigest(), "made_of": _plain(made_of)}
        _keep(self._engine(key), plan)
        _keep(self._told(key), json.dumps(told, sort_keys=True, indent=1).encode("utf-8"))

    def timing(self, device: Mapping[str, object]) -> bytes:
        """What the builder measured on this GPU before; empty where nothing can be trusted."""
        path = self.folder / "timing" / f"{cache_key(device)}.cache"
        try:
            return path.read_bytes() if _is_ours(path) else b""
        except OSError:
            return b""

    def put_timing(self, device: Mapping[str, object], measured: bytes) -> None:
        """Keep what the builder measured. Raises as :meth:`put`."""
        _keep(self.folder / "timing" / f"{cache_key(device)}.cache", measured)

    def build(self, model: Mapping[str, object]) -> BuildOptions | None:
        """How a model's engine was last asked to be built; ``None`` where nothing can be trusted.

        Args:
            model: What tells the model and what shall run it; not the GPU nor any version, so that
                an engine that is built again for another is built alike.
        """
        path = self._build(model)
        try:
            if not _is_ours(path):
                return None
            told: Any = json.loads(path.read_text(encoding="utf-8"))
            return BuildOptions.from_dict(told["options"]) if told["model"] == model else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, InputError):
            return None

    def put_build(self, model: Mapping[str, object], options: BuildOptions) -> None:
        """Remember how a model's engine was asked to be built. Raises as :meth:`put`."""
        told = {"model": dict(model), "options": options.to_dict()}
        _keep(self._build(model), json.dumps(told, sort_keys=True, indent=1).encode("utf-8"))

    @contextlib.contextmanager
    def lock(self, made_of: Mapping[str, object]) -> Generator[None, None, None]:
        """Let one process at a time build what is made of these; the others find its result.

        Raises:
            InputError: ``E_WRITE`` where the folder may not be written, or its disk has no locks.
        """
        path = self.folder / "engines" / f"{cache_key(made_of)}.lock"
        with ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("a+b"))
                _lock(file)
            except OSError as error:
                raise InputError(
                    "E_WRITE",
                    f"'{path}' cannot be locked: {error.strerror or error}.",
                    mend="Name a cache folder on a disk of this machine that may be written: "
                    "--cache or $EDGEPRESS_CACHE.",
                    path=str(path),
                ) from error
            yield  # closing the file gives the lock back, also where this process dies

    def _build(self, model: Mapping[str, object]) -> Path:
        return self.folder / "builds" / f"{cache_key(model)}.json"

    def _engine(self, key: str) -> Path:
        return self.folder / "engines" / f"{key}.plan"

    def _told(self, key: str) -> Path:
        return self.folder / "engines" / f"{key}.json"


def _is_ours(path: Path) -> bool:
    """Whether only this user may have written it; Windows keeps users apart by their profiles."""
    try:
        found = path.lstat()
    except OSError:
        return False
    if stat.S_ISLNK(found.st_mode):
        return False
    if sys.platform == "win32":
        return True
    return found.st_uid == os.getuid() and not found.st_mode & _OTHERS


def _keep(path: Path, data: bytes) -> None:
    if path.is_symlink():  # somebody else's doing; the engine takes its place
        path.unlink(missing_ok=True)
    write_file(data, path, force=True, private=True)


def _lock(file: Any) -> None:
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                return
            except OSError as error:  # it tries for ten seconds; building takes minutes
                if error.errno != errno.EDEADLOCK:
                    raise
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _plain(values: Mapping[str, object]) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(values))
