"""Zips in memory, read without trust, by the few rules that bundles need.

Read here rather than by ``zipfile``, which lets pass what other readers understand differently:
something before or after the archive, headers that disagree, overlaps. Those are refused, and so
are zip64 and encryption; files are stored or deflated, and nothing is extracted to disk.
"""

from __future__ import annotations

import stat
import struct
import zlib
from dataclasses import dataclass

from ..errors import BundleError
from .portable_paths import check_portable, path_error

MAX_TOTAL_BYTES = 4 * 1024**3
MAX_FILES = 10_000
MAX_RATIO = 200

_RATIO_FROM_BYTES = 1024**2  # below this, a high ratio is harmless and common
_END = struct.Struct("<4s4H2LH")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ZIP, _CENTRAL_MARK, _END_MARK = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _STREAMED, _UTF8 = 0x1, 0x8, 0x800
_UNIX = 3
_UNKNOWN_SIZE = 0xFFFFFFFF
_ZIP64_EXTRA = 1


@dataclass(frozen=True)
class _Entry:
    """One file, as the directory tells it."""

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    mode: int
    at: int

    @property
    def is_folder(self) -> bool:
        return self.name.endswith("/")


def read_zip(data: bytes, where: str, *, portable: bool = True) -> dict[str, bytes]:
    """Every file of a zip that is in memory.

    Args:
        data: The whole archive.
        where: What it is, for messages.
        portable: Whether names must be paths that mean the same on every system; the names of
            tensors in an ``.npz``, which never become files, need not.

    Raises:
        BundleError: ``E_ARCHIVE`` for what is not a sound zip, ``E_PATH`` and ``E_DUPLICATE`` for
            its names, ``E_LIMIT`` for too many files, too large, too strongly packed, zips inside.
    """
    entries, directory_at = _directory(data, where)
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise path_error("E_DUPLICATE", f"{twice!r} is in {where} more than once", "", twice)
    if portable:
        check_portable(name.removesuffix("/") for name in names)
    _check_limits(entries, where)
    starts = _check_headers(data, entries, directory_at, where)
    return {
        entry.name: _content(data, entry, starts[entry.name], where)
        for entry in entries
        if not entry.is_folder
    }


def check_file_count(count: int, where: object) -> None:
    """Refuse more than ``MAX_FILES`` files with ``E_LIMIT``."""
    if count > MAX_FILES:
        raise limit_error(f"{where} has more than {MAX_FILES} files", where)


def limit_error(message: str, path: object) -> BundleError:
    """An ``E_LIMIT``."""
    return BundleError("E_LIMIT", f"{message}.", mend="Refused before reading it.", path=str(path))


def _directory(data: bytes, where: str) -> tuple[list[_Entry], int]:
    """The directory's entries and its offset."""
    if len(data) < _END.size or data[:4] not in (_ZIP, _END_MARK):
        raise _damaged(where, "it does not start as a zip")
    mark, disk, first, here, total, size, offset, comment = _END.unpack(data[-_END.size :])
    if mark != _END_MARK or comment:
        raise _damaged(where, "it does not end as a zip: cut short, or followed by something")
    if disk or first or here != total or offset + size != len(data) - _END.size:
        raise _damaged(where, "its directory is not where its end says, or it is a zip64")
    check_file_count(total, where)
    entries: list[_Entry] = []
    at = offset
    for _ in range(total):
        entry, at = _entry(data, at, where)
        entries.append(entry)
    if at != len(data) - _END.size:
        raise _damaged(where, "its directory has another length than its end says")
    return entries, int(offset)


def _entry(data: bytes, at: int, where: str) -> tuple[_Entry, int]:
    fixed = data[at : at + _CENTRAL.size]
    if len(fixed) < _CENTRAL.size or fixed[:4] != _CENTRAL_MARK:
        raise _damaged(where, "its directory breaks off")
    parts = _CENTRAL.unpack(fixed)
    system, flags, method, crc, packed, size = parts[1] >> 8, *parts[3:5], *parts[7:10]
    name_length, extra_length, comment_length = parts[10:13]
    name_end = at + _CENTRAL.size + name_length
    name = _name(data[at + _CENTRAL.size : name_end], flags, where)
    mode = parts[15] >> 16 if system == _UNIX else 0
    if _UNKNOWN_SIZE in (packed, size, parts[16]):
        raise _damaged(where, f"{name!r} is a zip64 entry")
    if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
        raise _damaged(where, f"{name!r} is encrypted or packed by other means than deflate")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise path_error("E_PATH", f"{name!r} is a link or a special file", "", name)
    entry = _Entry(name, flags, method, crc, packed, size, mode, parts[16])
    if entry.is_folder and size:
        raise _damaged(where, f"{name!r} is a folder with content")
    return entry, name_end + extra_length + comment_length


