"""The network that the user brought, as a Graph, and its pictures as it takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import onnx
import torch

from ...benchmarks.data.batch_runner import Run
from ...benchmarks.data.images import Images
from ...export.graph.normalize import normalize
from ...export.graph.onnx_files import read_onnx
from ...export.graph.onnx_graph import Graph, opset_of
from ...export.graph.torch_capture import OPSET, capture, input_names, run_module
from ...runtime.errors import InputError
from ...runtime.files import read_file
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.tensors import Arrays, TensorSpec
from .backbone import Backbone

Model: TypeAlias = "str | Path | torch.nn.Module | Backbone | onnx.ModelProto"

_PARITY_PICTURES = 16
_BATCH, _BATCH_BYTES = 32, 32 * 2**20


@dataclass(frozen=True)
class SourceNetwork:
    """A network and how to run the original.

    Attributes:
        name: As the user wrote it, without folders.
        graph: Its float32 graph.
        preprocessing: How pictures reach it, or ``None``.
        original: Runs the original in torch; ``None`` where the original is the ONNX file itself.
        weights_sha256: Of the weights' file or the ONNX file; ``None`` where there was none.
    """

    name: str
    graph: Graph
    preprocessing: Preprocessing | None
    original: Run | None
    weights_sha256: str | None


def open_model(
    model: Model, weights: str | None, preprocessing: Preprocessing | None = None
) -> Backbone | Graph:
    """The network that the user named.

    Args:
        model: As the user gave it.
        weights: File of the weights, where that names a factory.
        preprocessing: The user's own, which tells an ONNX network's size where that is free.

    Raises:
        InputError: What reading it raises; ``E_USAGE`` for weights beside an ONNX file or a module,
            or a model that is nothing of the kind.
    """
    picture = preprocessing.size if preprocessing is not None else None
    if isinstance(model, (str, Path)):
        if not _is_onnx(model):
            return Backbone.open(str(model), weights)
        if weights is None:
            return normalize(read_onnx(str(model)), source=Path(model).name, picture=picture)
        raise InputError(
            "E_USAGE",
            "an ONNX file holds its own weights.",
            mend="Leave out --weights.",
            path=str(model),
        )
    if weights is not None:
        raise InputError(
            "E_USAGE",
            "weights go with a factory's name.",
            mend="Load them into the module yourself.",
        )
    if isinstance(model, Backbone):
        return model
    if isinstance(model, torch.nn.Module):
        return Backbone.of(model)
    given = cast("object", model)
    if isinstance(given, onnx.ModelProto):
        return normalize(given, source="the ONNX model", picture=picture)
    raise InputError(
        "E_USAGE",
        f"the model is a {type(given).__name__}.",
        mend="Give a path, a factory's name, a torch.nn.Module, a Backbone or an onnx.ModelProto.",
    )


def torch_network(opened: Backbone | Graph) -> Backbone:
    """The network as a torch module.

    Raises:
        InputError: ``E_USAGE`` for an ONNX file.
    """
    if isinstance(opened, Backbone):
        return opened
    raise InputError(
        "E_USAGE",
        f"{opened.source} is an ONNX file; pruning and training need the torch network.",
        mend="Give path/to/file.py:factory with --weights, or a torch.nn.Module.",
    )


def opset_for(opened: Backbone | Graph, asked: int | None) -> int:
    """The opset of what is exported: the one asked for, 18 without; an ONNX file keeps its own.

    Raises:
        InputError: ``E_USAGE`` for one that is asked for an ONNX file.
    """
    if isinstance(opened, Backbone):
        return OPSET if asked is None else asked
    if asked is None:
        return opset_of(opened.proto())
    raise InputError(
        "E_USAGE",
        "an ONNX file keeps its own opset.",
        mend="Leave out the opset.",
        path=opened.source,
    )


def make_source_network(
    model: Model,
    opened: Backbone | Graph,
    preprocessing: Preprocessing | None,
    images: Images,
    opset: int,
) -> SourceNetwork:
    """Bring an opened network into the form of a Graph, proved on the first pictures.

    Args:
        model: As the user gave it.
        opened: What :func:`open_model` made of it; a Backbone's module in evaluation mode.
        preprocessing: The user's own, which goes before the one that the network came with.
        images: Pictures to compare torch and the graph on.
        opset: Of the exported graph.

    Raises:
        InputError: What capturing raises; ``E_DATA`` where the pictures do not fit the network.
    """
    if isinstance(opened, Graph):
        named = isinstance(model, (str, Path))
        digest = hashlib.sha256(read_file(model)).hexdigest() if named else None
        return SourceNetwork(opened.source, opened, preprocessing, None, digest)
    used = preprocessing or opened.preprocessing
    count = min(_PARITY_PICTURES, max(2, len(images)))
    parity = example_of(opened.module, images, used, count)
    example = {name: array[:2] for name, array in parity.items()}
    graph = capture(opened.module, example, opset=opset, parity_on=[parity], source=opened.name)
    return SourceNetwork(opened.name, graph, used, torch_run(opened.module), opened.weights_sha256)


def example_of(
    module: torch.nn.Module, images: Images, preprocessing: Preprocessing | None, count: int
) -> Arrays:
    """The first ``count`` pictures by the names of the parameters of the module's ``forward``."""
    specs = images.specs(input_names(module))
    return first_rows(images, specs, preprocessing, count)


def first_rows(
    images: Images, specs: Sequence[TensorSpec], preprocessing: Preprocessing | None, count: int
) -> Arrays:
    """The first ``count`` samples (repeated where there are fewer) as arrays by input name."""
    batch = next(iter(images.batches(specs, preprocessing, count)))
    rows = np.arange(count) % len(batch)
    return {name: array[rows] for name, array in batch.inputs.items()}


def torch_run(module: torch.nn.Module) -> Run:
    """A module as a Run; inputs go to ``forward``'s parameters by name, else by position."""
    names = input_names(module)

    def run(feeds: Arrays) -> Arrays:
        if set(feeds) <= set(names):
            return run_module(module, feeds)
        return run_module(module, dict(zip(names, feeds.values(), strict=False)))

    return run


def fixed_batches(
    graph: Graph, images: Images, preprocessing: Preprocessing | None
) -> Callable[[int], Iterable[Arrays]]:
    """Pictures as a pass wants them: the graph's batch where it is fixed, else the size asked."""
    fixed = next((spec.batch for spec in graph.inputs if spec.batch is not None), None)

    def batches(size: int) -> Iterable[Arrays]:
        for batch in images.batches(graph.inputs, preprocessing, fixed or size):
            if fixed and len(batch) < fixed:
                rows = np.arange(fixed) % len(batch)
                yield {name: array[rows] for name, array in batch.inputs.items()}
            else:
                yield batch.inputs

    return batches


def with_batch(row: Arrays, graph: Graph) -> Arrays:
    """One sample, repeated where the graph's batch is fixed."""
    fixed = {spec.name: spec.batch or 1 for spec in graph.inputs}
    return {name: np.repeat(array[:1], fixed[name], axis=0) for name, array in row.items()}


def batch_size(row: Arrays) -> int:
    """Samples to run at once: 32, fewer where that many take more than 32 MiB."""
    sample = sum(array[:1].nbytes for array in row.values())
    return min(_BATCH, max(1, _BATCH_BYTES // max(1, sample)))


def _is_onnx(model: str | Path) -> bool:
    return str(model).lower().endswith(".onnx")
