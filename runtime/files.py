"""Single files: read whole, written whole or not at all; and what a full disk is called."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Generator
from pathlib import Path

from .errors import InputError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_BLOCK = 2**16  # larger than what file systems give out at once
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: ``E_FILE`` where it is not there or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            "E_FILE",
            f"'{path}' cannot be read: {error.strerror or error}.",
            mend="Check the path.",
            path=str(path),
        ) from error


def check_file(out: Path, *, force: bool) -> None:
    """Check that ``out`` may be written, before the work that makes it begins.

    Raises:
        InputError: ``E_EXISTS`` where it is there (without ``force``), is no file, or its folder is
            not there.
    """
    folder = out.absolute().parent
    if not folder.is_dir():
        raise InputError(
            "E_EXISTS", f"there is no folder '{folder}'.", mend="Make it first.", path=str(out)
        )
    if os.path.lexists(out) and (not force or out.is_symlink() or not out.is_file()):
        raise InputError(
            "E_EXISTS",
            f"'{out}' is there already.",
            mend="Choose another name, or replace a file with --force.",
            path=str(out),
        )


def write_file(data: bytes, out: Path, *, force: bool = False, private: bool = False) -> None:
    """Write a file whole or not at all: under another name first, then renamed.

    Args:
        data: What to write.
        out: Where.
        force: Replace a file that is there.
        private: Whether nobody but this user may read or write it.

    Raises:
        InputError: As :func:`check_file`; ``E_WRITE`` where the disk is full or may not be written.
    """
    check_file(out, force=force)
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        mode = 0o600 if private else 0o666
        with open(os.open(part, _NEW, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, out)
    except OSError as error:
        raise InputError(
            "E_WRITE",
            f"'{out}' could not be written: {error.strerror or error}.",
            mend="Nothing was changed. Is there room on the disk, and may you write there?",
            path=str(out),
        ) from error
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_room() -> Generator[None, None, None]:
    """Call a disk that fills up in the middle of the work by its name.

    Raises:
        InputError: ``E_WRITE`` where something inside met a full disk, a quota or a limit on the
            size of files.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _no_room(error, path=error.filename) from error


@contextlib.contextmanager
def temporary_folder() -> Generator[Path, None, None]:
    """A private folder where the system keeps temporary files; it is removed in the end.

    Raises:
        InputError: ``E_WRITE`` where it cannot be made: the disk is full or may not be written.
    """
    import tempfile

    try:
        made = tempfile.TemporaryDirectory(prefix="edgepress-")
    except OSError as error:
        raise _no_room(error, folder=tempfile.tempdir, path=tempfile.tempdir) from error
    with made as folder:
        yield Path(folder)


def check_room(path: Path) -> None:
    """Ask the system why a library could not write ``path``: one more block tells a full disk.

    Args:
        path: In a `temporary_folder`; what the library left there, if anything, is added to.

    Raises:
        InputError: ``E_WRITE`` where the disk is full, or at a quota or a limit on the size of
            files; nothing where there is room.
    """
    try:
        with path.open("ab") as file:
            file.write(bytes(_BLOCK))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in _FULL:
            folder = str(path.parent.parent)
            raise _no_room(error, folder=folder, path=folder) from error


def _no_room(error: OSError, *, folder: str | None = None, path: str | None) -> InputError:
    """``folder`` is the temporary one, ``path`` what is at fault, as far as they are known."""
    place = "" if folder is None else f" in '{folder}'"
    return InputError(
        "E_WRITE",
        f"a temporary file could not be written{place}: {error.strerror or error}.",
        mend="Make room on the disk of the temporary folder ($TMPDIR), or name another one.",
        path=path,
    )
