"""Capture: a torch module becomes a Graph. The one file of this room that imports torch."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ...runtime.engines.engine import EngineOptions
from ...runtime.engines.onnxruntime import OnnxRuntimeEngine
from ...runtime.errors import InputError
from ...runtime.tensors import Array, Arrays
from .normalize import normalize, with_opset
from .onnx_graph import Graph, Parity, fresh_name, rename, rows

_COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_COSINE_FLOOR = 0.9999
_RELATIVE_CEILING = 1e-2
_OPSETS = range(13, 25)
OPSET = 18
"""What torch's exporter writes best, and every engine here reads."""

_FIXED_BATCH = (
    "Write it for any size, or make a file of one size, which compress takes as well: "
    "edgepress export --static-shape N,C,H,W."
)

_torch: Any = torch  # where torch's own annotations do not say what is given


def capture(
    module: torch.nn.Module,
    example: Mapping[str, Array],
    *,
    opset: int = OPSET,
    dynamic_batch: bool = True,
    parity_on: Sequence[Mapping[str, Array]] = (),
    source: str = "the network",
) -> Graph:
    """Export a module with torch's dynamo exporter and prove that the graph computes the same.

    Args:
        module: The network; it is run in evaluation mode and left in the mode it came in.
        example: One array for each input, named as in ``forward``; batch size 2 or more where the
            batch is free.
        opset: ONNX operator set, 13 to 24; 18 by default.
        dynamic_batch: Whether dimension 0 of every input is free.
        parity_on: Batches of real pictures to compare on; the example where there are none.
        source: Name of the network, for messages.

    Returns:
        The Graph. Outputs are named by their path in what ``forward`` returns: ``output`` for one
        tensor, ``output_0``, ``output_1`` for a tuple, the keys of a dict.

    Raises:
        InputError: ``E_EXPORT`` where torch cannot export it (control flow on values, unknown
            operators), ``E_OPSET`` for an opset that it cannot be written in, ``E_NAN`` for
            non-finite weights or outputs, ``E_PARITY`` where the graph computes something else.
    """
    if opset not in _OPSETS:
        raise InputError(
            "E_OPSET",
            f"opset {opset} is not supported.",
            mend=f"Choose {_OPSETS[0]} to {_OPSETS[-1]}; {OPSET} is the default.",
        )
    _finite_weights(module)
    with evaluating(module):
        names = [*example, *run_module(module, example)]
        ours = {f"edgepress.{i}": name for i, name in enumerate(names)}  # nothing else is called so
        free = torch.export.Dim("N", min=1)
        arguments = tensors_from(example)
        shapes = {
            name: {0: free} if dynamic_batch and array.ndim else None
            for name, array in example.items()
        }
        try:
            with _quiet():
                program = _torch.onnx.export(
                    _Flat(module),
                    (),
                    kwargs={"feeds": arguments},
                    dynamic_shapes={"feeds": shapes},
                    input_names=list(ours)[: len(arguments)],
                    output_names=list(ours)[len(arguments) :],
                    opset_version=opset,
                    dynamo=True,
                    verbose=False,
                    optimize=True,
                )
        except Exception as error:
            raise _refused(error, dynamic_batch=dynamic_batch, source=source) from error
    model = program.model_proto
    rename(model, ours)
    graph = normalize(model, source=source, example=example)
    if dynamic_batch:
        _batch_is_free(graph)
    graph = with_opset(graph, opset, example)  # the exporter itself writes none below 18
    return with_parity(module, graph, parity_on or [example], real=bool(parity_on))


class _Flat(torch.nn.Module):
    """A module that takes its inputs as one dict and gives its output tensors as one flat tuple."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, feeds: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run the module and flatten what it gives."""
        return tuple(flatten_outputs(self.module(**feeds)).values())


def run_module(module: torch.nn.Module, feeds: Mapping[str, Array]) -> Arrays:
    """Run a module on arrays.

    Args:
        module: A module in the mode in which it shall run.
        feeds: Arrays by the names of ``forward``'s parameters.

    Returns:
        Arrays by output name (see :func:`capture`), floats as float32.

    Raises:
        InputError: ``E_FORWARD`` where the module refuses these inputs, with its own message.
    """
    try:
        with torch.inference_mode():
            given = module(**tensors_from(feeds))
            return {
                name: (value.float() if value.is_floating_point() else value).cpu().numpy()
                for name, value in flatten_outputs(given, feeds).items()
            }
    except InputError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
        raise InputError(
            "E_FORWARD",
            f"the network refuses its input ({shapes}): {_first_line(error)}",
            mend="Check the preprocessing (size, channels) and the factory.",
        ) from error


