"""Small float networks in ONNX's text form, and their INT8; for the tests of what is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from edgepress.export.calibration.ranges import calibrate
from edgepress.export.graph.normalize import normalize
from edgepress.export.graph.onnx_graph import Graph
from edgepress.export.graph.precision_plan import PrecisionPlan
from edgepress.export.int8.dialect import dialect
from edgepress.export.int8.int8_plan import plan_int8
from edgepress.export.int8.qdq_writer import write_qdq
from edgepress.export.int8.quantized_graph import QuantizedGraph
from edgepress.export.receipt import Receipt, count_macs, int8_receipt
from edgepress.runtime import EngineOptions
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.target import onnxruntime_dialect
from edgepress.runtime.tensors import Array, Arrays

X86 = "onnxruntime-x86-vnni"
if onnxruntime_dialect() == "onnxruntime-x86":
    X86 = "onnxruntime-x86"
"""ONNX Runtime's dialect for x86 processors, which is that of the one at hand if it is one."""

LEVELS = ("none", "basic", "all")
PICTURES = "float[N,3,16,16] x"
SAME = "pads=[1,1,1,1]"


def _weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)

    def whole(*values: int) -> Array:
        return np.array(values, np.int64)

    dead = normal(8, 3, 3, 3)
    dead[2], dead[3] = 0, 1e-30
    biases = {f"b{n}": rng.normal(0, 0.3, n).astype(np.float32) for n in (5, 8, 12)}
    return {
        **biases,
        "stem": normal(8, 3, 3, 3),
        "w1": normal(8, 8, 3, 3),
        "w2": normal(8, 8, 3, 3),
        "point": normal(8, 8, 1, 1),
        "depth": normal(8, 1, 3, 3),
        "half": normal(8, 4, 3, 3),
        "quarter": normal(8, 2, 3, 3),
        "four": normal(8, 32, 3, 3),
        "wide": normal(8, 16, 3, 3),
        "five": normal(8, 40, 1, 1),
        "up": normal(8, 8, 2, 2),
        "line1": normal(8, 8, 3),
        "line2": normal(8, 8, 3),
        "cube1": normal(8, 3, 3, 3, 3),
        "cube2": normal(8, 8, 3, 3, 3),
        "head": normal(12, 8).T.copy(),
        "head_t": normal(5, 12),
        "rows": normal(12, 1),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "six": np.array(6, np.float32),
        "minus": np.array(-1, np.float32),
        "ten": normal(8, 10, 3, 3),
        "channels": whole(0, 1, 0, 0, 0, 1, 0, 0),
        "pads": whole(0, 0, 1, 2, 0, 0, 1, 0),
        "starts": whole(0, 0),
        "ends": whole(16, 16),
        "last": whole(2, 3),
        "steps": whole(2, 2),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "split": whole(0, 4, 2, 16, 16),
        "joined": whole(0, 8, 16, 16),
        "tail": whole(8, 16, 16),
        "i0": whole(0),
        "i1": whole(1),
        "i8": whole(8),
        "mask": np.array([0] * 8 + [-np.inf] * 8, np.float32),
        "dead": dead,
        "dead_bias": np.where(np.arange(8) == 3, 3, 0).astype(np.float32),
        "reverse": whole(7, 6, 5, 4, 3, 2, 1, 0),
        "parts": whole(4, 4),
        "halves": whole(8, 8),
    }


WEIGHTS = _weights()


