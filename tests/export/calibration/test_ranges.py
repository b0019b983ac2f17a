"""Calibration sees everything once, in memory that does not grow, and chooses ranges that pay."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgepress.export.calibration.observers import Observer, clip_range
from edgepress.export.calibration.ranges import RANGE_METHODS, FeedBatches, calibrate
from edgepress.export.graph.normalize import normalize
from edgepress.export.graph.onnx_graph import Graph
from edgepress.export.int8.dialect import DIALECTS, Dialect, dialect
from edgepress.export.int8.quantizers import (
    PerTensor,
    activation_quantizer,
    bias_codes,
    weight_quantizer,
)
from edgepress.runtime import InputError
from edgepress.runtime.tensors import Array, Arrays

RNG = np.random.default_rng(0)
every_dialect = pytest.mark.parametrize("speech", DIALECTS.values(), ids=DIALECTS)


@pytest.fixture(scope="module")
def graph(tiny_classifier: Callable[..., bytes]) -> Graph:
    return normalize(onnx.load_model_from_string(tiny_classifier()), source="tiny")


def observed(*batches: Array) -> Observer:
    observer = Observer("x")
    for batch in batches:
        observer.update(batch)
    return observer


def squared_error(values: Array, low: float, high: float) -> float:
    """What 256 steps between two ends lose of some values."""
    quantizer = activation_quantizer(low, high, dialect("onnxruntime-x86-vnni"))
    return float(np.mean((values - dequantized(values, quantizer, 0, 255)) ** 2))


def dequantized(values: Array, quantizer: PerTensor, lowest: int, highest: int) -> Array:
    codes = np.clip(np.rint(values / quantizer.scale) + quantizer.zero_point, lowest, highest)
    return (codes - quantizer.zero_point) * quantizer.scale


# ---------------------------------------------------------------- observers


def test_growing_values_lose_no_count_and_keep_zero_on_an_edge() -> None:
    batches = [RNG.normal(size=(4, 1000)).astype(np.float32) * 3.0**i for i in range(8)]
    batches.insert(0, np.abs(batches[0]))  # the first batch knows nothing of negative values
    observer, everything = observed(*batches), np.concatenate([b.ravel() for b in batches])
    centres, weights = observer.histogram()
    counts = np.rint(weights * everything.size)
    assert counts.sum() == everything.size
    assert counts[centres > 0].sum() == np.count_nonzero(everything >= 0)
    assert (observer.minimum, observer.maximum) == (everything.min(), everything.max())


def test_a_histogram_that_was_merged_is_the_one_of_wide_bins() -> None:
    values = RNG.normal(size=(16, 500)).astype(np.float32)
    whole = observed(values * 8)
    parts = observed(values[:8], values[8:] * 8)
    at_once = observed(np.concatenate([values[:8], values[8:] * 8]))
    for method in ("mse", "percentile", "minmax"):
        found, wanted = clip_range(parts, method), clip_range(at_once, method)
        np.testing.assert_allclose(found, wanted, rtol=0.02)
    assert whole.maximum > parts.minimum


def test_an_observer_is_as_large_after_many_batches_as_after_one() -> None:
    observer = observed(RNG.normal(size=(2, 100)))
    before = sum(value.nbytes for value in vars(observer).values() if isinstance(value, np.ndarray))
    for i in range(200):
        observer.update(RNG.normal(size=(2, 100)) * i)
    after = sum(value.nbytes for value in vars(observer).values() if isinstance(value, np.ndarray))
    assert before == after


def test_mse_ranges_beat_minmax_on_outliers() -> None:
    values = RNG.normal(size=(32, 50_000)).astype(np.float32)
    values[0, 0] = 30
    observer = observed(values)
    low, high = clip_range(observer, "mse")
    assert high < 0.7 * 30
    mse = squared_error(values, low, high)
    assert mse < 0.5 * squared_error(values, *clip_range(observer, "minmax"))


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile"])
@pytest.mark.parametrize("sign", [1, -1])
def test_ranges_of_one_sign_reach_zero_and_no_further(method: str, sign: int) -> None:
    values = sign * np.abs(RNG.normal(5, 1, size=(4, 1000))).astype(np.float32)
    low, high = clip_range(observed(values), method)
    assert low <= 0 <= high
    assert (low if sign > 0 else high) == 0
    assert min(0, values.min()) <= low
    assert high <= max(0, values.max())


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 8)),
        np.full((1, 1), 1e6),
        np.array(3.0),
        np.zeros((2, 0)),
        np.full((2, 2), 1e-35),
    ],
    ids=["zeros", "one large value", "rank 0", "nothing", "next to nothing"],
)
def test_odd_tensors_have_finite_ranges(values: Array) -> None:
    observer = observed(values.astype(np.float32), values.astype(np.float32))
    for method in ("mse", "minmax", "percentile"):
        low, high = clip_range(observer, method)
        assert np.isfinite([low, high]).all()
        quantizer = activation_quantizer(low, high, dialect("onnxruntime-x86-vnni"))
        assert quantizer.scale > 0


def test_a_single_outlier_of_a_million_does_not_break_the_rest() -> None:
    values = RNG.normal(size=(4, 50_000)).astype(np.float32)
    values[2, 7] = 1e6
    low, high = clip_range(observed(values), "percentile")
    assert high < 1000
    assert low > -1000


def test_nan_is_refused_and_infinity_remembered() -> None:
    with pytest.raises(InputError) as caught:
        observed(np.array([[1.0, np.nan]]))
    assert (caught.value.code, caught.value.path) == ("E_NAN", "x")
    observer = observed(np.ones((1, 2)), np.array([[1.0, -np.inf]]), np.ones((1, 2)))
    assert not observer.finite


# ---------------------------------------------------------------- calibrate


def pictures(count: int, *, scale: float = 1.0) -> FeedBatches:
    """Random pictures, made anew for every batch."""

    def batches(size: int) -> Iterator[Arrays]:
        for start in range(0, count, size):
            shape = (min(size, count - start), 3, 8, 8)
            values = np.random.default_rng(start).normal(0, scale, shape)
            yield {"input": values.astype(np.float32)}

    return batches


def test_every_picture_is_seen_once(graph: Graph) -> None:
    told: list[int] = []
    ranges = calibrate(graph, pictures(70), on_progress=told.append)
    assert ranges.pictures == sum(told) == 70
    assert max(told) <= 32
    assert {"input", "relu", "mean", "logits"} <= ranges.tensors.keys()
    assert "conv" not in ranges.tensors, "only its ReLU reads it"
    assert ranges.tensors["relu"].low == ranges.tensors["relu"].minimum == 0
    assert ranges.tensors["relu"].elements == 8 * 8 * 8


def test_memory_does_not_grow_with_the_number_of_pictures(graph: Graph) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        calibrate(graph, pictures(count))
        _, largest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return largest

    peak(64)
    assert peak(1280) <= 1.1 * peak(128)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_methods_are_nested(graph: Graph, method: str) -> None:
    ranges = calibrate(graph, pictures(16), method=method)
    assert ranges.tensors
    for one in ranges.tensors.values():
        assert min(one.minimum, 0) - 1e-6 <= one.low <= 0 <= one.high <= max(one.maximum, 0) + 1e-6


def test_calibration_refuses_what_it_cannot_use(graph: Graph) -> None:
    def nothing(size: int) -> Iterator[Arrays]:
        return iter(())

    def broken(size: int) -> Iterator[Arrays]:
        yield {"input": np.full((2, 3, 8, 8), np.nan, np.float32)}

    for batches, method, code in (
        (nothing, "mse", "E_DATA"),
        (broken, "mse", "E_NAN"),
        (pictures(2), "guessed", "E_RECIPE"),
        (pictures(2, scale=3e38), "mse", "E_NAN"),
    ):
        with pytest.raises(InputError) as caught, np.errstate(over="ignore"):
            calibrate(graph, batches, method=method)
        assert caught.value.code == code


def test_the_picture_that_is_not_a_number_is_named(graph: Graph) -> None:
    def one_of_twenty(size: int) -> Iterator[Arrays]:
        values = np.zeros((20, 3, 8, 8), np.float32)
        values[13, 1, 2, 3] = np.nan
        for start in range(0, 20, min(size, 6)):
            yield {"input": values[start : start + min(size, 6)]}

    with pytest.raises(InputError, match="calibration picture 13, counted from 0") as caught:
        calibrate(graph, one_of_twenty)
    assert caught.value.code == "E_NAN"


# ---------------------------------------------------------------- quantizers


@every_dialect
def test_activations_are_represented_to_half_a_step(speech: Dialect) -> None:
    for low, high in ((-1.0, 3.0), (0.0, 5.0), (-2.0, 0.0), (-1e-3, 1e4)):
        quantizer = activation_quantizer(low, high, speech)
        values = np.linspace(low, high, 997)
        found = dequantized(values, quantizer, speech.lowest, speech.lowest + 255)
        assert np.abs(values - found).max() <= 1.01 * quantizer.scale
        assert dequantized(np.zeros(1), quantizer, speech.lowest, speech.lowest + 255) == 0
    assert activation_quantizer(0.0, 1.0, speech).zero_point == speech.lowest


@every_dialect
@pytest.mark.parametrize(
    "clip",
    [(0.0, 6.0), (-1.0, 1.0), (0.0, np.inf), (-6.0, 0.0), (-0.1, 0.3), (-np.inf, 0.5)],
)
@pytest.mark.parametrize("seen", [(-9.0, 9.0), (0.0, 5.9999), (-0.01, 0.01), (0.0, 0.0)])
def test_codes_stand_for_nothing_outside_of_a_clip(
    speech: Dialect, clip: tuple[float, float], seen: tuple[float, float]
) -> None:
    quantizer = activation_quantizer(*seen, speech, clip)
    steps = np.array([0, 255]) + speech.lowest - quantizer.zero_point
    low, high = steps.astype(np.float32) * quantizer.scale
    assert clip[0] <= low
    assert high <= clip[1]
    assert quantizer.scale > 0


@every_dialect
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_have_a_scale_for_each_channel(speech: Dialect, axis: int) -> None:
    weights = RNG.normal(size=(6, 5)).astype(np.float32) * np.float32(10.0) ** np.arange(5)
    for method in ("minmax", "mse"):
        packed = weight_quantizer(weights, axis, speech.weight_limit, method=method)
        assert packed.scale.shape == (weights.shape[axis],)
        assert np.abs(packed.codes.astype(int)).max() <= speech.weight_limit
        shape = (-1, 1) if axis == 0 else (1, -1)
        error = np.abs(packed.codes * packed.scale.reshape(shape) - weights)
        if method == "minmax":
            assert (error <= 0.501 * packed.scale.reshape(shape)).all()


def test_mse_weights_lose_no_more_than_minmax() -> None:
    weights = RNG.normal(size=(4, 20_000)).astype(np.float32)
    weights[:, 0] = 8

    def lost(method: str) -> NDArray[np.float64]:
        packed = weight_quantizer(weights, 0, 63, method=method)
        back = packed.codes.astype(np.float64) * packed.scale[:, None]
        return ((back - weights) ** 2).sum(axis=1)

    assert (lost("mse") <= lost("minmax") * (1 + 1e-6)).all()
    assert lost("mse").sum() < 0.8 * lost("minmax").sum()


def test_a_bias_fits_even_where_the_weights_are_dead() -> None:
    weights = np.zeros((4, 3, 3, 3), np.float32)
    weights[1] = 1e-30
    weights[2] = RNG.normal(size=(3, 3, 3))
    bias = np.array([3.0, -1e6, 0.5, 0.0], np.float32)
    packed = weight_quantizer(weights, 0, 127, bias=bias, input_scale=0.01)
    codes = bias_codes(bias, 0.01, packed.scale)
    assert np.abs(codes.astype(np.int64)).max() <= 2**30
    assert np.isfinite(packed.scale).all()
    assert (packed.scale > 0).all()
    np.testing.assert_allclose(codes * (0.01 * packed.scale.astype(np.float64)), bias, rtol=1e-3)


def test_an_unknown_dialect_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        dialect("esperanto")
    assert caught.value.code == "E_DIALECT"
    assert "onnxruntime-arm" in caught.value.mend
