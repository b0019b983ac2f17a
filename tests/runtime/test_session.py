"""Sessions: schema and self-test, inputs that are refused, predictions, and what it all costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from edgepress.runtime import (
    Bundle,
    BundleError,
    EngineError,
    InputError,
    Prediction,
    Preprocessing,
    Session,
    TensorSpec,
    open_engine,
)
from edgepress.runtime.bundle.bundle_writer import seal, write_files
from edgepress.runtime.bundle.manifest import Golden, Manifest, Tolerance, Variant
from edgepress.runtime.bundle.npz import write_npz
from edgepress.runtime.engine_registry import import_backend
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.self_test import self_test
from edgepress.runtime.variants.variant_selection import VariantChoice

RNG = np.random.default_rng(0)
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, tiny_classifier: Callable[..., bytes]) -> Make:
    """Writes a bundle; ``change`` replaces fields of its manifest, ``outputs`` the golden ones."""

    def write(
        model: bytes | None = None,
        *,
        name: str = "bundle",
        change: dict[str, Any] | None = None,
        outputs: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = lambda array: array,
        labels: tuple[str, ...] | None = ("cat", "dog", "bird", "fish"),
        more: dict[str, bytes] | None = None,
    ) -> Path:
        model = tiny_classifier() if model is None else model
        with open_engine("onnxruntime")(model) as engine:
            feeds = {
                spec.name: RNG.standard_normal(
                    [size if isinstance(size, int) else 1 for size in spec.shape]
                ).astype(spec.dtype)
                for spec in engine.inputs
            }
            golden = {name: outputs(array) for name, array in engine.run(feeds).items()}
        files = {
            "model.onnx": model,
            "golden/inputs.npz": write_npz(feeds),
            "golden/outputs.npz": write_npz(golden),
            **(more or {}),
        }
        if labels:
            files["labels.txt"] = ("\n".join(labels) + "\n").encode()
        manifest = Manifest(
            inputs=engine.inputs,
            outputs=engine.outputs,
            task="classification",
            variants=(Variant("float32", "model.onnx", "onnxruntime", "onnxruntime", "float32"),),
            golden=Golden(
                "golden/inputs.npz",
                "golden/outputs.npz",
                True,
                {spec.name: Tolerance(1e-4, 0.9999) for spec in engine.outputs},
            ),
            preprocessing=Preprocessing(mean=(0.5,), std=(0.25,)),
            labels="labels.txt" if labels else None,
        )
        out = tmp_path / name
        write_files(seal(replace(manifest, **(change or {})), files), out)
        return out

    return write


def refused(path: Path, code: str, **options: Any) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Session.open(path, **options)
    assert caught.value.code == code
    assert caught.value.exit_status == 5
    return caught.value


def pictures(count: int) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    return [RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(count)]


# ---------------------------------------------------------------- opening


def test_opens_runs_and_closes(make: Make) -> None:
    path = make()
    with Session.open(path, threads=1) as session:
        (test,) = session.selftest
        assert (test.output, test.max_abs) == ("logits", 0.0)
        assert test.cosine == pytest.approx(1)
        assert session.facts()["variant"] == "float32"
        assert session.facts()["threads"] == 1
        batch = RNG.standard_normal((3, 3, 8, 8)).astype(np.float32)
        assert session.run({"input": batch})["logits"].shape == (3, 4)
    session.close()
    with pytest.raises(EngineError) as caught:
        session.run({"input": batch})
    assert caught.value.code == "E_CLOSED"


def test_an_open_bundle_is_taken_and_the_self_test_may_be_left_out(make: Make) -> None:
    bundle = Bundle.open(make(outputs=lambda array: array + 1))
    session = Session.open(bundle, selftest=False)
    assert session.selftest == ()
    session.close()


def test_a_folder_that_changed_after_opening_changes_nothing(make: Make) -> None:
    path = make()
    bundle = Bundle.open(path)
    (path / "model.onnx").write_bytes(b"replaced")
    with Session.open(bundle) as session:
        assert session.predict(pictures(1)[0]).top(1)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": (TensorSpec("other", "float32", ("N", 3, 8, 8)),)},
        {"inputs": (TensorSpec("input", "float16", ("N", 3, 8, 8)),)},
        {"inputs": (TensorSpec("input", "float32", ("N", 3, 8)),)},
        {"inputs": (TensorSpec("input", "float32", ("N", 1, 8, 8)),)},
        {"inputs": (TensorSpec("input", "float32", (1, 3, 8, 8)),)},
        {"inputs": (TensorSpec("input", "float32", ("N", "C", 8, 8)),)},
        {"outputs": (TensorSpec("logits", "float32", ("N", 5)),)},
        {"outputs": (TensorSpec("logits", "int64", ("N", 4)),)},
    ],
)
def test_row_13_declared_differently_from_the_graph(make: Make, change: dict[str, Any]) -> None:
    error = refused(make(change=change), "E_SCHEMA")
    assert error.path == "model.onnx"


def test_row_13_more_declared_than_there_is(make: Make) -> None:
    more = (TensorSpec("logits", "float32", ("N", 4)), TensorSpec("boxes", "float32", ("N", 4)))
    golden = Golden(
        "golden/inputs.npz", "golden/outputs.npz", True,
        {"logits": Tolerance(1, 0), "boxes": Tolerance(1, 0)},
    )  # fmt: skip
    refused(make(change={"outputs": more, "golden": golden}), "E_SCHEMA")


def test_symbols_may_have_other_names(make: Make) -> None:
    renamed = (TensorSpec("input", "float32", ("batch", 3, 8, 8)),)
    with Session.open(make(change={"inputs": renamed})) as session:
        assert session.inputs[0].shape == ("N", 3, 8, 8), "as the graph says"


@pytest.mark.parametrize(
    "outputs",
    [
        lambda array: array + 1e-3,
        lambda array: array[:, ::-1],
        lambda array: np.full_like(array, np.nan),
        lambda array: np.zeros_like(array),
        lambda array: np.repeat(array, 2, axis=0),
    ],
    ids=["far", "swapped", "nan", "zero", "shape"],
)
def test_row_18_other_numbers_than_golden(
    make: Make, outputs: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
) -> None:
    error = refused(make(outputs=outputs), "E_SELFTEST")
    assert "logits" in error.message


def test_row_18_cosine_counts_beside_the_difference(make: Make) -> None:
    golden = Golden(
        "golden/inputs.npz", "golden/outputs.npz", True, {"logits": Tolerance(1e9, 0.9999)}
    )
    refused(make(outputs=lambda array: array[:, ::-1], change={"golden": golden}), "E_SELFTEST")


def test_row_18_a_model_with_nan_weights(make: Make, tiny_classifier: Callable[..., bytes]) -> None:
    import onnx

    model = onnx.load_from_string(tiny_classifier())
    values = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[0] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "w0"))
    refused(make(model.SerializeToString()), "E_SELFTEST")


def test_golden_inputs_that_do_not_run(make: Make) -> None:
    wrong = write_npz({"input": np.ones((1, 3, 8, 9), np.float32)})
    refused(make(more={"golden/inputs.npz": wrong}), "E_SELFTEST")


def test_a_model_that_does_not_load_is_a_damaged_bundle(make: Make) -> None:
    variant = Variant("bad", "bad.onnx", "onnxruntime", "onnxruntime", "float32")
    path = make(change={"variants": (variant,)}, more={"bad.onnx": b"no model"})
    error = refused(path, "E_BACKEND")
    assert error.path == "bad.onnx"


def test_variants_by_name_and_engine(make: Make) -> None:
    variants = (
        Variant("float32", "model.onnx", "onnxruntime", "onnxruntime", "float32"),
        Variant("other", "model.onnx", "abacus", "abacus", "float32"),
    )
    path = make(change={"variants": variants})
    for options, code in (
        ({"variant": "int4"}, "E_VARIANT"),
        ({"variant": "other"}, "E_ENGINE"),
        ({"engine": "null"}, "E_DIALECT"),
    ):
        with pytest.raises(InputError) as caught:
            Session.open(path, **options)
        assert caught.value.code == code


# ---------------------------------------------------------------- row 20: what goes in


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_row_20_non_finite_inputs(make: Make, value: float, dtype: str) -> None:
    kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[dtype]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g", [info("x", kind, ["N", 3])], [info("y", kind, ["N", 3])],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opset).SerializeToString()
    largest = np.finfo(dtype).max
    with Session.open(make(model, labels=None)) as session:
        full = np.full((2, 3), largest, dtype)
        full[0, 0] = -largest
        assert session.run({"x": full})["y"][0, 1] == largest, "large is not infinite"
        full[1, 2] = value
        with pytest.raises(InputError) as caught:
            session.run({"x": full})
    assert (caught.value.code, caught.value.path) == ("E_INPUT", "x")


def test_row_20_too_large_a_batch(make: Make) -> None:
    one = np.zeros((1, 3, 8, 8), np.float32)
    huge = np.broadcast_to(one, (2_000_000, 3, 8, 8))
    with Session.open(make()) as session, pytest.raises(InputError) as caught:
        session.run({"input": huge})
    assert caught.value.code == "E_INPUT"
    assert "smaller batches" in caught.value.mend


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"input": 3},
        {"input": np.zeros((1, 3, 8, 8))},
        {"input": np.zeros((0, 3, 8, 8), np.float32)},
    ],
)
def test_row_20_wrong_inputs(make: Make, feeds: dict[str, Any]) -> None:
    with Session.open(make()) as session, pytest.raises(InputError) as caught:
        session.run(feeds)
    assert caught.value.code == "E_INPUT"


@pytest.mark.parametrize("source", ["missing.png", b"", b"junk", np.zeros((4, 4, 3), np.float32)])
def test_row_20_what_is_no_picture(make: Make, source: Any) -> None:
    with Session.open(make()) as session, pytest.raises(InputError) as caught:
        session.predict(source)
    assert caught.value.code == "E_PICTURE"


def test_a_picture_of_another_size_is_refused(make: Make) -> None:
    with Session.open(make()) as session, pytest.raises(InputError) as caught:
        session.predict(np.zeros((9, 8, 3), np.uint8))
    assert caught.value.code == "E_INPUT"
    assert "(1, 3, 9, 8)" in caught.value.message


# ---------------------------------------------------------------- predictions


def test_predict_is_preprocess_run_softmax(make: Make, tmp_path: Path) -> None:
    (picture,) = pictures(1)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with Session.open(make()) as session:
        prediction = session.predict(tmp_path / "a.png")
        x = ((picture / np.float32(255) - np.float32(0.5)) / np.float32(0.25)).transpose(2, 0, 1)
        logits = session.run({"input": x[None].astype(np.float32)})["logits"]
    np.testing.assert_allclose(prediction.outputs["logits"], logits, rtol=1e-5, atol=1e-6)
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    best = prediction.top(10)
    assert [one.index for one in best] == np.argsort(-shares).tolist()
    assert [one.label for one in best] == [
        ("cat", "dog", "bird", "fish")[one.index] for one in best
    ]
    assert sum(one.score for one in best) == pytest.approx(1)
    assert best[0].score == pytest.approx(shares.max(), rel=1e-4)


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_many_pictures_give_what_each_gives(
    batch: Any, make: Make, tiny_classifier: Callable[..., bytes]
) -> None:
    several = pictures(20)
    with Session.open(make(tiny_classifier(batch=batch))) as session:
        alone = [session.predict(one).outputs["logits"] for one in several]
        together = [one.outputs["logits"] for one in session.predict_many(iter(several))]
    assert [one.shape for one in together] == [(1, 4)] * 20
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), rtol=1e-5)


class ForEight(OnnxRuntimeEngine):
    """As an engine that was built for eight samples at once, no fewer."""

    builds = True

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        raise InputError("E_INPUT", "the engine was built for 8.", mend="Build it for 1.")


def test_an_engine_built_for_other_sizes_does_not_make_the_bundle_a_bad_one(make: Make) -> None:
    bundle = Bundle.open(make())
    with ForEight(bundle.model()) as engine, pytest.raises(InputError) as caught:
        self_test(bundle, bundle.variants[0], engine)
    assert (caught.value.code, caught.value.mend) == ("E_INPUT", "Build it for 1.")


class AtMostThree(OnnxRuntimeEngine):
    """As an engine that was built for three samples and no more."""

    largest_batch = 3

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        assert all(len(array) <= 3 for array in feeds.values())
        return super()._run(feeds)


def test_no_more_pictures_go_together_than_the_engine_was_built_for(make: Make) -> None:
    bundle, seven = Bundle.open(make()), pictures(7)
    with AtMostThree(bundle.model()) as engine:
        session = Session(bundle, VariantChoice(bundle.variants[0], "the only one"), engine, ())
        several = [one.outputs["logits"] for one in session.predict_many(seven)]
    with Session.open(bundle) as session:
        wanted = [one.outputs["logits"] for one in session.predict_many(seven)]
    np.testing.assert_allclose(np.concatenate(several), np.concatenate(wanted), rtol=1e-5)


def test_outputs_without_a_batch_are_run_one_by_one(make: Make) -> None:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)],
        "g", [info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])], [info("y", TensorProto.FLOAT, [])],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opset).SerializeToString()
    with Session.open(make(model, labels=None, change={"task": "agreement"})) as session:
        several = [np.full((4, size, 3), 100, np.uint8) for size in (4, 4, 6)]
        made = list(session.predict_many(several))
    assert [one.outputs["y"].shape for one in made] == [()] * 3
    with pytest.raises(InputError) as caught:
        made[0].top()
    assert caught.value.code == "E_TASK"
    assert not made[0].is_classification


def test_pictures_of_several_sizes_go_through_a_free_size(make: Make) -> None:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g",
        [info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [info("y", TensorProto.FLOAT, ["N", 3, "H", "W"])],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opset).SerializeToString()
    with Session.open(make(model, labels=None)) as session:
        made = session.predict_many([np.zeros((4, size, 3), np.uint8) for size in (4, 4, 6, 4)])
        assert [one.outputs["y"].shape[3] for one in made] == [4, 4, 6, 4]


def test_without_preprocessing_or_with_two_inputs_there_is_no_predict(make: Make) -> None:
    with Session.open(make(change={"preprocessing": None})) as session:
        with pytest.raises(InputError) as caught:
            session.predict(pictures(1)[0])
        assert caught.value.code == "E_PREPROCESSING"
    info = helper.make_tensor_value_info
    names = ["a", "b"]
    graph = helper.make_graph(
        [helper.make_node("Add", names, ["y"])], "g",
        [info(name, TensorProto.FLOAT, ["N", 3, 8, 8]) for name in names],
        [info("y", TensorProto.FLOAT, ["N", 3, 8, 8])],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opset).SerializeToString()
    with Session.open(make(model, name="two")) as session:
        with pytest.raises(InputError) as caught:
            session.predict(pictures(1)[0])
        assert caught.value.code == "E_INPUT"


def test_probabilities_stay_as_they_are() -> None:
    shares = np.array([[0.1, 0.7, 0.2]], np.float32)
    best = Prediction({"p": shares}, "classification").top(2)
    assert [(one.index, one.label) for one in best] == [(1, "1"), (2, "2")]
    assert best[0].score == pytest.approx(0.7)
    with pytest.raises(InputError):
        Prediction({"p": shares}, "classification").top(0)


# ---------------------------------------------------------------- cost


@pytest.mark.serial
def test_a_session_adds_little_to_a_run(make: Make) -> None:
    """Median over interleaved runs: at most 3 % or 20 us, with room for a noisy machine (3x)."""
    import_backend("onnxruntime")  # a bare import sends telemetry
    import onnxruntime

    path = make()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = (path / "model.onnx").read_bytes()
    bare = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {"input": RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    times: dict[str, list[float]] = {"bare": [], "session": []}
    with Session.open(path, threads=1) as session:
        for _ in range(1500):
            start = time.perf_counter()
            bare.run(["logits"], feeds)
            middle = time.perf_counter()
            session.run(feeds)
            times["bare"].append(middle - start)
            times["session"].append(time.perf_counter() - middle)
    added_us = 1e6 * (statistics.median(times["session"]) - statistics.median(times["bare"]))
    assert added_us < 60
