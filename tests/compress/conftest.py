"""Timing in these tests is brief: they assert what follows from the times, not the times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgepress.benchmarks.latency.comparison import compare
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


@pytest.fixture
def told_times(
    monkeypatch: pytest.MonkeyPatch, tiny_classifier: Callable[..., bytes]
) -> Callable[[Callable[[bytes], float]], None]:
    """``told_times(cost)``: a network takes as long as its bytes cost, whatever the clock says.

    For tests of what follows from the times, on any processor and however busy it is.
    """
    model = tiny_classifier()
    shell = compare(model, model, preset=Preset("blink", 0.05, 64, 0.2, 1, 5.0))

    def tell(cost: Callable[[bytes], float]) -> None:
        def found(one: bytes, other: bytes, **_: Any) -> Any:
            ratio = cost(other) / cost(one)
            faster = "a" if ratio > 1.03 else "b" if ratio < 0.97 else "neither"
            ends = {"ratio_low": 0.99 * ratio, "ratio_high": 1.01 * ratio}
            return dataclasses.replace(shell, ratio=ratio, faster=faster, settled=True, **ends)

        monkeypatch.setattr("edgepress.compress.evaluation.evaluator.compare", found)

    return tell
