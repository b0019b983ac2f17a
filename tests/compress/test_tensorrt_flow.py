"""The whole way to a bundle for TensorRT, on a stand-in for its GPU.

What the engine itself does is proved on a GPU alone; here it is what is asked of it: the sizes that
it is built for, what receipts are read from, and which precision ships.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
import onnx
from onnx import TensorProto, helper

from edgepress.benchmarks import compare
from edgepress.benchmarks.latency.measurement import Preset
from edgepress.compress import Recipe, compress
from edgepress.compress.recipe.absent_device import missing_device
from edgepress.runtime import BoundError, Bundle, MissingExtraError, Session
from edgepress.runtime.engine_registry import import_backend
from edgepress.runtime.nvidia.driver import Gpu
from edgepress.runtime.target import target
from helpers.stand_in_gpu import StandIn

PIXELS = 12
CLASSES = 4


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """A GPU that is none."""
    monkeypatch.setattr("edgepress.runtime.nvidia.tensorrt.TensorRtEngine", StandIn)
    driver = SimpleNamespace(gpu=lambda: Gpu(0, "a GPU", "8.7", "12.6"))
    monkeypatch.setattr("edgepress.runtime.nvidia.driver.cuda", lambda: driver)
    version = SimpleNamespace(__version__="10.3.0")
    monkeypatch.setattr("edgepress.runtime.nvidia.tensorrt.load", lambda: version)
    monkeypatch.setattr(StandIn, "built", [])
    return StandIn


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch, tiny_classifier: Any) -> dict[str, float]:
    """How fast the three precisions are there; a test may say otherwise."""
    model = tiny_classifier()
    equal = compare(model, model, preset=Preset("blink", 0.05, 64, 0.2, 1, 5.0))
    told = {"float32": 1.0, "fp16": 2.0, "int8": 3.0}

    def found(one: bytes, other: bytes, **how: Any) -> Any:
        assert how["engine"] == "tensorrt"
        assert Path(how["cache"]).is_dir()
        ratio = told[kind(one)] / told[kind(other)]
        faster = "a" if ratio > 1.03 else "b" if ratio < 0.97 else "neither"
        low, high = 0.99 * ratio, 1.01 * ratio
        return dataclasses.replace(
            equal, ratio=ratio, ratio_low=low, ratio_high=high, faster=faster, settled=True
        )

    monkeypatch.setattr("edgepress.compress.evaluation.evaluator.compare", found)
    return told


def kind(model: bytes) -> str:
    """The narrowest type of a file's constants."""
    kinds = {tensor.data_type for tensor in onnx.load_model_from_string(model).graph.initializer}
    if TensorProto.INT8 in kinds:
        return "int8"
    return "fp16" if TensorProto.FLOAT16 in kinds else "float32"


