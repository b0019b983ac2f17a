"""INT8 files of other tools, as they came and after ``edgepress transcode``, in ONNX Runtime and in OpenVINO.

::

    python -m edgepress.benchmarks.proofs.peers.transcode_peers make --work FOLDER [--modelopt PYTHON] [NETWORK ...]
    python -m edgepress.benchmarks.proofs.peers.transcode_peers time --work FOLDER [NETWORK ...]
    python -m edgepress.benchmarks.proofs.peers.transcode_peers make --work FOLDER --brought NETWORKS.toml --out PATH

The third takes classifiers and pictures of your own: ``README.md`` says how the file is written.
``make`` makes the files as `int8_peers.py` does, from the same float32 graph and 300 calibration pictures,
transcodes them and scores them; ``time`` times what lies there, and is for a machine that does nothing else.
Both add to the same table. ModelOpt pins other versions of onnx and onnxruntime, so that it needs an environment
of its own, whose Python ``--modelopt`` names; without it its rows are missing, and its placement, made with
``quantize_static`` (symmetric int8, quantizers on the inputs of convolutions only), stands alone.

What a file says is what it computes with every optimization off. The file as it came, optimized, differs from that
by the order of its additions alone, which is how near any other way to run it can be expected to come.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["NNCF_CI"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx

from edgepress.benchmarks import Images, compare, fixed_batch
from edgepress.benchmarks.latency.fingerprint import fingerprint
from edgepress.runtime import EngineOptions, Preprocessing, open_engine
from edgepress.runtime.target import target

from ..networks import NETWORKS, Network, brought, edgepress, pictures
from .peer_table import print_machine
from .peers import calibration_of, feeds, nncf_quantize, quantize_static

_DEFAULT = ("efficientnet_lite0", "resnet56")
TARGETS = ("onnxruntime-cpu", "openvino-cpu")
_REPORTED = ("size_bytes", "int8_nodes", "changes_by_rule", "kept_float", "equality")
_TIMED = ("time", "why_slow")
_MODELOPT = """
import sys, numpy, onnx
from modelopt.onnx.quantization import quantize
model, data, out, kind = sys.argv[1:]
name = onnx.load(model).graph.input[0].name
quantize(model, quantize_mode="int8", calibration_data={name: numpy.load(data)}, calibration_eps=["cpu"],
         high_precision_dtype=kind, output_path=out)
"""


def main() -> None:
    """Run a part of the proof."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=["make", "time"])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--brought", type=Path, metavar="NETWORKS.toml")
    parser.add_argument("--work", type=Path, required=True, help="where the files are kept")
    parser.add_argument("--modelopt", type=Path, help="a Python that has nvidia-modelopt")
    parser.add_argument("--peers", nargs="*", help="only these")
    parser.add_argument("--out", default="benchmarks/results/transcode_peers", type=Path)
    parser.add_argument("--preset", default="quick")
    given = parser.parse_args()
    path = given.out.with_suffix(".json")
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"networks": {}}
    told["fingerprint"] = fingerprint()
    there = NETWORKS if given.brought is None else brought(given.brought)
    names = given.networks or (list(_DEFAULT) if given.brought is None else list(there))
    for name in names:
        if name not in there:
            parser.error(f"unknown: {name}. Known: {', '.join(there)}")
        folder = given.work / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = told["networks"].setdefault(name, {})
        if given.part == "make":
            made = make_all(there[name], folder, given.modelopt, given.peers)
        else:
            made = time_all(folder, given.preset, given.peers, rows)
        for peer, row in made:
            before = rows.setdefault(peer, {}).get("targets", {})
            for target_name, entry in row.get("targets", {}).items():
                known = before.get(target_name, {})
                entry.update({key: value for key, value in known.items() if key in _TIMED})
            rows[peer].update(row)
            print(name, peer, json.dumps(row)[:500], flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(told, indent=1) + "\n")
            given.out.with_suffix(".md").write_text(markdown(told))
    print(markdown(told))


