"""The scripts behind the figures: boxes, scores, and a matrix that survives its networks."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgepress.runtime.target import openvino_dialect

pytest.importorskip("torch")
PROOFS = Path(__file__).resolve().parents[3] / "benchmarks" / "proofs"
WHERE = {path.stem: path for path in PROOFS.rglob("*.py")}


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> Iterator[Any]:
    """Imports a script by its name; what it changed of the environment is put back."""
    monkeypatch.setenv("EDGEPRESS_DATA", str(shared_data))
    for name in ("ORT_DISABLE_TELEMETRY", "NNCF_CI"):
        monkeypatch.setenv(name, "1")
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        folder = WHERE[name].parent.relative_to(PROOFS)
        return importlib.import_module(
            ".".join(["edgepress.benchmarks.proofs", *folder.parts, name])
        )

    yield load
    for name in set(sys.modules) - before:
        if (
            getattr(sys.modules[name], "__file__", "")
            and PROOFS in Path(str(sys.modules[name].__file__)).parents
        ):
            del sys.modules[name]


def test_yolox_boxes_are_decoded_where_they_are(proofs: Any) -> None:
    output = np.zeros((3549, 85), np.float32)
    cell = 52 * 52 + 26 * 3 + 7  # stride 16, row 3, column 7
    output[cell, :5] = [0.5, 0.25, np.log(2), np.log(4), 0.9]
    output[cell, 5 + 16] = 0.8
    output[cell + 1, :5] = [-0.4, 0.25, np.log(2), np.log(4), 0.8]  # the same object, less sure
    output[cell + 1, 5 + 16] = 0.8
    found = proofs("detections").yolox(output, 416, 0.5)
    np.testing.assert_allclose(found.corners, [[104, 20, 136, 84]], rtol=1e-5)
    assert found.scores == pytest.approx([0.72])
    assert found.classes.tolist() == [16]


def test_ultraface_boxes_are_decoded_where_they_are(proofs: Any) -> None:
    scores = np.array([[0.1, 0.9], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], np.float32)
    corners = [[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.48], [0, 0, 1, 1], [0.6, 0.6, 0.9, 0.8]]
    found = proofs("detections").ultraface(scores, np.array(corners, np.float32), 0.5)
    np.testing.assert_allclose(found.corners, np.array(corners, np.float32)[[0, 3]])
    assert found.scores == pytest.approx([0.9, 0.7])
    assert found.classes.tolist() == [0, 0]


def test_a_box_is_found_again_once_and_in_its_class(proofs: Any) -> None:
    boxes = proofs("detections")
    corners = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [0.5, 0, 10, 10]], float)
    scores = np.array([0.9, 0.8, 0.7])
    wanted = boxes.Boxes(corners, scores, np.array([1, 1, 1]))
    found = boxes.Boxes(corners[[1, 0]] + 0.5, scores[:2], np.array([2, 1]))
    assert boxes.found_again(wanted, found, 0.75) == 1
    assert boxes.found_again(wanted, wanted, 0.75) == 3
    assert boxes.found_again(wanted, wanted.over(0.95), 0.75) == 0


def test_neighbours_do_not_count_themselves(proofs: Any) -> None:
    judge = proofs("peer_scores").Neighbours()
    features = np.array([[1, 0.1], [1, 0.2], [0.1, 1], [0.9, 1]], np.float32)
    judge.add({"y": features}, {}, np.array([0, 0, 1, 0]))
    assert judge.told()["value"] == 50  # the third and the fourth have each other


def test_the_matrix_names_only_networks_that_can_be_looked_up(proofs: Any) -> None:
    networks = proofs("matrix_networks")
    assert len(networks.ENTRIES) >= 30
    for entry in networks.ENTRIES.values():
        assert entry.onnx is None or entry.onnx.is_file()
        assert entry.sides() == (entry.how().size or (32, 32))


def test_statistics_of_a_random_network_come_from_the_pictures(proofs: Any) -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    batches = [torch.randn(4, 3, 8, 8) * 5 + 2 for _ in range(3)]
    proofs("matrix_networks").set_statistics(module, batches)
    with torch.no_grad():
        found = torch.cat([module(batch) for batch in batches])
    assert not module.training
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(4), atol=0.05, rtol=0)
    torch.testing.assert_close(found.std((0, 2, 3)), torch.ones(4), atol=0.1, rtol=0)


def test_biases_that_only_a_random_network_has_at_zero_are_drawn(proofs: Any) -> None:
    import torch

    plain, drawn = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(3, 4, 1)
    assert plain.bias is not None
    assert drawn.bias is not None
    torch.nn.init.zeros_(plain.bias)
    kept = drawn.bias.detach().clone()
    proofs("matrix_networks").set_biases(torch.nn.Sequential(plain, drawn))
    assert plain.bias.any()
    assert float(plain.bias.detach().abs().max()) <= 3**-0.5
    assert torch.equal(drawn.bias, kept)


NET = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 4),
    )
"""
BROUGHT = """
[mine]
model = "net.py:net"
preprocessing = "net.toml"
data = "seen.npz"
test = "unseen.npz"
task = "classification"
judged = "top-1"
max_drop = 20
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A network and pictures of somebody's own, and the file that names them."""
    rng = np.random.default_rng(0)
    for name, count in (("seen", 160), ("unseen", 40)):
        pictures = rng.integers(0, 256, (count, 24, 24, 3), np.uint8)
        np.savez(tmp_path / f"{name}.npz", x=pictures, y=rng.integers(0, 4, count))
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "net.toml").write_text("scale = 255.0\n")
    (tmp_path / "own.toml").write_text(BROUGHT)
    return tmp_path / "own.toml"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("net.py:net", "nets.py:net"), "nets.py, which is not there"),
        (('task = "classification"', ""), r"\[mine\] needs .*'task'"),
        (("max_drop", "drop"), "may have 'weights', 'max_drop'"),
        (("[mine]", "[mine"), "own.toml: "),
    ],
)
def test_networks_of_ones_own_are_looked_at_first(
    proofs: Any, own: Path, change: tuple[str, str], told: str
) -> None:
    own.write_text(BROUGHT.replace(*change))
    with pytest.raises(SystemExit, match=told):
        proofs("networks").brought(own)


