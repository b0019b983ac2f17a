"""Several bundles of one network become one bundle of several variants."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import InputError
from .bundle import Bundle
from .bundle_writer import seal
from .manifest import Expected, Manifest, Variant

_LEAST = 2


class _Part(NamedTuple):
    """A variant, the bundle that it came in, and its name in the new one."""

    bundle: Bundle
    variant: Variant
    name: str


def combine(bundles: Sequence[Bundle]) -> dict[str, bytes]:
    """The files of one bundle that holds the variants of all, sealed; nothing is written.

    Each variant keeps its model, its receipt, its golden outputs with their tolerance, and what was
    measured of it. The first variant of the first bundle stays the default. Models that are equal
    to the last byte become one file.

    Args:
        bundles: Two and more, of one network: made from the same pictures for different targets.

    Raises:
        InputError: ``E_USAGE`` for fewer than two; ``E_COMBINE`` where they differ in inputs,
            outputs, task, preprocessing, labels or golden inputs, or hold one variant twice.
    """
    if len(bundles) < _LEAST:
        raise InputError(
            "E_USAGE",
            f"{len(bundles)} bundle was given, at least {_LEAST} are combined.",
            mend="Name the bundles that were made of one network for different targets.",
        )
    first = bundles[0]
    for other in bundles[1:]:
        _check_same(first, other)
    parts = _named([(one, variant) for one in bundles for variant in one.variants])
    files: dict[str, bytes] = {
        path: first.files[path]
        for path in (first.manifest.golden.inputs, first.manifest.golden.outputs)
    }
    if first.manifest.labels is not None:
        files[first.manifest.labels] = first.files[first.manifest.labels]
    variants: list[Variant] = []
    for index, part in enumerate(parts):
        variants.append(_moved(part, first, files, variants, default=index == 0))
    return seal(dataclasses.replace(first.manifest, variants=tuple(variants)), files)


def _check_same(first: Bundle, other: Bundle) -> None:
    for what, one, two in (
        ("inputs", first.inputs, other.inputs),
        ("outputs", first.outputs, other.outputs),
        ("task", first.task, other.task),
        ("preprocessing", first.preprocessing, other.preprocessing),
        ("labels", first.labels, other.labels),
    ):
        if one != two:
            raise _differ(first, other, what, f"{one} and {two}")
    ours, theirs = first.golden()[0], other.golden()[0]
    if any(ours[name].tobytes() != theirs[name].tobytes() for name in ours):
        raise _differ(first, other, "golden inputs", "made from other pictures")


def _differ(first: Bundle, other: Bundle, what: str, how: str) -> InputError:
    return InputError(
        "E_COMBINE",
        f"'{first.path}' and '{other.path}' differ in their {what}: {how[:200]}.",
        mend="Combine bundles that were made of the same network with the same data.",
        path=str(other.path),
    )


def _named(variants: Sequence[tuple[Bundle, Variant]]) -> list[_Part]:
    """Names: engine and precision, with the dialect where that does not tell two apart."""
    short = [f"{variant.engine}-{variant.precision}" for _, variant in variants]
    parts: list[_Part] = []
    for (bundle, variant), name in zip(variants, short, strict=True):
        full = name if short.count(name) == 1 else f"{variant.dialect}-{variant.precision}"
        if any(part.name == full for part in parts):
            raise InputError(
                "E_COMBINE",
                f"'{bundle.path}' has a variant '{full}', and another bundle has it too.",
                mend="Leave one of the two out.",
                path=str(bundle.path),
            )
        parts.append(_Part(bundle, variant, full))
    return parts


def _moved(
    part: _Part,
    first: Bundle,
    files: dict[str, bytes],
    placed: Sequence[Variant],
    *,
    default: bool,
) -> Variant:
    """The variant under its new name, its files put with those of the variants placed so far."""
    bundle, variant, name = part
    golden, made = variant.golden, variant.made
    if bundle is not first:
        told = bundle.manifest.golden
        golden = golden or Expected(told.outputs, told.tolerance)
        made = {**_made(bundle.manifest), **(made or {})}
    if golden is not None:  # under its new name: an old one may be what another is called now
        path = f"golden/{name}.npz"
        files[path] = bundle.files[golden.outputs]
        golden = Expected(path, golden.tolerance)
    model = variant.file
    if not default:
        models = sorted({one.file for one in placed})
        held = bundle.files[variant.file]
        model = next((path for path in models if files[path] == held), f"variants/{name}.onnx")
    files[model] = bundle.files[variant.file]
    return dataclasses.replace(variant, name=name, file=model, golden=golden, made=made)


def _made(manifest: Manifest) -> dict[str, object]:
    return {
        "recipe": dict(manifest.recipe),
        "scores": manifest.scores,
        "measurements": manifest.measurements,
        "notes": list(manifest.notes),
        "declined": manifest.declined,
    }