def flatten_outputs(given: object, taken: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Name the tensors of whatever ``forward`` returned: a tensor, tuples, lists, dicts, nested.

    Args:
        given: What ``forward`` returned.
        taken: Names that no output can have, those of the inputs; a number is put behind them.

    Raises:
        InputError: ``E_FORWARD`` where something in it is not a tensor.
    """
    reserved, named = set(taken), dict[str, torch.Tensor]()
    leaves, _ = pytree.tree_flatten_with_path(given)
    for path, leaf in leaves:
        if leaf is None:
            continue
        if not isinstance(leaf, torch.Tensor):
            raise InputError(
                "E_FORWARD",
                f"the network returns a {type(leaf).__name__} among its outputs.",
                mend="Return tensors, or tuples, lists and dicts of them.",
            )
        name = "_".join(_key(part) for part in path)
        if not name or name[0].isdigit():
            name = f"output_{name}".rstrip("_")
        named[fresh_name(reserved, name)] = leaf
    if not named:
        raise InputError(
            "E_FORWARD",
            f"the network returns a {type(given).__name__} without any tensor.",
            mend="Return tensors, or tuples, lists and dicts of them.",
        )
    return named


def _key(part: object) -> str:
    """A step of a path in nested outputs: a dict's key, a list's index or an attribute."""
    for name in ("key", "idx", "name"):
        if hasattr(part, name):
            return str(getattr(part, name))
    return str(part)


def tensors_from(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Tensors over arrays, which are copied where torch could not share their memory."""
    return {
        name: _torch.from_numpy(np.require(array, requirements=["C", "W"]))
        for name, array in arrays.items()
    }


def input_names(module: torch.nn.Module) -> list[str]:
    """The names of ``forward``'s required parameters, at least one.

    Raises:
        InputError: ``E_FORWARD`` for a forward without named parameters.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty] or [p.name for p in named[:1]]
    if not required:
        raise InputError(
            "E_FORWARD",
            f"{type(module).__name__}.forward names none of its inputs.",
            mend="Wrap it in a module whose forward has named parameters.",
        )
    return required


def with_parity(
    module: torch.nn.Module, graph: Graph, batches: Sequence[Mapping[str, Array]], *, real: bool
) -> Graph:
    """The same Graph with its Parity recorded.

    Args:
        module: The network; it is run in evaluation mode and left in the mode it came in.
        graph: Its graph.
        batches: What to compare on.
        real: Whether those are the user's own pictures.

    Raises:
        InputError: ``E_PARITY`` where outputs differ by more than rounding explains, ``E_NAN``
            where the network's own outputs are not finite.
    """
    largest: dict[str, float] = {}
    worst: dict[str, float] = {}
    products: dict[str, Array] = {}
    with evaluating(module), OnnxRuntimeEngine(graph.model, EngineOptions()) as engine:
        for feeds in batches:
            wanted, found = run_module(module, feeds), engine.run(feeds)
            for name, value in wanted.items():
                left = value.astype(np.float64).ravel()
                right = found[name].astype(np.float64).ravel()
                if not np.isfinite(left).all():
                    raise InputError(
                        "E_NAN",
                        f"the network's output '{name}' is not finite on these inputs.",
                        mend="Check weights and preprocessing.",
                        path=name,
                    )
                if left.shape != right.shape or not np.isfinite(right).all():
                    raise _other_function(
                        name, f"{found[name].shape} for {value.shape}, or values not finite"
                    )
                difference = float(np.max(np.abs(left - right), initial=0.0))
                worst[name] = max(worst.get(name, 0.0), difference)
                largest[name] = max(
                    largest.get(name, 0.0), float(np.max(np.abs(left), initial=0.0))
                )
                part = np.array([left @ right, left @ left, right @ right])
                products[name] = products.get(name, np.zeros(3)) + part
    cosine: dict[str, float] = {}
    for name, (both, one, other) in products.items():
        cosine[name] = float(both / np.sqrt(one * other) if one and other else one == other)
        close = worst[name] <= _RELATIVE_CEILING * max(largest[name], 1e-6)
        if not close or not cosine[name] >= _COSINE_FLOOR:
            raise _other_function(
                name,
                f"cosine {cosine[name]:.6f}, largest difference {worst[name]:.3g} of values "
                f"up to {largest[name]:.3g}",
            )
    return replace(graph, parity=Parity(sum(map(rows, batches)), real, worst, cosine))


def _other_function(name: str, how: str) -> InputError:
    return InputError(
        "E_PARITY",
        f"the exported graph differs from the network in '{name}': {how}.",
        mend="The exporter changed what is computed: report this network. Another opset may do, "
        "edgepress export --opset N; compress takes that file as well.",
        path=name,
    )


def _finite_weights(module: torch.nn.Module) -> None:
    """Parameters are finite; a buffer may be infinite (a mask), not NaN."""
    bad = [name for name, p in module.named_parameters() if not bool(torch.isfinite(p).all())]
    bad += [name for name, b in module.named_buffers() if bool(torch.isnan(b).any())]
    for name in bad:
        raise InputError(
            "E_NAN",
            f"the weight '{name}' has values that are NaN or infinite.",
            mend="Train or load the weights again; such a network computes nothing useful.",
            path=name,
        )


def _batch_is_free(graph: Graph) -> None:
    """The exporter fixes what it cannot leave free, without a word."""
    for spec in graph.inputs:
        if spec.batch is not None:
            raise InputError(
                "E_EXPORT",
                f"{graph.source} cannot be exported with a free batch: its forward fixes the "
                f"batch size (the graph's input is {spec}).",
                mend=_FIXED_BATCH,
                path=spec.name,
            )


def _refused(error: Exception, *, dynamic_batch: bool, source: str) -> InputError:
    cause = error.__cause__ or error
    text, plain = str(cause), _first_line(cause)
    if "data-dependent" in text or "GuardOnDataDependent" in text or "control flow" in text.lower():
        plain = f"its forward branches on values of tensors ({plain})"
        mend = "Rewrite the branch with torch.where, or export the part before it."
    elif dynamic_batch:
        mend = f"If its forward fixes the batch size: {_FIXED_BATCH}"
    else:
        mend = "See the message of torch.export above."
    return InputError("E_EXPORT", f"{source} cannot be exported: {plain}", mend=mend)


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__)[:300]


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Generator[None]:
    """Inside, a module and all its parts are in evaluation mode; then in the mode they had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep the exporter's progress and notes out of the user's terminal; errors still come out."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    said = io.StringIO()
    try:
        with (
            _no_cache_left(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _no_cache_left() -> Generator[None]:
    """Torch's compiler opens a cache that nothing is put in; it goes with the export."""
    if _COMPILER_CACHE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="edgepress-") as folder:
        os.environ[_COMPILER_CACHE] = folder
        try:
            yield
        finally:
            del os.environ[_COMPILER_CACHE]