def network(path: Path, batch: int | str = "N", sizes: tuple[Any, Any] = (PIXELS, PIXELS)) -> Path:
    """Two convolutions, a mean and a fully connected layer; classes follow the mean colour."""
    draw = np.random.default_rng(3)
    constants = {
        "w1": draw.normal(0, 0.3, (16, 3, 3, 3)),
        "w2": draw.normal(0, 0.15, (16, 16, 3, 3)),
        "w3": draw.normal(0, 0.4, (CLASSES, 16)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], name="mean"),
        helper.make_node("Flatten", ["e"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, *sizes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, CLASSES])],
        [
            onnx.numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def pictures(path: Path, count: int) -> Path:
    """Noise without labels: the network is judged by how far it agrees with itself."""
    draw = np.random.default_rng(count)
    np.savez(path, x=draw.integers(0, 256, (count, PIXELS, PIXELS, 3), dtype=np.uint8))
    return path


def made(folder: Path, model: Path, **options: Any) -> Bundle:
    how = folder / "how.toml"
    how.write_text("mean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n")
    return compress(
        model,
        pictures(folder / "data.npz", 120),
        test_data=pictures(folder / "test.npz", 60),
        preprocessing=how,
        out=folder / "out",
        **{"target": "tensorrt", **options},
    )


def candidates(bundle: Bundle) -> dict[str, Mapping[str, Any]]:
    measured: Any = bundle.measurements
    return {one["name"]: one for one in measured["candidates"]}


@pytest.mark.parametrize("sizes", [(PIXELS, PIXELS), ("H", "W")])
def test_int8_that_is_faster_than_fp16_ships(
    gpu: type[StandIn], speeds: dict[str, float], tmp_path: Path, sizes: tuple[Any, Any]
) -> None:
    """More pictures than an engine takes at once by default, and sizes that nothing else tells."""
    bundle = made(tmp_path, network(tmp_path / "net.onnx", sizes=sizes))
    (variant,) = bundle.variants
    assert (variant.precision, bundle.manifest.declined) == ("int8", False)
    receipt: Any = variant.receipt
    assert receipt["fused_int8"] == receipt["asked_int8"] >= 2
    assert receipt["int8_macs_share"] > 0.8
    tried = candidates(bundle)
    assert {name: one["accepted"] for name, one in tried.items()} == {"FP16": True, "INT8": True}
    batches = [build["batch"] for build in gpu.built]
    assert batches.count([1, 1, 16]) == 2, "the golden outputs and the self-test, as it will run"
    assert {tuple(one) for one in batches} == {(1, 1, 1), (1, 1, 16)}
    if sizes == ("H", "W"):
        told = {"H": (PIXELS,) * 3, "W": (PIXELS,) * 3}
        assert all(build["sizes"] == told for build in gpu.built)


def test_fp16_ships_where_int8_is_not_faster_than_it(
    gpu: type[StandIn], speeds: dict[str, float], tmp_path: Path
) -> None:
    speeds["int8"] = 1.9  # than float32, which is no way to run anything there
    recipe = Recipe.open("int8").blamed()
    bundle = made(tmp_path, network(tmp_path / "net.onnx"), recipe=recipe)
    (variant,) = bundle.variants
    assert (variant.precision, variant.dialect) == ("fp16", "onnx")
    assert kind(bundle.model(variant)) == "fp16"
    assert bundle.manifest.declined is True, "nobody asked for it"
    measured: Any = bundle.measurements
    assert measured["fp16_macs_share"] > 0.8
    assert measured["latency"]["speedup"] == pytest.approx(2.0)
    assert any("written in FP16, at 2.00x" in note for note in bundle.manifest.notes)
    assert any("INT8 would do" in note for note in bundle.manifest.notes)
    assert any("not timed one by one in tensorrt" in note for note in bundle.manifest.notes)
    with Session.open(bundle) as session:
        assert session.run({"x": np.zeros((3, 3, PIXELS, PIXELS), np.float32)})["y"].shape[0] == 3


def test_strict_takes_no_stand_in_for_int8(
    gpu: type[StandIn], speeds: dict[str, float], tmp_path: Path
) -> None:
    speeds["int8"] = 0.5
    with pytest.raises(BoundError) as caught:
        made(tmp_path, network(tmp_path / "net.onnx"), strict=True)
    assert caught.value.code == "E_DECLINED"
    assert "in fp16" in caught.value.mend
    assert not (tmp_path / "out").exists()


def test_an_engine_that_tells_no_types_proves_neither_int8_nor_fp16(
    gpu: type[StandIn],
    speeds: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = StandIn.layers

    def untold(engine: StandIn) -> str:
        return told(engine).replace("Int8", "N/A").replace("Half", "N/A").replace("FP32", "N/A")

    monkeypatch.setattr(StandIn, "layers", untold)
    bundle = made(tmp_path, network(tmp_path / "net.onnx"))
    (variant,) = bundle.variants
    assert (variant.precision, bundle.manifest.declined) == ("float32", True)
    for one in candidates(bundle).values():
        assert "does not tell what its layers compute in" in one["reasons"][0]


# ---------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(
    missing_device(target("tensorrt")) is not None, reason="there is no usable NVIDIA driver"
)
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_on_a_gpu_the_whole_way_is_gone(name: str, tmp_path: Path) -> None:
    """Whatever ships, it was scored, timed and read from the engine itself."""
    try:
        import_backend(name)
    except MissingExtraError:
        pytest.skip(f"the extra {name} is not installed")
    missing = missing_device(target(name))
    if missing is not None:
        pytest.skip(missing.message)
    bundle = made(tmp_path, network(tmp_path / "net.onnx", sizes=("H", "W")), target=name)
    (variant,) = bundle.variants
    assert variant.engine == name
    tried = candidates(bundle)
    assert set(tried) == {"FP16", "INT8"}
    for one in tried.values():
        assert one["latency"]["speedup"] > 0
        assert not any("does not tell" in reason for reason in one["reasons"])
    receipt: Any = variant.receipt
    assert receipt["engine"]["engine"] == name
    assert receipt["kernels"]
