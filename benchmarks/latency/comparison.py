"""Which of two networks is faster here: both in turn, the ratio pair by pair, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...runtime.engine_registry import computes_in
from ...runtime.engines.engine import Precision
from ...runtime.files import temporary_folder
from ..statistics import bootstrap_median, mann_whitney_u
from .latency import (
    DEFAULT_ENGINE,
    SETTLED_SHARE,
    Measurable,
    OwnOptions,
    measurement,
    subject_file,
)
from .measurement import Measurement, MeasurementRequest, Preset
from .recording import Recording, ShareDone, run_rounds

Faster: TypeAlias = Literal["a", "b", "neither"]

UNSETTLED = 0.05
"""With an interval whose half-width is over this share, a comparison has not settled."""

LEAST_EFFECT = 0.03
"""A smaller difference is called none."""

SIGNIFICANCE = 0.05
"""A larger p-value is called chance."""

_MIN_PAIRS = 12


@dataclass(frozen=True)
class Comparison:
    """Two networks measured in turn, in the same minutes.

    Attributes:
        a: The first.
        b: The second.
        ratio: The median over pairs of blocks of (b's median latency / a's): over 1, a is faster.
        ratio_low: Lower end of its 95 % bootstrap interval.
        ratio_high: Upper end.
        rounds: Rounds of four blocks (A B B A or B A A B), which are two pairs each.
        settled: Whether the interval's half-width is at most 5 % of the ratio.
        p_value: Of Mann and Whitney's U test on the blocks' medians, two-sided.
        noise: How far a network differs from itself here: the larger of the two networks' distances
            from 1 of the interval of (its latency in a round's one block / in the other).
        faster: The one that is faster by at least 3 % and by more than the noise, with an interval
            that excludes 1 and a p-value under 0.05; else ``neither``.
    """

    a: Measurement
    b: Measurement
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    settled: bool
    p_value: float
    noise: float
    faster: Faster

    def to_dict(self) -> dict[str, object]:
        """JSON form: the attributes, ``a`` and ``b`` as :meth:`Measurement.to_dict` gives them."""
        return {
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "ratio": self.ratio,
            "ratio_low": self.ratio_low,
            "ratio_high": self.ratio_high,
            "rounds": self.rounds,
            "settled": self.settled,
            "p_value": self.p_value,
            "noise": self.noise,
            "faster": self.faster,
        }


def compare(
    a: Measurable,
    b: Measurable,
    *,
    threads: int = 1,
    batch: int = 1,
    preset: str | Preset = "quick",
    engine: str | None = None,
    precision: Precision | None = None,
    variant: str | None = None,
    against_engine: str | None = None,
    against_precision: Precision | None = None,
    against_variant: str | None = None,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    cache: str | None = None,
    progress: ShareDone | None = None,
) -> Comparison:
    """Compare the latencies of two networks; drift of the machine strikes both alike.

    Each side has a process of its own, and several pairs of processes take turns. It goes on until
    the ratio's interval is within 2 %, or to the preset's cap.

    Args:
        a: A bundle, a model file, or a model's bytes.
        b: The other.
        threads: Threads for one inference; 0 leaves the choice to the engine.
        batch: Samples an inference.
        preset: ``quick``, ``standard``, or a :class:`Preset`; its times count for each side.
        engine: Name of a's engine; by default the one that a bundle was made for, b's where a is a
            file and b a bundle, ONNX Runtime for two files.
        precision: What a's engine computes floats in; by default what its variant says, float32
            for a file.
        variant: Which model of the bundle a; by default the one that a session would take here.
        against_engine: Name of b's engine; by default the one that a bundle was made for, a's for a
            file.
        against_precision: What b's engine computes floats in; by default what its variant says, for
            a file the same as a, or float32 where b's engine has no such precision.
        against_variant: Which model of the bundle b.
        seed: Of the random inputs and of the bootstrap.
        shapes: Whole input shapes by name, for free dimensions other than the batch.
        cache: Folder for engines that have to be built; a temporary one by default.
        progress: Told how much is done.

    Raises:
        InputError: As :func:`~edgepress.benchmarks.latency.latency.measure`.
        EngineError: As there.
        BundleError: As there.
    """
    own_a, own_b = (
        OwnOptions.of(a, engine, variant),
        OwnOptions.of(b, against_engine, against_variant),
    )
    settings = MeasurementRequest.of(
        threads,
        batch,
        preset,
        own_a.engine or own_b.engine or DEFAULT_ENGINE,
        seed,
        shapes,
        precision or own_a.precision,
        own_a.variant,
    )
    against = request_against(settings, own_b, against_precision)
    with ExitStack() as stack:
        built = cache or str(stack.enter_context(temporary_folder()))
        (file_a, told_a), (file_b, told_b) = (
            stack.enter_context(subject_file(subject)) for subject in (a, b)
        )
        one, two = (
            Recording(replace(side.request(file), cache=built))
            for side, file in ((settings, file_a), (against, file_b))
        )

        def settled() -> bool:
            ratios = np.asarray(two.medians) / np.asarray(one.medians)
            return len(ratios) >= _MIN_PAIRS and _half_width(ratios, seed) <= SETTLED_SHARE

        within = run_rounds([one, two], settings.preset, settled, progress)
        return _judge(
            measurement(one, settings, file_a, told_a, within),
            measurement(two, against, file_b, told_b, within),
            np.asarray(one.medians),
            np.asarray(two.medians),
            seed,
        )


def request_against(
    settings: MeasurementRequest, own: OwnOptions, precision: Precision | None
) -> MeasurementRequest:
    """How the other side is run, where ``settings`` are of the first.

    Args:
        settings: Of the first.
        own: How the other wants to be run.
        precision: What the other's floats were asked to be computed in.
    """
    engine = own.engine or settings.engine
    if precision is None and own.variant:
        precision = own.precision
    elif precision is None:
        # two files on one engine are alike in this; another engine may not have the precision
        alike = engine == settings.engine or computes_in(engine, settings.precision)
        precision = settings.precision if alike else "f32"
    return replace(settings, engine=engine, precision=precision, variant=own.variant)


def _judge(
    a: Measurement,
    b: Measurement,
    medians_a: NDArray[np.float64],
    medians_b: NDArray[np.float64],
    seed: int,
) -> Comparison:
    ratios = medians_b / medians_a
    ratio = float(np.median(ratios))
    low, high = bootstrap_median(ratios, seed)
    noise = max(_noise(medians_a, seed), _noise(medians_b, seed))
    _, p_value = mann_whitney_u(medians_a, medians_b)
    return Comparison(
        a=a,
        b=b,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        rounds=len(ratios) // 2,
        settled=len(ratios) >= _MIN_PAIRS and _half_width(ratios, seed) <= UNSETTLED,
        p_value=p_value,
        noise=noise,
        faster=which_is_faster(ratio, low, high, p_value, noise),
    )


def which_is_faster(ratio: float, low: float, high: float, p_value: float, noise: float) -> Faster:
    """Which is faster, by the rule that :class:`Comparison` states.

    Args:
        ratio: b's latency over a's.
        low: Lower end of its interval.
        high: Upper end.
        p_value: That there is no difference.
        noise: The share by which a network differs from itself.
    """
    least = 1 + max(LEAST_EFFECT, noise)
    if p_value < SIGNIFICANCE:
        if low > 1 and ratio >= least:
            return "a"
        if high < 1 and ratio <= 1 / least:
            return "b"
    return "neither"


def _half_width(ratios: NDArray[np.float64], seed: int) -> float:
    low, high = bootstrap_median(ratios, seed)
    return (high - low) / 2 / float(np.median(ratios))


def _noise(medians: NDArray[np.float64], seed: int) -> float:
    """The larger distance from 1 of the interval of a network's ratio to itself within rounds."""
    low, high = bootstrap_median(medians[0::2] / medians[1::2], seed)
    return max(abs(low - 1), abs(high - 1))
