"""The runtime's commands as a user calls them: output, JSON, exit statuses, nothing half-made."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgepress.__main__ import main
from edgepress.runtime import Bundle, Prediction, Preprocessing, Session, open_engine
from edgepress.runtime.bundle.bundle_writer import seal, write_files
from edgepress.runtime.bundle.manifest import Golden, Manifest, Tolerance, Variant
from edgepress.runtime.bundle.npz import write_npz


@pytest.fixture
def folder(tmp_path: Path, tiny_classifier: Callable[..., bytes]) -> Path:
    """Holds ``bundle``, and the pictures ``a.png`` and ``b.png``."""
    model = tiny_classifier()
    feeds = {"input": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype("float32")}
    with open_engine("onnxruntime")(model) as engine:
        golden = engine.run(feeds)
    manifest = Manifest(
        engine.inputs,
        engine.outputs,
        "classification",
        (Variant("float32", "model.onnx", "onnxruntime", "onnxruntime", "float32"),),
        Golden("in.npz", "out.npz", True, {"logits": Tolerance(1e-3, 0.999)}),
        preprocessing=Preprocessing(center_crop=8),
        labels="labels.txt",
    )
    files = {
        "model.onnx": model,
        "in.npz": write_npz(feeds),
        "out.npz": write_npz(golden),
        "labels.txt": "Katze\nVögel\n猫\nfish\n".encode(),
    }
    write_files(seal(manifest, files), tmp_path / "bundle")
    for name in ("a", "b"):
        noise = np.random.default_rng(ord(name)).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    return tmp_path


@dataclass(frozen=True)
class Done:
    """What a command line left: exit status, stdout, stderr."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def edgepress(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """Runs the command line in ``folder``."""
    monkeypatch.chdir(folder)

    def run(*words: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(words)
        status = ended.value.code
        return Done(status if isinstance(status, int) else 1, *capsys.readouterr())

    return run


def told(done: Done, status: int = 0) -> Any:
    """The one JSON object on stdout."""
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def test_predict_for_people_and_for_programs(edgepress: Run) -> None:
    done = edgepress("predict", "bundle", "a.png", "b.png", "--top", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [lines[0], lines[3]] == ["a.png", "b.png"]
    assert len(lines) == 6
    found = told(edgepress("predict", "bundle", "a.png", "b.png", "--json"))
    assert [one["picture"] for one in found["predictions"]] == ["a.png", "b.png"]
    scores = [one["score"] for one in found["predictions"][0]["candidates"]]
    assert len(scores) == 4
    assert sum(scores) == pytest.approx(1)
    assert found["predictions"][0]["candidates"][0]["label"] in ("Katze", "Vögel", "猫", "fish")
    assert found["engine"]["engine"] == "onnxruntime"


def test_predict_without_classes_shows_outputs(folder: Path, edgepress: Run) -> None:
    opened = Bundle.open(folder / "bundle")
    manifest = dataclasses.replace(opened.manifest, task="agreement")
    files = {path: opened.files[path] for path in opened.files if "manifest" not in path}
    write_files(seal(manifest, files), folder / "plain")
    done = edgepress("predict", "plain", "a.png")
    assert "logits: float32 (1, 4)" in done.stdout
    (found,) = told(edgepress("predict", "plain", "a.png", "--json"))["predictions"]
    assert np.shape(found["outputs"]["logits"]["values"]) == (1, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes there")
def test_names_that_the_terminal_cannot_show_are_shown_escaped(folder: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    (folder / "a.png").rename(folder / odd)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    env["PYTHONIOENCODING"] = "latin-1:strict"
    for words in ((), ("--json",)):
        done = subprocess.run(
            [sys.executable, "-m", "edgepress", "predict", "bundle", odd, *words],
            cwd=folder,
            capture_output=True,
            env=env,
        )
        assert done.returncode == 0, done.stderr
        assert b"\\udce9.png" in done.stdout
        assert b"\\u732b" in done.stdout, "a label"
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["predictions"][0]["picture"] == odd


def test_an_output_without_rows_is_shown(edgepress: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that found nothing."""
    none = Prediction({"boxes": np.zeros((0, 6), np.float32)}, "agreement", None)
    monkeypatch.setattr(Session, "predict_many", lambda *_: iter([none]))
    assert "boxes: float32 (0, 6), empty" in edgepress("predict", "bundle", "a.png").stdout
    shown = told(edgepress("predict", "bundle", "a.png", "--json"))
    assert shown["predictions"][0]["outputs"]["boxes"]["min"] is None


def test_verify_whole_and_damaged(folder: Path, edgepress: Run) -> None:
    done = edgepress("verify", "bundle")
    assert done.returncode == 0
    assert "not against malice" in done.stdout
    found = told(edgepress("verify", "bundle", "--json"))
    assert found["ok"] is True
    assert found["variants"][0]["selftest"][0]["output"] == "logits"
    (folder / "bundle" / "model.onnx").write_bytes(b"damaged")
    done = edgepress("verify", "bundle")
    assert done.returncode == 5
    assert done.stdout == ""
    assert "[E_HASH]" in done.stderr
    assert "model.onnx" in done.stderr
    assert "Traceback" not in done.stderr
    error = told(edgepress("verify", "bundle", "--json"), 5)["error"]
    assert (error["code"], error["path"]) == ("E_HASH", "model.onnx")


