"""edgepress.export: make the graph, the engine's dialect of it, the receipt, the bundle.

What is named here is imported when it is first used, so that the commands of this room can say
which extra is missing where torch or onnx is not installed.
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from .bias import correct_biases
    from .bundling import Shipped, assemble
    from .dialects import Dialect, dialect
    from .dialects.qdq import Quantized, write_qdq
    from .exact import tidy
    from .fp16 import Settled, settle_fp16
    from .graph import Graph, Parity
    from .inspection import inspect_onnx
    from .onnx_files import read_onnx
    from .plan import PrecisionPlan, plan_int8
    from .ranges import Ranges, calibrate
    from .receipt import Receipt, bf16_receipt, count_macs, float_receipt, int8_receipt
    from .slowness import Slowness, why_slow
    from .transcoding import Transcoded, transcode

__all__ = [
    "Dialect",
    "Graph",
    "Parity",
    "PrecisionPlan",
    "Quantized",
    "Ranges",
    "Receipt",
    "Settled",
    "Shipped",
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
    "plan_int8",
    "read_onnx",
    "settle_fp16",
    "tidy",
    "transcode",
    "why_slow",
    "write_qdq",
]

_HOME = {
    "Dialect": "dialects",
    "Graph": "graph",
    "Parity": "graph",
    "PrecisionPlan": "plan",
    "Quantized": "dialects.qdq",
    "Ranges": "ranges",
    "Receipt": "receipt",
    "Settled": "fp16",
    "Shipped": "bundling",
    "Slowness": "slowness",
    "Transcoded": "transcoding",
    "assemble": "bundling",
    "bf16_receipt": "receipt",
    "calibrate": "ranges",
    "correct_biases": "bias",
    "count_macs": "receipt",
    "dialect": "dialects",
    "float_receipt": "receipt",
    "inspect_onnx": "inspection",
    "int8_receipt": "receipt",
    "plan_int8": "plan",
    "read_onnx": "onnx_files",
    "settle_fp16": "fp16",
    "tidy": "exact",
    "transcode": "transcoding",
    "why_slow": "slowness",
    "write_qdq": "dialects.qdq",
}


def __getattr__(name: str) -> object:
    """Import what is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
