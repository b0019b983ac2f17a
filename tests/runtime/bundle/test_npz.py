"""Arrays in ``.npz``: the same bytes each time, and nothing but numbers comes back."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import numpy as np
import pytest

from edgepress.runtime import BundleError
from edgepress.runtime.bundle.npz import read_npz, write_npz
from edgepress.runtime.bundle.zip_reader import read_zip


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return packed.getvalue()


def test_arrays_survive_and_are_the_same_bytes() -> None:
    arrays = {
        "/conv/out:0": np.float32(3.5).reshape(()),
        "X": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        "x": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float16),
    }
    packed = write_npz(arrays)
    assert packed == write_npz(dict(reversed(arrays.items())))
    for name, array in read_npz(packed, "test").items():
        assert array.dtype == arrays[name].dtype
        assert array.shape == arrays[name].shape
        np.testing.assert_array_equal(array, arrays[name])
    with np.load(io.BytesIO(packed)) as loaded:
        assert sorted(loaded.files) == sorted(arrays)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(save: Callable[..., None]) -> None:
    packed = io.BytesIO()
    save(packed, a=np.ones((3, 4)), b=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    read = read_npz(packed.getvalue(), "test")
    np.testing.assert_array_equal(read["b"], [[0, 1, 2], [3, 4, 5]])


def test_pickles_and_lying_headers_are_refused() -> None:
    packed = io.BytesIO()
    np.savez(packed, a=np.array([{}], dtype=object))
    sound = write_npz({"a": np.ones(4)})
    for data in (
        packed.getvalue(),
        zipped({"a.npy": b"no array"}),
        zipped({"a.npy": read_zip(sound, "t")["a.npy"].replace(b"(4,)", b"(5,)")}),
        zipped({"a.npy": read_zip(sound, "t")["a.npy"].replace(b"(4,)", b"(-4,)")[:-1]}),
        zipped({"a.npy": read_zip(sound, "t")["a.npy"] + b"more"}),
    ):
        with pytest.raises(BundleError) as caught:
            read_npz(data, "test")
        assert caught.value.code == "E_ARCHIVE"


@pytest.mark.parametrize(
    "shape",
    ["(0, 1" + "0" * 30 + ")", "(" + "1, " * 100 + ")", "(" + "+".join("1" * 4000) + ",)"],
    ids=["long", "deep", "a sum"],
)
def test_shapes_that_numpy_cannot_make_are_refused(shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    content = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header
    data = content + (bytes(4) if shape.startswith("(1, ") else b"")
    with pytest.raises(BundleError) as caught:
        read_npz(zipped({"a.npy": data}), "test")
    assert caught.value.code == "E_ARCHIVE"
