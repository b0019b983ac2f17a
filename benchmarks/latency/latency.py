"""Latency: what one network takes on this machine, in fresh processes that hold nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ...runtime.bundle.bundle import Bundle
from ...runtime.engines.engine import Precision, computed_in
from ...runtime.errors import InputError
from ...runtime.files import disk_room, temporary_folder
from ...runtime.variants.variant_selection import choose_variant
from ..statistics import bootstrap_median, percentile
from .fingerprint import fingerprint
from .measurement import Latency, Measurement, MeasurementRequest, Preset
from .processes import Worker
from .recording import Recording, ShareDone, run_rounds
from .worker import WorkerRequest, WorkerStarted

Measurable: TypeAlias = "str | os.PathLike[str] | bytes"
"""What is measured: a bundle (folder or ``.zip``), a model file, or a model's bytes."""

DEFAULT_ENGINE = "onnxruntime"

SETTLED_SHARE = 0.02
"""Measuring goes on until the interval's half-width is this share of the value, or to the cap."""


def measure(
    path: Measurable,
    *,
    threads: int = 1,
    batch: int = 1,
    preset: str | Preset = "quick",
    engine: str | None = None,
    precision: Precision | None = None,
    variant: str | None = None,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: ShareDone | None = None,
) -> Measurement:
    """Measure one network in fresh processes.

    After a warm-up, blocks of inferences are timed until the preset's least time and count are
    reached and the median's 95 % interval is within 2 %, or to the preset's cap.

    Args:
        path: A bundle, a model file, or a model's bytes.
        threads: Threads for one inference; 0 leaves the choice to the engine.
        batch: Samples an inference.
        preset: ``quick``, ``standard``, or a :class:`Preset`.
        engine: Name of the engine; by default the one that a bundle was made for, ONNX Runtime for
            a file.
        precision: What the engine computes floats in; by default what the bundle's variant says,
            float32 for a file.
        variant: Which model of a bundle; by default the one that a session would take here.
        seed: Of the random inputs.
        shapes: Whole input shapes by name, for free dimensions other than the batch; a bundle's
            golden inputs tell them by themselves.
        progress: Told how much is done.

    Raises:
        InputError: ``E_FILE``, ``E_BATCH``, ``E_SHAPE``, ``E_PRESET``, ``E_THREADS``, ``E_SEED``.
        EngineError: ``E_BACKEND`` where the engine refuses the model, crashes or hangs;
            ``E_ENGINE``; ``E_PRECISION`` where it cannot compute in that.
        BundleError: Where the bundle is damaged.
    """
    own = OwnOptions.of(path, engine, variant)
    chosen = own.engine or DEFAULT_ENGINE
    settings = MeasurementRequest.of(
        threads, batch, preset, chosen, seed, shapes, precision or own.precision, own.variant
    )
    with subject_file(path) as (file, told), temporary_folder() as built:
        # an engine that has to be built is built once, not in every process
        recording = Recording(replace(settings.request(file), cache=str(built)))

        def settled() -> bool:
            if len(recording.medians) < 6:
                return False
            low, high = bootstrap_median(recording.medians, seed)
            return high - low <= 2 * SETTLED_SHARE * float(np.median(recording.medians))

        outcome = run_rounds([recording], settings.preset, settled, progress)
        return measurement(recording, settings, file, told, outcome)


def measurement(
    recording: Recording, settings: MeasurementRequest, file: Path, told: str, settled: bool
) -> Measurement:
    """Everything about one recording; prices the harness on the way."""
    started = recording.started[-1]
    samples = recording.samples_ms
    return Measurement(
        path=told,
        sha256=started.sha256,
        size_bytes=started.size_bytes,
        package_bytes=_read_through(file),
        engine=started.facts,
        threads=settings.threads,
        batch=settings.batch,
        shapes=started.feeds,
        seed=settings.seed,
        preset=settings.preset.name,
        latency=Latency.of(samples),
        throughput_per_s=1e3 * settings.batch * len(samples) / float(samples.sum()),
        import_ms=recording.starting("import_ms"),
        read_ms=recording.starting("read_ms"),
        load_ms=recording.starting("load_ms"),
        first_ms=recording.starting("first_ms"),
        cpu_ms=recording.cpu_ms / len(samples),
        peak_memory_bytes=recording.peak_memory_bytes,
        overhead_us=overhead_us(started, settings),
        processes=len(recording.started),
        warmed_up=recording.warmed_up,
        settled=settled,
        load_average=recording.load_average,
        steal_percent=recording.steal_percent,
        fingerprint=fingerprint(started.facts),
    )


