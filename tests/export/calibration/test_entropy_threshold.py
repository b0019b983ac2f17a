"""Entropy ranges: outliers go, what tells something stays, and nothing grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest

from edgepress.compress.recipe.recipe import Recipe
from edgepress.compress.recipe.settings import Int8
from edgepress.export.calibration.entropy_threshold import (
    MagnitudeHistogram,
    code_divergence,
    entropy_range,
)
from edgepress.export.calibration.observers import Observer, clip_magnitude, clip_range
from edgepress.export.calibration.ranges import calibrate
from edgepress.export.graph.normalize import normalize
from edgepress.export.int8.dialect import dialect
from edgepress.export.int8.quantizers import activation_quantizer
from edgepress.runtime import InputError
from edgepress.runtime.tensors import Array, Arrays

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(4, 20_000)).astype(np.float32)


def observed(*batches: Array) -> Observer:
    observer = Observer("x", "entropy")
    for batch in batches:
        observer.update(batch)
    return observer


def ends(*batches: Array) -> tuple[float, float]:
    return clip_range(observed(*batches), "entropy")


# ---------------------------------------------------------------- bins


def test_bins_hold_every_value_in_its_place_whatever_the_order() -> None:
    values = np.concatenate([NORMAL.ravel() * 3.0**i for i in range(-3, 3)]).astype(np.float32)
    rising, falling, at_once = MagnitudeHistogram(), MagnitudeHistogram(), MagnitudeHistogram()
    ordered = values[np.argsort(np.abs(values))]
    for batch in np.array_split(ordered, 20):
        rising.add(batch)
    for batch in np.array_split(ordered[::-1], 20):
        falling.add(batch)
    at_once.add(values)
    bins = at_once.bins()
    for other in (rising.bins(), falling.bins()):
        np.testing.assert_array_equal(other.inner, bins.inner)
        np.testing.assert_array_equal(other.shares, bins.shares)
    assert (np.diff(bins.inner) > 0).all()
    assert bins.shares.sum() == pytest.approx(1, abs=1e-3)  # the rest is next to zero
    upper = values[values > bins.inner[-1]]
    assert bins.shares[-1] == pytest.approx(len(upper) / len(values))


def test_bins_do_not_grow_and_few_values_are_told_apart_less_finely() -> None:
    octaves = MagnitudeHistogram()
    sizes = set[int]()
    for i in range(40):
        octaves.add(NORMAL[0, :100] * np.float32(2.0**i))
        sizes.add(sum(v.nbytes for v in vars(octaves).values() if isinstance(v, np.ndarray)))
    assert len(sizes) == 1
    few, many = observed(NORMAL[:, :50]).bins(), observed(NORMAL).bins()
    assert len(few.shares) < 100
    assert len(many.shares) > 1000


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("sign", [1, -1])
def test_one_outlier_of_a_million_is_clipped(sign: int) -> None:
    values = NORMAL.copy()
    values[2, 7] = sign * 1e6
    low, high = ends(values)
    assert -8 < low < -3
    assert 3 < high < 8
    magnitude = clip_magnitude(observed(values), "entropy")
    assert 3 < magnitude < 8
    positive = np.abs(values)
    low, high = ends(positive)
    assert low == 0
    assert 3 < high < 8


def test_an_outlier_that_comes_late_is_clipped_as_well() -> None:
    late = np.full((1, 20_000), 0.5, np.float32)
    late[0, 0] = 1e6
    assert ends(NORMAL, NORMAL, late)[1] < 8
    assert ends(late, NORMAL, NORMAL)[1] < 8


def test_nothing_is_clipped_where_values_are_spread_evenly() -> None:
    values = RNG.uniform(-1, 3, size=(4, 20_000)).astype(np.float32)
    assert ends(values) == (values.min(), values.max())


def test_a_dead_channel_and_the_zeros_of_a_relu_change_nothing() -> None:
    alive = np.maximum(NORMAL, 0)
    with_dead = np.concatenate([alive, np.zeros_like(alive)])
    assert ends(with_dead) == ends(alive)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 8)),
        np.full((2, 8), 3.0),
        np.full((2, 8), -3.0),
        np.array([[0.0, 5.0], [0.0, 5.0]]),
        np.full((1, 1), 1e6),
        np.array(3.0),
        np.zeros((2, 0)),
        np.full((2, 2), 1e-35),
        np.array([[1e-42, 0.0]]),
        np.array([[3.3e38, -3.3e38, 1.0]]),
        np.array([[-1e-20, 1e20]]),
    ],
)
def test_constants_and_odd_tensors_keep_their_values(values: Array) -> None:
    values = values.astype(np.float32)
    observer = observed(values, values)
    low, high = clip_range(observer, "entropy")
    assert (low, high) == (float(values.min(initial=0)), float(values.max(initial=0)))
    with np.errstate(over="ignore"):
        assert activation_quantizer(low, high, dialect("onnxruntime-x86-vnni")).scale > 0
    assert np.isfinite(clip_magnitude(observer, "entropy"))


def test_ranges_lie_within_what_was_seen() -> None:
    for scale in (1e-6, 1.0, 1e6):
        values = (RNG.standard_cauchy(size=(4, 20_000)) * scale).astype(np.float32)
        low, high = ends(values)
        assert values.min() <= low < 0 < high <= values.max()
        kept = np.mean((values >= low) & (values <= high))
        assert 0.85 < kept < 1


def test_the_search_finds_no_worse_than_the_ends_of_other_methods() -> None:
    values = (RNG.laplace(size=(4, 20_000)) + 0.5).astype(np.float32)
    observer = observed(values)
    bins = observer.bins()

    def lost(low: float, high: float) -> float:
        return code_divergence(bins, low, high, (high - low) / 255)

    found = lost(*entropy_range(bins, observer.minimum, observer.maximum))
    for method in ("minmax", "percentile", "mse"):
        assert found <= 1.01 * lost(*clip_range(observer, method))  # ends are tried in steps


def test_what_an_observer_was_not_made_for_is_refused() -> None:
    plain = Observer("x")
    plain.update(NORMAL)
    with pytest.raises(ValueError, match="was not made for entropy"):
        clip_range(plain, "entropy")
    with pytest.raises(InputError) as caught:
        observed(np.array([[1.0, np.nan]]))
    assert (caught.value.code, caught.value.path) == ("E_NAN", "x")


# ---------------------------------------------------------------- the way through


def test_calibration_takes_the_method_and_survives_an_outlier(
    tiny_classifier: Callable[..., bytes],
) -> None:
    graph = normalize(onnx.load_model_from_string(tiny_classifier()), source="tiny")

    def batches(size: int) -> Iterator[Arrays]:
        for start in range(0, 64, size):
            rng = np.random.default_rng(start)
            values = rng.normal(size=(min(size, 64 - start), 3, 8, 8)).astype(np.float32)
            if start == 0:
                values[0, 0, 0, 0] = 1e6
            yield {"input": values}

    ranges = calibrate(graph, batches, method="entropy")
    assert ranges.method == "entropy"
    assert ranges.tensors["input"].maximum == 1e6
    for one in ranges.tensors.values():
        assert min(one.minimum, 0) <= one.low <= 0 <= one.high <= max(one.maximum, 0)
    assert ranges.tensors["input"].high < 10


def test_recipes_name_it() -> None:
    given = {"pass": [{"kind": "int8", "ranges": "entropy"}]}
    assert Recipe.from_dict(given, "mine").passes == (Int8(ranges="entropy"),)
