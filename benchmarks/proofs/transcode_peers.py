"""INT8 files of other tools in ONNX Runtime, as they came and after ``edgepress transcode``.

::

    python benchmarks/proofs/transcode_peers.py [NETWORK ...] [--modelopt PYTHON]

The files are made as `int8_peers.py` makes them, from the same float32 graph and 300 calibration pictures. ModelOpt
pins other versions of onnx and onnxruntime, so that it needs an environment of its own, whose Python ``--modelopt``
names; without it that row is missing, and its placement stands in for it, made with ``quantize_static`` (symmetric int8, quantizers
on the inputs of convolutions and on the skip input of residual adds only). Scores are of the whole test set; a ratio is taken with both
files in turn, in fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["NNCF_CI"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
from int8_peers import feeds, nncf_quantize, print_machine, quantize_static

from edgepress.benchmarks import Classification, Images, compare, fixed_batch
from edgepress.benchmarks.fingerprint import fingerprint
from edgepress.runtime import EngineOptions, Preprocessing, open_engine
from networks import NETWORKS, Network, data_root, edgepress, pictures

_DEFAULT = ("efficientnet_lite0", "resnet56")
_MODELOPT = """
import sys, numpy, onnx
from modelopt.onnx.quantization import quantize
model, data, out, kind = sys.argv[1:]
name = onnx.load(model).graph.input[0].name
quantize(model, quantize_mode="int8", calibration_data={name: numpy.load(data)}, calibration_eps=["cpu"],
         high_precision_dtype=kind, output_path=out)
"""


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=list(_DEFAULT))
    parser.add_argument("--modelopt", type=Path, help="a Python that has nvidia-modelopt")
    parser.add_argument("--out", default="benchmarks/results/transcode_peers", type=Path)
    parser.add_argument("--preset", default="quick")
    given = parser.parse_args()
    path = given.out.with_suffix(".json")
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"networks": {}}
    told["fingerprint"] = fingerprint()
    for name in given.networks:
        with tempfile.TemporaryDirectory() as folder:
            told["networks"][name] = one(NETWORKS[name], Path(folder), given.preset, given.modelopt)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(markdown(told))
    print(markdown(told))


def one(network: Network, folder: Path, preset: str, modelopt: Path | None) -> dict[str, Any]:
    """Every peer's file of one network."""
    calibration, test = pictures(network, folder)
    root = data_root()
    float32 = folder / "float32.onnx"
    preprocessing = root / network.preprocessing
    edgepress(
        *("export", f"{root}/backbones.py:{network.name}", "--data", calibration),
        *("--weights", root / "weights" / network.weights, "--preprocessing", preprocessing),
        *("--out", float32),
    )
    given, images = Preprocessing.from_toml(preprocessing), Images.open(calibration)
    peers: dict[str, Callable[[Path], Any]] = {
        "NNCF": lambda out: nncf_quantize(float32, out, images, given),
        "quantize_static": lambda out: quantize_static(float32, out, images, given),
        "quantize_static, ModelOpt's placement": lambda out: placed_as_modelopt(
            float32, out, images, given
        ),
    }
    if modelopt is not None:
        del peers["quantize_static, ModelOpt's placement"]
        for kind in ("fp32", "fp16"):
            peers[f"ModelOpt, {kind}"] = lambda out, kind=kind: modelopt_quantize(
                modelopt, float32, out, images, given, kind
            )
    rows: dict[str, Any] = {}
    for peer, make in peers.items():
        file = folder / f"{peer.replace(' ', '_')}.onnx"
        try:
            make(file)
            rows[peer] = row(file, given, test, preset)
        except (Exception, SystemExit) as error:
            rows[peer] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        print(peer, json.dumps(rows[peer])[:600], flush=True)
    rows["float32"] = {"score": score(float32, given, test)}
    return rows


