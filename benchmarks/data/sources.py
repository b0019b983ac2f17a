"""Where pictures lie before anyone preprocesses them: folders, ``.npz`` files, arrays in memory."""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import InputError

Labels: TypeAlias = NDArray[np.int64]

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""Endings (in any case) of the files that count as pictures in a folder."""

NPZ_LIMIT_BYTES = 16 * 2**30
"""The largest ``x`` that is read from an ``.npz``."""

_BROKEN_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What numpy and zipfile raise for a file that is no archive, cut short, encrypted or damaged."""

_DATA_FORMS = (
    "Data is a folder with one folder per class, a folder with labels.csv (file,class_index), "
    "a folder of pictures, or an .npz with x uint8 (N, H, W, C) and, if labelled, y integers (N,)"
)


@dataclass(frozen=True)
class FilePictures:
    """Pictures in files, decoded only when they are read.

    Attributes:
        where: What the user named.
        paths: One file a picture.
        labels: int64 ``(N,)``, or ``None``.
        class_names: The name of each class, where the data tells it.
    """

    where: str
    paths: tuple[Path, ...]
    labels: Labels | None
    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.paths)

    def raw(self, index: int) -> Path:
        """The file of one picture."""
        return self.paths[index]

    def name(self, index: int) -> str:
        """How messages call one picture."""
        return str(self.paths[index])


@dataclass(frozen=True)
class ArrayPictures:
    """Pictures in memory.

    Attributes:
        where: What the user named.
        x: uint8 ``(N, H, W, C)``.
        labels: int64 ``(N,)``, or ``None``.
        class_names: The name of each class, where the data tells it.
    """

    where: str
    x: NDArray[np.uint8]
    labels: Labels | None
    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.x)

    def raw(self, index: int) -> NDArray[np.uint8]:
        """One picture, uint8 ``(H, W, C)``."""
        return self.x[index]

    def name(self, index: int) -> str:
        """How messages call one picture."""
        return f"{self.where}, picture {index}"


def open_pictures(path: str | os.PathLike[str]) -> FilePictures | ArrayPictures:
    """Find the pictures at ``path``; nothing is decoded yet.

    Args:
        path: A folder or an ``.npz`` file.

    Raises:
        InputError: ``E_DATA`` where there is nothing usable; the message names the file or folder.
    """
    place = Path(path)
    try:
        if place.is_dir():
            return _open_folder(place)
        if not place.exists():
            raise data_error(f"there is no data at '{place}'.", path=place)
        if place.suffix.lower() == ".npz":
            return _open_npz(place)
    except OSError as error:
        raise data_error(
            f"cannot read '{place}': {error.strerror or error}.", "Check its permissions", place
        ) from error
    raise data_error(f"'{place}' is neither a folder nor an .npz file.", _DATA_FORMS, place)


def from_arrays(
    x: object, y: object = None, names: Sequence[str] | None = None, where: str = "arrays"
) -> ArrayPictures:
    """Pictures from arrays in memory.

    Args:
        x: uint8 ``(N, H, W, C)`` or ``(N, H, W)``.
        y: Class indices, integers ``(N,)``, none negative; ``None`` for unlabelled pictures.
        names: The name of each class.
        where: How messages call the data.

    Raises:
        InputError: ``E_DATA`` for another dtype, rank or length, empty data, or negative labels.
    """
    pictures = np.asarray(x)
    if pictures.dtype != np.uint8:
        raise data_error(
            f"{where}: x is {pictures.dtype}, expected uint8.",
            "Give the pictures as bytes 0..255; the preprocessing scales them",
            where,
        )
    if pictures.ndim == 3:
        pictures = pictures[..., None]
    if pictures.ndim != 4:
        raise data_error(
            f"{where}: x has shape {pictures.shape}, expected (N, H, W, C) or (N, H, W).", "", where
        )
    if pictures.size == 0:
        raise data_error(f"{where}: x is empty, shape {pictures.shape}.", "", where)
    labels = None if y is None else class_indices(np.asarray(y), len(pictures), where)
    class_names = None if names is None else tuple(str(name) for name in names)
    if labels is not None and class_names is not None and int(labels.max()) >= len(class_names):
        raise data_error(
            f"{where}: label {int(labels.max())} has no name, there are {len(class_names)} names.",
            "Give one name for each class, in the order of the class indices",
            where,
        )
    return ArrayPictures(where, pictures, labels, class_names)


