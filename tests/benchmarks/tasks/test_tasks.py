"""Tasks and runs on numbers that can be checked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from edgepress.benchmarks import Agreement, Batch, Classification, UserTask, fixed_batch, task
from edgepress.runtime import EngineOptions, InputError, TensorSpec, open_engine
from edgepress.runtime.tensors import Arrays


def batch(scores: list[list[float]], labels: list[int] | None) -> Batch:
    marked = None if labels is None else np.asarray(labels, np.int64)
    return Batch({"x": np.asarray(scores, np.float32)}, marked)


def identity(feeds: Arrays) -> Arrays:
    return {"logits": feeds["x"]}


def one_hot(label: int, classes: int = 10) -> list[float]:
    return [1.0 if index == label else index / 100 for index in range(classes)]


def test_classification_counts_and_gives_wilsons_interval() -> None:
    labels = [index % 10 for index in range(263)]
    guesses = [label if index < 81 else (label + 1) % 10 for index, label in enumerate(labels)]
    batches = [
        batch([one_hot(guess) for guess in guesses[at : at + 50]], labels[at : at + 50])
        for at in range(0, 263, 50)
    ]
    score = Classification().score(identity, lambda: batches)
    assert score.value == pytest.approx(100 * 81 / 263)
    assert (score.low, score.high) == pytest.approx((25.53, 36.62), abs=5e-3)
    assert score.count == 263
    assert score.unit == "percent"
    assert score.details["correct"] == 81
    assert score.details["output"] == "logits"
    assert score.to_dict()["value"] == score.value


def test_top5_counts_the_five_largest() -> None:
    rows = batch([[6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1]], [4, 5])
    score = Classification().score(identity, lambda: [rows])
    assert score.value == 0
    assert score.details["top5_percent"] == 50
    few = Classification().score(identity, lambda: [batch([[1, 0]], [0])])
    assert "top5_percent" not in few.details


def test_not_finite_counts_as_wrong_and_is_told() -> None:
    rows = batch([[math.nan, 0, 0], [0, math.inf, 0], [0, 0, 1]], [0, 1, 2])
    score = Classification().score(identity, lambda: [rows])
    assert score.details["correct"] == 1
    assert score.details["non_finite"] == 2


def test_labels_beyond_the_outputs_are_refused() -> None:
    with pytest.raises(InputError, match="class index 3") as caught:
        Classification().score(identity, lambda: [batch([[1, 0, 0]], [3])])
    assert caught.value.code == "E_DATA"


def test_classification_needs_labels_and_samples() -> None:
    for batches in ([batch([[1, 0]], None)], []):
        with pytest.raises(InputError) as caught:
            Classification().score(identity, lambda batches=batches: batches)
        assert caught.value.code == "E_DATA"


def test_classification_finds_the_one_output_with_class_scores() -> None:
    def several(feeds: Arrays) -> Arrays:
        rows = len(feeds["x"])
        return {
            "boxes": np.zeros((rows, 7, 4)),
            "flag": np.zeros((rows, 1)),
            "scores": feeds["x"][:, :, None, None],
        }

    rows = batch([[0, 1], [1, 0]], [1, 0])
    score = Classification().score(several, lambda: [rows])
    assert score.value == 100
    assert score.details["output"] == "scores"

    def two(feeds: Arrays) -> Arrays:
        return {"a": feeds["x"], "b": -feeds["x"]}

    with pytest.raises(InputError, match="2 outputs") as caught:
        Classification().score(two, lambda: [rows])
    assert caught.value.code == "E_TASK"
    assert Classification(output="b").score(two, lambda: [rows]).value == 0
    with pytest.raises(InputError, match="'c' is absent"):
        Classification(output="c").score(two, lambda: [rows])


def test_classification_tells_agreement_where_there_is_a_reference() -> None:
    rows = batch([[0, 1], [1, 0]], [1, 0])
    score = Classification().score(identity, lambda: [rows], identity)
    agreement = score.details["agreement"]
    assert isinstance(agreement, dict)
    assert agreement["logits"]["top1_agreement_percent"] == 100


def test_agreement_gives_the_cosine_of_known_angles() -> None:
    reference = {"x": np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])}
    judged = {"x": np.array([[3.0, 4.0], [1.0, 1.0], [0.0, 0.0]])}
    score = Agreement().score(
        lambda feeds: judged, lambda: [batch([[0]] * 3, None)], lambda feeds: reference
    )
    mean = (1 + math.sqrt(0.5) + 1) / 3
    assert score.value == pytest.approx(100 * mean)
    assert score.count == 3
    outputs = score.details["outputs"]
    assert isinstance(outputs, dict)
    assert outputs["x"]["min_cosine"] == pytest.approx(math.sqrt(0.5))
    assert outputs["x"]["max_abs"] == 1
    assert outputs["x"]["sqnr_db"] == pytest.approx(10 * math.log10(26))
    assert outputs["x"]["top1_agreement_percent"] == 100


def test_probabilities_must_choose_the_same() -> None:
    reference = {"x": np.array([[0.51, 0.49], [0.9, 0.1], [0.2, 0.8], [1.0, 0.0]])}
    judged = {"x": np.array([[0.49, 0.51], [0.9, 0.1], [0.2, 0.8], [1.0, 0.0]])}
    rows = [batch([[0]] * 2, None)] * 2

    def in_two(given: Arrays) -> Callable[[Arrays], Arrays]:
        parts = iter([given["x"][:2], given["x"][2:]])
        return lambda feeds: {"x": next(parts)}

    def value(a: Arrays, b: Arrays) -> float:
        return Agreement().score(in_two(a), lambda: rows, in_two(b)).value

    assert value(judged, reference) == 75
    assert value(reference, reference) == 100
    logits = {"x": reference["x"] * 2}
    assert value({"x": judged["x"] * 2}, logits) > 99.9, "rows that sum to 2 are none"


def test_agreement_with_oneself_is_whole_and_has_no_noise() -> None:
    rows = batch([[1, 2], [-math.inf, 2]], None)
    score = Agreement().score(identity, lambda: [rows], identity)
    assert score.value == 100
    outputs = score.details["outputs"]
    assert isinstance(outputs, dict)
    assert outputs["logits"]["sqnr_db"] is None
    assert outputs["logits"]["kl_nats"] == 0


def test_agreement_takes_the_worst_output_and_counts_what_is_not_finite() -> None:
    reference = {"a": np.ones((2, 3, 4)), "b": np.ones((2, 5))}
    judged = {"a": np.ones((2, 3, 4)), "b": np.array([[1.0] * 5, [math.nan] * 5])}
    rows = batch([[0], [0]], None)
    score = Agreement().score(lambda feeds: judged, lambda: [rows], lambda feeds: reference)
    assert score.value == pytest.approx(50)
    outputs = score.details["outputs"]
    assert isinstance(outputs, dict)
    assert outputs["b"]["non_finite"] == 1
    assert "top1_agreement_percent" not in outputs["a"]


def test_agreement_refuses_what_cannot_be_compared() -> None:
    rows = batch([[0]], None)
    ones = {"x": np.ones((1, 3))}
    for other in ({"x": np.ones((1, 4))}, {"y": np.ones((1, 3))}, {"x": np.array([["a"] * 3])}):
        with pytest.raises(InputError) as caught:
            Agreement().score(lambda _, other=other: other, lambda: [rows], lambda _: ones)
        assert caught.value.code == "E_TASK"
    with pytest.raises(InputError, match="reference") as caught:
        Agreement().score(identity, lambda: [rows])
    assert caught.value.code == "E_TASK"
    with pytest.raises(InputError) as caught:
        Agreement().score(identity, list, identity)
    assert caught.value.code == "E_DATA"


def test_a_users_task_gives_its_own_number() -> None:
    def score(run: object) -> float:
        assert run is identity
        return 0.75

    found = UserTask(score).score(identity, list)
    assert (found.value, found.unit) == (0.75, "score")
    for bad in (math.nan, None, "good"):
        with pytest.raises(InputError) as caught:
            UserTask(lambda run, bad=bad: bad).score(identity, list)  # type: ignore[return-value]
        assert caught.value.code == "E_TASK"
    with pytest.raises(ZeroDivisionError):
        UserTask(lambda run: 1 / 0).score(identity, list)


def test_tasks_by_name() -> None:
    assert task("classification").needs_labels
    assert not task("agreement").needs_labels
    with pytest.raises(InputError, match="'detection'") as caught:
        task("detection")
    assert caught.value.code == "E_TASK"


# ---------------------------------------------------------------- fixed batches


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_a_fixed_batch_takes_any_number_of_rows(tiny_classifier, count: int) -> None:
    x = np.random.default_rng(0).standard_normal((count, 3, 8, 8), np.float32)
    engine_class = open_engine("onnxruntime")
    with (
        engine_class(tiny_classifier(batch=4), EngineOptions(threads=1)) as fixed,
        engine_class(tiny_classifier(batch="N"), EngineOptions(threads=1)) as free,
    ):
        run = fixed_batch(fixed.run, fixed.inputs)
        np.testing.assert_allclose(
            run({"input": x})["logits"], free.run({"input": x})["logits"], atol=1e-5
        )
        assert fixed_batch(free.run, free.inputs) == free.run


def test_a_free_batch_is_cut_to_what_an_engine_was_built_for() -> None:
    spec, seen = TensorSpec("x", "float32", ("N", 1)), list[int]()

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(len(feeds["x"]))
        return {"y": 2 * feeds["x"]}

    x = np.arange(11, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(fixed_batch(run, [spec], largest=4)({"x": x})["y"], 2 * x)
    assert seen == [4, 4, 3], "and nothing is filled up"
    seen.clear()
    assert len(fixed_batch(run, [spec], largest=16)({"x": x})["y"]) == 11
    assert seen == [11]


def test_a_fixed_batch_refuses_outputs_without_rows() -> None:
    spec = TensorSpec("x", "float32", (2, 1))
    run = fixed_batch(lambda feeds: {"sum": feeds["x"].sum()}, [spec])
    assert run({"x": np.ones((2, 1), np.float32)})["sum"] == 2
    with pytest.raises(InputError, match="'sum'") as caught:
        run({"x": np.ones((3, 1), np.float32)})
    assert caught.value.code == "E_BATCH"
    with pytest.raises(InputError) as caught:
        run({"x": np.ones((3, 1), np.float32), "y": np.ones((2, 1), np.float32)})
    assert caught.value.code == "E_BATCH"