def test_files_of_other_tools_count_at_their_fastest_in_openvino(proofs: Any) -> None:
    ways, table = proofs("peer_ways"), proofs("peer_table")
    keys = {way.key for way in ways.THEIRS["openvino"]}
    assert {"NNCF in OpenVINO", "NNCF with bfloat16 in OpenVINO"} < keys
    assert not any("bfloat16" in way.key for way in ways.THEIRS["onnxruntime"])
    ours = ways.MADE["openvino"]
    held = {"int8": "f32", "int8-bfloat16": "bf16", "bfloat16": "bf16"}
    for precision, wanted in held.items():
        assert ways.computed(ours, {ours.file: {"precision": precision}}) == wanted
    assert ways.computed(ways.Way("NNCF", "openvino", "bf16"), {"NNCF": {}}) == "bf16"
    timed = {"faster": "a", "ratio": 1.2, "low": 1.1, "high": 1.3, "settled": True}
    times = {f"{ours.key} against {way.key}": timed for way in ways.best_floats("openvino")}
    times |= {f"{ours.key} against NNCF in OpenVINO": timed}
    slower = {**timed, "faster": "b", "ratio": 0.9}
    times |= {f"{ours.key} against NNCF with bfloat16 in OpenVINO": slower}
    state = {"times": {"1 thread": times}}
    found = table.faster_than_ours(state, "openvino", "1 thread")
    assert found == {"NNCF with bfloat16 in OpenVINO": 0.9}
    fastest = proofs("readme_tables")._fastest
    against = f"{ours.key} against"
    assert fastest("NNCF", "OpenVINO", against, times) == (
        "NNCF with bfloat16 in OpenVINO", slower,
    )  # fmt: skip
    assert fastest("ModelOpt", "OpenVINO", against, times) == ("ModelOpt in OpenVINO", None)


needs_vnni = pytest.mark.skipif(
    openvino_dialect() == "openvino-half",
    reason="files of other tools have weights of the whole range, which saturate here in OpenVINO",
)


