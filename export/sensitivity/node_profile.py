"""Which node of a network takes how long on the target, in float and in INT8, and every border.

Three graphs go through the engine's own profiler: the float32 one, the INT8 one, and one in which
every second layer with weights is INT8, which has borders between the precisions everywhere. The
engine's kernels are told back to the nodes of the network by name; what converts between codes,
floats and layouts gives the price of a border, a straight line over the number of values.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import onnx

from ...runtime.engine_registry import open_engine
from ...runtime.engines.engine import EngineOptions, Precision
from ...runtime.engines.kernel_time import KernelTime
from ...runtime.engines.kernel_times import kernel_times
from ...runtime.engines.onnxruntime import optimized_model
from ...runtime.tensors import Arrays
from ..graph.onnx_graph import Graph, Walk

_ENDING = re.compile(
    r"(_nchwc|_token_\d+|_strided(_\d+)?|_codes(_\d+)?|_dequantized(_\d+)?|_float|_raw|/WithoutBiases"
    r"|/DequantizationMultiply|/DequantizationSubtract|/fq_output_\d|/sink_port_\d)$"
)
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear_", "DequantizeLinear_"
_CONVERTING = frozenset(  # kernels that only change type or layout, in both engines' words
    {"QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "Reorder", "Convert"}
    | {"FakeQuantize", "Transpose", "Sum"}
)
PROFILED_ENGINES = ("onnxruntime", "openvino")
"""Engines that tell what each of their kernels takes."""

PROFILE_ROUNDS = 4
"""How often each graph is profiled, in turn with the others."""

_RUNS = 8  # of a profile
_WALL_RUNS = 15


@dataclass(frozen=True)
class NodeProfile:
    """One graph's kernels, told back to the nodes of the float32 network.

    Attributes:
        nodes: Milliseconds by node name; a kernel of several nodes counts at the last of them.
        kernels: For each kernel that computes, the nodes that it was made of.
        quantizing: Milliseconds by tensor of what makes codes of it.
        dequantizing: Milliseconds by tensor of what makes floats of its codes.
        rest_ms: Conversions that belong to no tensor by name: layouts, mostly.
        total_ms: All kernels.
        wall_ms: The whole graph without a profiler, lower quartile.
    """

    nodes: Mapping[str, float]
    kernels: tuple[tuple[str, ...], ...]
    quantizing: Mapping[str, float]
    dequantizing: Mapping[str, float]
    rest_ms: float
    total_ms: float
    wall_ms: float


@dataclass(frozen=True)
class Border:
    """The price of a border: ``fixed_ms + elements * ms_per_element``."""

    fixed_ms: float
    ms_per_element: float

    def ms(self, elements: int) -> float:
        """For a tensor of that many values."""
        return self.fixed_ms + elements * self.ms_per_element


def profile_graphs(
    engine: str,
    graph: Graph,
    models: Sequence[bytes],
    feeds: Arrays,
    *,
    threads: int = 1,
    precision: Precision = "f32",
    on_progress: Callable[[int], None] | None = None,
) -> list[NodeProfile]:
    """Profile several forms of one network in turn, and take the shortest time of each kernel.

    Args:
        engine: What runs them.
        graph: The float32 network that they are forms of.
        models: Their bytes.
        feeds: One picture.
        threads: For one inference.
        precision: What floats are computed in.
        on_progress: Called with 1 for each profile taken.
    """
    owners = _Owners(graph)
    options = EngineOptions(threads=threads, precision=precision)
    seen = _kernels(engine, models, feeds, options, on_progress)
    walls = _wall_ms(engine, models, feeds, options)
    return [
        owners.told(kernels, _hints(engine, model), wall)
        for kernels, model, wall in zip(seen, models, walls, strict=True)
    ]


def kernels_ms(
    engine: str,
    models: Sequence[bytes],
    feeds: Arrays,
    *,
    threads: int = 1,
    precision: Precision = "f32",
) -> list[float]:
    """Sum over the kernels of each model, profiled in turn; other work hardly touches it.

    Args:
        engine: What runs them.
        models: Their bytes.
        feeds: One picture.
        threads: For one inference.
        precision: What floats are computed in.
    """
    options = EngineOptions(threads=threads, precision=precision)
    seen = _kernels(engine, models, feeds, options, None)
    return [sum(one.ms for one in kernels) for kernels in seen]


def _kernels(
    engine: str,
    models: Sequence[bytes],
    feeds: Arrays,
    options: EngineOptions,
    on_progress: Callable[[int], None] | None,
) -> list[list[KernelTime]]:
    seen: list[dict[str, KernelTime]] = [{} for _ in models]
    threads, precision = options.threads, options.precision
    for _ in range(PROFILE_ROUNDS):
        for kernels, model in zip(seen, models, strict=True):
            for one in kernel_times(
                engine, model, feeds, threads=threads, runs=_RUNS, precision=precision
            ):
                before = kernels.get(one.name)
                if before is None or one.ms < before.ms:
                    kernels[one.name] = one
            if on_progress:
                on_progress(1)
    return [list(kernels.values()) for kernels in seen]


def _wall_ms(
    engine: str, models: Sequence[bytes], feeds: Arrays, options: EngineOptions
) -> list[float]:
    """Lower quartile of each model's time for one inference, in turn with the others."""
    made, taken = open_engine(engine), [list[float]() for _ in models]
    with ExitStack() as stack:
        engines = [stack.enter_context(made(model, options)) for model in models]
        for run in range(_WALL_RUNS + 2):
            for one, times in zip(engines, taken, strict=True):
                one.run(feeds)  # finds the caches full of the model before it
                start = time.perf_counter()
                one.run(feeds)
                if run >= 2:
                    times.append((time.perf_counter() - start) * 1000)
    return [float(np.quantile(times, 0.25)) for times in taken]


