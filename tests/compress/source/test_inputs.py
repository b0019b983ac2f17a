"""Everything that a user can hand over and that cannot be used: one error, nothing left."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
import onnx
import torch
from PIL import Image
from safetensors.torch import save_file

from edgepress.__main__ import main
from edgepress.compress import compress
from edgepress.compress.source.export_network import export_graph
from edgepress.runtime import InputError

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, channels=3, width=8, classes=4):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Linear(width, classes)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))).mean((2, 3)))


class Branching(Net):
    def forward(self, x):
        return super().forward(x) if x.mean() > 0 else super().forward(-x)


class TwoInputs(Net):
    def forward(self, x, offset):
        return super().forward(x) + offset


class OfTime(Net):
    def forward(self, x):
        return super().forward(x).mean(1)


def small():
    return Net()


def wide():
    return Net(width=16)


def grey():
    return Net(channels=1)


def branching():
    return Branching()


def two_inputs():
    return TwoInputs()


def no_classes():
    return OfTime()


def raising():
    raise ValueError("the disk of weights is not mounted")


def needing(depth):
    return Net()


def text():
    return "a network"


def nan():
    net = Net()
    net.last.weight.data[0, 0] = float("nan")
    return net


not_callable = 3
"""


@dataclass(frozen=True)
class Cli:
    """Runs the command line in a folder that has ``nets.py``, ``data.npz`` and ``plain.toml``."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    def run(self, *words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        told = self.capture.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, told.out, told.err

    def compress(self, **changed: str | None) -> tuple[int, dict[str, Any], str]:
        """``compress --json`` of what works, but for what is changed; ``None`` leaves out."""
        options: dict[str, str | None] = {
            "model": "nets.py:small",
            "--data": "data.npz",
            "--preprocessing": "plain.toml",
            "--recipe": "float32",
            "--out": "out",
            **{k if k == "model" else "--" + k.replace("_", "-"): v for k, v in changed.items()},
        }
        words = [str(options.pop("model"))]
        for name, value in options.items():
            words += [] if value is None else [name, value] if value else [name]
        status, out, err = self.run("compress", *words, "--json")
        return status, json.loads(out), err

    def refused(self, code: str, *, status: int = 2, **changed: str | None) -> str:
        """What the error says, once it is sure that this was refused and left nothing."""
        before = sorted(self.folder.rglob("*"))
        ended, told, err = self.compress(**changed)
        assert (ended, told["error"]["code"]) == (status, code), err
        assert "Traceback" not in err
        assert sorted(self.folder.rglob("*")) == before
        return str(told["error"]["message"]) + "\n" + str(told["error"]["mend"])


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS, encoding="utf-8")
    Path("plain.toml").write_text("", encoding="utf-8")
    x, y = pictures()
    np.savez("data.npz", x=x, y=y)
    return Cli(tmp_path, capsys)


def pictures(count: int = 16, channels: int = 3, side: int = 8) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    return x, rng.integers(0, 4, count)


def state() -> dict[str, torch.Tensor]:
    namespace: dict[str, Any] = {"__name__": "nets"}
    exec(NETS, namespace)
    torch.manual_seed(1)
    return dict(namespace["small"]().state_dict())


def class_folders(folder: Path, names: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    x, _ = pictures(4 * len(names))
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(x[4 * index + number]).save(folder / name / f"{number}.png")
    return folder


def test_what_works_works(cli: Cli) -> None:
    status, told, _ = cli.compress()
    assert status == 0
    assert told["precision"] == "float32"
    assert told["declined"] is False
    assert (cli.folder / "out" / "model.onnx").is_file()


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize(
    ("model", "code", "says"),
    [
        ("nowhere.py:small", "E_FILE", "no file 'nowhere.py'"),
        ("nets.py:nothing", "E_FACTORY", "small"),
        ("nets.py:not_callable", "E_FACTORY", "has no function 'not_callable'"),
        ("nets.py:raising", "E_FACTORY", "the disk of weights is not mounted"),
        ("nets.py:needing", "E_FACTORY", "needs arguments"),
        ("nets.py:text", "E_FACTORY", "returned a str"),
        ("nets.py", "E_FACTORY", "names no network"),
        ("nowhere.at.all:small", "E_FACTORY", "cannot be imported"),
        ("nowhere.onnx", "E_FILE", "no file 'nowhere.onnx'"),
        ("nets.py:nan", "E_NAN", "last.weight"),
        ("nets.py:branching", "E_EXPORT", "branches on values"),
        ("nets.py:two_inputs", "E_DATA", "2 inputs"),
        ("nets.py:grey", "E_FORWARD", "refuses its input"),
        ("nets.py:no_classes", "E_TASK", "class scores"),
        ("timm:no_such_network", "E_WEIGHTS", "comes untrained"),
    ],
)
def test_a_network_that_cannot_be_used(cli: Cli, model: str, code: str, says: str) -> None:
    assert says in cli.refused(code, model=model)


def test_a_file_that_cannot_be_imported(cli: Cli) -> None:
    Path("broken.py").write_text("import no_such_package_at_all\n", encoding="utf-8")
    said = cli.refused("E_FACTORY", model="broken.py:net")
    assert "no_such_package_at_all" in said
    assert "broken.py, line 1" in said


@pytest.mark.parametrize("size", [0, 5, 900])
def test_an_onnx_file_that_is_none(
    cli: Cli, tiny_classifier: Callable[..., bytes], size: int
) -> None:
    Path("net.onnx").write_bytes(tiny_classifier()[:size])
    cli.refused("E_MODEL", model="net.onnx")


def test_an_onnx_file_keeps_its_own_opset(cli: Cli, tiny_classifier: Callable[..., bytes]) -> None:
    model = onnx.load_model_from_string(tiny_classifier())
    model.opset_import[0].version = 17
    onnx.save(model, "net.onnx")
    for export in (
        lambda: compress("net.onnx", "data.npz", out="out", recipe="float32", opset=21),
        lambda: export_graph("net.onnx", opset=21),
    ):
        with pytest.raises(InputError) as caught:
            export()
        assert caught.value.code == "E_USAGE"
        assert caught.value.mend == "Leave out the opset."
    assert not Path("out").exists()
    assert cli.compress(model="net.onnx")[0] == 0
    assert json.loads(Path("out/manifest.json").read_text())["recipe"]["opset"] == 17


def test_weights_beside_an_onnx_file(cli: Cli, tiny_classifier: Callable[..., bytes]) -> None:
    Path("net.onnx").write_bytes(tiny_classifier())
    save_file(state(), "w.safetensors")
    cli.refused("E_USAGE", model="net.onnx", weights="w.safetensors")


# ---------------------------------------------------------------- weights


def test_weights_of_another_network_are_named_with_their_shapes(cli: Cli) -> None:
    given = state()
    given["extra.weight"] = torch.zeros(2)
    del given["norm.bias"]
    save_file(given, "w.safetensors")
    said = cli.refused("E_WEIGHTS", model="nets.py:wide", weights="w.safetensors")
    assert "first.weight: file (8, 3, 3, 3), network (16, 3, 3, 3)" in said
    assert "norm.bias: not in the file, network (16,)" in said
    assert "extra.weight: file (2,), not in the network" in said


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.98])
def test_weights_cut_short(cli: Cli, name: str, share: float) -> None:
    if name == "w.pt":
        torch.save(state(), name)
    else:
        save_file(state(), name)
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: int(share * len(whole))])
    cli.refused("E_WEIGHTS", weights=name)


class _Code:
    """Pickles as a call that makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "module", "script"])
