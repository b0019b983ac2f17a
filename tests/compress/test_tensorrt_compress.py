"""A bundle for TensorRT from a machine without a GPU: only when allowed, and honest about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command_line import run_cli

pytest.importorskip("torch")
pytest.importorskip("onnx")
import onnx

from edgepress.compress import Recipe, compress
from edgepress.compress.recipe.absent_device import check_device, missing_device
from edgepress.runtime import Bundle, EngineError, InputError, MissingExtraError, Session
from edgepress.runtime.engine_registry import import_backend
from edgepress.runtime.target import target

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        missing_device(target("tensorrt")) is None, reason="this machine has a GPU to prove it on"
    ),
]
CALIBRATION, TEST = 60, 200


def has_builder() -> bool:
    try:
        import_backend("tensorrt-rtx")
    except MissingExtraError:
        return False
    return True


@pytest.fixture(scope="module")
def data(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first pictures of the demo's calibration and test sets."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, count in (("calibration", CALIBRATION), ("test", TEST)):
        with np.load(project / "demo" / "data" / f"{name}.npz") as held:
            few = {k: v[:count] if len(v) > count else v for k, v in held.items()}
        np.savez(folder / f"{name}.npz", **few)
    return folder


@pytest.fixture(scope="module")
def network(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's trained network as an ONNX file."""
    from edgepress.compress.source.export_network import export_graph

    demo = project / "demo"
    graph = export_graph(
        f"{demo}/backbone.py:fashion_resnet",
        weights=str(demo / "weights" / "fashion_resnet.safetensors"),
        static_shape=None,
        example={"x": np.zeros((2, 1, 28, 28), np.float32)},
    )
    path = tmp_path_factory.mktemp("network") / "demo.onnx"
    path.write_bytes(graph.model)
    return path


def made(network: Path, data: Path, project: Path, out: Path, **options: Any) -> Bundle:
    return compress(
        network,
        data / "calibration.npz",
        test_data=data / "test.npz",
        preprocessing=project / "demo" / "preprocessing.toml",
        max_drop=3.0,
        out=out,
        **options,
    )


@pytest.fixture(scope="module")
def bundle(
    network: Path, data: Path, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("out") / "bundle"
    made(network, data, project, out, target="tensorrt", unproven=True)
    return out


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_without_the_device_it_is_refused_and_nothing_is_written(
    network: Path, data: Path, project: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InputError) as caught:
        made(network, data, project, tmp_path / "out", target=name)
    assert caught.value.code == "E_UNPROVEN"
    assert "--unproven" in caught.value.mend
    assert "driver" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_other_targets_need_no_such_device() -> None:
    assert missing_device(target("onnxruntime-cpu")) is None
    assert check_device(target("onnxruntime-cpu"), allowed=False)


def test_a_gpu_without_tensorrt_makes_bundles_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise MissingExtraError(name, name, f"the engine {name}")

    monkeypatch.setattr("edgepress.compress.recipe.absent_device.find_device", lambda name: None)
    monkeypatch.setattr("edgepress.compress.recipe.absent_device.import_backend", missing)
    assert not check_device(target("tensorrt"), allowed=True)
    for name, allowed in (("tensorrt", False), ("openvino-cpu", True)):
        with pytest.raises(MissingExtraError):
            check_device(target(name), allowed=allowed)


def test_the_bundle_claims_neither_speed_nor_int8(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    (variant,) = opened.variants
    assert (variant.engine, variant.dialect) == ("tensorrt", "tensorrt")
    assert variant.precision == "int8-unproven"
    receipt: Any = variant.receipt
    assert receipt["engine"]["unproven"] is True
    assert receipt["fused_int8"] == receipt["int8_macs_share"] == 0
    assert receipt["int8_time_share"] is None
    assert receipt["asked_int8"] > 3
    assert "int8 as written" in {node["precision"] for node in receipt["nodes"]}
    measured: Any = opened.measurements
    assert measured["latency"] is None
    assert measured["int8_macs_share"] == 0
    (note,) = (one for one in opened.manifest.notes if "without a device" in one)
    assert "time was not measured" in note
    if has_builder():
        assert receipt["engine"]["built_by"] == "tensorrt-rtx"
        assert "parses and builds its graph" in note
    scores: Any = opened.scores
    assert scores["result"]["value"] > 80
    assert opened.manifest.declined is False


def test_what_is_float_in_it_is_fp16(bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.INT8 in kinds
    assert onnx.TensorProto.INT32 not in kinds
    assert {value.type.tensor_type.elem_type for value in model.graph.input} == {1}
    assert {value.type.tensor_type.elem_type for value in model.graph.output} == {1}


def test_it_does_not_open_here_and_says_why(
    bundle: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError) as caught:
        Session.open(bundle)
    assert caught.value.code == "E_DRIVER"
    picture = project / "demo" / "pictures" / "bag.png"
    status, told = run_cli(capsys, "predict", bundle, picture)
    assert (status, told["error"]["code"]) == (2, "E_DRIVER")
    status, told = run_cli(capsys, "inspect", bundle)
    assert status == 0
    assert told["variants"][0]["precision"] == "int8-unproven"


def test_the_device_gets_its_line_for_trtexec(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = run_cli(capsys, "engine", bundle, "--trtexec")
    assert status == 0
    assert told["trtexec"].startswith(
        f"trtexec --onnx={bundle / 'model.onnx'} --saveEngine=model.plan --stronglyTyped "
        "--minShapes=x:1x1x28x28 "
    )


@pytest.mark.parametrize(
    ("name", "recipe", "precision"),
    [("tensorrt", "fp16", "fp16-unproven"), ("tensorrt-rtx", "int8", "int8-unproven")],
)
def test_other_recipes_and_rtx(
    network: Path,
    data: Path,
    project: Path,
    tmp_path: Path,
    name: str,
    recipe: str,
    precision: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "bundle"
    found = made(network, data, project, out, target=name, recipe=recipe, unproven=True)
    assert found.variants[0].precision == precision
    reports: Any = found.recipe["reports"]
    assert reports[0]["fp16"]["held"] is True
    assert found.manifest.declined is False
    if name == "tensorrt-rtx" and has_builder():
        status, told = run_cli(capsys, "engine", out, "--prove")
        assert (status, told["proved"]) == (0, True)


def test_fp16_is_refused_where_the_target_has_none(
    network: Path, data: Path, project: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        made(network, data, project, tmp_path / "out", recipe="fp16")
    assert caught.value.code == "E_RECIPE"
    assert "tensorrt" in caught.value.mend
    assert list(tmp_path.iterdir()) == []


def test_recipes_with_fp16_are_read_and_checked() -> None:
    recipe = Recipe.open("fp16")
    assert Recipe.from_dict(recipe.to_dict(), "the test") == recipe
    given = {"name": "mine", "pass": [{"kind": "fp16", "bound_db": 50.0, "keep_float": ["a"]}]}
    assert Recipe.from_dict(given, "the test").passes[0].keep_float == ("a",)
    with pytest.raises(InputError) as caught:
        Recipe.from_dict({"pass": [{"kind": "fp16", "ranges": "mse"}]}, "the test")
    assert caught.value.code == "E_RECIPE"