def class_indices(labels: NDArray[Any], count: int, where: str) -> Labels:
    """Class indices as int64 ``(N,)``.

    Args:
        labels: Integers ``(N,)`` or ``(N, 1)``.
        count: How many pictures there are.
        where: How messages call the data.

    Raises:
        InputError: ``E_DATA`` for another dtype, shape or length, or a negative label.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if not np.issubdtype(labels.dtype, np.integer):
        raise data_error(
            f"{where}: labels are {labels.dtype}, expected integers.",
            "Give class indices from 0, one for each picture",
            where,
        )
    if labels.shape != (count,):
        raise data_error(
            f"{where}: {count} pictures, but labels of shape {labels.shape}.",
            "Give one label for each picture",
            where,
        )
    result = labels.astype(np.int64)
    if result.size and int(result.min()) < 0:
        raise data_error(
            f"{where}: label {int(result.min())} is negative, expected class indices from 0.",
            "Leave out the pictures without a class",
            where,
        )
    return result


def data_error(message: str, mend: str = "", path: str | Path | None = None) -> InputError:
    """The ``E_DATA`` error with that message."""
    return InputError("E_DATA", message, mend=mend, path=None if path is None else str(path))


def _open_folder(folder: Path) -> FilePictures:
    table = folder / "labels.csv"
    if table.is_file():
        return _open_table(folder, table)
    pictures = _pictures_in(folder)
    classes = sorted(
        (
            entry
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.name.startswith((".", "__"))
        ),
        key=lambda entry: entry.name,
    )
    if not pictures and not classes:
        raise data_error(f"there are no pictures in '{folder}'.", _DATA_FORMS, folder)
    if not pictures and [entry.name for entry in classes] == ["images"]:
        inside = _pictures_in(classes[0])
        if inside:
            return FilePictures(str(folder), tuple(inside), None, None)
    found = [_pictures_in(entry) for entry in classes]
    if pictures:
        if any(found):
            raise data_error(
                f"'{folder}' has pictures of its own and folders with pictures.",
                "Move the pictures into the class folders, or all of them into one folder",
                folder,
            )
        return FilePictures(str(folder), tuple(pictures), None, None)
    for entry, inside in zip(classes, found, strict=True):
        if not inside:
            raise data_error(
                f"the class folder '{entry}' has no pictures.",
                "Remove it, or name the folder that holds the class folders (one level, "
                f"pictures end in {', '.join(sorted(SUFFIXES))})",
                entry,
            )
    paths = tuple(path for inside in found for path in inside)
    counts = [len(inside) for inside in found]
    labels = np.repeat(np.arange(len(found), dtype=np.int64), counts)
    return FilePictures(str(folder), paths, labels, tuple(entry.name for entry in classes))


def _pictures_in(folder: Path) -> list[Path]:
    found = (
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )
    return sorted(found, key=lambda entry: entry.name)  # paths of Windows do not tell cases apart


def _open_table(folder: Path, table: Path) -> FilePictures:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise data_error(f"'{table}' is not a CSV file in UTF-8: {error}.", "", table) from error
    if not rows or [cell.strip() for cell in rows[0]] != ["file", "class_index"]:
        raise data_error(
            f"'{table}' begins with {rows[0] if rows else 'nothing'}.",
            "Its first line must be: file,class_index",
            table,
        )
    paths: list[Path] = []
    labels: list[int] = []
    seen: set[str] = set()
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        name, label = _table_row(table, number, row)
        if name in seen:
            raise data_error(f"'{table}', line {number}: '{name}' is listed twice.", "", table)
        seen.add(name)
        path = next((at for at in (folder / name, folder / "images" / name) if at.is_file()), None)
        if path is None:
            raise data_error(
                f"'{table}', line {number}: there is no file '{name}'.",
                f"Put it beside labels.csv or in '{folder / 'images'}'",
                folder / name,
            )
        paths.append(path)
        labels.append(label)
    if not paths:
        raise data_error(f"'{table}' lists no pictures.", "", table)
    return FilePictures(str(folder), tuple(paths), np.asarray(labels, dtype=np.int64), None)


def _table_row(table: Path, number: int, row: list[str]) -> tuple[str, int]:
    at = f"'{table}', line {number}"
    if len(row) != 2:
        raise data_error(f"{at}: {len(row)} columns, expected 2 (file,class_index).", "", table)
    name, text = row[0].strip(), row[1].strip()
    parts = PurePosixPath(name)
    if not name or "\0" in name or parts.is_absolute() or ".." in parts.parts:
        raise data_error(
            f"{at}: '{name}' is not a file name below the folder.",
            "Name files relative to labels.csv, without '..'",
            table,
        )
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise data_error(f"{at}: class index '{text}', expected an integer from 0.", "", table)
    return name, int(text)


def _open_npz(path: Path) -> ArrayPictures:
    try:
        if not zipfile.is_zipfile(path):
            raise data_error(f"'{path}' is not an .npz archive.", _DATA_FORMS, path)
        with np.load(path, allow_pickle=False) as archive:
            keys = list(archive.files)
            if "x" not in keys:
                raise data_error(
                    f"'{path}' has no array 'x', it has {keys or 'nothing'}.", _DATA_FORMS, path
                )
            _check_member(path)
            x = _member(archive, "x", path)
            y = _member(archive, "y", path) if "y" in keys else None
            names = _member(archive, "labels", path) if "labels" in keys else None
    except _BROKEN_ARCHIVE as error:
        raise data_error(f"'{path}' is not a readable .npz file: {error}.", "", path) from error
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise data_error(
            f"'{path}': labels is {names.dtype} {names.shape}, expected class names (text).",
            "Class indices belong in 'y', class names in 'labels'",
            path,
        )
    listed = None if names is None else cast("list[str]", names.tolist())
    return from_arrays(x, y, listed, str(path))


def _check_member(path: Path) -> None:
    """Refuse an ``x`` that would not fit, before anything is unpacked."""
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("x.npy").file_size
    if size > NPZ_LIMIT_BYTES:
        raise data_error(
            f"'{path}': x takes {size / 2**30:.0f} GiB, the limit is {NPZ_LIMIT_BYTES // 2**30}.",
            "Use a folder of pictures, which is read as it is needed",
            path,
        )


def _member(archive: Any, key: str, path: Path) -> NDArray[Any]:
    try:
        return cast("NDArray[Any]", archive[key])
    except ValueError as error:
        raise data_error(
            f"'{path}': the array '{key}' cannot be read: {error}.",
            "Save plain arrays, no Python objects: x uint8 (N, H, W, C), y integers (N,)",
            path,
        ) from error
    except MemoryError as error:
        raise data_error(
            f"'{path}': the array '{key}' does not fit in memory.", "", path
        ) from error
