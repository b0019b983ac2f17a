"""Named arrays as ``.npz`` bytes: the same bytes for the same arrays, read back without trust."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
from numpy.lib import format as npy

from ..errors import BundleError
from ..tensors import Array, Arrays
from .zip_reader import read_zip

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_TOO_MUCH = (RecursionError, MemoryError, OverflowError)  # of a header that says no plain shape
_DATE = (1980, 1, 1, 0, 0, 0)


def write_npz(arrays: Mapping[str, Array]) -> bytes:
    """Pack arrays; equal arrays give equal bytes, whenever and wherever.

    Args:
        arrays: Numbers or booleans by name, of any shape.

    Raises:
        ValueError: For an array of objects.
    """
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            npy.write_array(
                content,
                np.ascontiguousarray(arrays[name]).reshape(arrays[name].shape),
                version=(1, 0),
                allow_pickle=False,
            )
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _DATE), content.getvalue())
    return packed.getvalue()


def read_npz(data: bytes, where: str) -> Arrays:
    """Unpack arrays; objects, hence pickles, are refused, and sizes checked before memory is taken.

    Args:
        data: What `write_npz` or ``numpy.savez`` wrote.
        where: What it is, for messages.

    Raises:
        BundleError: ``E_ARCHIVE``, ``E_LIMIT``, ``E_PATH`` or ``E_DUPLICATE``.
    """
    return {
        name.removesuffix(".npy"): _array(content, f"'{name}' in {where}")
        for name, content in read_zip(data, where, portable=False).items()
    }


def _array(content: bytes, where: str) -> Array:
    stream = io.BytesIO(content)
    try:
        shape, fortran, dtype = _HEADERS[npy.read_magic(stream)](stream)
    except (ValueError, KeyError, EOFError, SyntaxError, TypeError, *_TOO_MUCH) as error:
        raise _damaged(where, f"no .npy header: {error}") from error
    if dtype.hasobject or dtype.kind not in "fiub":
        raise _damaged(where, f"it holds {dtype}, where numbers or booleans were expected")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(content) - stream.tell():
        raise _damaged(where, f"its header says {dtype} {shape}, its size does not")
    flat = np.frombuffer(content, dtype, count=count, offset=stream.tell())
    try:
        return flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, OverflowError) as error:  # more axes, or longer ones, than numpy has
        raise _damaged(where, f"its header says {dtype} {str(shape)[:60]}: {error}") from error


def _damaged(where: str, reason: str) -> BundleError:
    return BundleError(
        "E_ARCHIVE", f"{where} cannot be read: {reason}.", mend="Copy or make it again.", path=where
    )