def placed_as_modelopt(float32: Path, out: Path, images: Images, given: Preprocessing) -> None:
    """Symmetric int8, on the inputs of convolutions only, float biases."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    model = onnx.load(float32)
    name = model.graph.input[0].name
    batches = feeds(images, given, name, 1)

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return next(batches, None)

    quantize(
        str(float32),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "DedicatedQDQPair": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
    )


def modelopt_quantize(
    python: Path, float32: Path, out: Path, images: Images, given: Preprocessing, kind: str
) -> None:
    """ModelOpt with its defaults, in an environment of its own."""
    name = onnx.load(float32).graph.input[0].name
    data = out.with_suffix(".npy")
    np.save(data, np.concatenate([batch[name] for batch in feeds(images, given, name, 1)]))
    done = subprocess.run(
        [python, "-c", _MODELOPT, float32, data, out, kind],
        capture_output=True,
        text=True,
        check=False,
    )
    if not out.exists():
        raise RuntimeError((done.stderr.strip().splitlines() or ["no file"])[-1])


def score(file: Path, given: Preprocessing, test: Path) -> dict[str, Any]:
    """Top-1 through ONNX Runtime."""
    images = Images.open(test)
    with open_engine("onnxruntime")(file.read_bytes(), EngineOptions()) as engine:
        inputs = engine.inputs
        run = fixed_batch(engine.run, inputs)
        return Classification().score(run, lambda: images.batches(inputs, given, 50), run).to_dict()


def row(file: Path, given: Preprocessing, test: Path, preset: str) -> dict[str, Any]:
    """One file, as it came and transcoded."""
    fixed = file.with_suffix(".fixed.onnx")
    report = json.loads(
        edgepress("transcode", file, "--out", fixed, "--json") or '{"error": "no report"}'
    )
    why = json.loads(edgepress("inspect", file, "--why-slow", "--json"))["why_slow"]
    found = compare(fixed, file, preset=preset)
    return {
        "given": score(file, given, test),
        "fixed": score(fixed, given, test),
        "given_bytes": file.stat().st_size,
        "fixed_bytes": fixed.stat().st_size,
        "ratio": found.ratio,
        "low": found.ratio_low,
        "high": found.ratio_high,
        "settled": found.settled,
        "given_p50_ms": found.b.latency.p50_ms,
        "fixed_p50_ms": found.a.latency.p50_ms,
        "equality": report["equality"],
        "changes": report["changes_by_rule"],
        "int8_nodes": report["int8_nodes"],
        "kept_float": len(report["kept_float"]),
        "why_slow": [(r["rule"], r["nodes"], round(r["cost_ms"], 2)) for r in why["rules"]],
    }


def markdown(told: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# INT8 files of other tools in ONNX Runtime, as they came and transcoded",
        "",
        "Made by `python benchmarks/proofs/transcode_peers.py`. Same scales, no data, one thread, batch 1. A ratio is the",
        "latency of the file as it came over that of the transcoded one, measured in turn in fresh processes, with its",
        "95 % interval. Steps: the largest difference of any layer given that layer's inputs, and of an output end to end",
        "(both on random inputs). Unclipped: values that the given file clipped at its highest code.",
        "",
    ]
    print_machine(lines, told["fingerprint"])
    for name, rows in told["networks"].items():
        lines += ["", f"## {name}", ""]
        lines.append(
            f"float32: {rows['float32']['score']['value']:.2f}" if "float32" in rows else ""
        )
        lines += [
            "",
            "| file | top-1 as it came | top-1 transcoded | p50 ms as it came | p50 ms transcoded | faster | layer steps | end to end | unclipped | what was slow (nodes, ms) |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for peer, entry in rows.items():
            if peer == "float32":
                continue
            if "error" in entry:
                lines.append(f"| {peer} | failed: {entry['error']} |" + " |" * 8)
                continue
            near = entry["equality"]
            mark = "" if entry["settled"] else ", unsettled"
            slow = "; ".join(f"{rule} ({n}, {ms})" for rule, n, ms in entry["why_slow"][:4])
            lines.append(
                f"| {peer} | {entry['given']['value']:.2f} | {entry['fixed']['value']:.2f} "
                f"| {entry['given_p50_ms']:.2f} | {entry['fixed_p50_ms']:.2f} "
                f"| {entry['ratio']:.2f}x ({entry['low']:.2f} to {entry['high']:.2f}{mark}) "
                f"| {near['layer_steps']:.2f} | {near['output_steps']:.1f} "
                f"| {100 * near['unclipped_share']:.2f} % | {slow} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
