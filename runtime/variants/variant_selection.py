"""Which of a bundle's models runs here: by engine and processor, or by measuring once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..bundle.bundle import Bundle
from ..bundle.manifest import Variant
from ..engine_registry import ENGINE_NAMES, computes_in, find_device, import_backend
from ..engines.engine import PRECISION_WORDS, computed_in
from ..errors import EngineError, MissingExtraError
from ..target import serves

_PLAIN = "onnx"


@dataclass(frozen=True)
class VariantChoice:
    """A variant, and why it was taken.

    Attributes:
        variant: What runs.
        reason: Why, in words.
        passed_over: The variants before it and why they do not run here, by name; with a choice by
            measurement, the medians in milliseconds of all that were measured.
    """

    variant: Variant
    reason: str
    passed_over: tuple[tuple[str, str], ...] = ()


def choose_variant(bundle: Bundle, engine: str | None = None) -> VariantChoice:
    """The first variant, in the bundle's order, whose engine is here and whose dialect suits.

    A variant in a precision that its engine does not have on this processor is passed over. A
    dialect that was made for another kind of processor is passed over as long as another variant
    suits; where none does, the first whose engine is here is taken, and the self-test proves it.

    Args:
        bundle: What holds the variants.
        engine: Only variants for this engine are looked at; where there are none, those in plain
            ONNX.

    Raises:
        EngineError: ``E_DIALECT`` where ``engine`` reads no variant; ``E_ENGINE`` where no
            variant's engine is here.
        MissingExtraError: Where the only variant's engine is an extra that is not installed.
    """
    variants = variants_for(bundle, engine)
    if len(variants) == 1:
        return VariantChoice(variants[0], "the only one")
    passed: list[tuple[str, str]] = []
    for variant in variants:
        why_not = why_unsuited(variant)
        if why_not is None:
            return VariantChoice(variant, "the first that this machine suits", tuple(passed))
        passed.append((variant.name, why_not))
    for variant in variants:
        if why_missing(variant) is None:
            return VariantChoice(variant, "the first whose engine is here", tuple(passed))
    raise EngineError(
        "E_ENGINE",
        "none of the bundle's variants can run here: "
        + "; ".join(f"{name}: {why}" for name, why in passed)
        + ".",
        mend="Install one of them, or make the bundle for this machine.",
    )


def variant_in_engine(variant: Variant, engine: str | None) -> Variant | None:
    """The variant as an engine is to run it, or ``None`` where that does not read its dialect.

    Plain ONNX, without a word in it that is one engine's, is read by all of them.

    Args:
        variant: What a bundle holds.
        engine: Name of the engine; ``None`` for the one that the variant names.
    """
    if engine in (None, variant.engine):
        return variant
    reads = variant.dialect == _PLAIN and engine in ENGINE_NAMES and engine != "null"
    return replace(variant, engine=engine) if reads else None


def variants_for(bundle: Bundle, engine: str | None) -> tuple[Variant, ...]:
    """The variants that ``engine`` runs: its own, else those in plain ONNX.

    Raises:
        EngineError: ``E_DIALECT`` where it reads none of them.
    """
    found = tuple(one for one in bundle.variants if engine is None or one.engine == engine)
    if not found:
        read = (variant_in_engine(one, engine) for one in bundle.variants)
        found = tuple(one for one in read if one is not None)
    if not found:
        held = ", ".join(f"'{one.name}' for {one.engine}" for one in bundle.variants)
        raise EngineError(
            "E_DIALECT",
            f"the bundle has {held}, the engine {engine} was asked for.",
            mend="Choose one of those engines, or leave the choice to the bundle.",
        )
    return found


def why_missing(variant: Variant) -> str | None:
    """Why a variant cannot run here, in words; ``None`` where it can."""
    precision = computed_in(variant.precision)
    try:
        find_device(variant.engine)
        import_backend(variant.engine)
        able = computes_in(variant.engine, precision)
    except MissingExtraError:
        return f"the engine {variant.engine} is not installed"
    except EngineError as error:
        return f"the engine {variant.engine} is not usable: {error.message.rstrip('.')}"
    return (
        None if able else f"{variant.engine} has no {PRECISION_WORDS[precision]} on this processor"
    )


def why_unsuited(variant: Variant) -> str | None:
    """Why a variant does not suit this machine, in words; ``None`` where it does."""
    why_not = why_missing(variant)
    if why_not is None and not serves(variant.dialect):
        return f"{variant.dialect} is not the dialect of this processor"
    return why_not


def unproved_variants(bundle: Bundle) -> dict[str, str]:
    """Which variants a session on this machine passes over, by name, and why.

    The only one of a bundle is none of them, nor the first whose engine is here where no dialect
    suits, nor the first of all where no engine is: those a session takes, and proves or refuses.
    """
    if len(bundle.variants) == 1:
        return {}
    passed = {one.name: why for one in bundle.variants if (why := why_unsuited(one)) is not None}
    here = (one.name for one in bundle.variants if why_missing(one) is None)
    if len(passed) == len(bundle.variants):
        passed.pop(next(here, bundle.variants[0].name), None)
    return passed


def lesser_variant_notes(bundle: Bundle, choice: VariantChoice) -> tuple[str, ...]:
    """In words, which variants before the chosen one are the same model in another precision.

    The bundle's figures are of those: here it runs at another speed.
    """
    held = {one.name: one for one in bundle.variants}
    return tuple(
        f"the variant '{choice.variant.name}' runs, at its own speed, and not '{name}': {why}."
        for name, why in choice.passed_over
        if choice.variant.name != name and held[name].file == choice.variant.file
    )
