"""Our INT8 beside that of other tools: the same networks, the same pictures, one run, interleaved.

::

    python benchmarks/proofs/int8_peers.py [NETWORK ...] [--out benchmarks/results/int8_peers]

For each network it makes the float32 graph and our bundle with the command line, and from that float32 graph
the files of ``onnxruntime.quantization.quantize_static`` (MinMax, per channel, QDQ, uint8 activations) and of
``nncf.quantize`` (its defaults), all with 300 calibration pictures from the same place. Every file is scored
through ONNX Runtime on the test pictures and timed against float32 and against ours, in turn, in fresh
processes. A tool that fails is shown with its error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["NNCF_CI"] = "1"  # NNCF sends telemetry otherwise
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnx

from edgepress.benchmarks import Agreement, Classification, Images, compare, fixed_batch
from edgepress.benchmarks.fingerprint import fingerprint
from edgepress.runtime import EngineOptions, Preprocessing, open_engine
from networks import NETWORKS, Network, data_root, edgepress, pictures

_CALIBRATION = 300
_THREADS = (1,)


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--out", default="benchmarks/results/int8_peers", type=Path)
    parser.add_argument("--preset", default="standard")
    given = parser.parse_args()
    path = given.out.with_suffix(".json")
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"networks": {}}
    told["fingerprint"] = fingerprint()
    for name in given.networks:
        with tempfile.TemporaryDirectory() as folder:
            told["networks"][name] = one(NETWORKS[name], Path(folder), given.preset)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(markdown(told))
        print(
            markdown(
                {"networks": {name: told["networks"][name]}, "fingerprint": told["fingerprint"]}
            )
        )


def one(network: Network, folder: Path, preset: str) -> dict[str, Any]:
    """Everything about one network."""
    calibration, test = pictures(network, folder)
    root = data_root()
    model = f"{root}/backbones.py:{network.name}"
    weights, preprocessing = root / "weights" / network.weights, root / network.preprocessing
    float32 = folder / "float32.onnx"
    common = ("--weights", weights, "--preprocessing", preprocessing)
    edgepress("export", model, *common, "--data", calibration, "--out", float32)
    started = time.monotonic()
    ours = folder / "ours"
    # --max-drop 100: this table shows what INT8 gives, whether it would be accepted or not
    edgepress(
        *("compress", model, *common, "--data", calibration, "--test-data", test),
        *("--task", network.task, "--recipe", "int8", "--max-drop", "100", "--out", ours),
        *("--calibration-size", _CALIBRATION),
    )
    seconds = {"edgepress (with proof)": time.monotonic() - started}
    files: dict[str, Path | str] = {"float32": float32, "edgepress": ours / "model.onnx"}
    given = Preprocessing.from_toml(preprocessing)
    for peer, make in (("quantize_static", quantize_static), ("NNCF", nncf_quantize)):
        started = time.monotonic()
        try:
            files[peer] = make(float32, folder / f"{peer}.onnx", Images.open(calibration), given)
        except Exception as error:
            files[peer] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        seconds[peer] = time.monotonic() - started
    rows: dict[str, Any] = {}
    for name, file in files.items():
        rows[name] = (
            {"error": file}
            if isinstance(file, str)
            else row(network, file, files, given, test, preset)
        )
    return {"rows": rows, "seconds": seconds, "batches": network.batches}


def row(
    network: Network,
    file: Path,
    files: dict[str, Path | str],
    given: Preprocessing,
    test: Path,
    preset: str,
) -> dict[str, Any]:
    """Score and speed of one file."""
    images = Images.open(test)
    float32, ours = Path(files["float32"]), Path(files["edgepress"])
    try:
        onnxruntime = open_engine("onnxruntime")
        with (
            onnxruntime(file.read_bytes(), EngineOptions()) as engine,
            onnxruntime(float32.read_bytes(), EngineOptions()) as reference,
        ):
            inputs = reference.inputs
            name = engine.inputs[0].name

            def run(feeds: Any) -> Any:
                given_outputs = fixed_batch(engine.run, engine.inputs)(
                    {name: next(iter(feeds.values()))}
                )
                return dict(
                    zip([o.name for o in reference.outputs], given_outputs.values(), strict=True)
                )

            def batches() -> Iterator[Any]:
                return images.batches(inputs, given, 50)

            task = Classification() if network.task == "classification" else Agreement()
            score = task.score(run, batches, reference.run)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    told: dict[str, Any] = {
        "size_bytes": file.stat().st_size,
        "score": score.to_dict(),
        "speed": {},
    }
    for batch in network.batches:
        for against, base in (("float32", float32), ("edgepress", ours)):
            if base == file:
                continue
            # compare(a, b).ratio is b's latency over a's: how many times faster this file is
            found = compare(file, base, batch=batch, preset=preset)
            told["speed"][f"batch {batch} against {against}"] = {
                "ratio": found.ratio,
                "low": found.ratio_low,
                "high": found.ratio_high,
                "p50_ms": found.a.latency.p50_ms,
                "settled": found.settled,
            }
    return told


def feeds(images: Images, given: Preprocessing, name: str, batch: int) -> Iterator[dict[str, Any]]:
    """The calibration pictures, as the graph takes them."""
    from edgepress.runtime import TensorSpec

    some = images.split(_CALIBRATION, 0, own_test=True).calibration
    spec = (TensorSpec(name, "float32", ("N", "C", "H", "W")),)
    for one_batch in some.batches(spec, given, batch):
        yield one_batch.inputs


def quantize_static(float32: Path, out: Path, images: Images, given: Preprocessing) -> Path:
    """ONNX Runtime's own tool, as its documentation advises for x86."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load(float32).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = feeds(images, given, name, 1)

        def get_next(self) -> Any:
            return next(self.batches, None)

    logging.disable(logging.WARNING)
    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(float32), str(prepared))
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out


