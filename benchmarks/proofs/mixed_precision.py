"""What measuring node by node buys: every network with its plan in INT8 and float32, on one engine.

::

    python benchmarks/proofs/mixed_precision.py [NETWORK ...] [--target onnxruntime-cpu] [--out PATH]

Each network goes through ``edgepress compress`` with its defaults; the table is read from the bundles: what the
kernels of the float32 graph, of everything in INT8 and of the plan take, what each loses on the selection pictures,
and what the bundle that ships was timed and scored at.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepress.benchmarks.fingerprint import fingerprint
from networks import NETWORKS, data_root, edgepress, pictures


@dataclass(frozen=True)
class Given:
    """An ONNX file, its preprocessing as TOML, and the pictures of a folder."""

    file: str
    preprocessing: str
    pictures: str
    max_drop: float


FILES = {
    "yolox_nano": Given(
        "yolox_nano_coco.onnx",
        'resize = [416, 416]\nchannel_order = "BGR"\nscale = 1.0\n',
        "imagenette224_train",
        1.0,
    ),
    "ultraface": Given(
        "ultraface_rfb320.onnx",
        "resize = [240, 320]\nscale = 1.0\nmean = [127.0]\nstd = [128.0]\n",
        "imagenet_calib",
        1.0,
    ),
    "osnet_x0_25": Given(
        "osnet_x0_25_msmt17.onnx",
        "resize = [256, 128]\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n",
        "imagenet_calib",
        0.7,
    ),
    "text_direction": Given(
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "resize = [48, 192]\nmean = [0.5]\nstd = [0.5]\n",
        "imagenet_calib",
        1.0,
    ),
}


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=[*FILES, *NETWORKS])
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--calibration-size", type=int, default=100)
    parser.add_argument("--out", default="benchmarks/results/mixed_precision", type=Path)
    given = parser.parse_args()
    path = given.out.with_suffix(".json")
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    told["fingerprint"] = fingerprint()
    for name in given.networks:
        with tempfile.TemporaryDirectory() as folder:
            found = one(name, Path(folder), given.target, given.calibration_size)
        told["rows"][f"{name}, {given.target}"] = found
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(markdown(told))


def one(name: str, folder: Path, target: str, calibration_size: int) -> dict[str, Any]:
    """Compress one network, and what its bundle says."""
    root, out = data_root(), folder / "bundle"
    words: list[object]
    if name in FILES:
        file = FILES[name]
        toml = folder / "preprocessing.toml"
        toml.write_text(file.preprocessing)
        words = [root / "onnx" / file.file, "--preprocessing", toml, "--task", "agreement"]
        words += ["--data", root / file.pictures, "--max-drop", file.max_drop]
    else:
        network = NETWORKS[name]
        calibration, test = pictures(network, folder)
        words = [f"{root}/backbones.py:{name}", "--weights", root / "weights" / network.weights]
        words += ["--preprocessing", root / network.preprocessing, "--task", network.task]
        words += ["--data", calibration, "--test-data", test]
    words += ["--target", target, "--calibration-size", calibration_size, "--out", out]
    edgepress("compress", *words)
    manifest: Any = json.loads((out / "manifest.json").read_text())
    measured = manifest["measurements"]
    mixed = manifest["recipe"]["reports"][0]["mixed"]
    candidate = measured["candidates"][0]
    return {
        "declined": manifest["declined"],
        "holds": manifest["variants"][0]["precision"],
        "notes": manifest["notes"],
        "mixed": {key: value for key, value in mixed.items() if key != "nodes"},
        "latency": candidate["latency"],
        "reasons": candidate["reasons"],
        "scores": manifest["scores"],
        "candidate": candidate["test_score"],
        "int8_macs_share": measured["int8_macs_share"],
    }


def markdown(told: dict[str, Any]) -> str:
    """The table."""
    cpu, software = told["fingerprint"]["cpu"], told["fingerprint"]["software"]
    lines = [
        "# Precision chosen node by node, one thread, batch 1",
        "",
        "Made by `python benchmarks/proofs/mixed_precision.py`. Kernel times are sums over the engine's own profile;",
        "the last columns are of the candidate as it was timed in turn with float32 in fresh processes, and scored on",
        "test pictures.",
        "",
        f"Machine: {cpu['model']} ({', '.join(cpu['flags'])}), {cpu['cores']} cores, virtual, shared and noisy; "
        f"onnxruntime {software['onnxruntime']}; {told['fingerprint']['time_utc'][:10]}.",
        "",
        "| network, target | float32 kernels | all INT8 | nodes in INT8 | plan: predicted | plan: kernels | score of all INT8 | score | SQNR | against float32 | ships |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {name} | {' | '.join(cells(row))} |" for name, row in told["rows"].items()]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    """One row."""
    mixed, latency, score = row["mixed"], row["latency"], row["candidate"]
    attempts = mixed["attempts"]
    whole = next((one for one in attempts if one.get("plan") == "everything"), {})
    last = [one for one in attempts if "drop_on_selection" in one][-1]

    def number(value: float | None, unit: str = "", digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}{unit}"

    details = score["details"]
    near = next(iter((details.get("outputs") or details.get("agreement") or {}).values()), {})
    lost = whole.get("drop_on_selection")
    return [
        number(mixed["kernels_ms"]["float32"], " ms"),
        number(mixed["kernels_ms"]["int8"], " ms"),
        f"{mixed['int8_nodes']} of {mixed['of_nodes']}",
        number(last.get("predicted_ms"), " ms"),
        number(last.get("measured_ms"), " ms"),
        "-" if lost is None else f"-{lost:.2f} (selection)",
        number(score["value"]),
        number(near.get("sqnr_db"), " dB"),
        f"{latency['speedup']:.2f}x ({latency['speedup_low']:.2f} to {latency['speedup_high']:.2f})"
        if latency
        else "-",
        row.get("holds", "float32") if row["declined"] else "INT8",
    ]


if __name__ == "__main__":
    main()
