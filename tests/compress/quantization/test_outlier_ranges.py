"""One value of a million in one calibration picture must not cost a network its INT8."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from edgepress.compress.quantization.candidate_quality import sqnr_db
from edgepress.compress.quantization.int8_pass import finish_int8, prepare_int8
from edgepress.compress.recipe.pass_context import Context
from edgepress.compress.recipe.settings import Int8
from edgepress.export.calibration.ranges import FeedBatches, calibrate
from edgepress.export.graph.normalize import normalize
from edgepress.export.graph.onnx_graph import Graph
from edgepress.export.receipt import count_macs
from edgepress.runtime.target import target
from edgepress.runtime.tensors import Arrays


def pictures(outlier: float = 0.0) -> FeedBatches:
    """Sixty-four, one value of one of which may be an outlier."""

    def batches(size: int) -> Iterator[Arrays]:
        values = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
        if outlier:
            values[5, 1, 2, 3] = outlier
        for start in range(0, 64, size):
            yield {"input": values[start : start + size]}

    return batches


def context_for(graph: Graph, calibration: FeedBatches) -> Context:
    macs = count_macs(graph, {"input": np.zeros((1, 3, 8, 8), np.float32)})
    return Context(
        target("onnxruntime-cpu"),
        calibration,
        64,
        pictures(),
        macs,
        lambda stage, done, total: None,
    )


@pytest.fixture
def graph(tiny_classifier: Callable[..., bytes]) -> Graph:
    return normalize(onnx.load_model_from_string(tiny_classifier()), source="tiny")


@pytest.mark.parametrize("outlier", [1e6, -1e6])
@pytest.mark.parametrize("ranges", ["mse", "minmax", "percentile"])
def test_an_outlier_is_clipped_where_that_measures_better(
    graph: Graph, outlier: float, ranges: str
) -> None:
    settings = Int8(ranges=ranges)
    clean, spoilt = (context_for(graph, pictures(value)) for value in (0.0, outlier))
    without = prepare_int8(graph, settings, clean)
    assert "outliers" not in without.told
    whole = prepare_int8(graph, settings, spoilt)
    told: Any = whole.told["outliers"]
    assert told["chosen"] == "clipped"
    assert "input" in told["tensors"]
    assert told["sqnr_db_on_selection"]["clipped"] > told["sqnr_db_on_selection"]["kept"] + 10
    sqnr = sqnr_db(graph, {"clean": without.quantized, "spoilt": whole.quantized}, spoilt)
    assert sqnr["spoilt"] > 35, sqnr["clean"]
    assert finish_int8(whole, settings, spoilt).report["outliers"] == told


def test_only_what_lies_alone_is_an_outlier(graph: Graph) -> None:
    for value, alone in ((0.0, False), (20.0, False), (1e4, True)):
        ranges = calibrate(graph, pictures(value))
        assert ranges.tensors["input"].outlying is alone
    zeros = calibrate(graph, lambda size: iter([{"input": np.zeros((4, 3, 8, 8), np.float32)}]))
    assert not zeros.tensors["input"].outlying
