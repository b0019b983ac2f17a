"""The quickest variant of a bundle here: measured once, and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from ..bundle.bundle import Bundle
from ..bundle.manifest import MANIFEST_HASH, Variant
from ..cache import make_folder
from ..engine_registry import find_device, import_backend
from ..engines.build_options import BuildOptions
from ..target import processor
from ..tensors import Array, Arrays
from .variant_selection import VariantChoice, choose_variant, variants_for, why_unsuited

_WARM_UP = 3
_ROUNDS = 15
_MOST_SECONDS = 2.0


class OpenedVariant(Protocol):
    """A variant that is ready to run; ``Session`` is one."""

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run it once."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


OpenVariant: TypeAlias = Callable[..., OpenedVariant]
"""Takes a bundle and, by name, ``variant``, ``engine``, ``threads``, ``cache`` and ``build``."""


def fastest_variant(
    bundle: Bundle,
    open_variant: OpenVariant,
    *,
    threads: int = 0,
    engine: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    build: BuildOptions | None = None,
) -> VariantChoice:
    """The variant that is quickest here: all that suit are timed in turn on the golden inputs.

    That takes a second or two for each. An engine that has to be built (TensorRT's) is built before
    it is timed, which takes minutes; without a cache that is thrown away, and what turns out to be
    quickest is built once more to run.

    Args:
        bundle: What holds the variants.
        open_variant: Opens one of them to be timed: ``Session.open``.
        threads: Threads for one inference, as the session will have; 0 leaves it to the engines.
        engine: Only variants for this engine are looked at.
        cache: A folder that remembers the choice, and engines that had to be built for it, made
            where it is not there; nothing is written without it. What it holds is for this bundle,
            processor, number of threads and these versions of the engines, and where one of them
            runs on a GPU for that GPU and its driver; it is not looked at for any other.
        build: How engines that have to be built are.

    Raises:
        EngineError: As `choose_variant`; where a variant fails to run.
        BundleError: ``E_SELFTEST`` where a variant gives other numbers here.
        InputError: ``E_WRITE`` where the choice cannot be remembered.
    """
    variants = [one for one in variants_for(bundle, engine) if why_unsuited(one) is None]
    if len(variants) < 2:
        return choose_variant(bundle, engine)
    remembered = None if cache is None else _Memory(Path(cache), bundle, variants, threads, build)
    found = remembered.read() if remembered else None
    if found is not None:
        return VariantChoice(found, "the fastest when it was measured here")
    medians = _timed(bundle, variants, open_variant, threads, cache, build)
    best = min(variants, key=lambda one: medians[one.name])
    if remembered:
        remembered.write(best, medians)
    told = tuple((name, f"{value:.3f} ms") for name, value in medians.items())
    return VariantChoice(best, "the fastest, measured just now", told)


def _timed(
    bundle: Bundle,
    variants: Sequence[Variant],
    open_variant: OpenVariant,
    threads: int,
    cache: str | os.PathLike[str] | None,
    build: BuildOptions | None,
) -> dict[str, float]:
    """Median latency in milliseconds by name, rounds in turn so that a busy moment hits all."""
    samples: dict[str, list[float]] = {one.name: [] for one in variants}
    sessions: dict[str, OpenedVariant] = {}
    try:
        for one in variants:
            sessions[one.name] = open_variant(
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
        from ..files import write_file

        told = {"variant": best.name, "median_ms": medians}
        make_folder(self.path.parent.parent, self.path.parent.name)
        write_file(json.dumps(told, indent=1).encode("utf-8"), self.path, force=True)
