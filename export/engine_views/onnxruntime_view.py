"""ONNX Runtime: the graph that it writes out when it has optimized, and its profiler."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import onnx

from ...runtime.engines.kernel_time import KernelTime
from ...runtime.engines.onnxruntime import optimized_model, profile
from ...runtime.errors import EngineError
from ...runtime.tensors import Arrays, TensorSpec
from ..graph.onnx_graph import Walk, specs
from ..graph.random_inputs import run_on_random
from ..int8.quantized_graph import QuantizedNode
from .view import UNTOLD, ProfiledKernel, is_int8_kernel


@dataclass(frozen=True)
class OnnxRuntimeGraph:
    """Read from the graph that ONNX Runtime writes out when it has optimized.

    Attributes:
        model: What it is given.
    """

    model: bytes
    _makers: dict[str, onnx.NodeProto] = field(default_factory=dict[str, onnx.NodeProto])

    def __post_init__(self) -> None:
        # The last level changes layouts and with them names; fusion happens one before.
        extended = onnx.load_model_from_string(optimized_model(self.model, "extended"))
        self._makers.update(Walk(extended).producer)

    def kernel_of(self, unit: QuantizedNode) -> tuple[str, bool]:
        """As the protocol says."""
        maker = self._makers.get(unit.output)
        kernel = maker.op_type if maker is not None else UNTOLD
        return kernel, is_int8_kernel(kernel)

    def kernels(self) -> dict[str, int]:
        """As the protocol says."""
        last = onnx.load_model_from_string(optimized_model(self.model, "all"))
        return dict(sorted(Counter(node.op_type for node in last.graph.node).items()))


_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_HALVES = ("Div", "Round", "Mul", "Add", "Clip")  # a quantizer of float16 is made of these


def fed_inputs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs of a file that are fed: those that are not initializers as well."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return specs(value for value in model.graph.input if value.name not in constants)


@dataclass(frozen=True)
class OnnxRuntimeProfile:
    """From the graph that ONNX Runtime writes out when it has optimized, and its profiler."""

    walk: Walk
    kernels: dict[str, ProfiledKernel]
    error: str
    title: str = "ONNX Runtime"
    _names: dict[str, onnx.NodeProto] = field(default_factory=dict[str, onnx.NodeProto])

    def __post_init__(self) -> None:
        self._names.update((node.name, node) for node in self.walk.model.graph.node)

    @classmethod
    def of(cls, model: onnx.ModelProto, runs: int, threads: int) -> OnnxRuntimeProfile:
        """Optimized, and where it does not run so, as it stands in the file."""
        data, error = model.SerializeToString(), ""

        def take(feeds: Arrays, level: Literal["all", "none"]) -> tuple[KernelTime, ...]:
            return profile(data, feeds, threads, runs, level)

        try:
            times = run_on_random(fed_inputs(model), lambda feeds: take(feeds, "all"))
            made = onnx.load_model_from_string(optimized_model(data, "all"))
        except EngineError as failure:
            error, made = failure.message, model
            times = run_on_random(fed_inputs(model), lambda feeds: take(feeds, "none"))
        given = {node.name for node in model.graph.node}
        kernels: dict[str, ProfiledKernel] = {}
        for time in times:
            halves = time.kind == "Cast" or (time.kind in _HALVES and time.name not in given)
            kernels[time.name] = ProfiledKernel(
                time.name,
                time.kind,
                is_int8_kernel(time.kind),
                time.kind in _QUANTIZERS,
                halves,
                time.ms,
            )
        return cls(Walk(made), kernels, error)

    def home_of(self, node: onnx.NodeProto) -> ProfiledKernel | None:
        """As the protocol says."""
        made = [self._names.get(node.name + suffix) for suffix in ("", "_nchwc")]
        made += [self.walk.producer.get(name) for name in node.output]
        home = next((one for one in made if one is not None), None)
        if home is None:
            return None
        unseen = ProfiledKernel(
            home.name, home.op_type, is_int8_kernel(home.op_type), False, False, 0.0
        )
        return self.kernels.get(home.name, unseen)

    def quantizers_around(self, kernel: ProfiledKernel) -> set[str]:
        """As the protocol says, through what only reorders."""
        found, node = set[str](), self._names[kernel.name]
        for name in node.input:
            maker = self.walk.producer.get(name)
            if maker is not None and maker.op_type in ("ReorderInput", "Transpose"):
                maker = self.walk.producer.get(maker.input[0])
            if maker is not None and maker.op_type in _QUANTIZERS:
                found.add(maker.name)
        todo = list(node.output)
        while todo:
            for reader in self.walk.consumers.get(todo.pop(), []):
                if reader.op_type in _QUANTIZERS:
                    found.add(reader.name)
                elif reader.op_type in ("ReorderOutput", "Relu", "Clip", "Transpose"):
                    todo.extend(reader.output)
        return found & self.kernels.keys()
