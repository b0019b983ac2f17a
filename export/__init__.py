"""edgepress.export: make the graph, the engine's dialect of it, the receipt, the bundle.

What is named here is imported when it is first used, so that the commands of this room can say
which extra is missing where torch or onnx is not installed.
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from .bundle_contents import ShippedModel, assemble
    from .calibration.ranges import Ranges, calibrate
    from .fp16.fp16 import SettledFp16, settle_fp16
    from .graph.normalize import normalize
    from .graph.onnx_files import read_onnx
    from .graph.onnx_graph import Graph, Parity
    from .graph.precision_plan import PrecisionPlan
    from .inspection.inspect_file import inspect_onnx
    from .inspection.why_slow import Slowness, why_slow
    from .int8.bias_correction import correct_biases
    from .int8.dialect import Dialect, dialect
    from .int8.int8_plan import plan_int8
    from .int8.qdq_writer import write_qdq
    from .int8.quantized_graph import QuantizedGraph
    from .receipt import Receipt, bf16_receipt, count_macs, float_receipt, int8_receipt
    from .transcode.transcode import Transcoded, transcode

__all__ = [
    "Dialect",
    "Graph",
    "Parity",
    "PrecisionPlan",
    "QuantizedGraph",
    "Ranges",
    "Receipt",
    "SettledFp16",
    "ShippedModel",
    "Slowness",
    "Transcoded",
    "assemble",
    "bf16_receipt",
    "calibrate",
    "correct_biases",
    "count_macs",
    "dialect",
    "float_receipt",
    "inspect_onnx",
    "int8_receipt",
    "normalize",
    "plan_int8",
    "read_onnx",
    "settle_fp16",
    "transcode",
    "why_slow",
    "write_qdq",
]

_HOME = {
    "Dialect": "int8.dialect",
    "Graph": "graph.onnx_graph",
    "Parity": "graph.onnx_graph",
    "PrecisionPlan": "graph.precision_plan",
    "QuantizedGraph": "int8.quantized_graph",
    "Ranges": "calibration.ranges",
    "Receipt": "receipt",
    "SettledFp16": "fp16.fp16",
    "ShippedModel": "bundle_contents",
    "Slowness": "inspection.why_slow",
    "Transcoded": "transcode.transcode",
    "assemble": "bundle_contents",
    "bf16_receipt": "receipt",
    "calibrate": "calibration.ranges",
    "correct_biases": "int8.bias_correction",
    "count_macs": "receipt",
    "dialect": "int8.dialect",
    "float_receipt": "receipt",
    "inspect_onnx": "inspection.inspect_file",
    "int8_receipt": "receipt",
    "plan_int8": "int8.int8_plan",
    "read_onnx": "graph.onnx_files",
    "settle_fp16": "fp16.fp16",
    "normalize": "graph.normalize",
    "transcode": "transcode.transcode",
    "why_slow": "inspection.why_slow",
    "write_qdq": "int8.qdq_writer",
}


def __getattr__(name: str) -> object:
    """Import what is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
