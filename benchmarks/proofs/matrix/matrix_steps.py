"""What is done with one network of the matrix, each step in a process of its own.

``python matrix_steps.py STEP NETWORK FOLDER OUT.json [--no-timing]`` is what ``network_matrix.py``
starts. A step reads what earlier ones left in FOLDER and gives a dict, which goes to OUT with what
it took. To add a step (an engine that parses and builds, say), write a function, name it in
:data:`STEPS`, and give it its columns in ``matrix_table.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["NNCF_CI"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from edgepress.benchmarks import Agreement, Images
from edgepress.compress import Backbone, Recipe, compress
from edgepress.compress.evaluation.evaluator import Evaluator
from edgepress.compress.quantization.int8_pass import quantize_int8
from edgepress.compress.recipe.pass_context import Context
from edgepress.compress.source.data_and_task import open_data_and_task
from edgepress.compress.source.export_network import export_graph
from edgepress.compress.source.source_network import (
    first_rows,
    fixed_batches,
    make_source_network,
    open_model,
    with_batch,
)
from edgepress.export.receipt import count_macs
from edgepress.runtime import EdgepressError
from edgepress.runtime.target import target

from .matrix_networks import Entry, entries

CALIBRATION, SELECTION, TEST = 32, 32, 64
MAX_DROP = 2.0
"""Points of cosine that INT8 may lose: 0.98 is asked for."""

_STATISTICS = 32  # pictures that set the BatchNorm statistics of random networks


def capture(entry: Entry, folder: Path, timing: bool) -> dict[str, Any]:
    """Torch, or somebody's ONNX file, to the float32 graph; torch's outputs compared with its own."""
    del timing
    parameters = None
    if entry.onnx is not None:
        graph = export_graph(str(entry.onnx))
    else:
        module = entry.module()
        parameters = sum(p.numel() for p in module.parameters())
        pictures = entry.share(0, 16)
        graph = export_graph(Backbone.of(module), preprocessing=entry.how(), data=pictures)
    (folder / "float32.onnx").write_bytes(graph.model)
    return {
        "parameters": parameters,
        "size_bytes": len(graph.model),
        "parity": graph.parity.to_dict() if graph.parity else None,
    }


def on_onnxruntime(entry: Entry, folder: Path, timing: bool) -> dict[str, Any]:
    """INT8 for ONNX Runtime."""
    return (timed if timing else untimed)(entry, folder, "onnxruntime-cpu")


def on_openvino(entry: Entry, folder: Path, timing: bool) -> dict[str, Any]:
    """INT8 for OpenVINO."""
    return (timed if timing else untimed)(entry, folder, "openvino-cpu")


def for_tensorrt(entry: Entry, folder: Path, timing: bool) -> dict[str, Any]:
    """What is written for TensorRT, parsed and built by TensorRT-RTX."""
    del timing
    from .matrix_tensorrt import parse_and_build

    return parse_and_build(entry, folder, *pictures_of(entry), CALIBRATION)


def peers(entry: Entry, folder: Path, timing: bool) -> dict[str, Any]:
    """The files of other tools, beside the bundles of the engines' steps."""
    if not timing:
        return {"error": "other tools are timed beside us, or not at all"}
    from .matrix_peers import beside

    pictures, test = pictures_of(entry)
    calibration = open_data_and_task(pictures, test, "agreement", CALIBRATION, 0).split.calibration
    return beside(entry, folder, calibration, test)


def pruning(entry: Entry, folder: Path, timing: bool) -> dict[str, Any]:
    """Pruned to a share of its multiply-adds, saved, rebuilt, exported and run."""
    del timing
    from .matrix_pruning import prune

    return prune(entry, folder)


STEPS: dict[str, Callable[[Entry, Path, bool], dict[str, Any]]] = {
    "capture": capture,
    "onnxruntime": on_onnxruntime,
    "openvino": on_openvino,
    "peers": peers,
    "tensorrt": for_tensorrt,
    "pruning": pruning,
}


def pictures_of(entry: Entry) -> tuple[Images, Images]:
    """Pictures for calibration and selection, and others for the test."""
    count = CALIBRATION + SELECTION
    return entry.share(_STATISTICS, count), entry.share(_STATISTICS + count, TEST)


def timed(entry: Entry, folder: Path, name: str) -> dict[str, Any]:
    """What ``edgepress compress --recipe int8 --task agreement`` gives, its bundle included."""
    pictures, test = pictures_of(entry)
    bundle = compress(
        folder / "float32.onnx",
        pictures,
        out=folder / name,
        test_data=test,
        preprocessing=entry.how(),
        task="agreement",
        target=name,
        max_drop=MAX_DROP,
        calibration_size=CALIBRATION,
        force=True,
    )
    told: Any = bundle.measurements
    holds = bundle.variants[0].name
    tried = [one for one in told["candidates"] if one["precision"].startswith("int8")]
    shipped = next((one for one in tried if one["precision"] == holds), tried[0])
    return {**shipped, "holds": holds, "notes": list(bundle.manifest.notes)}


def untimed(entry: Entry, folder: Path, name: str) -> dict[str, Any]:
    """The same candidate, scored but not timed, for a machine that is busy."""

    def silent(stage: str, done: int, count: int | None) -> None:
        del stage, done, count

    how, model = entry.how(), folder / "float32.onnx"
    material = open_data_and_task(*pictures_of(entry), "agreement", CALIBRATION, 0)
    split = material.split
    subject = make_source_network(model, open_model(model, None), how, split.calibration, 18)
    graph, destination = subject.graph, target(name)
    example = first_rows(split.calibration, graph.inputs, how, 1)
    context = Context(
        destination,
        fixed_batches(graph, split.calibration, how),
        len(split.calibration),
        fixed_batches(graph, split.selection, how),
        count_macs(graph, with_batch(example, graph)),
        silent,
    )
    (settings,) = Recipe.open("int8").passes
    candidate = quantize_int8(graph, settings, context)
    judge = Evaluator(graph, Agreement(), how, example, silent, destination.engine)
    score = judge.score(candidate.shipped.model, material.test, "INT8")
    return {
        "size_bytes": len(candidate.shipped.model),
        "test_score": score.to_dict(),
        "receipt": candidate.receipt.in_short(),
        "report": candidate.report,
        "latency": None,
    }


def peak_kib() -> int:
    """The peak of this process's memory (VmHWM; ``ru_maxrss`` inherits the parent's)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    """Do one step."""
    parser = argparse.ArgumentParser(description="One step of the matrix, in this process.")
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("network")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--no-timing", action="store_true")
    parser.add_argument("--brought", type=Path)
    given = parser.parse_args()
    started, entry = time.monotonic(), entries(given.brought)[given.network]
    try:
        told = STEPS[given.step](entry, given.folder, not given.no_timing)
    except EdgepressError as error:
        told = {"error": f"{error.code}: {error.message}"[:600]}
    took = {"seconds": round(time.monotonic() - started, 1), "peak_kib": peak_kib()}
    part = given.out.with_suffix(".part")
    part.write_text(json.dumps({**told, **took}))
    os.replace(part, given.out)


if __name__ == "__main__":
    main()
