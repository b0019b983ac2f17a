"""What each engine made of a graph: the kernel that a node of the network ended up in."""

from __future__ import annotations

from ...runtime.engine_registry import open_engine
from ...runtime.engines.engine import EngineOptions
from ...runtime.engines.openvino import executed_graph
from ...runtime.errors import EngineError
from ...runtime.nvidia.engine import NvidiaEngine
from ...runtime.nvidia.engine_inspector import engine_layers
from .onnxruntime_view import OnnxRuntimeGraph
from .openvino_view import OpenVinoGraph
from .tensorrt_view import TensorRtGraph
from .view import RewrittenGraph


def rewritten_graph(
    engine: str, model: bytes, options: EngineOptions | None = None
) -> RewrittenGraph:
    """What ``engine`` makes of a model on this machine.

    Args:
        engine: Which engine.
        model: Its model.
        options: How it runs it: OpenVINO computes floats in another precision than float32, and
            TensorRT's engine is built.

    Raises:
        EngineError: ``E_BACKEND`` where it cannot load the model; ``E_ENGINE`` for an engine that
            gives no receipts.
    """
    if engine == "onnxruntime":
        return OnnxRuntimeGraph(model)
    if engine == "openvino":
        return OpenVinoGraph(executed_graph(model, options))
    if engine in ("tensorrt", "tensorrt-rtx"):
        with open_engine(engine)(model, options) as running:
            if isinstance(running, NvidiaEngine):
                return TensorRtGraph(engine_layers(running.layers()))
    raise EngineError(
        "E_ENGINE",
        f"the engine '{engine}' gives no receipts.",
        mend="Engines that do: onnxruntime, openvino, tensorrt, tensorrt-rtx.",
    )