def overhead_us(started: WorkerStarted, settings: MeasurementRequest) -> float:
    """What the harness adds to each latency, in microseconds.

    It is the median of the null engine, which does no work, in a worker of its own, with inputs and
    outputs like those of the network: the clock, edgepress's checks, and outputs full of zeros.
    """
    described = json.dumps({"inputs": started.inputs, "outputs": started.outputs})
    with subject_file(described.encode()) as (file, _):
        request = WorkerRequest(
            str(file), "null", settings.threads, settings.batch, settings.seed, started.feeds
        )
        with Worker(request) as worker:
            worker.start()
            worker.block(100)
            return 1e3 * percentile(worker.block(500).latencies_ms, 0.5)


@dataclass(frozen=True)
class OwnOptions:
    """How a subject wants to be run.

    Attributes:
        engine: The engine asked for, or a variant's; ``None`` for a plain model where none was.
        variant: Which model of a bundle; ``None`` for a plain model.
        precision: What that variant's floats are computed in.
    """

    engine: str | None
    variant: str | None = None
    precision: Precision = "f32"

    @staticmethod
    def of(subject: Measurable, engine: str | None, variant: str | None) -> OwnOptions:
        """What is asked for, completed by what a bundle says.

        Raises:
            InputError: ``E_VARIANT`` for a variant that is not there, or of a plain model.
            EngineError: ``E_DIALECT`` where a bundle has none for ``engine``.
            BundleError: Where the bundle is damaged.
        """
        path = "" if isinstance(subject, bytes) else os.fspath(subject)
        if not (os.path.isdir(path) or path.lower().endswith(".zip")):
            if variant is not None:
                raise InputError(
                    "E_VARIANT",
                    f"the variant '{variant}' of a plain model was asked for.",
                    mend="Only bundles have variants.",
                    path=path or None,
                )
            return OwnOptions(engine)
        bundle = Bundle.open(path)
        # any engine may be tried on a bundle's only model; among several, each has its own
        only = variant is None and len(bundle.variants) == 1
        if variant is not None or only:
            chosen = bundle.variant(variant)
        else:
            chosen = choose_variant(bundle, engine).variant
        name = engine or chosen.engine
        return OwnOptions(name, chosen.name, computed_in(chosen.precision))


@contextmanager
def subject_file(subject: Measurable) -> Generator[tuple[Path, str], None, None]:
    """The absolute path of what is measured, and its name in reports.

    It is read once here, so that it is in the page cache.
    Bytes are written to a private temporary folder, which is removed in the end.

    Raises:
        InputError: ``E_FILE`` where it cannot be read.
    """
    if isinstance(subject, bytes):
        with temporary_folder() as folder:
            file = folder / "model"
            with disk_room():
                file.write_bytes(subject)
            yield file, "bytes"
        return
    file = Path(os.path.abspath(subject))
    _read_through(file)
    yield file, os.fspath(subject)


def _read_through(path: Path) -> int:
    """Read a file, or a folder's files (links are not followed); gives their size in bytes."""
    size = 0
    try:
        files = [path] if not path.is_dir() else sorted(path.rglob("*"))
        for file in files:
            if file.is_file() and (file == path or not file.is_symlink()):
                with file.open("rb") as stream:
                    while chunk := stream.read(2**20):
                        size += len(chunk)
            elif file == path:
                raise InputError(
                    "E_FILE",
                    f"there is no file at '{path}'.",
                    mend="Give a bundle (a folder or a .zip) or a model file",
                    path=str(path),
                )
    except OSError as error:
        raise InputError(
            "E_FILE",
            f"cannot read '{path}': {error.strerror or error}.",
            mend="Check that you may read it, or copy it to this disk.",
            path=str(path),
        ) from error
    return size
