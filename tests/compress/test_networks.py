"""Real networks on real pictures, from the command line: what the README promises."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
from PIL import Image

from edgepress.__main__ import main
from edgepress.runtime import Bundle, Session

pytestmark = [pytest.mark.slow, pytest.mark.serial]
COUNT = 400


def run(capture: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words), "--json"])
    told = capture.readouterr()
    assert ended.value.code == 0, told.err
    found: dict[str, Any] = json.loads(told.out)
    return found


@dataclass(frozen=True)
class Cifar:
    """The first test pictures of CIFAR-10 in both forms, and the words that name ResNet-20."""

    npz: Path
    folder: Path
    words: tuple[str | Path, ...]


@pytest.fixture(scope="module")
def cifar(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Cifar:
    home = tmp_path_factory.mktemp("cifar")
    with Image.open(shared_data / "cifar10" / "test_a_00.webp") as opened:
        sheet = np.asarray(opened.convert("RGB"))
    with np.load(shared_data / "cifar10" / "labels.npz") as labels:
        y = labels["test_a"][:COUNT]
    corners = [(32 * (i // 50), 32 * (i % 50)) for i in range(COUNT)]
    x = np.stack([sheet[top : top + 32, left : left + 32] for top, left in corners])
    np.savez(home / "cifar.npz", x=x, y=y)
    for index, (picture, label) in enumerate(zip(x, y, strict=True)):
        (home / "classes" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(home / "classes" / str(label) / f"{index:04}.png")
    words: tuple[str | Path, ...] = (
        f"{shared_data}/backbones.py:resnet20",
        *("--weights", shared_data / "weights" / "cifar10_resnet20_akamaster.pt"),
        *("--preprocessing", shared_data / "cifar.toml"),
    )
    return Cifar(home / "cifar.npz", home / "classes", words)


def test_resnet20_becomes_a_bundle_that_scores_the_same_on_both_forms_of_data(
    cifar: Cifar, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r20"
    told = run(capsys, "compress", *cifar.words, "--data", cifar.npz, "--out", out)
    original, result = told["scores"]["original"], told["scores"]["result"]
    assert original["value"] > 85
    assert original["value"] - result["value"] <= 1.5
    (candidate,) = told["measurements"]["candidates"]
    assert original["value"] - candidate["test_score"]["value"] <= 1.5
    assert told["declined"] is (told["precision"] == "float32")
    assert told["measurements"]["parity"]["cosine"]["output"] > 0.99999
    if told["declined"]:
        assert any("INT8" in note or "drops" in note for note in told["notes"])
    else:
        assert told["measurements"]["int8_macs_share"] > 0.99
        assert told["receipt"]["fused_int8"] == told["receipt"]["asked_int8"]
        assert 3 * len(Bundle.open(out).model()) < told["measurements"]["size_bytes"]["original"]
    on_npz = run(capsys, "evaluate", out, "--data", cifar.npz)["score"]
    on_folder = run(capsys, "evaluate", out, "--data", cifar.folder)["score"]
    in_torch = run(capsys, "evaluate", *cifar.words, "--data", cifar.folder)["score"]
    assert on_npz == on_folder
    assert on_npz["count"] == COUNT
    assert abs(in_torch["value"] - on_npz["value"]) <= 1.5
    with Session.open(out) as session:
        best = session.predict(next((cifar.folder / "3").iterdir())).top(1)[0]
    assert best.label == str(best.index)


def test_an_image_folder_gives_the_same_original_as_an_npz(
    cifar: Cifar, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--test-data", cifar.npz, "--recipe", "float32", "--out", tmp_path / "out")
    told = run(capsys, "compress", *cifar.words, "--data", cifar.folder, *words)
    assert told["precision"] == "float32"
    assert told["declined"] is False
    in_torch = run(capsys, "evaluate", *cifar.words, "--data", cifar.npz)["score"]
    assert told["scores"]["result"]["value"] == in_torch["value"]
    assert Bundle.open(tmp_path / "out").labels == tuple(map(str, range(10)))


def test_a_detector_in_onnx_is_judged_by_agreement(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = sorted((shared_data / "imagenette224_train" / "images").iterdir())[:24]
    (tmp_path / "pictures").mkdir()
    for path in pictures:
        (tmp_path / "pictures" / path.name).write_bytes(path.read_bytes())
    toml = "resize = [240, 320]\nscale = 1\nmean = 127\nstd = 128\n"
    (tmp_path / "face.toml").write_text(toml, encoding="utf-8")
    told = run(
        capsys,
        "compress",
        shared_data / "onnx" / "ultraface_rfb320.onnx",
        *("--data", tmp_path / "pictures", "--preprocessing", tmp_path / "face.toml"),
        *("--out", tmp_path / "face"),
    )
    assert told["scores"]["task"] == "agreement"
    (candidate,) = told["measurements"]["candidates"]
    assert set(candidate["test_score"]["details"]["outputs"]) == {"scores", "boxes"}
    assert candidate["test_score"]["value"] > 95
    assert told["declined"] is (not candidate["accepted"])
    with Session.open(tmp_path / "face") as session:
        outputs = session.predict(pictures[0]).outputs
    assert {name: array.shape[-1] for name, array in outputs.items()} == {"scores": 2, "boxes": 4}
