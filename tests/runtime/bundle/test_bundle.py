"""Opening bundles: what is whole opens, anything else is refused by its code before parsing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepress.runtime import Bundle, BundleError, InputError, Preprocessing, TensorSpec
from edgepress.runtime.bundle.bundle_writer import manifest_files, seal, write_files, write_zip
from edgepress.runtime.bundle.manifest import Golden, Manifest, Tolerance, Variant, parse_manifest
from edgepress.runtime.bundle.npz import write_npz
from edgepress.runtime.bundle.zip_reader import read_zip

Change = Callable[[dict[str, Any]], object]

FILES = {
    "model.onnx": b"\x08\x0anot parsed here",
    "labels.txt": b"cat\ndog\n",
    "golden/inputs.npz": write_npz({"input": np.ones((1, 3, 8, 8), np.float32)}),
    "golden/outputs.npz": write_npz({"logits": np.ones((1, 2), np.float32)}),
}


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "inputs": (TensorSpec("input", "float32", ("N", 3, 8, 8)),),
        "outputs": (TensorSpec("logits", "float32", ("N", 2)),),
        "task": "classification",
        "variants": (Variant("float32", "model.onnx", "onnxruntime", "onnxruntime", "float32"),),
        "golden": Golden(
            "golden/inputs.npz", "golden/outputs.npz", True, {"logits": Tolerance(1e-3, 0.999)}
        ),
        "preprocessing": Preprocessing(center_crop=8),
        "labels": "labels.txt",
    }
    return Manifest(**{**values, **changes})


def sealed() -> dict[str, bytes]:
    return seal(manifest(), FILES)


def resealed(text: str) -> dict[str, bytes]:
    """A bundle whose manifest is ``text``, its digest right."""
    written = text.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(written).hexdigest().encode() + b"\n"
    return {**FILES, "manifest.json": written, "manifest.sha256": digest}


def manifest_text(change: Change) -> str:
    values = json.loads(sealed()["manifest.json"])
    change(values)
    return json.dumps(values)


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return packed.getvalue()


def refusal(path: Path) -> BundleError:
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert sorted(path.parent.rglob("*")) == before, "opening wrote something"
    assert caught.value.exit_status == 5
    return caught.value


def zip_refusal(data: bytes, tmp_path: Path) -> BundleError:
    path = tmp_path / "bundle.zip"
    path.write_bytes(data)
    return refusal(path)


# ---------------------------------------------------------------- what is whole opens


@pytest.mark.parametrize("form", ["folder", "zip", "zip by another tool"])
def test_opens_folder_and_zip(form: str, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    if form == "folder":
        write_files(sealed(), path)
    elif form == "zip":
        write_zip(sealed(), path)
    else:
        path.write_bytes(zipped({"golden/": b"", **sealed()}))
    bundle = Bundle.open(path)
    assert bundle.labels == ("cat", "dog")
    assert bundle.model() == FILES["model.onnx"]
    assert bundle.inputs[0].shape == ("N", 3, 8, 8)
    assert bundle.preprocessing == Preprocessing(center_crop=(8, 8))
    assert bundle.size_bytes == sum(map(len, sealed().values()))
    inputs, outputs = bundle.golden()
    assert inputs["input"].shape == (1, 3, 8, 8)
    assert outputs["logits"].tolist() == [[1.0, 1.0]]


def test_manifest_survives_a_round_trip_and_is_canonical() -> None:
    told = manifest(
        recipe={"name": "int8", "steps": [1, 2.5]},
        scores={"top1": np.float64(93.5), "count": np.int64(7)},
        notes=("declined: slower",),
        declined=True,
        extra={"future": {"kept": True}},
    )
    files = seal(told, FILES)
    parsed = parse_manifest(files["manifest.json"])
    assert parsed.to_json() == files["manifest.json"]
    assert parsed.extra == {"future": {"kept": True}}
    assert parsed.scores == {"top1": 93.5, "count": 7}
    assert parsed.files == manifest_files(FILES)
    assert json.loads(files["manifest.json"])["format"] == "edgepress-bundle"


def test_unknown_variant_is_named(tmp_path: Path) -> None:
    bundle = Bundle.open(unpack(sealed(), tmp_path / "b"))
    with pytest.raises(InputError) as caught:
        bundle.variant("int4")
    assert caught.value.code == "E_VARIANT"
    assert "float32" in caught.value.mend


@pytest.mark.parametrize("path", ["missing", "with\0nul"])
def test_missing_path_is_an_input_error(path: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Bundle.open(tmp_path / path)
    assert caught.value.code == "E_FILE"
    assert caught.value.exit_status == 2


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    assert refusal(tmp_path / "model.onnx").code == "E_ARCHIVE"
    (tmp_path / "folder").mkdir()
    assert refusal(tmp_path / "folder").code == "E_MISSING"


# ---------------------------------------------------------------- row 1: a changed byte


@pytest.mark.parametrize("path", sorted(sealed()))
def test_a_changed_byte_in_any_file_is_found(path: str, tmp_path: Path) -> None:
    files = sealed()
    middle = len(files[path]) // 2
    content = bytearray(files[path])
    content[middle] ^= 1
    files[path] = bytes(content)
    error = refusal(unpack(files, tmp_path / "b"))
    named = {"manifest.sha256", "manifest.json"} if path.startswith("manifest.") else {path}
    assert error.code == "E_HASH"
    assert error.path in named


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: b""])
def test_another_length_is_found(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    files = sealed()
    files["model.onnx"] = change(files["model.onnx"])
    error = refusal(unpack(files, tmp_path / "b"))
    assert (error.code, error.path) == ("E_HASH", "model.onnx")


def test_a_changed_manifest_is_not_parsed(tmp_path: Path) -> None:
    files = {**sealed(), "manifest.json": b"\xff not json"}
    assert refusal(unpack(files, tmp_path / "b")).code == "E_HASH"


@pytest.mark.parametrize("digest", [b"", b"0" * 63, b"A" * 64 + b"\n", b"0" * 64 + b"\n\n"])
def test_a_broken_digest_is_refused(digest: bytes, tmp_path: Path) -> None:
    files = {**sealed(), "manifest.sha256": digest}
    error = refusal(unpack(files, tmp_path / "b"))
    assert (error.code, error.path) == ("E_HASH", "manifest.sha256")


# ---------------------------------------------------------------- row 2: damaged zips


def test_every_truncation_of_a_zip_is_refused(tmp_path: Path) -> None:
    data = zipped(sealed())
    lengths = range(4, len(data), max(1, len(data) // 97))
    assert len(lengths) > 90
    for length in lengths:
        assert zip_refusal(data[:length], tmp_path).code == "E_ARCHIVE", length


def test_every_changed_byte_of_a_zip_is_harmless(tmp_path: Path) -> None:
    """Refused by a code, or in a field that nothing depends on, such as a date."""
    data = bytearray(zipped(sealed(), zipfile.ZIP_STORED))
    path = tmp_path / "bundle.zip"
    refused = 0
    for index in range(0, len(data), 13):
        data[index] ^= 0x41
        path.write_bytes(data)
        data[index] ^= 0x41
        try:
            opened = Bundle.open(path)
        except BundleError:
            refused += 1
        else:
            assert opened.files == sealed(), index
    assert refused > 100


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"x",
        lambda data: b"x" + data,
        lambda data: b"PK\x03\x04" + data,
        lambda data: data[: data.rfind(b"PK\x01\x02")] + data[-22:],
        lambda data: data + data,
        lambda data: data[:-2] + b"\x05\x00hello",
        lambda data: data[:-12] + b"\xff" * 8 + data[-4:],
    ],
    ids=["behind", "before", "header before", "no directory", "twice", "comment", "zip64"],
)
def test_ambiguous_zips_are_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    assert zip_refusal(change(zipped(sealed())), tmp_path).code == "E_ARCHIVE"


def test_lying_headers_are_refused(tmp_path: Path) -> None:
    data = zipped({"model.onnx": b"a" * 100}, zipfile.ZIP_STORED)
    for old, new in (
        (b"model.onnx", b"model.onny"),  # its own header names another file
        (struct.pack("<LL", 100, 100), struct.pack("<LL", 100, 101)),
        (struct.pack("<LL", 100, 100), struct.pack("<LL", 2**32 - 1, 2**32 - 1)),
    ):
        assert zip_refusal(data.replace(old, new, 1), tmp_path).code == "E_ARCHIVE"


def test_overlapping_entries_are_refused() -> None:
    data = zipped({"a": b"x" * 50, "b": b"y" * 50}, zipfile.ZIP_STORED)
    size = struct.pack("<LL", 50, 50)
    swallowed = struct.pack("<LL", 131, 131)  # a's bytes, b's header of 31, b's bytes
    for at in (data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")):
        where = data.index(size, at)
        data = data[:where] + swallowed + data[where + 8 :]
    with pytest.raises(BundleError, match="overlaps") as caught:
        read_zip(data, "a zip")
    assert caught.value.code == "E_ARCHIVE"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packings_are_refused(method: int, tmp_path: Path) -> None:
    assert zip_refusal(zipped(sealed(), method), tmp_path).code == "E_ARCHIVE"


# ---------------------------------------------------------------- rows 3 and 5: names

BAD_PATHS = [
    "../evil", "a/../../evil", "/etc/passwd", "C:/evil", "C:evil", "a\\b", "a\0b", "a/", "a//b",
    "./a", "a.", "a ", " a", "a./b", "con", "NUL.txt", "a/COM1", "lpt9.x", "a\nb", "a:b", "a*",
    "a?", "a" * 241, "",
]  # fmt: skip


@pytest.mark.parametrize("path", [path for path in BAD_PATHS if path not in ("a/", "")])
def test_bad_paths_in_a_zip_are_refused(path: str, tmp_path: Path) -> None:
    raw = path.encode("utf-8")
    entry = zipfile.ZipInfo("x" * len(path))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(entry, b"x")
    data = packed.getvalue().replace(b"x" * len(raw), raw)
    assert zip_refusal(data, tmp_path).code == "E_PATH"


@pytest.mark.parametrize("path", BAD_PATHS)
def test_bad_paths_in_the_manifest_are_refused(path: str, tmp_path: Path) -> None:
    text = manifest_text(lambda m: m["files"][0].update(path=path))
    error = refusal(unpack(resealed(text), tmp_path / "b"))
    assert error.code == ("E_PATH" if path else "E_MANIFEST")


@pytest.mark.parametrize(
    "names", [("a", "A"), ("é", "e\u0301"), ("straße", "STRASSE"), ("x/a", "X/a"), ("a", "a")]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_are_one_file_somewhere_are_refused(
    names: tuple[str, str], tmp_path: Path
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, content in sealed().items():
            archive.writestr(path, content)
        for name in names:
            archive.writestr(name, b"x")
    assert zip_refusal(packed.getvalue(), tmp_path).code == "E_DUPLICATE"


def test_a_file_that_the_manifest_lists_twice_is_refused(tmp_path: Path) -> None:
    text = manifest_text(lambda m: m["files"].append(m["files"][0]))
    assert refusal(unpack(resealed(text), tmp_path / "b")).code == "E_DUPLICATE"


# ---------------------------------------------------------------- row 4: links and special files


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("kind", ["symlink", "broken symlink", "hard link", "fifo", "folder link"])
def test_links_and_special_files_in_a_folder_are_refused(kind: str, tmp_path: Path) -> None:
    bundle = unpack(sealed(), tmp_path / "b")
    outside = tmp_path / "outside"
    outside.write_bytes(FILES["model.onnx"])
    model = bundle / "model.onnx"
    model.unlink()
    if kind == "symlink":
        model.symlink_to(outside)
    elif kind == "broken symlink":
        model.symlink_to(tmp_path / "nowhere")
    elif kind == "hard link":
        os.link(outside, model)
    elif kind == "fifo":
        os.mkfifo(model)
    else:
        model.write_bytes(FILES["model.onnx"])
        (bundle / "golden").rename(tmp_path / "golden")
        (bundle / "golden").symlink_to(tmp_path / "golden")
    error = refusal(bundle)
    assert error.code == "E_PATH"
    assert error.path in ("model.onnx", "golden")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_linked_root_is_refused(tmp_path: Path) -> None:
    unpack(sealed(), tmp_path / "b")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    assert refusal(tmp_path / "link").code == "E_PATH"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_special_files_in_a_zip_are_refused(kind: int, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, content in sealed().items():
            entry = zipfile.ZipInfo(path)
            entry.create_system = 3
            entry.external_attr = ((kind if path == "model.onnx" else stat.S_IFREG) | 0o644) << 16
            archive.writestr(entry, content)
    assert zip_refusal(packed.getvalue(), tmp_path).code == "E_PATH"


# ---------------------------------------------------------------- row 6: bombs


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    error = zip_refusal(zipped({**sealed(), "zeros": bytes(30_000_000)}), tmp_path)
    assert (error.code, error.path) == ("E_LIMIT", "zeros")


def test_many_small_bombs_are_refused(tmp_path: Path) -> None:
    bombs = {f"zeros{index}": bytes(1_000_000) for index in range(20)}
    assert zip_refusal(zipped({**sealed(), **bombs}), tmp_path).code == "E_LIMIT"


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    content = bytes(30_000_000)
    data = zipped({"zeros": content})
    lie = data.replace(struct.pack("<L", len(content)), struct.pack("<L", 1000))
    assert zip_refusal(lie, tmp_path).code == "E_ARCHIVE"


def test_a_total_over_the_limit_is_refused(tmp_path: Path) -> None:
    data = zipped({"a": b"x" * 100, "b": b"y" * 100}, zipfile.ZIP_STORED)
    huge = data.replace(struct.pack("<LL", 100, 100), struct.pack("<LL", 2**31 + 5, 2**31 + 5))
    assert zip_refusal(huge, tmp_path).code == "E_LIMIT"


def test_a_zip_inside_a_zip_is_refused(tmp_path: Path) -> None:
    files = {**sealed(), "more.bin": zipped({"a": b"b"})}
    error = zip_refusal(zipped(files, zipfile.ZIP_STORED), tmp_path)
    assert (error.code, error.path) == ("E_LIMIT", "more.bin")


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    files = {f"f{index}": b"" for index in range(10_001)}
    assert zip_refusal(zipped(files, zipfile.ZIP_STORED), tmp_path).code == "E_LIMIT"


# ---------------------------------------------------------------- row 7: extra and missing files


@pytest.mark.parametrize("extra", ["notes.txt", "golden/more.npz", ".hidden"])
def test_a_file_beside_those_listed_is_refused(extra: str, tmp_path: Path) -> None:
    error = refusal(unpack({**sealed(), extra: b"x"}, tmp_path / "b"))
    assert (error.code, error.path) == ("E_EXTRA", extra)


@pytest.mark.parametrize("missing", sorted(sealed()))
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    files = sealed()
    del files[missing]
    error = refusal(unpack(files, tmp_path / "b"))
    assert (error.code, error.path) == ("E_MISSING", missing)


@pytest.mark.parametrize("path", ["labels.txt", "model.onnx", "golden/inputs.npz"])
def test_what_the_manifest_uses_must_be_listed(path: str, tmp_path: Path) -> None:
    text = manifest_text(
        lambda m: m.update(files=[one for one in m["files"] if one["path"] != path])
    )
    error = refusal(unpack(resealed(text), tmp_path / "b"))
    assert (error.code, error.path) == ("E_MISSING", path)


# ---------------------------------------------------------------- row 8: the manifest


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "null", "\ufeff{}", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": Infinity}',
        '{"a": 1e999}', '{"a": ' + "9" * 30 + "}", '{"a": ' + "[" * 50 + "]" * 50 + "}",
        "[" * 100_000, '{"a": "\\ud800"}', '{"a": "\ud800"}', "{'a': 1}", '{"a": 1} x', "{}",
    ],
    ids=lambda text: repr(text)[:24],
)  # fmt: skip
def test_lenient_json_is_refused(text: str, tmp_path: Path) -> None:
    assert refusal(unpack(resealed(text), tmp_path / "b")).code == "E_MANIFEST"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a POSIX system")
def test_a_bundle_is_opened_in_little_memory(tmp_path: Path) -> None:
    """And not only where the largest that is allowed would fit."""
    write_files(seal(manifest(), FILES), tmp_path / "b")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30,) * 2)\n"
        "from edgepress.runtime import Bundle\n"
        f"Bundle.open({str(tmp_path / 'b')!r})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env)
    assert found.returncode == 0, found.stderr.decode()[-400:]


def test_a_text_of_quotes_takes_no_time() -> None:
    """Half a million of them, and the text does not end: what is quadratic would take hours."""
    with pytest.raises(BundleError) as caught:
        parse_manifest(b'"' + b'\\"' * 500_000)
    assert caught.value.code == "E_MANIFEST"


def test_nesting_is_counted() -> None:
    for depth in (32, 33):
        with pytest.raises(BundleError) as caught:
            parse_manifest(b'{"a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}")
        assert ("nested 33 deep" in caught.value.message) is (depth == 33)


def test_brackets_in_texts_are_not_nesting() -> None:
    told = manifest(notes=('"[[[[' * 50 + "\\",))
    assert parse_manifest(seal(told, FILES)["manifest.json"]).notes == told.notes


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format="other"),
        lambda m: m.update(format_version=1.0),
        lambda m: m.update(format_version="one"),
        lambda m: m.update(inputs={}),
        lambda m: m.update(inputs=[]),
        lambda m: m.update(inputs=m["inputs"] * 2),
        lambda m: m.update(outputs=[1]),
        lambda m: m["inputs"][0].update(shape=[0]),
        lambda m: m["inputs"][0].update(shape=[True]),
        lambda m: m["inputs"][0].update(shape=[1.5]),
        lambda m: m["inputs"][0].update(dtype="object"),
        lambda m: m["inputs"][0].update(name=3),
        lambda m: m.update(task=None),
        lambda m: m.update(task=""),
        lambda m: m.update(variants=[]),
        lambda m: m["variants"][0].pop("engine"),
        lambda m: m["variants"][0].update(receipt=[]),
        lambda m: m.update(variants=m["variants"] * 2),
        lambda m: m["golden"].update(synthetic="yes"),
        lambda m: m["golden"].update(tolerance={}),
        lambda m: m["golden"]["tolerance"].update(other={"max_abs": 0, "cosine": 0}),
        lambda m: m["golden"]["tolerance"]["logits"].update(max_abs=-1),
        lambda m: m["golden"]["tolerance"]["logits"].update(cosine=2),
        lambda m: m["golden"]["tolerance"]["logits"].update(cosine="1"),
        lambda m: m["files"][0].update(size_bytes=-1),
        lambda m: m["files"][0].update(size_bytes=1.0),
        lambda m: m["files"][0].update(sha256="0"),
        lambda m: m["files"][0].update(sha256="G" * 64),
        lambda m: m.update(notes=[1]),
        lambda m: m.update(declined=0),
        lambda m: m.update(labels=1),
        lambda m: m.update(recipe=[]),
        lambda m: m.update(preprocessing={"colour": "RGB"}),
        lambda m: m.update(preprocessing={"std": [0.0]}),
        lambda m: m.pop("golden"),
        lambda m: m.pop("created_by"),
    ],
)
def test_wrong_fields_are_refused(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    assert refusal(unpack(resealed(manifest_text(change)), tmp_path / "b")).code == "E_MANIFEST"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format_version="2.0"),
        lambda m: m.update(format_version="0.9"),
        lambda m: m.update(requires=["encryption"]),
    ],
)
def test_newer_formats_are_refused(change: Change, tmp_path: Path) -> None:
    assert refusal(unpack(resealed(manifest_text(change)), tmp_path / "b")).code == "E_VERSION"


def test_a_newer_minor_version_with_unknown_fields_opens(tmp_path: Path) -> None:
    text = manifest_text(lambda m: m.update(format_version="1.7", colour_space="sRGB"))
    opened = Bundle.open(unpack(resealed(text), tmp_path / "b"))
    assert opened.manifest.extra == {"colour_space": "sRGB"}


@pytest.mark.parametrize("labels", [b"cat\ndog", b"\xff\n"])
def test_broken_labels_are_refused(labels: bytes, tmp_path: Path) -> None:
    error = refusal(unpack(seal(manifest(), {**FILES, "labels.txt": labels}), tmp_path / "b"))
    assert (error.code, error.path) == ("E_MANIFEST", "labels.txt")


@pytest.mark.parametrize("change", [{"variants": ()}, {"scores": {"top1": float("nan")}},
                                    {"recipe": {"seen": {1, 2}}}])  # fmt: skip
def test_seal_refuses_what_a_reader_would(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError) as caught:
        seal(manifest(**change), FILES)
    assert caught.value.code == "E_MANIFEST"


# ---------------------------------------------------------------- golden arrays


def test_golden_arrays_must_be_those_declared(tmp_path: Path) -> None:
    other = write_npz({"logits": np.ones((1, 2), np.float64)})
    files = seal(manifest(), {**FILES, "golden/outputs.npz": other})
    bundle = Bundle.open(unpack(files, tmp_path / "b"))
    with pytest.raises(BundleError) as caught:
        bundle.golden()
    assert (caught.value.code, caught.value.path) == ("E_MANIFEST", "golden/outputs.npz")
