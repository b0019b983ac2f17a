"""Files that other tools really make, of a small network with a residual sum."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgepress.export.inspection.why_slow import why_slow
from edgepress.export.int8.dialect import dialect
from edgepress.export.transcode.transcode import transcode
from edgepress.runtime import EngineOptions
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from helpers import int8_graphs
from helpers.int8_nets import kernels, pictures, quantize_static, small_network

X86 = dialect(int8_graphs.X86)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Conv, ReLU6, depthwise Conv, a residual sum, pool and Gemm."""
    return small_network(tmp_path / "float32.onnx")


def run(model: bytes, *, optimized: bool) -> Any:
    with OnnxRuntimeEngine(model, EngineOptions(optimize="all" if optimized else "none")) as engine:
        return np.concatenate([engine.run(one)["y"] for one in pictures()])


def check(out: Path) -> Counter[str]:
    """What is common to all: equal by layer, near end to end; gives the kernels."""
    found = transcode(str(out), X86)
    assert found.equality.layer_steps <= 1.01
    before, after = run(out.read_bytes(), optimized=False), run(found.model, optimized=True)
    assert np.abs(before - after).max() < 0.05 * np.ptp(before)
    again = out.with_name("again.onnx")
    again.write_bytes(found.model)
    assert transcode(str(again), X86).changes == ()
    return kernels(found.model)


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_quantize_static_stays_what_it_is(network: Path, tmp_path: Path) -> None:
    out = tmp_path / "static.onnx"
    given = quantize_static(network, out)
    found = transcode(str(out), X86)
    assert found.changes == ()
    assert kernels(found.model) == kernels(given)
    np.testing.assert_allclose(
        run(given, optimized=True), run(found.model, optimized=True), atol=1e-6
    )
    check(out)


@pytest.mark.filterwarnings("ignore")
def test_symmetric_int8_of_quantize_static_becomes_int8_kernels(
    network: Path, tmp_path: Path
) -> None:
    from onnxruntime.quantization import QuantType

    out = tmp_path / "symmetric.onnx"
    quantize_static(
        network,
        out,
        activation_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "DedicatedQDQPair": True,
            "QuantizeBias": False,
        },
    )
    assert check(out)["QLinearConv"] == 3


@pytest.mark.parametrize("levels", [256, 128])
@pytest.mark.filterwarnings("ignore")
def test_a_quantization_aware_export_of_torch_becomes_int8_kernels(
    levels: int, tmp_path: Path
) -> None:
    """ONNX Runtime refuses it as it is: its scales are lists of one."""
    import torch
    from torch.ao import quantization as q

    def fake(kind: Any, dtype: torch.dtype, low: int, high: int, scheme: torch.qscheme) -> Any:
        how = {"quant_min": low, "quant_max": high, "dtype": dtype, "qscheme": scheme}
        return q.FakeQuantize.with_args(observer=kind, **how)()

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
            self.second = torch.nn.Conv2d(8, 8, 3, padding=1)
            average, channels = q.MovingAverageMinMaxObserver, q.PerChannelMinMaxObserver
            tensor, channel = torch.per_tensor_affine, torch.per_channel_symmetric
            self.acts = torch.nn.ModuleList(
                [fake(average, torch.quint8, 0, levels - 1, tensor) for _ in range(4)]
            )
            self.weights = torch.nn.ModuleList(
                [fake(channels, torch.qint8, -128, 127, channel) for _ in range(2)]
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def conv(y: torch.Tensor, layer: torch.nn.Conv2d, weight: torch.nn.Module) -> Any:
                return torch.conv2d(y, weight(layer.weight), layer.bias, padding=1)

            y = self.acts[1](torch.relu(conv(self.acts[0](x), self.first, self.weights[0])))
            z = self.acts[2](conv(y, self.second, self.weights[1]))
            return self.acts[3](torch.relu(y + z))

    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 3, 16, 16)
    net(x)
    net.eval()
    net.apply(q.disable_observer)
    out = tmp_path / "qat.onnx"
    torch.onnx.export(
        net, (x,), out, dynamo=False, input_names=["x"], output_names=["y"], opset_version=13
    )
    model = onnx.load(out)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(model, out)
    told = why_slow(str(out), X86, runs=2)
    assert not told.runs
    assert "scale in a list of one" in told.by_rule
    found = check(out)
    assert found["QLinearConv"] == 2
    assert found["QLinearAdd"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_file_of_nncf_becomes_int8_kernels(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNCF_CI", "1")
    monkeypatch.setenv("HOME", str(tmp_path))  # its backend leaves a file there all the same
    nncf = pytest.importorskip("nncf")
    quantized = nncf.quantize(onnx.load(network), nncf.Dataset(pictures()), subset_size=16)
    out = tmp_path / "nncf.onnx"
    onnx.save(quantized, out)
    found = check(out)
    assert found["QLinearConv"] == 3
    assert found["QLinearAdd"] == 1
    assert found["QGemm"] == 1
