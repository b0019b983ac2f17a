"""What measuring asks for and what comes out: presets, settings, numbers, each defined in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.engines.engine import FLOAT_PRECISIONS, Precision
from ...runtime.errors import InputError
from ..statistics import percentile, percentile_floor, percentile_interval
from .worker import WorkerRequest


@dataclass(frozen=True)
class Preset:
    """How long to measure.

    Attributes:
        name: What reports call it.
        min_seconds: Inference time to gather at least.
        min_count: Inferences to gather at least, of each network.
        max_seconds: Inference time after which it ends, settled or not.
        processes: Fresh processes that share ``min_seconds``; more follow until it is settled.
        block_ms: How long a block of inferences takes.
    """

    name: str
    min_seconds: float
    min_count: int
    max_seconds: float
    processes: int
    block_ms: float


PRESETS = {
    "quick": Preset("quick", 3.0, 64, 12.0, 2, 40.0),
    "standard": Preset("standard", 10.0, 662, 120.0, 4, 40.0),
}


@dataclass(frozen=True)
class Latency:
    """Wall-clock times of single inferences, in milliseconds.

    A percentile is the smallest sample that so many samples do not exceed, and ``None`` below
    MLPerf's floor of samples (p50 11, p90 64, p95 130, p99 662, p99.9 6,636).

    Attributes:
        count: How many were timed.
        mean_ms: Their mean.
        std_ms: Their standard deviation (n - 1).
        p50_ms: Their median.
        p50_low_ms: Lower end of the median's 95 % interval, by order statistics.
        p50_high_ms: Upper end.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        p999_ms: 99.9th percentile.
        jitter_ms: p99 - p50.
    """

    count: int
    mean_ms: float
    std_ms: float
    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    jitter_ms: float | None

    @staticmethod
    def of(samples_ms: NDArray[np.float64]) -> Latency:
        """The numbers of these samples, ``(n,)``, n at least 11."""
        count = len(samples_ms)
        if count < percentile_floor(0.5):
            raise ValueError(f"{count} samples, at least {percentile_floor(0.5)} are needed")
        median = percentile(samples_ms, 0.5)
        low, high = percentile_interval(samples_ms, 0.5) or (
            float(samples_ms.min()),
            float(samples_ms.max()),
        )
        p99 = _above_floor(samples_ms, 0.99)
        return Latency(
            count=count,
            mean_ms=float(samples_ms.mean()),
            std_ms=float(samples_ms.std(ddof=1)),
            p50_ms=median,
            p50_low_ms=low,
            p50_high_ms=high,
            p90_ms=_above_floor(samples_ms, 0.9),
            p95_ms=_above_floor(samples_ms, 0.95),
            p99_ms=p99,
            p999_ms=_above_floor(samples_ms, 0.999),
            jitter_ms=None if p99 is None else p99 - median,
        )


@dataclass(frozen=True)
class Measurement:
    """What was measured of one network.

    Attributes:
        path: What was measured, as it was given; ``bytes`` for a model's bytes.
        sha256: Of the model's bytes.
        size_bytes: Of the model's bytes.
        package_bytes: Of everything on disk: the bundle, or the file.
        engine: What the engine says of itself.
        threads: Threads for one inference; 0 where the engine chose.
        batch: Samples an inference.
        shapes: The inputs' shapes, by name.
        seed: Of the random inputs.
        preset: Its name.
        latency: Times of single inferences.
        throughput_per_s: Samples a second, back to back: batch times count over the latencies' sum.
        import_ms: Importing the runtime, numpy and the engine's backend.
        read_ms: Reading the file from the page cache (this process has just read it); for a bundle
            also checking its hashes.
        load_ms: From the model's bytes to an engine that can run.
        first_ms: The first inference.
        cpu_ms: CPU time an inference, all threads of the process.
        peak_memory_bytes: The most that the process ever held (``VmHWM``: code and libraries too);
            the largest of the processes. ``None`` where the system does not tell.
        overhead_us: What the harness itself adds to a latency: the median of an engine that does
            nothing, with the same inputs and outputs.
        processes: Fresh processes; the times of starting are medians over them.
        warmed_up: Whether the warm-up's windows came to agree within 10 %, in every process.
        settled: Whether the median's interval came within 2 % before the cap.
        load_average: Of the last minute when it began; ``None`` where unknown.
        steal_percent: Of the processors' time while it ran; ``None`` where unknown.
        fingerprint: On what it was taken.
    """

    path: str
    sha256: str
    size_bytes: int
    package_bytes: int
    engine: dict[str, object]
    threads: int
    batch: int
    shapes: dict[str, list[int]]
    seed: int
    preset: str
    latency: Latency
    throughput_per_s: float
    import_ms: float
    read_ms: float
    load_ms: float
    first_ms: float
    cpu_ms: float
    peak_memory_bytes: int | None
    overhead_us: float
    processes: int
    warmed_up: bool
    settled: bool
    load_average: float | None
    steal_percent: float | None
    fingerprint: dict[str, object]

    def to_dict(self) -> dict[str, object]:
        """JSON form: the attributes, ``latency`` as an object."""
        return asdict(self)


@dataclass(frozen=True)
class MeasurementRequest:
    """What :func:`measure` and its like are asked for, checked.

    Attributes:
        threads: Threads for one inference; 0 leaves the choice to the engine.
        batch: Samples an inference.
        preset: How long to measure.
        engine: Name of the engine.
        seed: Of the random inputs and of the bootstrap.
        shapes: Whole input shapes by name.
        precision: What the engine computes floats in.
        variant: Which model of a bundle.
    """

    threads: int
    batch: int
    preset: Preset
    engine: str
    seed: int
    shapes: dict[str, list[int]]
    precision: Precision
    variant: str | None = None

    @staticmethod
    def of(
        threads: int,
        batch: int,
        preset: str | Preset,
        engine: str,
        seed: int,
        shapes: Mapping[str, Sequence[int]] | None,
        precision: Precision = "f32",
        variant: str | None = None,
    ) -> MeasurementRequest:
        """The settings, checked as far as they can be without the network.

        Raises:
            InputError: ``E_PRESET`` for an unknown preset, ``E_THREADS`` for a negative count,
                ``E_SEED`` for a negative seed, ``E_PRECISION`` for one that is none.
        """
        if isinstance(preset, str):
            if preset not in PRESETS:
                raise InputError(
                    "E_PRESET", f"unknown preset '{preset}'.", mend="Presets: " + ", ".join(PRESETS)
                )
            preset = PRESETS[preset]
        if threads < 0:
            raise InputError(
                "E_THREADS", f"{threads} threads.", mend="Give 0 (the engine chooses) or more"
            )
        if seed < 0:
            raise InputError("E_SEED", f"seed {seed}.", mend="Give a seed that is not negative")
        if precision not in FLOAT_PRECISIONS:
            raise InputError(
                "E_PRECISION",
                f"unknown precision '{precision}'.",
                mend="Precisions: " + ", ".join(FLOAT_PRECISIONS),
            )
        plain = {name: [int(size) for size in shape] for name, shape in (shapes or {}).items()}
        return MeasurementRequest(threads, batch, preset, engine, seed, plain, precision, variant)

    def request(self, path: Path) -> WorkerRequest:
        """What a worker is told."""
        return WorkerRequest(
            str(path),
            self.engine,
            self.threads,
            self.batch,
            self.seed,
            dict(self.shapes),
            self.precision,
            self.variant,
        )


def _above_floor(samples: NDArray[np.float64], share: float) -> float | None:
    return percentile(samples, share) if len(samples) >= percentile_floor(share) else None