def _name(raw: bytes, flags: int, where: str) -> str:
    try:
        return raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError as error:
        raise _damaged(where, f"the name {raw!r} is neither ASCII nor UTF-8") from error


def _check_limits(entries: list[_Entry], where: str) -> None:
    for entry in entries:
        if entry.size > max(_RATIO_FROM_BYTES, MAX_RATIO * entry.packed):
            raise limit_error(f"{entry.name!r} is packed more than {MAX_RATIO} to 1", entry.name)
    total = sum(entry.size for entry in entries)
    if total > MAX_TOTAL_BYTES:
        raise limit_error(f"{where} holds {total} bytes, {MAX_TOTAL_BYTES} are allowed", where)
    if total > max(_RATIO_FROM_BYTES, MAX_RATIO * sum(entry.packed for entry in entries)):
        raise limit_error(f"{where} is packed more than {MAX_RATIO} to 1", where)


def _check_headers(
    data: bytes, entries: list[_Entry], directory_at: int, where: str
) -> dict[str, int]:
    """Where each file's packed bytes start; their own headers must tell what the directory does."""
    starts: dict[str, int] = {}
    reached = 0
    for entry in sorted(entries, key=lambda one: one.at):
        start = _start(data, entry, where)
        if entry.at < reached or start + entry.packed > directory_at:
            raise _damaged(where, f"{entry.name!r} overlaps with what is beside it")
        reached = start + entry.packed
        starts[entry.name] = start
    return starts


def _start(data: bytes, entry: _Entry, where: str) -> int:
    fixed = data[entry.at : entry.at + _LOCAL.size]
    if len(fixed) < _LOCAL.size or fixed[:4] != _ZIP:
        raise _damaged(where, f"{entry.name!r} has no header")
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack(fixed)
    name_end = entry.at + _LOCAL.size + name_length
    start = name_end + extra_length
    name = _name(data[entry.at + _LOCAL.size : name_end], flags, where)
    if name != entry.name or method != entry.method:
        raise _damaged(where, f"{entry.name!r} is another file in its own header")
    if packed == size == _UNKNOWN_SIZE:  # numpy.savez writes these sizes at length
        size, packed = _long_sizes(data[name_end:start])
    told = (crc, packed, size)
    unknown = bool(flags & _STREAMED) and told == (0, 0, 0)
    if not unknown and told != (entry.crc, entry.packed, entry.size):
        raise _damaged(where, f"{entry.name!r} has other sizes in its own header")
    return start


def _long_sizes(extra: bytes) -> tuple[int, int]:
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == _ZIP64_EXTRA and length >= 16 and len(extra) >= 20:
            size, packed = struct.unpack("<QQ", extra[4:20])
            return size, packed
        extra = extra[4 + length :]
    return -1, -1


def _content(data: bytes, entry: _Entry, start: int, where: str) -> bytes:
    content = data[start : start + entry.packed]
    if entry.method == _DEFLATED:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = unpacker.decompress(content, entry.size + 1)
        except zlib.error as error:
            raise _damaged(where, f"{entry.name!r} cannot be unpacked: {error}") from error
        if not unpacker.eof or unpacker.unused_data:
            raise _damaged(where, f"{entry.name!r} has another length than it says")
    if len(content) != entry.size or zlib.crc32(content) != entry.crc:
        raise _damaged(where, f"{entry.name!r} has other bytes than it says")
    if content.startswith(_ZIP) and not entry.name.endswith(".npz"):
        raise limit_error(f"{entry.name!r} is a zip inside {where}", entry.name)
    return content


def _damaged(where: str, reason: str) -> BundleError:
    return BundleError(
        "E_ARCHIVE",
        f"{where} is not a sound zip: {reason}.",
        mend="Copy or make it again.",
        path=where.strip("'"),
    )
