"""TensorRT without a GPU, for tests of what stands around it: ONNX Runtime under its rules.

It takes only what it was built for, remembers and refuses as the engine does, and its inspector
tells types as that of TensorRT 10 is documented to: not where a shape is free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import onnx

from edgepress.export.graph.onnx_graph import tensor_types
from edgepress.runtime import EngineOptions, TensorSpec
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.nvidia.execution import EngineTensor, check_shape
from edgepress.runtime.nvidia.tensorrt import TensorRtEngine
from edgepress.runtime.tensors import Array, Arrays

_TYPES = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "Half",
    onnx.TensorProto.INT8: "Int8",
}


class StandIn(TensorRtEngine):
    """Runs a graph in ONNX Runtime, within the sizes that TensorRT would have built it for."""

    built: ClassVar[list[dict[str, object]]] = []
    """How each that was opened was built."""

    def _load(self) -> None:
        build = self.build_options()
        self._inner = OnnxRuntimeEngine(self.model, EngineOptions())
        self._inner.__enter__()
        self._tensors: dict[str, EngineTensor] = {}
        specs: list[TensorSpec] = []
        for spec in self._inner.inputs:
            shapes = build.shapes(spec)
            least, _, largest = shapes or (spec.shape,) * 3
            assert all(isinstance(size, int) for size in (*least, *largest))
            sizes: Any = least, largest
            self._tensors[spec.name] = EngineTensor(spec.name, True, None, (), *sizes)
            specs.append(
                TensorSpec(spec.name, spec.dtype, least if least == largest else spec.shape)
            )
        self.inputs, self.outputs = tuple(specs), self._inner.outputs
        free = [one.largest[0] for one in self._tensors.values() if one.least != one.largest]
        self.largest_batch = min(free, default=None)
        StandIn.built.append(build.of_engine())

    def _unload(self) -> None:
        self._inner.__exit__(None, None, None)

    def _run(self, feeds: Mapping[str, Array]) -> Arrays:
        for name, array in feeds.items():
            check_shape(self._tensors[name], array.shape)
        return self._inner.run(feeds)

    def facts(self) -> dict[str, object]:
        """As the engine tells them, as far as there are any."""
        return {"engine": self.name, "version": "10", "fell_back": False}

    def layers(self) -> str:
        """One layer for each node of the graph that computes."""
        model = onnx.load_model_from_string(self.model)
        fixed = all(one.least == one.largest for one in self._tensors.values())
        kinds = tensor_types(model)
        makers = {name: node for node in model.graph.node for name in node.output}

        def told(name: str) -> dict[str, str]:
            if not fixed:
                return {"Name": name, "Format/Datatype": "N/A due to dynamic shapes"}
            maker = makers.get(name)
            kind = kinds[name].elem_type if name in kinds else onnx.TensorProto.UNDEFINED
            if maker is not None and maker.op_type == "DequantizeLinear":
                kind = onnx.TensorProto.INT8
            return {"Name": name, "Format/Datatype": _TYPES.get(kind, "Int32")}

        layers: list[dict[str, Any]] = [
            {
                "Name": node.name,
                "LayerType": "CaskConvolution" if node.op_type == "Conv" else node.op_type,
                "Inputs": [told(name) for name in node.input if name in kinds],
                "Outputs": [told(name) for name in node.output],
                "Metadata": f"[ONNX Layer: {node.name}]",
            }
            for node in model.graph.node
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast")
        ]
        return json.dumps({"Layers": layers, "Bindings": []})