def test_weights_with_code_in_them_are_refused_and_do_not_run(cli: Cli, form: str) -> None:
    if form == "module":
        torch.save(torch.nn.Linear(2, 2), "w.pt")
    elif form == "script":  # torch.jit is deprecated; it tells its archives by constants.pkl
        with zipfile.ZipFile("w.pt", "w") as archive:
            for name, content in (("constants.pkl", b"\x80\x02)."), ("version", b"3\n")):
                archive.writestr(f"w/{name}", content)
    elif form == "pickle":
        Path("w.pt").write_bytes(pickle.dumps({"w": _Code()}))
    else:
        torch.save(
            {**state(), "code": _Code()}, "w.pt", _use_new_zipfile_serialization=form == "zip"
        )
    cli.refused("E_PICKLE", weights="w.pt")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"just text\n", "E_WEIGHTS"), (b"\x00" * 500, "E_WEIGHTS"), (None, "E_FILE")],
)
def test_weights_that_are_none(cli: Cli, content: bytes | None, code: str) -> None:
    if content is None:
        Path("w.pt").mkdir()
    else:
        Path("w.pt").write_bytes(content)
    cli.refused(code, weights="w.pt")


def test_weights_that_are_missing(cli: Cli) -> None:
    assert "nowhere.pt" in cli.refused("E_FILE", weights="nowhere.pt")


def test_weights_without_tensors(cli: Cli) -> None:
    torch.save({"epoch": 3, "state_dict": {}}, "w.pt")
    cli.refused("E_WEIGHTS", weights="w.pt")


def test_weights_that_are_not_finite(cli: Cli) -> None:
    given = state()
    given["norm.running_var"][0] = float("inf")
    save_file(given, "w.safetensors")
    assert "norm.running_var" in cli.refused("E_NAN", weights="w.safetensors")