def border_of(ms: Mapping[str, float], elements: Mapping[str, int], extra_ms: float) -> Border:
    """A straight line through the conversions seen, neither of its parts below 0.

    Args:
        ms: Time by tensor.
        elements: Values by tensor.
        extra_ms: Time of what goes with them and belongs to none by name, shared out by values.
    """
    names = [name for name in ms if name in elements]
    if not names:
        return Border(0.0, 0.0)
    x = np.array([elements[name] for name in names], np.float64)
    y = np.array([ms[name] for name in names], np.float64)
    slope, fixed = float((x @ y) / max(float(x @ x), 1.0)), 0.0
    if len(set(x.tolist())) > 1:
        slope, fixed = (float(v) for v in np.polyfit(x, y, 1))
        if fixed < 0:
            slope, fixed = float((x @ y) / float(x @ x)), 0.0
        elif slope < 0:
            slope, fixed = 0.0, float(y.mean())
    return Border(fixed, slope + extra_ms / max(float(x.sum()), 1.0))


@dataclass(frozen=True)
class _Hint:
    """Where a kernel lies whose name says nothing: what it gives and reads, and what reads it.

    Attributes:
        tensors: What it gives, and the first that it reads.
        readers: Names of kernels that read what it gives, and as their which input.
    """

    tensors: tuple[str, ...] = ()
    readers: tuple[tuple[str, int], ...] = ()


def _hints(engine: str, model: bytes) -> Mapping[str, _Hint]:
    """By kernel; empty for an engine that tells what its kernels were made of."""
    if engine != "onnxruntime":
        return {}
    rewritten = onnx.load_model_from_string(optimized_model(model, "all"))
    readers: dict[str, list[tuple[str, int]]] = {}
    for node in rewritten.graph.node:
        for index, name in enumerate(node.input):
            readers.setdefault(name, []).append((node.name, index))
    return {
        node.name: _Hint(
            (*node.output, *node.input[:1]),
            tuple(pair for name in node.output for pair in readers.get(name, [])),
        )
        for node in rewritten.graph.node
    }


