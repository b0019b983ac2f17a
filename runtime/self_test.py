"""Is a model the one that its bundle speaks of, and does it compute here what it computed there?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bundle.bundle import Bundle
from .bundle.manifest import Tolerance, Variant
from .engines.engine import Engine
from .errors import BundleError, EngineError, InputError
from .tensors import Array, TensorSpec


@dataclass(frozen=True)
class SelfTest:
    """How far one output was from the golden one: largest difference, and cosine."""

    output: str
    max_abs: float
    cosine: float


def check_schema(bundle: Bundle, variant: Variant, engine: Engine) -> None:
    """Check that a model has the inputs and outputs that its bundle declares.

    Inputs must be declared exactly, but that an engine may have been built for one of the sizes
    that are free. Outputs must not contradict: one version of an engine may infer a size that
    another leaves free.

    Raises:
        BundleError: ``E_SCHEMA``.
    """
    for kind, told, real, exact in (
        ("inputs", bundle.inputs, engine.inputs, True),
        ("outputs", bundle.outputs, engine.outputs, False),
    ):
        have = {spec.name: spec for spec in real}
        fits = set(have) == {spec.name for spec in told} and all(
            _same(spec, have[spec.name], exact, engine.builds) for spec in told
        )
        if not fits:
            raise BundleError(
                "E_SCHEMA",
                f"'{variant.file}' has the {kind} {'; '.join(map(str, real))}, "
                f"the manifest declares {'; '.join(map(str, told))}.",
                mend="Make the bundle again.",
                path=variant.file,
            )


def _same(told: TensorSpec, real: TensorSpec, exact: bool, builds: bool) -> bool:
    if told.dtype != real.dtype or len(told.shape) != len(real.shape):
        return False
    for one, other in zip(told.shape, real.shape, strict=True):
        if isinstance(one, int) and isinstance(other, int):
            if one != other:
                return False
        elif isinstance(one, int):
            if exact and not isinstance(other, int):
                return False
        elif exact and isinstance(other, int) and not builds:
            return False
    return True


def self_test(bundle: Bundle, variant: Variant, engine: Engine) -> tuple[SelfTest, ...]:
    """Run the golden inputs and compare with the golden outputs.

    Raises:
        BundleError: ``E_SELFTEST`` where it does not run or an output is outside its tolerance.
        InputError: ``E_INPUT`` where the engine was built for other sizes than the golden inputs'.
    """
    inputs, golden = bundle.golden(variant)
    tolerance = (variant.golden or bundle.manifest.golden).tolerance
    try:
        outputs = engine.run(inputs)
    except InputError as error:
        if engine.builds and not isinstance(error, EngineError):
            raise  # it was built for other sizes, and says for which
        raise BundleError(
            "E_SELFTEST",
            f"'{variant.file}' does not run on the golden inputs: {error.message}",
            mend="Make the bundle again.",
            path=variant.file,
        ) from error
    found = tuple(_compare(name, outputs[name], golden[name]) for name in golden)
    for one in found:
        allowed = tolerance[one.output]
        if not _within(one, allowed):
            raise BundleError(
                "E_SELFTEST",
                f"'{variant.file}' gives other numbers here than where it was made: output "
                f"'{one.output}' differs by {one.max_abs:.3g} (allowed {allowed.max_abs:.3g}), "
                f"cosine {one.cosine:.6f} (at least {allowed.cosine:.6f}).",
                mend="The engine or the processor computes this model differently: "
                "choose another variant, or make the bundle for this target.",
                path=variant.file,
            )
    return found


def _within(found: SelfTest, allowed: Tolerance) -> bool:
    """NaN is within nothing."""
    return found.max_abs <= allowed.max_abs and found.cosine >= allowed.cosine


def _compare(name: str, array: Array, golden: Array) -> SelfTest:
    if array.shape != golden.shape:
        return SelfTest(name, float("inf"), -1.0)
    ours, theirs = array.astype(np.float64).ravel(), golden.astype(np.float64).ravel()
    with np.errstate(all="ignore"):
        largest = float(np.abs(ours - theirs).max(initial=0.0))
        # not a dot product of BLAS, whose threads take longer to start than this takes to run
        norms = float(np.sqrt((ours * ours).sum() * (theirs * theirs).sum()))
        cosine = float((ours * theirs).sum()) / norms if norms else float(largest == 0)
    return SelfTest(name, largest, max(-1.0, min(1.0, cosine)))
