"""The whole of this room on trained networks: work counted, everything fused, noise bounded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgepress.benchmarks import Images
from edgepress.export.calibration.ranges import calibrate
from edgepress.export.graph.onnx_graph import Graph
from edgepress.export.graph.torch_capture import capture
from edgepress.export.int8.bias_correction import correct_biases
from edgepress.export.int8.dialect import dialect
from edgepress.export.int8.int8_plan import plan_int8
from edgepress.export.int8.qdq_writer import write_qdq
from edgepress.export.receipt import Receipt, count_macs, int8_receipt
from edgepress.runtime import EngineOptions, Preprocessing
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgepress.runtime.tensors import Array, Arrays


@dataclass(frozen=True)
class Result:
    receipt: Receipt
    plain_db: float
    corrected_db: float
    agreement: float


def network(data: Path, factory: str, weights: str, pictures: Array) -> Graph:
    """One of the shared backbones, trained, captured and compared with torch on two pictures."""
    spec = importlib.util.spec_from_file_location("shared_backbones", data / "backbones.py")
    assert spec is not None
    assert spec.loader is not None
    backbones = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backbones)
    module = getattr(backbones, factory)()
    state = torch.load(data / "weights" / weights, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    module.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return capture(module, {"x": pictures[:2]}, source=factory)


def in_batches(pictures: Array) -> Callable[[int], Iterable[Arrays]]:
    def batches(size: int) -> Iterator[Arrays]:
        for start in range(0, len(pictures), size):
            yield {"x": pictures[start : start + size]}

    return batches


def sqnr_db(wanted: Array, found: Array) -> float:
    one = wanted.astype(np.float64)
    return float(10 * np.log10(np.sum(one**2) / np.sum((one - found) ** 2)))


def quantized(graph: Graph, calibration: Array, test: Array) -> Result:
    speech = dialect("onnxruntime-x86-vnni")
    ranges = calibrate(graph, in_batches(calibration))
    plan = plan_int8(graph, ranges, speech)
    plain = write_qdq(graph, ranges, plan, speech)
    largest = max(one.elements for one in ranges.tensors.values())
    corrected, _ = correct_biases(graph, plain, in_batches(calibration), largest_tensor=largest)
    receipt = int8_receipt(graph, count_macs(graph, {"x": test[:2]}), corrected, plan)
    outputs: list[Array] = []
    for model in (graph.model, plain.model, corrected.model):
        with OnnxRuntimeEngine(model, EngineOptions()) as engine:
            outputs.append(engine.run({"x": test})["output"])
    wanted, before, after = outputs
    same = float(np.mean(wanted.argmax(1) == after.argmax(1)))
    return Result(receipt, sqnr_db(wanted, before), sqnr_db(wanted, after), same)


def cifar(data: Path, name: str, count: int) -> Array:
    """The first pictures of a sheet, ``(count, 32, 32, 3)``."""
    with Image.open(data / "cifar10" / name) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    rows = pixels.reshape(-1, 32, 50, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    return rows[:count]


def test_resnet20(shared_data: Path) -> None:
    preprocessing = Preprocessing.from_toml(shared_data / "cifar.toml")
    calibration = preprocessing.tensor(list(cifar(shared_data, "train_00.webp", 64)))
    test = preprocessing.tensor(list(cifar(shared_data, "test_a_00.webp", 200)))
    graph = network(shared_data, "resnet20", "cifar10_resnet20_akamaster.pt", calibration)
    result = quantized(graph, calibration, test)
    assert result.receipt.macs == pytest.approx(40.55e6, abs=0.01e6)
    assert result.receipt.fused_int8 == result.receipt.asked_int8 == 30
    assert result.receipt.int8_share == 1
    assert result.corrected_db > result.plain_db
    assert result.corrected_db > 22
    assert result.agreement > 0.97


@pytest.mark.slow
def test_efficientnet_lite0(shared_data: Path) -> None:
    preprocessing = Preprocessing.from_toml(shared_data / "lite0.toml")
    spec = Images.open(shared_data / "imagenet_calib").specs(["x"])

    def pictures(folder: str, count: int) -> Array:
        images = Images.open(shared_data / folder).take(range(count))
        return next(iter(images.batches(spec, preprocessing, count))).inputs["x"]

    calibration = pictures("imagenet_calib", 24)
    weights = "timm_tf_efficientnet_lite0.pt"
    graph = network(shared_data, "efficientnet_lite0", weights, calibration)
    result = quantized(graph, calibration, pictures("imagenet_val650", 32))
    assert result.receipt.macs == pytest.approx(385.2e6, abs=0.1e6)
    assert result.receipt.fused_int8 == result.receipt.asked_int8 == 60
    assert result.corrected_db > result.plain_db + 1
    assert result.corrected_db > 18
    assert result.agreement > 0.9
