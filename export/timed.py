"""What every kernel of a file takes in an engine, and which of them a node of the file became."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import onnx

from ..runtime.engine import Precision
from ..runtime.engines.kernels import KernelTime
from ..runtime.engines.onnxruntime import optimized_model, profile
from ..runtime.engines.openvino import Executed, executed_times
from ..runtime.errors import EngineError
from ..runtime.tensors import Arrays, TensorSpec
from .executed import INT8, InOpenVino, is_int8_kernel, told
from .graph import Walk, specs
from .random_inputs import fitting

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_HALVES = ("Div", "Round", "Mul", "Add", "Clip")  # a quantizer of float16 is made of these
_IDLE = ("Const", "Input", "Output")
_CHANGES = ("FakeQuantize", "Reorder", "Convert")
_RUNS = 8  # that a share is taken from


@dataclass(frozen=True)
class Kernel:
    """One kernel that ran.

    Attributes:
        name: Its name in the engine's graph.
        told: How it is called to people.
        int8: Whether it computes on INT8 codes.
        quantizes: Whether it makes codes of floats, or floats of codes, and no more.
        halves: Whether it is there because of float16.
        ms: Lower quartile over the runs.
    """

    name: str
    told: str
    int8: bool
    quantizes: bool
    halves: bool
    ms: float


class Timed(Protocol):
    """The kernels of a file, timed."""

    @property
    def title(self) -> str:
        """What the engine is called to people."""
        ...

    @property
    def error(self) -> str:
        """Why the engine cannot run the file as it optimizes it; empty where it can."""
        ...

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        """By name."""
        ...

    def home_of(self, node: onnx.NodeProto) -> Kernel | None:
        """The kernel that a node of the file became; ``None`` where it was folded away."""
        ...

    def quantizers_around(self, kernel: Kernel) -> set[str]:
        """Names of the quantizers that write for or read from a kernel."""
        ...


def timed(engine: str, model: onnx.ModelProto, *, runs: int, threads: int) -> Timed:
    """Time the kernels of a file; its nodes have names of their own.

    Raises:
        EngineError: ``E_BACKEND`` where the engine runs it in no way; ``E_ENGINE`` for an engine
            that cannot be looked into.
        MissingExtraError: Where the engine is not installed.
    """
    if engine == "onnxruntime":
        return _InOnnxRuntime.of(model, runs, threads)
    if engine == "openvino":
        data = model.SerializeToString()
        seen = fitting(
            _inputs(model), lambda f: executed_times(data, f, runs=runs, threads=threads)
        )
        return _InOpenVino(seen)
    raise EngineError(
        "E_ENGINE",
        f"the engine '{engine}' does not tell what its kernels take.",
        mend="Engines that do: onnxruntime, openvino.",
    )


def int8_time_share(
    engine: str, model: bytes, feeds: Arrays, precision: Precision = "f32"
) -> float | None:
    """Share of the kernels' time, on one thread, that INT8 kernels take; 0 to 1.

    What only moves codes, or makes them and takes them apart, is in the whole and not in the part.
    Each kernel's time is its lower quartile over the runs, so that what else the machine did in
    some of them hardly matters.

    Args:
        engine: What runs it.
        model: Its bytes.
        feeds: One picture.
        precision: What the engine computes floats in.

    Returns:
        ``None`` for an engine that does not tell what its kernels take.

    Raises:
        EngineError: ``E_BACKEND`` where it does not run.
        MissingExtraError: Where the engine is not installed.
    """
    if engine == "onnxruntime":
        times = profile(model, feeds, 1, _RUNS)
        taken = [(is_int8_kernel(time.kind), time.ms) for time in times]
    elif engine == "openvino":
        seen = _InOpenVino(executed_times(model, feeds, runs=_RUNS, precision=precision))
        taken = [(kernel.int8, kernel.ms) for kernel in seen.kernels.values()]
    else:
        return None
    total = sum(ms for _, ms in taken)
    return sum(ms for int8, ms in taken if int8) / total if total else 0.0


def _inputs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return specs(value for value in model.graph.input if value.name not in constants)


@dataclass(frozen=True)
class _InOnnxRuntime:
    """From the graph that ONNX Runtime writes out when it has optimized, and its profiler."""

    walk: Walk
    kernels: dict[str, Kernel]
    error: str
    title: str = "ONNX Runtime"
    _names: dict[str, onnx.NodeProto] = field(default_factory=dict[str, onnx.NodeProto])

    def __post_init__(self) -> None:
        self._names.update((node.name, node) for node in self.walk.model.graph.node)

    @classmethod
    def of(cls, model: onnx.ModelProto, runs: int, threads: int) -> _InOnnxRuntime:
        """Optimized, and where it does not run so, as it stands in the file."""
        data, error = model.SerializeToString(), ""

        def take(feeds: Arrays, level: Literal["all", "none"]) -> tuple[KernelTime, ...]:
            return profile(data, feeds, threads, runs, level)

        try:
            times = fitting(_inputs(model), lambda feeds: take(feeds, "all"))
            made = onnx.load_model_from_string(optimized_model(data, "all"))
        except EngineError as failure:
            error, made = failure.message, model
            times = fitting(_inputs(model), lambda feeds: take(feeds, "none"))
        given = {node.name for node in model.graph.node}
        kernels: dict[str, Kernel] = {}
        for time in times:
            halves = time.kind == "Cast" or (time.kind in _HALVES and time.name not in given)
            kernels[time.name] = Kernel(
                time.name,
                time.kind,
                is_int8_kernel(time.kind),
                time.kind in _QUANTIZERS,
                halves,
                time.ms,
            )
        return cls(Walk(made), kernels, error)

    def home_of(self, node: onnx.NodeProto) -> Kernel | None:
        """As the protocol says."""
        made = [self._names.get(node.name + suffix) for suffix in ("", "_nchwc")]
        made += [self.walk.producer.get(name) for name in node.output]
        home = next((one for one in made if one is not None), None)
        if home is None:
            return None
        unseen = Kernel(home.name, home.op_type, is_int8_kernel(home.op_type), False, False, 0.0)
        return self.kernels.get(home.name, unseen)

    def quantizers_around(self, kernel: Kernel) -> set[str]:
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


@dataclass(frozen=True)
class _InOpenVino:
    """From the graph that OpenVINO executes, with its performance counters."""

    nodes: tuple[Executed, ...]
    kernels: dict[str, Kernel] = field(default_factory=dict[str, Kernel])
    title: str = "OpenVINO"
    error: str = ""

    def __post_init__(self) -> None:
        for one in self.nodes:
            if one.kind not in _IDLE:
                changes = one.kind in _CHANGES
                int8 = one.precision in INT8 and not changes
                self.kernels[one.name] = Kernel(one.name, told(one), int8, changes, False, one.ms)

    def home_of(self, node: onnx.NodeProto) -> Kernel | None:
        """As the protocol says."""
        home = InOpenVino(self.nodes).home_of([node.name, *node.output], node.op_type)
        return None if home is None else self.kernels.get(home.name)

    def quantizers_around(self, kernel: Kernel) -> set[str]:
        """As the protocol says, through one another."""
        found, todo = set[str](), [kernel.name]
        reads = {one.name: one.reads for one in self.nodes}
        while todo:
            at = todo.pop()
            near = set(reads[at]) | {n for n, from_ in reads.items() if at in from_}
            near = {n for n in near - found if n in self.kernels and self.kernels[n].quantizes}
            found |= near
            todo += near
        return found
