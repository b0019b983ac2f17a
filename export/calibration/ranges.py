"""Ranges: what calibration saw, with no engine in mind.

Source: mean-squared-error ranges as in Banner et al. 2019 (arXiv:1810.05723, section 4) and Nagel
et al. 2021 (arXiv:2106.08295, section 3.1), found by search over a histogram instead of an assumed
distribution. Entropy ranges: see :mod:`edgepress.export.calibration.entropy_threshold`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import onnx

from ...runtime.engines.engine import EngineOptions
from ...runtime.engines.onnxruntime import OnnxRuntimeEngine
from ...runtime.errors import InputError
from ...runtime.tensors import Array, Arrays
from ..graph.onnx_graph import Graph, Walk, give_out, rows, tensor_types
from .malloc_retention import malloc_retained
from .observers import Observer, clip_magnitude, clip_range

RANGE_METHODS = ("mse", "minmax", "percentile", "entropy")
_MEMORY_BYTES = 192 * 2**20  # of activations held at once
_LARGEST_BATCH = 32


@dataclass(frozen=True)
class TensorRange:
    """Range of one tensor.

    Attributes:
        low: Lower end of what shall be represented, at most 0.
        high: Upper end, at least 0.
        minimum: Least value seen.
        maximum: Largest value seen.
        elements: Values in one picture's share of the tensor.
        magnitude: Largest magnitude that shall be represented where codes are symmetric around 0.
        outlying: Whether hardly any value is a hundredth as large as the largest.
    """

    low: float
    high: float
    minimum: float
    maximum: float
    elements: int
    magnitude: float
    outlying: bool


@dataclass(frozen=True)
class Ranges:
    """Ranges of the float tensors of a Graph.

    Attributes:
        method: How the ends were chosen (one of :data:`RANGE_METHODS`).
        pictures: How many pictures were seen.
        tensors: By tensor name, the graph's inputs included; tensors with infinite values, and the
            output of a layer that only its activation function reads, are left out.
    """

    method: str
    pictures: int
    tensors: Mapping[str, TensorRange]

    @property
    def elements(self) -> dict[str, int]:
        """Values that each tensor holds for one picture."""
        return {name: seen.elements for name, seen in self.tensors.items()}


FeedBatches: TypeAlias = Callable[[int], Iterable[Arrays]]
"""Gives the calibration pictures anew at every call, in batches of at most the size asked for."""


def batches_up_to(batches: FeedBatches, size: int, pictures: int) -> Iterator[Arrays]:
    """Batches of at most ``size``, until ``pictures`` or more were given."""
    count = 0
    for feeds in batches(size):
        yield feeds
        count += rows(feeds)
        if count >= pictures:
            return


@malloc_retained()
def calibrate(
    graph: Graph,
    batches: FeedBatches,
    *,
    method: str = "mse",
    only: Collection[str] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Run the pictures through the float32 graph once and remember what every float tensor does.

    Memory is bounded by one batch, however many pictures there are; a batch is as large as 192 MiB
    of activations allow, 32 pictures at most.

    Args:
        graph: The network.
        batches: The calibration pictures.
        method: How to choose the ends of the ranges; see
            :func:`edgepress.export.calibration.observers.clip_range`.
        only: Names of the tensors to look at; all of them by default.
        on_progress: Called with the number of pictures of each batch done.

    Raises:
        InputError: ``E_NAN`` for a tensor that is NaN or an output that is infinite, ``E_DATA`` for
            no pictures, ``E_RECIPE`` for an unknown method.
    """
    if method not in RANGE_METHODS:
        raise InputError(
            "E_RECIPE",
            f"unknown range method '{method}'.",
            mend="Known: " + ", ".join(RANGE_METHODS),
        )
    exposed, names = expose_activations(graph, only)
    observers = {name: Observer(name, method) for name in names}
    pictures = 0
    with OnnxRuntimeEngine(exposed.SerializeToString(), EngineOptions()) as engine:
        first = next(iter(batches(1)), None)
        if first is None:
            raise InputError(
                "E_DATA", "there are no calibration pictures.", mend="Give at least a few dozen."
            )
        one: dict[str, Array] = {**first, **engine.run(first)}
        share = {name: one[name].size // rows(first) for name in names}
        total_bytes = sum(array.nbytes for array in one.values()) // rows(first)
        del first, one
        for feeds in batches(min(_LARGEST_BATCH, max(1, _MEMORY_BYTES // max(1, total_bytes)))):
            seen: dict[str, Array] = {**feeds, **engine.run(feeds)}
            for name, observer in observers.items():
                observer.update(seen[name], pictures)
            pictures += rows(feeds)
            if on_progress:
                on_progress(rows(feeds))
    tensors: dict[str, TensorRange] = {}
    outputs = {spec.name for spec in graph.outputs}
    for name, observer in observers.items():
        if observer.finite:
            low, high = clip_range(observer, method)
            tensors[name] = TensorRange(
                low,
                high,
                observer.minimum,
                observer.maximum,
                max(1, share[name]),
                clip_magnitude(observer, method),
                observer.outlying,
            )
        elif name in outputs:
            raise InputError(
                "E_NAN",
                f"the output '{name}' is infinite on a calibration picture.",
                mend="Check the pictures, the preprocessing and the weights.",
                path=name,
            )
    return Ranges(method, pictures, tensors)


def expose_activations(
    graph: Graph, only: Collection[str] | None = None
) -> tuple[onnx.ModelProto, list[str]]:
    """The model with every float activation among its outputs, and their names, inputs included.

    Where ``only`` names tensors, with those alone.

    The output of a layer that only an activation function reads is left out: it is never quantized.
    """
    model = graph.proto()
    walk = Walk(model)
    kinds = element_types(model)
    floats = [spec.name for spec in graph.inputs if spec.dtype == "float32"]
    for node in model.graph.node:
        if walk.folded_activation(node) is None:
            floats += [name for name in node.output if kinds.get(name) == onnx.TensorProto.FLOAT]
    if only is not None:
        floats = [name for name in floats if name in only]
    inner = [name for name in floats if name not in walk.input_names]
    if only is not None and inner:  # a graph must give something
        del model.graph.output[:]
    give_out(model, inner)
    return model, floats


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX element type of every tensor that shape inference can tell."""
    return {name: kind.elem_type for name, kind in tensor_types(model).items()}


def tensor_ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Number of dimensions of every tensor that shape inference can tell."""
    known = {name: kind for name, kind in tensor_types(model).items() if kind.HasField("shape")}
    return {name: len(kind.shape.dim) for name, kind in known.items()}
