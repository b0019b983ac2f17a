"""The matrix's step for NVIDIA: what is written for TensorRT, parsed and built without a GPU.

TensorRT-RTX builds what TensorRT's own parser reads; its engines run on a GPU of that kind alone, so that
nothing is timed here. What the INT8 loses is seen in ONNX Runtime, which computes the same graph in float.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgepress.benchmarks import Agreement, Images
from edgepress.compress.evaluation.evaluator import Evaluator
from edgepress.compress.source.source_network import (
    first_rows,
    fixed_batches,
    open_model,
    with_batch,
)
from edgepress.export import calibrate, correct_biases, dialect, plan_int8, write_qdq
from edgepress.export.calibration.ranges import FeedBatches, Ranges
from edgepress.export.fp16.fp16 import settle_fp16
from edgepress.export.graph.normalize import with_opset
from edgepress.export.graph.onnx_graph import Graph
from edgepress.export.receipt import count_macs
from edgepress.runtime import EdgepressError
from edgepress.runtime.engines.build_options import BuildOptions
from edgepress.runtime.nvidia.child_builder import build_engine

from .matrix_networks import Entry

OPSET = 19
_MINUTES = 5


def in_dialect(
    name: str,
) -> Callable[[Graph, Ranges, FeedBatches, Mapping[str, int]], tuple[bytes, float]]:
    """Writes INT8 in a dialect: the graph, and its share of the multiply-adds in INT8."""

    def write(
        graph: Graph, ranges: Ranges, batches: FeedBatches, macs: Mapping[str, int]
    ) -> tuple[bytes, float]:
        spoken = dialect(name)
        made = write_qdq(graph, ranges, plan_int8(graph, ranges, spoken), spoken)
        largest = max(one.elements for one in ranges.tensors.values())
        made, _ = correct_biases(graph, made, batches, largest_tensor=largest)
        share = sum(macs.get(unit.node, 0) for unit in made.units) / max(1, sum(macs.values()))
        return made.model, share

    return write


def in_fp16(
    graph: Graph, ranges: Ranges, batches: FeedBatches, macs: Mapping[str, int]
) -> tuple[bytes, float]:
    """Writes FP16, with what does not bear it in float32; nothing of it is in INT8."""
    del macs
    return settle_fp16(graph, ranges, batches).half.model, 0.0


GRAPHS = {
    "tensorrt": in_dialect("tensorrt"),
    "tensorrt-rtx": in_dialect("tensorrt-rtx"),
    "fp16": in_fp16,
}
"""What is written: add a function here, and the table has its columns."""


def parse_and_build(
    entry: Entry, folder: Path, pictures: Images, test: Images, calibration: int
) -> dict[str, Any]:
    """Each graph: seconds to parse and build, or the builder's refusal; agreement with float32."""
    how, given = entry.how(), open_model(folder / "float32.onnx", None)
    assert isinstance(given, Graph)
    part = pictures.split(calibration, 0, own_test=True).calibration
    example = first_rows(part, given.inputs, how, 2)
    graph = with_opset(given, OPSET, with_batch(example, given))
    batches = fixed_batches(graph, part, how)
    ranges, macs = calibrate(graph, batches), count_macs(graph, with_batch(example, graph))
    judge = Evaluator(graph, Agreement(), how, example, lambda *_: None)
    sizes = {
        one: (length, length, length)
        for spec in graph.inputs
        for one, length in zip(spec.shape[1:], example[spec.name].shape[1:], strict=True)
        if isinstance(one, str)
    }
    options = BuildOptions(sizes=sizes, time_limit_s=60 * _MINUTES)
    told: dict[str, Any] = {}
    for name, write in GRAPHS.items():
        model, share = write(graph, ranges, batches, macs)
        started = time.monotonic()
        try:
            build_engine("tensorrt-rtx", model, options)
            told[name] = {"build_seconds": round(time.monotonic() - started, 1)}
        except EdgepressError as error:
            told[name] = {"refused": f"{error.code}: {error.message}"[:300]}
        score = judge.score(model, test, name).to_dict()
        told[name].update(size_bytes=len(model), int8_share=share, test_score=score)
    return {"graphs": told}