def test_pack_makes_a_zip_that_every_command_reads(folder: Path, edgepress: Run) -> None:
    found = told(edgepress("pack", "bundle", "--out", "b.zip", "--json"))
    assert found["size_bytes"] == (folder / "b.zip").stat().st_size
    assert Bundle.open(folder / "b.zip").files == Bundle.open(folder / "bundle").files
    assert told(edgepress("verify", "b.zip", "--json"))["ok"] is True
    first = (folder / "b.zip").read_bytes()
    error = told(edgepress("pack", "bundle", "--out", "b.zip", "--json"), 2)["error"]
    assert error["code"] == "E_EXISTS"
    assert told(edgepress("pack", "b.zip", "--out", "b.zip", "--force", "--json"))["out"] == "b.zip"
    assert (folder / "b.zip").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("predict", "none", "a.png"), 2, "E_FILE"),
        (("predict", "bundle", "none.png"), 2, "E_PICTURE"),
        (("predict", "bundle", "bundle"), 2, "E_PICTURE"),
        (("predict", "a.png", "a.png"), 5, "E_ARCHIVE"),
        (("predict", "bundle", "a.png", "--variant", "int4"), 2, "E_VARIANT"),
        (("verify", "."), 5, "E_MISSING"),
        (("pack", "bundle", "--out", "b.tar"), 2, "E_USAGE"),
        (("pack", "bundle", "--out", "none/b.zip"), 2, "E_EXISTS"),
        (("predict", "bundle"), 2, "E_USAGE"),
        (("predict", "bundle", "a.png", "--top", "0"), 2, "E_USAGE"),
        (("verify", "bundle", "--no-such-option"), 2, "E_USAGE"),
    ],
)
def test_bad_input_ends_with_one_clear_error(
    folder: Path, edgepress: Run, words: tuple[str, ...], status: int, code: str
) -> None:
    before = sorted(folder.rglob("*"))
    done = edgepress(*words, "--json")
    assert done.returncode == status, done.stderr
    assert json.loads(done.stdout)["error"]["code"] == code
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(folder.rglob("*")) == before


def test_doctor_shows_each_engine(edgepress: Run) -> None:
    found = told(edgepress("doctor", "--json"))
    assert [one["engine"] for one in found["engines"]] == [
        *("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "null")
    ]
    assert all(one["ok"] is one["installed"] for one in found["engines"])
    assert {one["engine"] for one in found["engines"] if one["ok"]} >= {"onnxruntime", "null"}
    done = edgepress("doctor")
    assert done.returncode == 0
    assert "onnxruntime" in done.stdout


# ---------------------------------------------------------------- what commands share

SHARED = """
    import sys, time
    import click
    from edgepress.runtime.console import Console, report_errors
    from edgepress.runtime.errors import BoundError, UnsettledError

    @click.command()
    @click.argument("what")
    @report_errors
    def command(console: Console, what: str) -> None:
        print("a library prints")
        console.say("for people")
        console.table(("name", ">number"), [("[bold]x", 1)])
        console.result({"value": float("nan"), "name": what, "ü": [1, None]})
        if what == "bound":
            raise BoundError("E_BOUND", "too slow.", mend="Buy another.")
        if what == "bug":
            raise KeyError("oops")
        if what == "interrupt":
            raise KeyboardInterrupt
        if what == "missing":
            import no_such_package
        if what == "progress":
            with console.progress() as report:
                time.sleep(2.2)
                report("work", 1, 3)
                time.sleep(0.1)
                report("work", 2, 3)

    command()
"""


def shared(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARED), *words],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


def test_json_is_one_object_whatever_else_prints() -> None:
    done = shared("ok", "--json")
    assert json.loads(done.stdout) == {"value": None, "name": "ok", "ü": [1, None]}
    assert "a library prints" in done.stderr
    assert "for people" in done.stderr
    plain = shared("ok")
    assert "[bold]x" in plain.stdout
    assert plain.stderr == ""


@pytest.mark.parametrize(
    ("what", "status", "code"), [("bound", 3, "E_BOUND"), ("bug", 1, "E_BUG"),
                                 ("interrupt", 130, "E_INTERRUPTED")],
)  # fmt: skip
def test_errors_have_their_status_and_no_traceback(what: str, status: int, code: str) -> None:
    done = shared(what, "--json")
    assert done.returncode == status
    told = json.loads(done.stdout)
    assert told["error"]["code"] == code
    assert told["name"] == what, "the result that was there before the error"
    assert "Traceback" not in done.stderr
    assert "Traceback" in shared(what, "--debug").stderr


def test_progress_shows_only_after_two_seconds() -> None:
    done = shared("progress")
    assert "work: 1 of 3" in done.stderr
    assert "work: 2 of 3" not in done.stderr, "not on every step"
    assert "work" not in done.stdout


def test_a_missing_package_is_left_to_main() -> None:
    assert "no_such_package" in shared("missing").stderr


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_control_c_ends_with_130() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SHARED), "progress"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout
    assert child.stdout.readline() == "a library prints\n"
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
