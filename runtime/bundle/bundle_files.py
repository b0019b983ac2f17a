"""Untrusted bytes to files in memory: a folder or a zip becomes ``{path: bytes}``, or is refused.

Nothing is extracted, no link is followed, each file is read once, and every limit is counted while
reading.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from ..errors import InputError
from .portable_paths import check_path, check_portable, path_error
from .zip_reader import MAX_TOTAL_BYTES, check_file_count, limit_error, read_zip


def read_tree(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """Every file of a bundle's folder or zip, by path with ``/`` between its parts.

    Raises:
        InputError: ``E_FILE`` where there is nothing, or it may not be read.
        BundleError: ``E_ARCHIVE`` for what is neither a folder nor a sound zip, ``E_PATH`` for
            links, special files and names that do not exist everywhere, ``E_DUPLICATE`` for names
            that are the same file somewhere, ``E_LIMIT`` for too many, too large, or too strongly
            compressed.
    """
    root = Path(path)
    try:
        kind = root.lstat().st_mode
        if stat.S_ISLNK(kind):
            raise path_error(
                "E_PATH", f"'{root}' is a symbolic link", "Give what it points to.", root
            )
        files = _read_folder(root) if stat.S_ISDIR(kind) else _read_zip_file(root)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            "E_FILE",
            f"'{root}' cannot be read: {reason}.",
            mend="Expected a bundle: a folder that edgepress wrote, or its zip.",
            path=str(root),
        ) from error
    return files


def _read_folder(root: Path) -> dict[str, bytes]:
    found: dict[str, os.stat_result] = {}
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                path = prefix + entry.name
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    check_path(path)
                    waiting.append(path + "/")
                    check_file_count(len(found) + len(waiting), root)
                    continue
                if not stat.S_ISREG(status.st_mode):
                    raise path_error("E_PATH", f"{path!r} is a link or a special file", "", path)
                found[path] = status
                check_file_count(len(found) + len(waiting), root)
    check_portable(sorted(found))
    files: dict[str, bytes] = {}
    left = MAX_TOTAL_BYTES
    for path in sorted(found):
        files[path] = _read_regular(root / path, path, left)
        left -= len(files[path])
    return files


def _read_regular(file: Path, path: str, left: int) -> bytes:
    """Read what is there now, judged by the descriptor that is read and not by an earlier look."""
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(file, flags)
    except OSError as error:
        if file.is_symlink():
            raise path_error("E_PATH", f"{path!r} is a symbolic link", "", path) from error
        raise
    with open(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise path_error("E_PATH", f"{path!r} is a link or a special file", "", path)
        if status.st_nlink > 1:
            raise path_error(
                "E_PATH",
                f"{path!r} is a hard link: the file has {status.st_nlink} names",
                "Copy the bundle without links.",
                path,
            )
        data = _read_at_most(opened, left)
    if len(data) > left:
        raise limit_error(f"the files hold more than {MAX_TOTAL_BYTES} bytes together", path)
    return data


def _read_at_most(file: IO[bytes], limit: int) -> bytes:
    """What a file holds; of one that is over the limit one byte more than that.

    The buffer is asked for at once, so it is as large as the file and not as the limit.
    """
    return file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)


def _read_zip_file(path: Path) -> dict[str, bytes]:
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    with open(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise path_error("E_PATH", f"'{path}' is a special file", "", path)
        data = _read_at_most(file, MAX_TOTAL_BYTES)
    if len(data) > MAX_TOTAL_BYTES:
        raise limit_error(f"'{path}' has more than {MAX_TOTAL_BYTES} bytes", path)
    if not data.startswith(b"PK\x03\x04"):
        raise path_error(
            "E_ARCHIVE",
            f"'{path}' is neither a folder nor a zip",
            "Expected a bundle: a folder that edgepress wrote, or its zip.",
            path,
        )
    return read_zip(data, f"'{path}'")