# ---------------------------------------------------------------- data


def test_data_that_is_missing(cli: Cli) -> None:
    cli.refused("E_DATA", data="nowhere")


@pytest.mark.parametrize("kind", ["empty", "lengths", "objects", "floats", "few", "text", "cut"])
def test_an_npz_that_cannot_be_used(cli: Cli, kind: str) -> None:
    x, y = pictures()
    arrays: dict[str, dict[str, Any]] = {
        "empty": {"x": x[:0], "y": y[:0]},
        "lengths": {"x": x, "y": y[:-1]},
        "objects": {"x": np.array([{}, None], dtype=object), "y": y[:2]},
        "floats": {"x": x.astype(np.float32), "y": y},
        "few": {"x": x[:3], "y": y[:3]},
    }
    if kind in arrays:
        np.savez("bad.npz", allow_pickle=True, **arrays[kind])
    elif kind == "text":
        Path("bad.npz").write_bytes(b"no archive")
    else:
        whole = Path("data.npz").read_bytes()
        Path("bad.npz").write_bytes(whole[: len(whole) // 2])
    cli.refused("E_DATA", data="bad.npz")


def test_an_empty_folder_and_an_empty_class_folder(cli: Cli) -> None:
    Path("none").mkdir()
    cli.refused("E_DATA", data="none")
    class_folders(Path("classes"))
    (Path("classes") / "e").mkdir()
    assert "'classes/e' has no pictures" in cli.refused("E_DATA", data="classes")


def test_a_picture_that_cannot_be_decoded_is_named(cli: Cli) -> None:
    folder = class_folders(Path("classes"))
    (folder / "b" / "2.png").write_bytes(b"\x89PNG no more")
    assert "classes/b/2.png" in cli.refused("E_DATA", data="classes")


def test_a_picture_of_absurd_size_is_not_decoded(cli: Cli) -> None:
    folder = class_folders(Path("classes"))
    header = io.BytesIO()
    Image.new("1", (1, 1)).save(header, "png")
    huge = bytearray(header.getvalue())
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(bytes(huge[12:29])).to_bytes(4, "big")
    for name in ("0", "1", "2", "3"):
        (folder / "c" / f"{name}.png").write_bytes(huge)
    assert "classes/c/" in cli.refused("E_DATA", data="classes")


@pytest.mark.parametrize("where", ["data", "test"])
def test_labels_out_of_range_are_found_before_calibration(cli: Cli, where: str) -> None:
    x, y = pictures()
    y[5] = 4
    np.savez("bad.npz", x=x, y=y)
    given = {"data": "bad.npz"} if where == "data" else {"test_data": "bad.npz"}
    said = cli.refused("E_DATA", recipe="int8", **given)
    assert "class index 4, the network has 4 outputs" in said


def test_class_folders_of_test_data_must_be_those_of_data(cli: Cli) -> None:
    class_folders(Path("one"))
    class_folders(Path("two"), ("a", "c", "d"))
    said = cli.refused("E_DATA", data="one", test_data="two")
    assert "b" in said


def test_labels_that_only_some_pictures_have(cli: Cli) -> None:
    x, _ = pictures()
    np.savez("bare.npz", x=x)
    assert "bare.npz has no labels" in cli.refused("E_DATA", test_data="bare.npz")
    cli.refused("E_DATA", data="bare.npz", task="classification")


def test_pictures_without_preprocessing(cli: Cli) -> None:
    assert "--preprocessing" in cli.refused("E_PREPROCESSING", preprocessing=None)


@pytest.mark.parametrize(
    "text",
    ["mean = [0.5", "means = [0.5]\n", "std = 0\n", 'scale = "255"\n', "[table]\nmean = 0\n"],
)
def test_a_preprocessing_that_is_none(cli: Cli, text: str) -> None:
    Path("bad.toml").write_text(text, encoding="utf-8")
    assert "bad.toml" in cli.refused("E_PREPROCESSING", preprocessing="bad.toml")


# ---------------------------------------------------------------- recipe, options, out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[pass", "cannot be read"),
        ("passes = 1\n", "unknown keys ['passes']"),
        ('[[pass]]\nkind = "squash"\n', "unknown pass 'squash'"),
        ('[[pass]]\nkind = "int8"\nbits = 4\n', "no setting ['bits']"),
        ('[[pass]]\nkind = "int8"\nranges = "widest"\n', "may be: mse"),
        ('[[pass]]\nkind = "int8"\nbias_correction = 1\n', "must be a bool"),
        ('[[pass]]\nkind = "int8"\n[[pass]]\nkind = "int8"\n', "'int8' after 'int8'"),
        ('[[pass]]\nkind = "int8"\nkeep_float = ["first"]\n', "no node of this network"),
    ],
)
def test_a_recipe_that_cannot_be(cli: Cli, text: str, says: str) -> None:
    Path("recipe.toml").write_text(text, encoding="utf-8")
    assert says in cli.refused("E_RECIPE", recipe="recipe.toml")


