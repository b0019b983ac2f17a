"""What ``evaluate`` scores: a bundle, an ONNX file or a factory, each as a Run.

Torch is imported only for a factory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ...benchmarks.data.batch_runner import Run, fixed_batch
from ...benchmarks.data.images import Images
from ...runtime.bundle.bundle import Bundle
from ...runtime.engines.engine import EngineOptions
from ...runtime.errors import InputError
from ...runtime.files import read_file
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.session import Session
from ...runtime.tensors import Arrays, TensorSpec


@dataclass(frozen=True)
class ScoredSource:
    """Something that can be scored.

    Attributes:
        run: Runs it on batches of any size.
        inputs: What it takes.
        outputs: Names of what it gives; ``None`` where only a run can tell.
        preprocessing: Its own, or ``None``.
        labels: Its class names, or ``None``.
        how: What runs it, in a few words.
        notes: What does not run here as it was meant to, in words.
    """

    run: Run
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    how: str
    notes: tuple[str, ...] = ()


def open_scored_source(
    stack: ExitStack,
    model: str,
    weights: str | None,
    threads: int,
    images: Images,
    cache: Path | None = None,
) -> ScoredSource:
    """Open what shall be scored; it closes with ``stack``.

    Args:
        stack: Closes the engines.
        model: A bundle, an ``.onnx`` file, or a factory as ``compress`` takes it.
        weights: A factory's weights.
        threads: Threads of what runs it; 0 leaves the choice to it. Torch has its own back when
            ``stack`` closes.
        images: What it will be run on; they tell a factory's inputs.
        cache: Folder that keeps engines that had to be built for a bundle.

    Raises:
        InputError: What opening it raises; ``E_USAGE`` for weights beside anything but a factory.
    """
    if _names_factory(model):
        return _factory(stack, model, weights, threads, images)
    if weights is not None:
        raise InputError(
            "E_USAGE",
            f"weights go with a factory, not with '{model}'.",
            mend="Leave out --weights.",
            path=model,
        )
    if model.lower().endswith(".onnx"):
        from ...runtime.engines.onnxruntime import OnnxRuntimeEngine

        engine = OnnxRuntimeEngine(read_file(model), EngineOptions(threads=threads))
        stack.enter_context(engine)
        run = fixed_batch(engine.run, engine.inputs)
        names = tuple(spec.name for spec in engine.outputs)
        return ScoredSource(run, engine.inputs, names, None, None, "onnxruntime")
    session = stack.enter_context(Session.open(Bundle.open(model), threads=threads, cache=cache))
    bundle = session.bundle
    return ScoredSource(
        fixed_batch(session.run, session.inputs, session.largest_batch),
        session.inputs,
        tuple(spec.name for spec in session.outputs),
        bundle.preprocessing,
        bundle.labels,
        f"the runtime ({session.variant.name})",
        session.notes,
    )


def aligned_reference(reference: ScoredSource, judged: ScoredSource) -> Run:
    """A reference that goes by the names of what is judged: by position where the names differ.

    Raises:
        InputError: ``E_TASK`` where they have not as many inputs or outputs.
    """
    inputs = _by_position(
        [spec.name for spec in judged.inputs], [spec.name for spec in reference.inputs], "inputs"
    )
    outputs: dict[str, str] = {}
    if judged.outputs is not None and reference.outputs is not None:
        outputs = _by_position(reference.outputs, judged.outputs, "outputs")

    def run(feeds: Arrays) -> Arrays:
        found = reference.run({inputs[name]: array for name, array in feeds.items()})
        return {outputs.get(name, name): array for name, array in found.items()}

    return run


def _by_position(names: Sequence[str], others: Sequence[str], what: str) -> dict[str, str]:
    if len(names) != len(others):
        raise InputError(
            "E_TASK",
            f"the {what} are {list(names)}, the reference's {list(others)}.",
            mend="Compare two forms of the same network.",
        )
    if set(names) == set(others):
        return {name: name for name in names}
    return dict(zip(names, others, strict=True))


def _names_factory(model: str) -> bool:
    return model.endswith(".py") or (":" in Path(model).name and not Path(model).exists())


def _factory(
    stack: ExitStack, model: str, weights: str | None, threads: int, images: Images
) -> ScoredSource:
    import torch

    from ...export.graph.torch_capture import input_names
    from ..source.backbone import Backbone
    from ..source.source_network import torch_run

    backbone = Backbone.open(model, weights)
    if threads:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
    inputs = images.specs(input_names(backbone.module))
    run = torch_run(backbone.module)
    return ScoredSource(run, inputs, None, backbone.preprocessing, None, "torch")
