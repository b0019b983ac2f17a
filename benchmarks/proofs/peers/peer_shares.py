"""How much of a network's work a file of any tool does in INT8, in the engine that runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from edgepress.export.engine_views.open_view import rewritten_graph
from edgepress.export.engine_views.view import is_int8_kernel
from edgepress.export.graph.onnx_graph import Graph
from edgepress.export.int8.quantized_graph import QuantizedNode
from edgepress.export.receipt import count_macs
from edgepress.runtime import EngineOptions, open_engine
from edgepress.runtime.engines.engine import Precision
from edgepress.runtime.engines.onnxruntime import optimized_model


def macs_by_node(float32: Path, shape: tuple[int, ...]) -> dict[str, int]:
    """Multiply-adds of each layer of a float32 graph, by the node's name."""
    model = float32.read_bytes()
    with open_engine("onnxruntime")(model, EngineOptions()) as engine:
        inputs, outputs = engine.inputs, engine.outputs
    graph = Graph(model, inputs, outputs)
    (spec,) = inputs
    return count_macs(graph, {spec.name: np.zeros((spec.batch or 1, *shape), np.float32)})


def int8_share(file: Path, engine: str, macs: dict[str, int], precision: Precision) -> float | None:
    """Share of ``macs`` that ``engine`` does in INT8 kernels for ``file``, 0 to 1.

    What is float in it is computed in ``precision``.
    Layers are told by the names of their nodes, which tools and engines leave as they are; ``None``
    where none is recognized.
    """
    model = file.read_bytes()
    int8, known = 0, 0
    if engine == "onnxruntime":
        nodes = onnx.load_model_from_string(optimized_model(model, "extended")).graph.node
        kernels = {node.name: node.op_type for node in nodes}
        for name, work in macs.items():
            kernel = next((kernels[n] for n in (name, f"{name}_quant") if n in kernels), None)
            known += kernel is not None
            int8 += work if kernel is not None and is_int8_kernel(kernel) else 0
    else:
        seen = rewritten_graph(engine, model, EngineOptions(precision=precision))
        kinds = {n.name: n.op_type for n in onnx.load_model_from_string(model).graph.node}
        for name, work in macs.items():
            if name in kinds:
                known += 1
                unit = QuantizedNode(name, kinds[name], f"{name}\0", f"{name}\0")
                int8 += work if seen.kernel_of(unit)[1] else 0
    return int8 / sum(macs.values()) if known else None
