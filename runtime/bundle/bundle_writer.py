"""Writing bundles: a manifest with hashes; a folder or zip that is there whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .manifest import FORMAT, MANIFEST, MANIFEST_HASH, FileEntry, Manifest, parse_manifest
from .portable_paths import check_portable
from .zip_reader import MAX_RATIO

_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16
_LEVEL = 6
_BUNDLE_ONLY = "an edgepress bundle with nothing else in it"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def manifest_files(files: Mapping[str, bytes]) -> tuple[FileEntry, ...]:
    """One entry for each file, sorted by path; the manifest and its digest are left out."""
    return tuple(
        FileEntry(path, len(files[path]), hashlib.sha256(files[path]).hexdigest())
        for path in sorted(files)
        if path not in (MANIFEST, MANIFEST_HASH)
    )


def seal(manifest: Manifest, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Complete a bundle: its files, a manifest that lists them, and that manifest's digest.

    Args:
        manifest: What the bundle says of itself; its ``files`` are replaced.
        files: Every other file, by path in the bundle.

    Returns:
        All files of the bundle, by path.

    Raises:
        BundleError: Where a reader would refuse the manifest.
    """
    written = dataclasses.replace(manifest, files=manifest_files(files)).to_json()
    parse_manifest(written)
    digest = hashlib.sha256(written).hexdigest() + "\n"
    sealed = dict(files)
    sealed[MANIFEST] = written
    sealed[MANIFEST_HASH] = digest.encode("ascii")
    return sealed


def check_out(out: Path, *, force: bool = False) -> None:
    """Check that a bundle may be written to ``out``, before the work that makes it begins.

    Raises:
        InputError: ``E_EXISTS``, as `write_files` would.
    """
    _checked(out, force, _is_replaceable_folder, _BUNDLE_ONLY)


def write_files(files: Mapping[str, bytes], out: Path, *, force: bool = False) -> None:
    """Write a bundle as a folder, whole or not at all: a crash leaves what was there before.

    The files go to a folder beside ``out`` that takes its name once all of them are on the disk.

    Args:
        files: All files, as `seal` gives them.
        out: The folder to make; its parent must be there.
        force: Replace a bundle (or an empty folder) that is there; never anything else.

    Raises:
        InputError: ``E_EXISTS`` where ``out`` is there, or its parent is not; ``E_WRITE`` where the
            disk is full or may not be written.
        BundleError: ``E_PATH`` or ``E_DUPLICATE`` for paths that a bundle may not have.
    """
    check_portable(files)
    out = _checked(out, force, _is_replaceable_folder, _BUNDLE_ONLY)
    part = _beside(out)

    def write() -> None:
        os.mkdir(part)
        for path in sorted(files):
            file = part / path
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(file, files[path])
        for folder in {part, *(file.parent for file in part.rglob("*"))}:
            _sync_folder(folder)
        _put_folder(part, out)

    _guarded(write, out, part)


def write_zip(files: Mapping[str, bytes], out: Path, *, force: bool = False) -> None:
    """Write a bundle as one zip, whole or not at all; the same files give the same bytes.

    Args:
        files: All files, as `seal` gives them.
        out: The zip to make; its parent must be there.
        force: Replace a zip that is there; never anything else.

    Raises:
        InputError: As `write_files`.
        BundleError: As `write_files`.
    """
    check_portable(files)
    out = _checked(out, force, _is_replaceable_zip, "a zip")
    part = _beside(out)

    def write() -> None:
        _write(part, _zipped(files))
        os.replace(part, out)
        _sync_folder(out.parent)

    _guarded(write, out, part)


def _zipped(files: Mapping[str, bytes]) -> bytes:
    """Deflated, or stored where deflate works so well that a reader would take it for a bomb."""
    import io
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(files):
            content = files[path]
            small = len(zlib.compress(content, _LEVEL)) * MAX_RATIO < len(content) * 2
            entry = zipfile.ZipInfo(path, _DATE)
            entry.external_attr = _MODE
            entry.create_system = 3
            method = zipfile.ZIP_STORED if small else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content, method, _LEVEL)
    return packed.getvalue()


def _checked(out: Path, force: bool, replaceable: Callable[[Path], bool], what: str) -> Path:
    out = Path(os.path.abspath(out))
    if not out.parent.is_dir():
        raise InputError(
            "E_EXISTS",
            f"there is no folder '{out.parent}' to write '{out.name}' in.",
            mend="Make it first.",
            path=str(out),
        )
    if os.path.lexists(out):
        if not force:
            raise InputError(
                "E_EXISTS",
                f"'{out}' is there already.",
                mend="Choose another name, or replace it with --force.",
                path=str(out),
            )
        if out.is_symlink() or not replaceable(out):
            raise InputError(
                "E_EXISTS",
                f"'{out}' is there and is not {what}, so it is not replaced.",
                mend="Choose another name, or move it away yourself.",
                path=str(out),
            )
    return out


def _is_replaceable_folder(out: Path) -> bool:
    import json

    if not out.is_dir():
        return False
    present = {
        file.relative_to(out).as_posix() for file in out.rglob("*") if not _is_real_folder(file)
    }
    if not present:
        return True
    try:
        parsed: Any = json.loads((out / MANIFEST).read_bytes())
        if parsed["format"] != FORMAT:
            return False
        listed = {entry["path"] for entry in parsed["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return present <= listed | {MANIFEST, MANIFEST_HASH}


def _is_real_folder(file: Path) -> bool:
    return stat.S_ISDIR(file.lstat().st_mode)


def _is_replaceable_zip(out: Path) -> bool:
    if not out.is_file():
        return False
    with out.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _beside(out: Path) -> Path:
    import secrets

    return out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")


def _guarded(write: Callable[[], None], out: Path, part: Path) -> None:
    try:
        write()
    except OSError as error:
        raise InputError(
            "E_WRITE",
            f"'{out}' could not be written: {error.strerror or error}.",
            mend="Nothing was changed. Is there room on the disk, and may you write there?",
            path=str(out),
        ) from error
    finally:
        _remove(part)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_folder(part: Path, out: Path) -> None:
    """Give ``part`` the name ``out``; what had it before ends up as ``part`` and is removed."""
    if not out.exists():
        os.rename(part, out)
    elif not _exchange(part, out):
        aside = _beside(out)
        os.rename(out, aside)
        try:
            os.rename(part, out)
        except BaseException:
            os.rename(aside, out)
            raise
        _remove(aside)
    _sync_folder(out.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system cannot (only Linux can)."""
    import ctypes

    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    return rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()
