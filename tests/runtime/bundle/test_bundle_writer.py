"""Writing bundles: whole or not at all, never over what is not ours, the same bytes each time."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgepress.runtime import Bundle, BundleError, InputError, TensorSpec
from edgepress.runtime.bundle.bundle_writer import seal, write_files, write_zip
from edgepress.runtime.bundle.manifest import Golden, Manifest, Tolerance, Variant
from edgepress.runtime.bundle.npz import write_npz
from edgepress.runtime.bundle.zip_reader import read_zip

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


def bundle_files(model: bytes = b"a model") -> dict[str, bytes]:
    spec = TensorSpec("x", "float32", ("N",))
    manifest = Manifest(
        (spec,),
        (spec,),
        "agreement",
        (Variant("only", "model.onnx", "onnxruntime", "onnxruntime", "float32"),),
        Golden("golden/in.npz", "golden/out.npz", True, {"x": Tolerance(0, 1)}),
    )
    array = write_npz({"x": np.ones(2, np.float32)})
    return seal(manifest, {"model.onnx": model, "golden/in.npz": array, "golden/out.npz": array})


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def in_child(
    code: str, folder: Path, *, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh process, with ``folder`` in ``sys.argv[1]``."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def refused(code: str, out: Path, *, force: bool = False, as_zip: bool = False) -> InputError:
    before = tree(out.parent) if out.parent.is_dir() else None
    with pytest.raises(InputError) as caught:
        (write_zip if as_zip else write_files)(bundle_files(), out, force=force)
    assert caught.value.code == code
    assert (tree(out.parent) if out.parent.is_dir() else None) == before
    return caught.value


@pytest.mark.parametrize("as_zip", [False, True])
def test_writes_and_replaces(as_zip: bool, tmp_path: Path) -> None:
    write = write_zip if as_zip else write_files
    out = tmp_path / "out.zip"
    write(bundle_files(b"old"), out)
    assert Bundle.open(out).model() == b"old"
    refused("E_EXISTS", out, as_zip=as_zip)
    write(bundle_files(b"new"), out, force=True)
    assert Bundle.open(out).model() == b"new"
    assert list(tmp_path.iterdir()) == [out], "something was left beside it"


@posix
def test_a_folder_has_the_usual_rights(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        write_files(bundle_files(), tmp_path / "out")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "out" / "model.onnx").stat().st_mode) == 0o644


def test_the_same_files_give_the_same_zip(tmp_path: Path) -> None:
    files = bundle_files()
    write_zip(files, tmp_path / "a.zip")
    write_zip(dict(reversed(files.items())), tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_what_packs_too_well_is_stored_so_that_it_opens(tmp_path: Path) -> None:
    files = bundle_files(bytes(5_000_000))
    write_zip(files, tmp_path / "a.zip")
    assert read_zip((tmp_path / "a.zip").read_bytes(), "a.zip") == files


@pytest.mark.parametrize("path", ["../evil", "/evil", "con", "A.TXT"])
@pytest.mark.parametrize("write", [write_files, write_zip])
def test_paths_that_no_bundle_may_have_are_not_written(
    write: Callable[..., None], path: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError) as caught:
        write({"a.txt": b"", path: b"x"}, tmp_path / "out")
    assert caught.value.code in ("E_PATH", "E_DUPLICATE")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_missing_parent_is_named(as_zip: bool, tmp_path: Path) -> None:
    error = refused("E_EXISTS", tmp_path / "none" / "out", as_zip=as_zip)
    assert "none" in error.message


@pytest.mark.parametrize(
    "there", ["file", "folder of somebody", "bundle with a note", "link", "folder with a link"]
)
def test_force_replaces_nothing_but_bundles(there: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "folder of somebody":
        out.mkdir()
        (out / "manifest.json").write_text("{}")
    elif there == "bundle with a note":
        write_files(bundle_files(), out)
        (out / "note.txt").write_text("mine")
    elif there == "link":
        write_files(bundle_files(), tmp_path / "real")
        out.symlink_to(tmp_path / "real")
    else:
        out.mkdir()
        (out / "link").symlink_to(tmp_path)
    refused("E_EXISTS", out, force=True)


@pytest.mark.parametrize("there", ["file", "folder"])
def test_force_replaces_no_file_that_is_no_zip(there: str, tmp_path: Path) -> None:
    out = tmp_path / "out.zip"
    if there == "file":
        out.write_text("mine")
    else:
        out.mkdir()
    refused("E_EXISTS", out, force=True, as_zip=True)


def test_force_replaces_an_empty_folder_and_a_damaged_bundle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_files(bundle_files(), out, force=True)
    (out / "model.onnx").write_bytes(b"damaged")
    write_files(bundle_files(), out, force=True)
    assert Bundle.open(out).model() == b"a model"


CHILD = """
    import os, resource, signal, sys
    from pathlib import Path
    from edgepress.runtime import InputError
    from edgepress.runtime.bundle.bundle_writer import write_files, write_zip

    folder = Path(sys.argv[1])
    AS_ZIP = {as_zip}
    out = folder / "out.zip"
    files = {{name: bytes([65]) * 3000 for name in ("a", "b", "c/d", "manifest.json")}}

    class Interrupting(dict):
        def __getitem__(self, key):
            if key == "c/d":
                os.kill(os.getpid(), SIGNAL)
            return super().__getitem__(key)

    write = write_zip if AS_ZIP else write_files
"""


@posix
@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_the_old_state(as_zip: bool, existing: bool, tmp_path: Path) -> None:
    out = tmp_path / "out.zip"
    if existing:
        (write_zip if as_zip else write_files)(bundle_files(b"old"), out)
    before = tree(tmp_path)
    done = in_child(
        CHILD.format(as_zip=as_zip)
        + """
    files["c/d"] = os.urandom(100_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        write(files, out, force=True)
    except InputError as error:
        assert error.__cause__ is not None
        sys.exit(error.code)
        """,
        tmp_path,
    )
    assert done.stderr.strip() == "E_WRITE"
    assert tree(tmp_path) == before
    assert list(tmp_path.iterdir()) == ([out] if existing else [])


@posix
@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_an_interruption_leaves_the_old_state(as_zip: bool, name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.zip"
    (write_zip if as_zip else write_files)(bundle_files(b"old"), out)
    code = CHILD.format(as_zip=as_zip).replace("SIGNAL", f"signal.{name}")
    done = in_child(code + "\n    write(Interrupting(files), out, force=True)", tmp_path)
    assert done.returncode == -getattr(signal, name), done.stderr
    assert Bundle.open(out).model() == b"old"
    left = [path.name for path in tmp_path.iterdir() if path != out]
    if name == "SIGINT":
        assert left == []
    else:  # nothing can tidy up after a kill; what is left has a hidden name of its own
        assert all(one.startswith(".out.zip.") and one.endswith(".part") for one in left)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody may write in")
@pytest.mark.parametrize("write", [write_files, write_zip])
def test_where_nobody_may_write_is_an_input_error(write: Callable[..., None]) -> None:
    with pytest.raises(InputError) as caught:
        write(bundle_files(), Path("/proc/edgepress-test.zip"))
    assert caught.value.code == "E_WRITE"
