"""Pruning from the command line: recipes, inspect --prunable, and what each refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch_pruning")
import torch
from safetensors.torch import load_file

from edgepress.__main__ import main
from edgepress.compress import Backbone, Int8, Prune, Recipe
from edgepress.compress.pruning.prune_pass import limits_of, precision_after, with_limits
from edgepress.runtime import Bundle, EngineOptions, InputError, open_engine

NETS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(48, 48, 3, padding=1), nn.BatchNorm2d(48)
        self.two = nn.Conv2d(48, 48, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.two(torch.relu(self.norm(self.one(x)))))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 48, 3, 2, 1), Block()
        self.head = nn.Linear(48, 4)

    def forward(self, x):
        return self.head(self.block(torch.relu(self.stem(x))).mean((2, 3)))

def net():
    torch.manual_seed(0)
    return Net()
"""


@dataclass(frozen=True)
class Told:
    status: int
    out: dict[str, Any]
    err: str

    @property
    def code(self) -> str:
        return str(self.out["error"]["code"])


class Cli:
    """The command line in a folder with a network, its preprocessing and pictures."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capture = folder, capture
        (folder / "nets.py").write_text(NETS)
        (folder / "plain.toml").write_text("mean = [0.5, 0.4, 0.3]\nstd = [0.2, 0.2, 0.2]\n")
        draw = np.random.default_rng(0)
        x = draw.integers(0, 255, (48, 24, 24, 3)).astype(np.uint8)
        np.savez(folder / "data.npz", x=x)
        self.model = f"{folder / 'nets.py'}:net"

    def __call__(self, *words: str) -> Told:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--json"])
        said = self._capture.readouterr()
        status = ended.value.code
        assert isinstance(status, int)
        return Told(status, json.loads(said.out), said.err)

    def compress(self, *words: str, out: str = "bundle") -> Told:
        return self(
            "compress",
            self.model,
            *("--data", str(self.folder / "data.npz")),
            *("--preprocessing", str(self.folder / "plain.toml")),
            *("--out", str(self.folder / out)),
            *("--cache", str(self.folder / "cache")),
            *words,
        )

    @property
    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path, capsys)


HERE = {"nets.py", "plain.toml", "data.npz"}


@pytest.mark.slow
def test_a_pruned_network_ships_and_is_an_input_again(
    cli: Cli, told_times: Callable[[Callable[[bytes], float]], None]
) -> None:
    told_times(len)
    saved = cli.folder / "pruned.safetensors"
    options = ("--recipe", "prune", "--max-macs-ratio", "0.4", "--max-drop", "100")
    told = cli.compress(*options, "--weights-out", str(saved))
    assert told.status == 0, told.err
    bundle = Bundle.open(cli.folder / "bundle")
    made: Any = bundle.recipe
    report = made["reports"][0]
    assert report["macs"]["result"] <= 0.4 * report["macs"]["original"]
    assert made["pass"][0]["max_macs_ratio"] == 0.4
    assert not bundle.manifest.declined, bundle.manifest.notes
    measured: Any = bundle.measurements
    assert measured["macs"] == report["macs"]["result"]
    assert measured["latency"]["speedup"] > 1
    again = Backbone.open(cli.model, str(saved))
    assert sum(t.numel() for t in load_file(saved).values()) == sum(
        t.numel() for t in again.module.state_dict().values()
    )
    assert [step.to_dict() for step in [again.history]] == [report["history"]]
    scored = cli(
        "evaluate",
        cli.model,
        *("--weights", str(saved), "--data", str(cli.folder / "data.npz")),
        *("--preprocessing", str(cli.folder / "plain.toml")),
        *("--reference", str(cli.folder / "bundle")),
    )
    assert scored.out["score"]["value"] > 99.9, "the file holds what the bundle runs"
    shown = cli("inspect", cli.model, "--weights", str(saved), "--prunable", *SHAPE)
    assert shown.out["macs"] == report["macs"]["result"]
    onnx = cli.folder / "pruned.onnx"
    plain = ("--preprocessing", str(cli.folder / "plain.toml"), *SHAPE)
    assert cli("export", cli.model, "--weights", str(saved), "--out", str(onnx), *plain).status == 0
    feeds = {"x": np.ones((1, 3, 24, 24), np.float32)}
    engine = open_engine("onnxruntime")(onnx.read_bytes(), EngineOptions())
    with engine as exported, torch.no_grad():
        wanted = again.module(torch.from_numpy(feeds["x"])).numpy()
        assert np.allclose(next(iter(exported.run(feeds).values())), wanted, atol=1e-4)
    weighed = ("--weights", str(saved), "--max-drop", "100")
    more = cli.compress("--recipe", "int8", *weighed, out="int8")
    assert more.status == 0, more.err
    assert more.out["measurements"]["macs"] == report["macs"]["result"]
    further = cli.compress("--recipe", "prune", "--max-macs-ratio", "0.7", *weighed, out="again")
    assert further.status == 0, further.err
    macs = further.out["recipe"]["reports"][0]["macs"]
    assert macs["original"] == report["macs"]["result"]
    assert macs["result"] <= 0.7 * macs["original"]


@pytest.mark.serial
@pytest.mark.slow
def test_int8_follows_the_cut(cli: Cli) -> None:
    told = cli.compress("--recipe", "prune-int8", "--max-latency-ratio", "0.9", "--max-drop", "100")
    assert told.status == 0, told.err
    candidates = told.out["measurements"]["candidates"]
    assert [one["name"] for one in candidates] == ["the pruned network", "INT8"]
    latency = told.out["recipe"]["reports"][0]["bounds"]["latency"]
    assert latency["networks_timed"] >= 7
    assert len(list((cli.folder / "cache").iterdir())) == 2, "the table and the networks"


SHAPE = ("--static-shape", "1,3,24,24")


def test_what_can_be_pruned_is_shown(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    told = cli("inspect", cli.model, "--prunable", *SHAPE, "--keep", "block")
    assert told.status == 0, told.err
    assert told.out["groups"] == []
    assert {one["name"]: one["reason"] for one in told.out["left_whole"]} == {
        "stem": "'block' is kept",
        "block.one": "'block' is kept",
        "block.two": "'block' is kept",
        "head": "its channels are an output of the network",
    }
    with pytest.raises(SystemExit):
        main(["inspect", cli.model, "--prunable", *SHAPE])
    said = capsys.readouterr().out
    assert "2 groups of channels and 1 residual blocks can be pruned" in said
    assert "Blocks: block" in said
    assert cli.names == HERE


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--prunable",), "E_SHAPE"),
        (("--prunable", *SHAPE, "--keep", "blok"), "E_KEEP"),
        (("--prunable", "--static-shape", "1,7,24,24"), "E_FORWARD"),
        (("--prunable", *SHAPE, "--time-limit", "0.000001"), "E_TIME"),
        (("--prunable", *SHAPE, "--nodes"), "E_USAGE"),
        (SHAPE, "E_USAGE"),
    ],
)
def test_bad_questions(cli: Cli, words: tuple[str, ...], code: str) -> None:
    told = cli("inspect", cli.model, *words)
    assert (told.status, told.code) == (2, code)


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("--recipe", "prune"), 2, "E_USAGE"),
        (("--recipe", "prune", "--max-macs-ratio", "0"), 2, "E_USAGE"),
        (("--recipe", "prune", "--max-macs-ratio", "1.2"), 2, "E_USAGE"),
        (("--recipe", "int8", "--max-size-mb", "1"), 2, "E_USAGE"),
        (("--recipe", "int8", "--keep", "head"), 2, "E_USAGE"),
        (("--recipe", "prune", "--max-macs-ratio", "0.5", "--weights-out", "x.pt"), 2, "E_USAGE"),
        (("--recipe", "prune", "--max-macs-ratio", "0.5", "--keep", "hed"), 2, "E_KEEP"),
        (("--recipe", "prune", "--max-size-mb", "0.0001"), 3, "E_BOUND"),
    ],
)
def test_bad_wishes(cli: Cli, words: tuple[str, ...], status: int, code: str) -> None:
    told = cli.compress(*words)
    assert (told.status, told.code) == (status, code), told.err
    assert cli.names == HERE, "nothing was written"


def test_an_onnx_file_cannot_be_pruned(cli: Cli) -> None:
    onnx = cli.folder / "net.onnx"
    assert cli("export", cli.model, "--out", str(onnx), *SHAPE).status == 0
    cli.model = str(onnx)
    told = cli.compress("--recipe", "prune", "--max-macs-ratio", "0.5")
    assert (told.status, told.code) == (2, "E_USAGE")
    assert "torch network" in told.out["error"]["message"]
    assert cli.names == {*HERE, "net.onnx"}


def test_limits_go_into_the_recipe() -> None:
    settled = with_limits(Recipe.open("prune-int8"), {"max_macs_ratio": 0.5}, ["head"])
    assert settled.passes == (Prune(max_macs_ratio=0.5, keep=("head",)), Int8())
    first = settled.passes[0]
    assert isinstance(first, Prune)
    assert limits_of(first).given == {"max_macs_ratio": 0.5}
    assert precision_after(settled.passes, 0) == "int8"
    assert precision_after(settled.passes[:1], 0) == "float32"
    assert precision_after([Prune(measured_in="int8")], 0) == "int8"
    assert precision_after([Prune(measured_in="float32"), Int8()], 0) == "float32"
    assert Recipe.from_dict(settled.to_dict(), "memory") == settled


def test_a_recipe_cannot_prune_after_int8() -> None:
    with pytest.raises(InputError, match="'prune' after 'int8'") as caught:
        Recipe("odd", (Int8(), Prune(max_macs_ratio=0.5)))
    assert caught.value.code == "E_RECIPE"


def test_too_few_pictures(cli: Cli) -> None:
    x = np.zeros((6, 24, 24, 3), np.uint8)
    np.savez(cli.folder / "data.npz", x=x)
    told = cli.compress("--recipe", "prune", "--max-macs-ratio", "0.5")
    assert (told.status, told.code) == (2, "E_DATA")
    assert "too few" in told.out["error"]["message"]
    assert cli.names == HERE