@needs_vnni
@pytest.mark.slow
def test_tools_are_compared_on_a_network_of_ones_own(
    proofs: Any, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepress.runtime.engines.openvino import has_bf16

    words = ["int8_peers.py", "--brought", str(own), "--stage", "make,score"]
    words += ["--files", str(tmp_path / "files"), "--out", str(tmp_path / "peers")]
    monkeypatch.setattr(sys, "argv", words)
    proofs("int8_peers").main()
    told = json.loads((tmp_path / "peers.json").read_text())["networks"]["mine"]
    made = {name: one.get("error", "") for name, one in told["files"].items()}
    assert "--modelopt" in made.pop("ModelOpt (made for TensorRT)")
    assert set(made) >= {"float32", "NNCF", "edgepress for onnxruntime", "edgepress for openvino"}
    assert not any(made.values())
    ways = ["NNCF in OpenVINO", "edgepress for onnxruntime in ONNX Runtime"]
    for way in [*ways, "NNCF with bfloat16 in OpenVINO"] if has_bf16() else ways:
        assert told["ways"][way]["score"]["count"] == 40
        assert told["ways"][way]["score"]["agreement"]["mean_cosine"] > 0.9
    assert "## mine" in (tmp_path / "peers.md").read_text()


@needs_vnni
@pytest.mark.slow
def test_files_of_other_tools_are_transcoded_for_a_network_of_ones_own(
    proofs: Any, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["transcode_peers.py", "make", "--brought", str(own), "--work", str(tmp_path / "work")]
    words += ["--out", str(tmp_path / "transcoded"), "--peers", "NNCF", "quantize_static"]
    monkeypatch.setattr(sys, "argv", words)
    proofs("transcode_peers").main()
    rows = json.loads((tmp_path / "transcoded.json").read_text())["networks"]["mine"]
    assert set(rows) == {"NNCF", "quantize_static"}
    for row in rows.values():
        for found in row["targets"].values():
            assert found["fixed"]["same_percent"] >= 97.5
    monkeypatch.setattr(sys, "argv", [*words[:2], "another", *words[2:]])
    with pytest.raises(SystemExit):
        proofs("transcode_peers").main()


@pytest.mark.slow
def test_the_matrix_takes_networks_of_ones_own(
    proofs: Any, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["network_matrix.py", "--brought", str(own), "--steps", "onnxruntime,pruning"]
    monkeypatch.setattr(sys, "argv", [*words, "--no-timing", "--out", str(tmp_path / "matrix")])
    proofs("network_matrix").main()
    told = json.loads((tmp_path / "matrix.json").read_text())["networks"]["mine"]
    assert told["size"] == [24, 24]
    assert not told["trained"]
    assert told["onnxruntime"]["test_score"]["value"] > 90
    assert told["pruning"]["rebuilt_equal"]


@pytest.mark.serial
@pytest.mark.slow
def test_other_tools_stand_beside_our_bundles(
    proofs: Any, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepress.benchmarks import Preset
    from edgepress.compress import compress

    step, table = proofs("matrix_peers"), proofs("matrix_table")
    blink = Preset("blink", 0.05, 64, 0.2, 1, 5.0)
    monkeypatch.setattr(step, "_PRESET", blink)
    entry = proofs("matrix_networks").entries(own)["mine"]
    proofs("matrix_steps").capture(entry, tmp_path, True)
    told = step.beside(entry, tmp_path, entry.share(0, 16), entry.share(16, 16))
    assert "no bundle for onnxruntime and openvino" in told["error"]
    for engine in ("onnxruntime", "openvino"):
        compress(
            tmp_path / "float32.onnx", entry.share(0, 64), out=tmp_path / f"{engine}-cpu",
            recipe="float32", task="agreement", target=f"{engine}-cpu", preprocessing=entry.how(),
        )  # fmt: skip
    told = step.beside(entry, tmp_path, entry.share(0, 16), entry.share(16, 16))
    for engine in ("onnxruntime", "openvino"):
        assert set(told[engine]) == {"quantize_static", "NNCF"}
        for found in told[engine].values():
            assert found["cosine"] > 0.9
            assert found["low"] <= found["ratio"] <= found["high"]
    ours = {"test_score": {"details": {"outputs": {"y": {"mean_cosine": 1.0}}}}}
    rows = {"mine": {"onnxruntime": ours, "openvino": ours}}
    held = {"mine": {**told, "seconds": 1.0}, "other": {"error": "why", "seconds": 1.0}}
    text = "\n".join(table.peers_table(held, rows))
    assert "of 1 networks no file of another tool" in text
    assert "| other | failed: why |" in text
    slower = {**found, "faster": "b", "ratio": 0.5, "cosine": 0.999}
    beaten = {"mine": {"onnxruntime": {"NNCF": slower}}}
    assert "0 of 1 networks" in table.peers_aims(beaten, rows)[0]
    assert "NNCF on mine (2.00x, cosine 0.9990)" in table.peers_aims(beaten, rows)[0]


def test_a_graph_that_nothing_was_changed_in_is_a_row(proofs: Any) -> None:
    """Convolutions alone, for an engine with INT8 for matrix products alone."""
    table = proofs("matrix_table")
    same = {"test_score": {"details": {"reference": True}}, "build_seconds": 0.5, "int8_share": 0.0}
    rows = table.built_table({"mine": {"graphs": {"tensorrt-rtx": same}, "seconds": 1.0}})
    assert "| mine | 0.5 s | 0.0 % | 1.0000 | 1 | - |" in rows
    assert "- tensorrt-rtx: 1 of 1 parsed and built by TensorRT-RTX." in rows
    assert table.non_finite(same) == 0


@pytest.mark.slow
def test_a_network_that_fails_is_a_row_and_the_next_run_goes_on(
    proofs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix, out = proofs("network_matrix"), tmp_path / "matrix"
    words = ["network_matrix.py", "--only", "resnet8", "--steps", "onnxruntime", "--no-timing"]
    words += ["--resume", "--out", str(out), "--keep", str(tmp_path / "kept")]
    monkeypatch.setattr(sys, "argv", [*words, "--gib", "0.01"])
    matrix.main()
    told = json.loads(out.with_suffix(".json").read_text())["networks"]["resnet8"]
    assert "memory limit" in told["capture"]["error"]
    assert "onnxruntime" not in told
    monkeypatch.setattr(sys, "argv", words)
    matrix.main()
    told = json.loads(out.with_suffix(".json").read_text())["networks"]["resnet8"]
    assert told["capture"]["parameters"] > 70_000
    receipt = told["onnxruntime"]["receipt"]
    assert receipt["operators"]["Conv"]["macs"] == receipt["operators"]["Conv"]["int8_macs"] > 10**7
    assert receipt["float32_layers"] == []
    assert "| resnet8 | trained | 0.99" in capsys.readouterr().out
    stamp = (tmp_path / "kept" / "resnet8" / "capture.json").stat().st_mtime_ns
    matrix.main()
    assert (tmp_path / "kept" / "resnet8" / "capture.json").stat().st_mtime_ns == stamp


def test_a_pruned_network_of_the_matrix_is_rebuilt_and_run(proofs: Any, tmp_path: Path) -> None:
    entries = proofs("matrix_networks").ENTRIES
    told = proofs("matrix_pruning").prune(entries["resnet8"], tmp_path)
    assert told["macs_left"] <= 0.7
    assert told["rebuilt_equal"]
    assert told["cosine"] > 0.9999
    assert "ONNX" in proofs("matrix_pruning").prune(entries["osnet"], tmp_path)["refused"]
    rows = {"resnet8": {**told, "seconds": 1.0}, "osnet": {"refused": "why", "seconds": 1.0}}
    table = "\n".join(proofs("matrix_table").pruning_table(rows))
    assert "- 1 of 1 networks" in table


def test_the_trade_off_is_told_as_measured(
    proofs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepress.benchmarks.latency.fingerprint import fingerprint

    score = {"value": 93.0, "low": 92.5, "high": 93.5}
    row: dict[str, Any] = {
        "bundle": "net-2x",
        "network": "net",
        "precision": "float32",
        "score": score,
    }
    row |= {"precision": "float32", "macs": 5e6, "size_bytes": 2_000_000}
    row["bench"] = {"comparison": {"ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.1}}
    epochs = [{"seconds": 90.0, "selection": 91.0}, {"seconds": 180.0, "selection": 92.0}]
    report = {"training": {"epochs": epochs}}
    proof = proofs("trade_off")
    manifest: dict[str, Any] = {"recipe": {"reports": [{"widths": 3}, report]}}
    assert proof.training([{"recipe": {"reports": [{"widths": 3}]}}]) is None
    row["training"] = proof.training([manifest, manifest])
    assert row["training"]["minutes"] == [1.5, 3.0, 4.5, 6.0], "one after the other"
    assert row["training"]["selection"] == [91.0, 92.0, 91.0, 92.0]
    assert row["training"]["devices"] == ["CPU"], "so it was before manifests named it"
    later = {"recipe": {"reports": [{"training": {"epochs": epochs, "devices": ["a GPU"]}}]}}
    row["training"] = proof.training([manifest, later])
    assert row["training"]["devices"] == ["CPU", "a GPU"]
    original = {"score": {**score, "value": 93.5}, "size_bytes": 4_000_000}
    told = {"originals": {"net": original}, "rows": [row], "fingerprint": fingerprint()}
    table = proof.markdown(told)
    assert "| net | net-2x | float32 | 5.0 M | 2000 kB | 93.00 % (92.50 to 93.50) | 2.00x" in table
    if importlib.util.find_spec("matplotlib"):
        monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "fonts"))  # else a list goes to HOME
        proof.draw(told, tmp_path / "picture.svg")
        assert "original" in (tmp_path / "picture.svg").read_text()
        proof.draw_training(told, tmp_path / "training.svg")
        assert "CPU, then a GPU" in (tmp_path / "training.svg").read_text()


def test_a_bundle_that_no_run_made_is_refused(
    proofs: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["trade_off.py", "somewhere/else"])
    with pytest.raises(SystemExit):
        proofs("trade_off").main()
    assert "no run of trained_bundles.py is called somewhere/else" in capsys.readouterr().err


def test_the_readme_says_what_is_recorded(proofs: Any) -> None:
    tables = proofs("readme_tables")
    text = (PROOFS.parents[1] / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- table: ") == text.count("<!-- end -->") >= 3
    assert tables.filled(text) == text, "run benchmarks/proofs/readme_tables.py"
