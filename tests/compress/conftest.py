"""Timing in these tests is brief: they assert what follows from the times, not the times."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgepress.benchmarks.latency.measurement import PRESETS, Preset


@pytest.fixture(autouse=True, scope="package")
def brief_timing() -> Iterator[None]:
    """Two networks in turn for seconds, where `compress` takes up to eighty on a busy machine.

    What measuring itself promises is tested in `tests/benchmarks`, at its own length.
    """
    pytest.importorskip("torch")
    from edgepress.compress.evaluation import evaluator

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "quick", Preset("quick", 0.8, 64, 2.4, 2, 20.0))
        patch.setattr(evaluator, "_LONGER", Preset("longer", 2.0, 200, 4.0, 2, 20.0))
        yield