def make_all(
    network: Network, folder: Path, modelopt: Path | None, only: list[str] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every peer's file of one network, transcoded and scored."""
    calibration, test = pictures(network, folder)
    float32, preprocessing = folder / "float32.onnx", network.how_file(folder)
    words = ("--preprocessing", preprocessing, "--data", calibration, "--out", float32, "--force")
    edgepress("export", *network.words(), *words)
    given, images = network.how(), calibration_of(Images.open(calibration))
    peers: dict[str, Callable[[Path], Any]] = {
        "NNCF": lambda out: nncf_quantize(float32, out, images, given),
        "quantize_static": lambda out: quantize_static(float32, out, images, given),
        "quantize_static, placed as ModelOpt does": lambda out: placed_as_modelopt(
            float32, out, images, given
        ),
    }
    if modelopt is not None:
        for kind in ("fp32", "fp16"):
            peers[f"ModelOpt, {kind}"] = lambda out, kind=kind: modelopt_quantize(
                modelopt, float32, out, images, given, kind
            )
    for peer, make in peers.items():
        if only and peer not in only:
            continue
        file = folder / f"{_word(peer)}.onnx"
        try:
            if not file.exists():
                make(file)
        except Exception as error:
            yield peer, {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            continue
        yield peer, {"given_bytes": file.stat().st_size, **judge(file, given, test)}


def _word(peer: str) -> str:
    return peer.replace(",", "").replace(" ", "_")


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


def outputs(
    file: Path, given: Preprocessing, test: Path, engine: str, optimize: Any = "all"
) -> tuple[Any, Any]:
    """What a network gives for every test picture, and the pictures' classes."""
    images = Images.open(test)
    with open_engine(engine)(file.read_bytes(), EngineOptions(optimize=optimize)) as running:
        run = fixed_batch(running.run, running.inputs)
        found, labels = [], []
        for batch in images.batches(running.inputs, given, 50):
            found.append(next(iter(run(batch.inputs).values())))
            labels.append(batch.labels)
    return np.concatenate(found), np.concatenate(labels)


def judge(file: Path, given: Preprocessing, test: Path) -> dict[str, Any]:
    """One file, transcoded for each target: what the outputs are, and what was changed."""
    said, labels = outputs(file, given, test, "onnxruntime", "none")
    told: dict[str, Any] = {"said": {"top1": _top1(said, labels)}, "targets": {}}
    for name in TARGETS:
        fixed = _fixed(file, name)
        entry = told["targets"][name] = {}
        engine = target(name).engine
        report = edgepress(
            *("transcode", file, "--target", name, "--out", fixed, "--force", "--json")
        )
        entry.update({key: json.loads(report)[key] for key in _REPORTED})
        entry["kept_float"] = len(entry["kept_float"])
        try:
            came, _ = outputs(file, given, test, engine)
            entry["came"] = {"top1": _top1(came, labels), **_near(came, said)}
        except Exception as error:
            entry["came"] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
        made, _ = outputs(fixed, given, test, engine)
        entry["fixed"] = {"top1": _top1(made, labels), **_near(made, said)}
    return told


def _fixed(file: Path, name: str) -> Path:
    return file.with_suffix(f".{name}.onnx")


def _top1(found: Any, labels: Any) -> float:
    return float(100 * (found.argmax(1) == labels).mean())


def _near(found: Any, said: Any) -> dict[str, float]:
    """Share of pictures with the same first class, and the ratio of signal to difference."""
    apart = float(((found - said).astype(np.float64) ** 2).sum())
    signal = float((said.astype(np.float64) ** 2).sum())
    return {
        "same_percent": float(100 * (found.argmax(1) == said.argmax(1)).mean()),
        "sqnr_db": float(10 * np.log10(signal / apart)) if apart else float("inf"),
    }


def time_all(
    folder: Path, preset: str, only: list[str] | None, rows: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Both files of every peer in turn, in fresh processes; and where the time of the first goes."""
    for peer, row in rows.items():
        if "targets" not in row or (only and peer not in only):
            continue
        file = folder / f"{_word(peer)}.onnx"
        for name, entry in row["targets"].items():
            engine = target(name).engine
            why = edgepress("inspect", file, "--why-slow", "--target", name, "--json")
            rules = json.loads(why)["why_slow"]["rules"]
            entry["why_slow"] = [(r["rule"], r["nodes"], round(r["cost_ms"], 3)) for r in rules]
            try:
                found = compare(
                    _fixed(file, name), file, preset=preset, engine=engine, against_engine=engine
                )
            except Exception as error:  # some files do not run at all
                entry["time"] = {"error": str(error).splitlines()[0][:120]}
                continue
            entry["time"] = {
                "ratio": found.ratio,
                "low": found.ratio_low,
                "high": found.ratio_high,
                "settled": found.settled,
                "came_p50_ms": found.b.latency.p50_ms,
                "fixed_p50_ms": found.a.latency.p50_ms,
            }
        yield peer, row


def markdown(told: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# INT8 files of other tools, as they came and transcoded",
        "",
        "Made by `python -m edgepress.benchmarks.proofs.peers.transcode_peers make` and `time`. Same scales, no data, one thread, batch 1.",
        "*says*: top-1 of what the file says, every optimization off. *came* and *transcoded*: top-1 in the engine; in",
        "brackets the share of pictures with the same first class as what the file says, and the signal-to-difference ratio",
        "of all outputs. *faster*: the latency of the file as it came over that of the transcoded one, in turn, in fresh",
        "processes, with its 95 % interval. *steps*: the largest difference of any layer given that layer's inputs, on random",
        "inputs.",
        "",
    ]
    print_machine(lines, told["fingerprint"])
    for name, rows in told["networks"].items():
        lines += ["", f"## {name}", "", "| file | engine | says | came | transcoded | steps |"]
        lines[-1] += " p50 ms came | p50 ms transcoded | faster | what was slow (nodes, ms) |"
        lines.append("|---|---|---|---|---|---|---|---|---|---|")
        for peer, row in rows.items():
            if "error" in row:
                lines.append(f"| {peer} | failed: {row['error']} |" + " |" * 8)
                continue
            for target_name, entry in row["targets"].items():
                cells = [peer, target_name, f"{row['said']['top1']:.2f}", _told(entry["came"])]
                cells += [_told(entry["fixed"]), f"{entry['equality']['layer_steps']:.2f}"]
                cells += _times(entry)
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _told(entry: dict[str, Any]) -> str:
    if "error" in entry:
        return f"does not run: {entry['error']}"
    return f"{entry['top1']:.2f} ({entry['same_percent']:.2f} %, {entry['sqnr_db']:.1f} dB)"


def _times(entry: dict[str, Any]) -> list[str]:
    slow = "; ".join(f"{rule} ({n}, {ms:.2f})" for rule, n, ms in entry.get("why_slow", [])[:4])
    found = entry.get("time")
    if found is None or "error" in found:
        return ["-", "-", "-" if found is None else "does not run as it came", slow]
    mark = "" if found["settled"] else ", unsettled"
    ratio = f"{found['ratio']:.2f}x ({found['low']:.2f} to {found['high']:.2f}{mark})"
    return [f"{found['came_p50_ms']:.2f}", f"{found['fixed_p50_ms']:.2f}", ratio, slow]


if __name__ == "__main__":
    main()