@dataclass
class _Owners:
    """Names of the network, and of what engines make of them, to its nodes."""

    graph: Graph
    _nodes: dict[str, str] = field(default_factory=dict[str, str])
    _makers: dict[str, str] = field(default_factory=dict[str, str])
    _order: dict[str, int] = field(default_factory=dict[str, int])
    _inputs: set[str] = field(default_factory=set[str])
    _reads: dict[str, tuple[str, ...]] = field(default_factory=dict[str, "tuple[str, ...]"])

    def __post_init__(self) -> None:
        walk = Walk(self.graph.proto())
        self._inputs = set(walk.input_names)
        absorbed: dict[str, str] = {}
        for index, node in enumerate(walk.model.graph.node):
            tail = walk.folded_activation(node)
            if tail is not None:
                absorbed[tail.name] = node.name
            home = absorbed.get(node.name, node.name)
            self._nodes[node.name] = home
            self._order.setdefault(home, index)
            self._reads.setdefault(home, tuple(node.input))
            for name in node.output:
                self._makers[name] = home

    def told(
        self,
        kernels: Iterable[KernelTime],
        hints: Mapping[str, _Hint],
        wall: float,
    ) -> NodeProfile:
        """The profile of a graph whose kernels were timed."""
        nodes: dict[str, float] = {}
        made_of: list[tuple[str, ...]] = []
        quantizing, dequantizing = dict[str, float](), dict[str, float]()
        rest = total = 0.0
        for one in kernels:
            total += one.ms
            names = (*one.origins, one.name)
            homes = self._homes(names, hints.get(one.name, _Hint()))
            if not self._converts(one, homes, names):
                made_of.append(tuple(homes))
                if homes:
                    nodes[homes[-1]] = nodes.get(homes[-1], 0.0) + one.ms
                continue
            tensor, table = self._crossing(names)
            if tensor and table == _QUANTIZE:
                quantizing[tensor] = quantizing.get(tensor, 0.0) + one.ms
            elif tensor:
                dequantizing[tensor] = dequantizing.get(tensor, 0.0) + one.ms
            else:
                rest += one.ms
        return NodeProfile(nodes, tuple(made_of), quantizing, dequantizing, rest, total, wall)

    def _converts(self, one: KernelTime, homes: list[str], names: Sequence[str]) -> bool:
        if one.kind in _CONVERTING:
            return not any(_plain(name) in self._nodes for name in names)
        only = [name for name in names if name.startswith((_QUANTIZE, _DEQUANTIZE))]
        return bool(only) and len(only) == len(names)

    def _homes(self, names: Sequence[str], hint: _Hint) -> list[str]:
        """Nodes of the network that a kernel was made of, in their order."""
        found: dict[str, None] = {}
        for name in names:
            plain = _plain(name)
            if plain in self._nodes:
                found[self._nodes[plain]] = None
            elif plain in self._makers and not name.startswith((_QUANTIZE, _DEQUANTIZE)):
                found[self._makers[plain]] = None
        if not found:
            guess = self._guess(hint)
            found.update({} if guess is None else {guess: None})
        return sorted(found, key=lambda name: self._order[name])

    def _guess(self, hint: _Hint) -> str | None:
        for name in hint.tensors[:-1]:
            if _plain(name) in self._makers:
                return self._makers[_plain(name)]
        for reader, index in hint.readers:
            plain = _plain(reader)
            home = self._nodes.get(plain) or self._makers.get(plain)
            read = self._reads.get(home or "", ())
            if index < len(read) and read[index] in self._makers:
                return self._makers[read[index]]
        return None

    def _crossing(self, names: Sequence[str]) -> tuple[str, str]:
        for name in names:
            for start in (_QUANTIZE, _DEQUANTIZE):
                tensor = _plain(name.removeprefix(start))
                if name.startswith(start) and (tensor in self._makers or tensor in self._inputs):
                    return tensor, start
        return "", ""


def _plain(name: str) -> str:
    """A name without what the writer and the engines put behind it."""
    while True:
        shorter = _ENDING.sub("", name)
        if shorter == name:
            return name
        name = shorter