def network(text: str, *, opset: int = 18) -> Graph:
    """A Graph from ONNX's text form; weights are those of `WEIGHTS` that it names."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}]> network '
    model = onnx.parser.parse_model(header + text)
    made = {name for node in model.graph.node for name in node.output}
    read = {name for node in model.graph.node for name in node.input} - made
    for name in sorted(read & WEIGHTS.keys()):
        model.graph.initializer.append(numpy_helper.from_array(WEIGHTS[name], name))
    return normalize(model, source="the test")


def batches_for(graph: Graph, count: int = 4) -> Callable[[int], Iterable[Arrays]]:
    """Four batches of random pictures, always the same."""
    spec, rng = graph.inputs[0], np.random.default_rng(1)
    rows = spec.batch or 4
    shape = [rows, *(size if isinstance(size, int) else 24 for size in spec.shape[1:])]
    chunks: list[Arrays] = []
    for _ in range(count):
        chunks.append(
            {
                one.name: rng.normal(size=shape).astype(np.float32)
                if one.dtype == "float32"
                else rng.integers(0, 256, shape).astype(one.dtype)
                for one in graph.inputs
            }
        )
    return lambda size: iter(chunks)


@dataclass(frozen=True)
class Made:
    graph: Graph
    plan: PrecisionPlan
    quantized: QuantizedGraph
    receipt: Receipt
    wanted: Arrays
    found: dict[str, Arrays]
    model: onnx.ModelProto

    def operators(self) -> list[str]:
        return [node.op_type for node in self.model.graph.node]


def run(model: bytes, feeds: Arrays, level: Any = "none") -> Arrays:
    with OnnxRuntimeEngine(model, EngineOptions(optimize=level)) as engine:
        return engine.run(feeds)


def sqnr_db(wanted: Array, found: Array) -> float:
    """Signal over noise; 200 where there is none."""
    one, noise = wanted.astype(np.float64), wanted.astype(np.float64) - found
    return float(10 * np.log10(max(np.sum(one**2), 1e-20) / max(np.sum(noise**2), 1e-40)))


def quantize(graph: Graph, speech: str = X86, **options: Any) -> Made:
    """Write INT8 and check what holds for every emitted graph."""
    spoken, batches = dialect(speech), batches_for(graph)
    ranges = calibrate(graph, batches)
    plan = plan_int8(graph, ranges, spoken, **options)
    quantized = write_qdq(graph, ranges, plan, spoken)
    feeds = next(iter(batches(4)))
    receipt = int8_receipt(graph, count_macs(graph, feeds), quantized, plan)
    model = onnx.load_model_from_string(quantized.model)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 10
    wanted = run(graph.model, feeds)
    found = {level: run(quantized.model, feeds, level) for level in LEVELS}
    with OnnxRuntimeEngine(quantized.model) as engine:
        assert (engine.inputs, engine.outputs) == (graph.inputs, graph.outputs)
    fits = spoken.weight_limit <= dialect(X86).weight_limit  # else INT8 kernels saturate here
    for name, value in wanted.items():
        for level in LEVELS if fits else LEVELS[:2]:
            assert sqnr_db(value, found[level][name]) > 22, (name, level)
            assert sqnr_db(found["none"][name], found[level][name]) > 30, (name, level)
    return Made(graph, plan, quantized, receipt, wanted, found, model)


def all_fused(made: Made, asked: int) -> None:
    assert (made.receipt.fused_int8, made.receipt.asked_int8) == (asked, asked), [
        node for node in made.receipt.nodes if node.reason.startswith("asked")
    ]


@lru_cache
def residual() -> Graph:
    """Residual and inverted-residual blocks, two heads; 9 INT8 nodes of which 2 are adds."""
    return network(
        f"({PICTURES}) => (float[N,12] logits, float[N,8,8,8] map) {{"
        f" c0 = Conv <{SAME}> (x, stem, b8)"
        " r0 = Relu(c0)"
        f" c1 = Conv <{SAME}> (r0, w1, b8)"
        " r1 = Relu(c1)"
        f" c2 = Conv <{SAME}> (r1, w2)"
        " a1 = Add(c2, r0)"
        " r2 = Relu(a1)"
        " c3 = Conv(r2, point, b8)"
        " k3 = Clip(c3, zero, six)"
        f" c4 = Conv <{SAME}, strides=[2,2], group=8> (k3, depth, b8)"
        " k4 = Clip(c4, zero, six)"
        " c5 = Conv(k4, point)"
        " m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r2)"
        " map = Add(c5, m)"
        " p = GlobalAveragePool(map)"
        " f = Flatten(p)"
        " logits = Gemm(f, head, b12) }"
    )
