"""Which of a bundle's models runs here: by engine and processor, or by measuring once."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .bundle import Bundle
from .cache import make_folder
from .engine import WORDS, computed_in
from .engines import ENGINE_NAMES, computes_in, find_device, import_backend
from .errors import EngineError, MissingExtraError
from .manifest import MANIFEST_HASH, Variant
from .nvidia.options import BuildOptions
from .target import processor, serves

_PLAIN = "onnx"
_WARM_UP = 3
_ROUNDS = 15
_MOST_SECONDS = 2.0


@dataclass(frozen=True)
class Choice:
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


def choose(bundle: Bundle, engine: str | None = None) -> Choice:
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
    variants = _for_engine(bundle, engine)
    if len(variants) == 1:
        return Choice(variants[0], "the only one")
    passed: list[tuple[str, str]] = []
    for variant in variants:
        why_not = unsuited(variant)
        if why_not is None:
            return Choice(variant, "the first that this machine suits", tuple(passed))
        passed.append((variant.name, why_not))
    for variant in variants:
        if missing(variant) is None:
            return Choice(variant, "the first whose engine is here", tuple(passed))
    raise EngineError(
        "E_ENGINE",
        "none of the bundle's variants can run here: "
        + "; ".join(f"{name}: {why}" for name, why in passed)
        + ".",
        mend="Install one of them, or make the bundle for this machine.",
    )


def fastest(
    bundle: Bundle,
    *,
    threads: int = 0,
    engine: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    build: BuildOptions | None = None,
) -> Choice:
    """The variant that is quickest here: all that suit are timed in turn on the golden inputs.

    That takes a second or two for each. An engine that has to be built (TensorRT's) is built before
    it is timed, which takes minutes; without a cache that is thrown away, and what turns out to be
    quickest is built once more to run.

    Args:
        bundle: What holds the variants.
        threads: Threads for one inference, as the session will have; 0 leaves it to the engines.
        engine: Only variants for this engine are looked at.
        cache: A folder that remembers the choice, and engines that had to be built for it, made
            where it is not there; nothing is written without it. What it holds is for this bundle,
            processor, number of threads and these versions of the engines, and where one of them
            runs on a GPU for that GPU and its driver; it is not looked at for any other.
        build: How engines that have to be built are.

    Raises:
        EngineError: As `choose`; where a variant fails to run.
        BundleError: ``E_SELFTEST`` where a variant gives other numbers here.
        InputError: ``E_WRITE`` where the choice cannot be remembered.
    """
    variants = [one for one in _for_engine(bundle, engine) if unsuited(one) is None]
    if len(variants) < 2:
        return choose(bundle, engine)
    remembered = None if cache is None else _Memory(Path(cache), bundle, variants, threads, build)
    found = remembered.read() if remembered else None
    if found is not None:
        return Choice(found, "the fastest when it was measured here")
    medians = _timed(bundle, variants, threads, cache, build)
    best = min(variants, key=lambda one: medians[one.name])
    if remembered:
        remembered.write(best, medians)
    told = tuple((name, f"{value:.3f} ms") for name, value in medians.items())
    return Choice(best, "the fastest, measured just now", told)


def in_engine(variant: Variant, engine: str | None) -> Variant | None:
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


def _for_engine(bundle: Bundle, engine: str | None) -> tuple[Variant, ...]:
    found = tuple(one for one in bundle.variants if engine is None or one.engine == engine)
    if not found:
        read = (in_engine(one, engine) for one in bundle.variants)
        found = tuple(one for one in read if one is not None)
    if not found:
        held = ", ".join(f"'{one.name}' for {one.engine}" for one in bundle.variants)
        raise EngineError(
            "E_DIALECT",
            f"the bundle has {held}, the engine {engine} was asked for.",
            mend="Choose one of those engines, or leave the choice to the bundle.",
        )
    return found


def missing(variant: Variant) -> str | None:
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
    return None if able else f"{variant.engine} has no {WORDS[precision]} on this processor"


def unsuited(variant: Variant) -> str | None:
    """Why a variant does not suit this machine, in words; ``None`` where it does."""
    why_not = missing(variant)
    if why_not is None and not serves(variant.dialect):
        return f"{variant.dialect} is not the dialect of this processor"
    return why_not


def unproved(bundle: Bundle) -> dict[str, str]:
    """Which variants a session on this machine passes over, by name, and why.

    The only one of a bundle is none of them, nor the first whose engine is here where no dialect
    suits, nor the first of all where no engine is: those a session takes, and proves or refuses.
    """
    if len(bundle.variants) == 1:
        return {}
    passed = {one.name: why for one in bundle.variants if (why := unsuited(one)) is not None}
    here = (one.name for one in bundle.variants if missing(one) is None)
    if len(passed) == len(bundle.variants):
        passed.pop(next(here, bundle.variants[0].name), None)
    return passed


def lesser(bundle: Bundle, choice: Choice) -> tuple[str, ...]:
    """In words, which variants before the chosen one are the same model in another precision.

    The bundle's figures are of those: here it runs at another speed.
    """
    held = {one.name: one for one in bundle.variants}
    return tuple(
        f"the variant '{choice.variant.name}' runs, at its own speed, and not '{name}': {why}."
        for name, why in choice.passed_over
        if choice.variant.name != name and held[name].file == choice.variant.file
    )


def _timed(
    bundle: Bundle,
    variants: Sequence[Variant],
    threads: int,
    cache: str | os.PathLike[str] | None,
    build: BuildOptions | None,
) -> dict[str, float]:
    """Median latency in milliseconds by name, rounds in turn so that a busy moment hits all."""
    from .session import Session  # a session chooses, and choosing measures sessions

    samples: dict[str, list[float]] = {one.name: [] for one in variants}
    sessions: dict[str, Session] = {}
    try:
        for one in variants:
            sessions[one.name] = Session.open(
                bundle,
                variant=one.name,
                engine=one.engine,
                threads=threads,
                cache=cache,
                build=build,
            )
        feeds = bundle.golden()[0]
        for session in sessions.values():
            for _ in range(_WARM_UP):
                session.run(feeds)
        started = time.perf_counter()
        for done in range(_ROUNDS):
            if done >= _WARM_UP and time.perf_counter() - started > _MOST_SECONDS * len(sessions):
                break
            for name, session in sessions.items():
                session.run(feeds)  # finds the caches full of the variant before it
                before = time.perf_counter_ns()
                session.run(feeds)
                samples[name].append((time.perf_counter_ns() - before) / 1e6)
    finally:
        for session in sessions.values():
            session.close()
    return {name: sorted(values)[len(values) // 2] for name, values in samples.items()}


def _gpu(engine: str) -> dict[str, object] | None:
    """The GPU that an engine runs on, and its driver; ``None`` for one that needs none."""
    gpu = find_device(engine)
    return None if gpu is None else asdict(gpu)


class _Memory:
    """One choice in a folder, under a key of all that it depends on."""

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        variants: Sequence[Variant],
        threads: int,
        build: BuildOptions | None,
    ) -> None:
        self.variants = {one.name: one for one in variants}
        engines = sorted({one.engine for one in variants})
        depends = {
            "bundle": bundle.files[MANIFEST_HASH].decode("ascii").strip(),
            "variants": sorted(self.variants),
            "engines": {name: (import_backend(name), _gpu(name)) for name in engines},
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": threads,
            "build": None if build is None else build.to_dict(),
            "python": sys.version_info[:2],
        }
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode("utf-8")).hexdigest()
        self.path = folder / "choices" / f"{key}.json"

    def read(self) -> Variant | None:
        """What was chosen before; ``None`` where nothing was, or the file is damaged."""
        try:
            told: Any = json.loads(self.path.read_text(encoding="utf-8"))
            return self.variants.get(str(told["variant"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, best: Variant, medians: dict[str, float]) -> None:
        from .files import write_file

        told = {"variant": best.name, "median_ms": medians}
        make_folder(self.path.parent.parent, self.path.parent.name)
        write_file(json.dumps(told, indent=1).encode("utf-8"), self.path, force=True)