def nncf_quantize(float32: Path, out: Path, images: Images, given: Preprocessing) -> Path:
    """NNCF with its defaults."""
    import nncf

    model = onnx.load(float32)
    name = model.graph.input[0].name
    quantized = nncf.quantize(
        model, nncf.Dataset(list(feeds(images, given, name, 1))), subset_size=_CALIBRATION
    )
    onnx.save(quantized, out)
    return out


def markdown(told: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# INT8 of several tools on ONNX Runtime, one thread",
        "",
        "Made by `python benchmarks/proofs/int8_peers.py`. Scores are of the files as ONNX Runtime runs them; a ratio is",
        "the latency of the other file over that of this one, both measured in turn in fresh processes, with its 95 %",
        "interval: over 1, this file is faster.",
        "",
    ]
    print_machine(lines, told["fingerprint"])
    for name, found in told["networks"].items():
        batches = found["batches"]
        heads = [f"batch {b}: against float32" for b in batches] + [
            f"batch {b}: against ours" for b in batches
        ]
        lines += [
            "",
            f"## {name}",
            "",
            "| file | size | score | SQNR | same top-1 | KL | cosine | " + " | ".join(heads) + " |",
        ]
        lines.append("|---|---|---|---|---|---|---|" + "---|" * len(heads))
        for row_name, entry in found["rows"].items():
            if "error" in entry:
                lines.append(f"| {row_name} | failed: {entry['error']} |" + " |" * (5 + len(heads)))
                continue
            lines.append("| " + " | ".join([row_name, *cells(entry, batches)]) + " |")
    return "\n".join(lines) + "\n"


def print_machine(lines: list[str], found: dict[str, Any]) -> None:
    """What it ran on, in a line."""
    cpu, software = found["cpu"], found["software"]
    lines.append(
        f"Machine: {cpu['model']} ({', '.join(cpu['flags'])}), {cpu['cores']} cores, virtual, shared and noisy; "
        f"onnxruntime {software['onnxruntime']}, Python {software['python']}; {found['time_utc'][:10]}."
    )


def cells(entry: dict[str, Any], batches: list[int]) -> list[str]:
    """One row."""
    score = entry["score"]
    details = score["details"]
    outputs = details.get("agreement") or details.get("outputs") or {}
    near = next(iter(outputs.values()), {})

    def number(key: str, digits: int) -> str:
        return "-" if near.get(key) is None else f"{near[key]:.{digits}f}"

    value = f"{score['value']:.2f}"
    if score["low"] is not None:
        value += f" ({score['low']:.2f} to {score['high']:.2f})"
    found = [
        f"{entry['size_bytes'] / 1000:.0f} kB",
        value,
        number("sqnr_db", 2),
        number("top1_agreement_percent", 2),
    ]
    found += [number("kl_nats", 5), number("mean_cosine", 5)]
    for against in ("float32", "edgepress"):
        for batch in batches:
            speed = entry["speed"].get(f"batch {batch} against {against}")
            if speed is None:
                found.append("-")
            else:
                mark = "" if speed["settled"] else ", unsettled"
                found.append(
                    f"{speed['ratio']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f}{mark})"
                )
    return found


if __name__ == "__main__":
    main()
