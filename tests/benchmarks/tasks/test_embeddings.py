"""Retrieval and verification on embeddings that can be judged by hand, or by a slower way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgepress.benchmarks import Batch, Retrieval, Verification, task
from edgepress.runtime import InputError
from edgepress.runtime.tensors import Arrays


def batches(embeddings: Any, labels: Any, size: int = 7) -> list[Batch]:
    x, y = np.asarray(embeddings, np.float32), np.asarray(labels, np.int64)
    return [Batch({"x": x[at : at + size]}, y[at : at + size]) for at in range(0, len(x), size)]


def identity(feeds: Arrays) -> Arrays:
    return {"embedding": feeds["x"]}


def angles(*degrees: float) -> list[list[float]]:
    return [[math.cos(math.radians(one)), math.sin(math.radians(one))] for one in degrees]


def clusters(identities: int, each: int, noise: float, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(identities, 16))
    labels = np.repeat(np.arange(identities), each)
    return centres[labels] + noise * rng.normal(size=(len(labels), 16)), labels


def test_retrieval_by_hand() -> None:
    """At 0 the order is 10 (like), 30 (unlike), 60 (like): precision (1/1 + 2/3) / 2."""
    rows = batches(angles(0, 10, 60, 30), [1, 1, 1, 2])
    score = Retrieval().score(identity, lambda: rows)
    at_0, at_10 = (1 + 2 / 3) / 2, (1 + 2 / 3) / 2
    at_60 = (1 / 2 + 2 / 3) / 2
    assert score.value == pytest.approx(100 * (at_0 + at_10 + at_60) / 3)
    assert score.details["rank1_percent"] == pytest.approx(100 * 2 / 3)
    assert (score.count, score.details["queries"], score.details["identities"]) == (4, 3, 2)
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high


def test_retrieval_agrees_with_a_plain_loop() -> None:
    x, y = clusters(12, 5, 1.2)
    found = Retrieval().score(identity, lambda: batches(x, y))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    precisions: list[float] = []
    for query in range(len(x)):
        order = [i for i in np.argsort(-(unit @ unit[query])).tolist() if i != query]
        hits = [y[i] == y[query] for i in order]
        shares = [sum(hits[: at + 1]) / (at + 1) for at, hit in enumerate(hits) if hit]
        precisions.append(sum(shares) / len(shares))
    assert found.value == pytest.approx(100 * np.mean(precisions), abs=1e-6)


def test_embeddings_that_are_all_the_same_find_nothing() -> None:
    rows = batches(np.ones((6, 3)), [0, 0, 0, 1, 1, 1])
    score = Retrieval().score(identity, lambda: rows)
    worst = (1 / 4 + 2 / 5) / 2
    assert score.value == pytest.approx(100 * worst)


def test_not_finite_finds_nothing_and_is_told() -> None:
    x, y = clusters(4, 4, 0.01)
    x[0, 3] = math.nan
    score = Retrieval().score(identity, lambda: batches(x, y))
    assert score.details["non_finite"] == 1
    lost_query, lost_match = 1.0, 3 * (1 - (1 + 1 + 3 / 15) / 3)
    assert score.value == pytest.approx(100 * (1 - (lost_query + lost_match) / 16))


def test_a_reference_tells_whether_neighbours_are_kept() -> None:
    x, y = clusters(6, 5, 1.0)

    def noisy(feeds: Arrays) -> Arrays:
        shift = np.random.default_rng(1).normal(size=feeds["x"].shape)
        return {"embedding": feeds["x"] + 0.8 * shift.astype(np.float32)}

    same = Retrieval().score(identity, lambda: batches(x, y), identity)
    assert same.details["same_nearest_percent"] == 100
    other = Retrieval().score(noisy, lambda: batches(x, y), identity)
    kept: Any = other.details["same_nearest_percent"]
    assert 0 < kept < 100
    agreement: Any = other.details["agreement"]
    assert agreement["embedding"]["mean_cosine"] < 1


def test_verification_agrees_with_all_pairs() -> None:
    x, y = clusters(20, 6, 1.5)
    far = 0.01
    score = Verification(far=far).score(identity, lambda: batches(x, y))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    first, second = np.triu_indices(len(x), 1)
    cosines, like = (unit @ unit.T)[first, second], (y[:, None] == y)[first, second]
    impostors = np.sort(cosines[~like])[::-1]
    threshold = impostors[int(far * len(impostors))]
    assert score.value == pytest.approx(100 * np.mean(cosines[like] > threshold), abs=1e-9)
    assert score.details["threshold"] == pytest.approx(threshold, abs=1e-6)
    assert score.details["genuine_pairs"] == 20 * 15
    assert score.details["impostor_pairs"] == 120 * 119 // 2 - 300
    reached: Any = score.details["far_reached"]
    assert reached <= far
    worse = Verification(far=far).score(identity, lambda: batches(*clusters(20, 6, 3.0)))
    assert worse.value < score.value


def test_a_rate_that_so_few_pairs_cannot_tell_is_refused() -> None:
    x, y = clusters(5, 4, 0.1)
    with pytest.raises(InputError, match="10000 unlike ones") as refused:
        Verification().score(identity, lambda: batches(x, y))
    assert refused.value.code == "E_DATA"
    for rate in (0.0, 1.0, math.nan):
        with pytest.raises(InputError) as refused:
            Verification(far=rate)
        assert refused.value.code == "E_TASK"


@pytest.mark.parametrize("name", ["retrieval", "verification"])
def test_labels_samples_and_one_embedding_are_needed(name: str) -> None:
    judge = task(name)
    assert judge.name == name
    assert judge.needs_labels
    unlabelled = [Batch({"x": np.ones((3, 2), np.float32)}, None)]
    alone = batches(angles(0, 50, 100), [0, 1, 2])
    nothing: list[Batch] = []
    for given in (unlabelled, alone, nothing):
        with pytest.raises(InputError) as refused:
            judge.score(identity, lambda given=given: given)
        assert refused.value.code == "E_DATA"

    def two(feeds: Arrays) -> Arrays:
        return {"a": feeds["x"], "b": feeds["x"][:, :, None, None]}

    with pytest.raises(InputError, match="2 outputs") as refused:
        judge.score(two, lambda: alone)
    assert refused.value.code == "E_TASK"
    with pytest.raises(InputError, match="'c' is absent") as refused:
        Retrieval(output="c").score(two, lambda: alone)
    assert refused.value.code == "E_TASK"
