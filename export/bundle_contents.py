"""Assemble a bundle: the model that ships, what proves it, and all that was measured on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .. import __version__
from ..runtime.build_shapes import for_batches
from ..runtime.bundle.bundle_writer import seal
from ..runtime.bundle.manifest import MODEL, Expected, Golden, Manifest, Tolerance, Variant
from ..runtime.bundle.npz import write_npz
from ..runtime.engine_registry import open_engine
from ..runtime.engines.engine import EngineOptions, computed_in
from ..runtime.engines.onnxruntime import OnnxRuntimeEngine
from ..runtime.errors import InputError
from ..runtime.pictures.preprocessing import Preprocessing
from ..runtime.tensors import Array, Arrays, TensorSpec

_LABELS = "labels.txt"
_FLOORS = {"int8": 0.02, "fp16": 0.02, "bfloat16": 0.02}  # by what carries the work
_EMULATED_FLOOR = 0.05
_GOLDEN_INPUTS, _GOLDEN_OUTPUTS = "golden/inputs.npz", "golden/outputs.npz"


@dataclass(frozen=True)
class ShippedModel:
    """The model that ships.

    Attributes:
        model: Bytes of the ONNX file.
        precision: ``int8``, ``float32``; ``int8-bfloat16`` and ``bfloat16`` for the same models
            where the engine is to compute their floats in bfloat16.
        dialect: How it is written; ``onnx`` for plain float32.
        engine: The runtime's engine that it is for.
        receipt: What that engine does with it.
        emulated: What ONNX Runtime runs in its place where the device is not here that it is made
            for; ``None`` where it is here.
        beside: What ships in the same bundle for a machine that cannot run this one.
        made: What is told of it where it ships beside another: scores, measurements and notes.
    """

    model: bytes
    precision: str
    dialect: str
    engine: str
    receipt: Mapping[str, object]
    emulated: bytes | None = None
    beside: tuple[ShippedModel, ...] = ()
    made: Mapping[str, object] | None = None


def assemble(
    shipped: ShippedModel,
    *,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    golden_inputs: Arrays,
    synthetic: bool,
    task: str,
    preprocessing: Preprocessing | None,
    labels: Sequence[str] | None,
    recipe: Mapping[str, object],
    scores: Mapping[str, object],
    measurements: Mapping[str, object],
    notes: Sequence[str],
    declined: bool,
    cache: str | None = None,
) -> dict[str, bytes]:
    """All files of a bundle, sealed; nothing is written yet.

    Args:
        shipped: The model, and what ships beside it: one variant each.
        inputs: Its inputs.
        outputs: Its outputs.
        golden_inputs: What the self-test runs.
        synthetic: Whether those are made up.
        task: What "as good as before" meant.
        preprocessing: How pictures reach the input, or ``None``.
        labels: Class names, or ``None``.
        recipe: How it was made.
        scores: Scores of the original and of the result.
        measurements: Times and sizes.
        notes: Remarks for people.
        declined: Whether the recipe was declined.
        cache: Folder for engines that are built.

    Raises:
        InputError: ``E_LABELS`` for class names with line breaks in them; what
            :func:`golden_outputs` raises.
    """
    golden, tolerance = golden_outputs(shipped, golden_inputs, cache)
    files = {
        MODEL: shipped.model,
        _GOLDEN_INPUTS: write_npz(golden_inputs),
        _GOLDEN_OUTPUTS: write_npz(golden),
    }
    variants = [_variant(shipped, MODEL)]
    for other in shipped.beside:
        expected, within = golden_outputs(other, golden_inputs, cache)
        path = f"golden/{other.precision}.npz"
        files[path] = write_npz(expected)
        file = MODEL if other.model == shipped.model else f"variants/{other.precision}.onnx"
        files[file] = other.model
        variants.append(replace(_variant(other, file), golden=Expected(path, within)))
    if labels is not None:
        if any("\n" in name or "\r" in name for name in labels):
            raise InputError(
                "E_LABELS", "a class name has a line break in it.", mend="Rename the class."
            )
        files[_LABELS] = ("\n".join(labels) + "\n").encode("utf-8")
    manifest = Manifest(
        inputs=inputs,
        outputs=outputs,
        task=task,
        variants=tuple(variants),
        golden=Golden(_GOLDEN_INPUTS, _GOLDEN_OUTPUTS, synthetic, tolerance),
        preprocessing=preprocessing,
        labels=_LABELS if labels is not None else None,
        recipe=recipe,
        scores=scores,
        measurements=measurements,
        notes=tuple(notes),
        declined=declined,
        created_by=f"edgepress {__version__}",
    )
    return seal(manifest, files)


def _variant(shipped: ShippedModel, file: str) -> Variant:
    name, receipt = shipped.precision, dict(shipped.receipt)
    return Variant(
        name, file, shipped.engine, shipped.dialect, shipped.precision, receipt, made=shipped.made
    )


def golden_outputs(
    shipped: ShippedModel, inputs: Arrays, cache: str | None = None
) -> tuple[Arrays, dict[str, Tolerance]]:
    """Outputs for the golden inputs, and how far another machine's may lie from them.

    The tolerance is not guessed: the same graph is run once more in ONNX Runtime with every
    optimization off, where INT8 is emulated in float32 and bfloat16 is float32, and four times the
    difference between the two is allowed (at least 2 % of the largest output for INT8 and bfloat16,
    0.1 % for float32; 5 % where the device that it is for is not here, and ONNX Runtime stands in).

    Raises:
        InputError: ``E_NAN`` where an output is not finite, ``E_SHAPE`` where it has as many values
            as rounding makes it have.
    """
    here = shipped.emulated is None
    model = shipped.model if shipped.emulated is None else shipped.emulated
    name = shipped.engine if here else "onnxruntime"
    options = EngineOptions(
        precision=computed_in(shipped.precision),
        cache=cache,
        build=for_batches(name, model, inputs),
    )
    with open_engine(name)(model, options) as engine:
        golden = engine.run(inputs)
    with OnnxRuntimeEngine(model, EngineOptions(optimize="none")) as engine:
        plain = engine.run(inputs)
    carried_by = shipped.precision.partition("-")[0]
    floor = _FLOORS.get(carried_by, 0.001) if here else _EMULATED_FLOOR
    tolerance: dict[str, Tolerance] = {}
    for name, value in golden.items():
        one, other = value.astype(np.float64), plain[name].astype(np.float64)
        if one.shape != other.shape:
            raise InputError(
                "E_SHAPE",
                f"the output '{name}' has the shape {one.shape} on the golden input, and "
                f"{other.shape} where the engine optimizes nothing: how many values it has hangs "
                "on rounding, and no self-test could compare them.",
                mend="Let the self-test show a real picture (--golden-pictures, or "
                "golden_pictures=True), or give out what the network chooses from.",
                path=name,
            )
        if not np.isfinite(one).all():
            raise InputError(
                "E_NAN",
                f"the output '{name}' is not finite on the golden input.",
                mend="Use golden inputs like those that the network is made for.",
                path=name,
            )
        largest = float(np.max(np.abs(one), initial=0.0))
        seen = float(np.max(np.abs(one - other), initial=0.0))
        angle = max(4 * (1 - _cosine(one, other)), floor / 2)
        tolerance[name] = Tolerance(max(4 * seen, floor * largest, 1e-6), max(0.0, 1 - angle))
    return golden, tolerance


def _cosine(left: Array, right: Array) -> float:
    one, two = left.ravel(), right.ravel()
    norms = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / norms if norms else float(np.array_equal(one, two))


def synthetic_inputs(like: Arrays, preprocessing: Preprocessing | None, *, seed: int = 0) -> Arrays:
    """Golden inputs that show nobody's picture: random, of the shapes and ranges of real ones.

    Args:
        like: Real inputs, ``(N, ...)``; one row is imitated.
        preprocessing: Where the input is a picture, random bytes go through its scaling.
        seed: Of the random numbers.
    """
    generator = np.random.default_rng(seed)
    made: Arrays = {}
    for name, array in like.items():
        shape = (1, *array.shape[1:])
        if preprocessing is not None and array.ndim == 4:
            picture = generator.integers(0, 256, (*shape[2:], shape[1]), dtype=np.uint8)
            made[name] = preprocessing.tensor([picture])
        elif array.dtype.kind == "f":
            low, high = float(array.min()), float(array.max())
            made[name] = generator.uniform(low, high, shape).astype(array.dtype)
        else:
            low, high = int(array.min()), int(array.max())
            made[name] = generator.integers(low, high + 1, shape).astype(array.dtype)
    return made