def test_a_recipe_that_is_not_there(cli: Cli) -> None:
    assert "prune-distil-int8" in cli.refused("E_RECIPE", recipe="int4")


@pytest.mark.parametrize("drop", ["-1", "nan", "inf"])
def test_a_drop_that_is_no_bound(cli: Cli, drop: str) -> None:
    cli.refused("E_USAGE", max_drop=drop)


@pytest.mark.parametrize(
    "changed",
    [{"task": "detection"}, {"target": "abacus"}, {"out": None}, {"calibration_size": "0"}],
)
def test_options_that_click_refuses(cli: Cli, changed: dict[str, str | None]) -> None:
    cli.refused("E_USAGE", **changed)


def test_out_that_exists_is_refused_without_force_and_replaced_with_it(cli: Cli) -> None:
    assert cli.compress()[0] == 0
    assert json.loads(Path("out/manifest.json").read_text())["recipe"]["seed"] == 0
    cli.refused("E_EXISTS")
    assert cli.compress(force="", seed="7")[0] == 0
    assert json.loads(Path("out/manifest.json").read_text())["recipe"]["seed"] == 7
    assert not list(cli.folder.glob(".out*"))


def test_force_replaces_nothing_but_a_bundle(cli: Cli) -> None:
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("years of work", encoding="utf-8")
    cli.refused("E_EXISTS", force="")
    assert Path("out/thesis.txt").read_text(encoding="utf-8") == "years of work"
    cli.refused("E_EXISTS", out="no/such/folder")


def test_an_error_leaves_the_bundle_that_is_there(cli: Cli) -> None:
    assert cli.compress()[0] == 0
    held = {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()}
    cli.refused("E_FACTORY", force="", model="nets.py:raising")
    assert held == {
        path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()
    }


# ---------------------------------------------------------------- evaluate and export


def test_evaluate_refuses_what_cannot_be_scored(cli: Cli) -> None:
    assert cli.compress()[0] == 0
    x, y = pictures()
    np.savez("bare.npz", x=x)
    np.savez("high.npz", x=x, y=y + 9)
    cases = [
        (("out", "--data", "bare.npz"), 2, "E_TASK"),
        (("out", "--data", "high.npz"), 2, "E_DATA"),
        (("out", "--data", "data.npz", "--weights", "w.pt"), 2, "E_USAGE"),
        (("nowhere", "--data", "data.npz"), 2, "E_FILE"),
        (("nets.py", "--data", "data.npz"), 2, "E_FACTORY"),
        (("nets.py:small", "--data", "data.npz"), 2, "E_PREPROCESSING"),
    ]
    for words, status, code in cases:
        ended, out, err = cli.run("evaluate", *words, "--json")
        assert (ended, json.loads(out)["error"]["code"]) == (status, code), err
    model = Path("out/model.onnx")
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    ended, out, _ = cli.run("evaluate", "out", "--data", "data.npz", "--json")
    assert (ended, json.loads(out)["error"]["code"]) == (5, "E_HASH")


def test_export_refuses_what_it_cannot_write(
    cli: Cli, tiny_classifier: Callable[..., bytes]
) -> None:
    Path("net.onnx").write_bytes(tiny_classifier())
    shutil.copy("net.onnx", "there.onnx")
    cases = [
        (("nets.py:small", "--out", "new.onnx"), "E_SHAPE"),
        (("nets.py:small", "--static-shape", "1,3,8", "--out", "new.onnx"), "E_FORWARD"),
        (("nets.py:small", "--static-shape", "1,a", "--out", "new.onnx"), "E_USAGE"),
        (("nets.py:small", "--out", "there.onnx"), "E_EXISTS"),
        (("nets.py:small", "--out", "no/folder/new.onnx"), "E_EXISTS"),
        (("net.onnx", "--opset", "17", "--out", "new.onnx"), "E_USAGE"),
        (("net.onnx", "--static-shape", "1,3,8,8", "--out", "new.onnx"), "E_USAGE"),
        (("nets.py:branching", "--static-shape", "1,3,8,8", "--out", "new.onnx"), "E_EXPORT"),
    ]
    for words, code in cases:
        status, out, err = cli.run("export", *words, "--json")
        assert (status, json.loads(out)["error"]["code"]) == (2, code), err
        assert not Path("new.onnx").exists()
    assert Path("there.onnx").read_bytes() == Path("net.onnx").read_bytes()
