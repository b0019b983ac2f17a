"""Files that other tools really make, of a small network with a residual sum."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgepress.export.dialects import dialect
from edgepress.export.slowness import why_slow
from edgepress.export.transcoding import transcode
from edgepress.runtime import EngineOptions
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine, optimized_model

X86 = dialect("onnxruntime-x86-vnni")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Conv, ReLU6, depthwise Conv, a residual sum, pool and Gemm."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> onnx.TensorProto:
        fan_in = np.sqrt(np.prod(shape[1:]))
        value = (rng.normal(0, 1, shape) / fan_in).astype(np.float32)
        return onnx.numpy_helper.from_array(value)

    names = {"w0": (8, 3, 3, 3), "w1": (8, 1, 3, 3), "w2": (8, 8, 1, 1), "w3": (5, 8)}
    biases = {"b0": 8, "b1": 8, "b2": 8, "b3": 5}
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> net (float[N,3,16,16] x) => (float[N,5] y) '
        "{ c0 = Conv <pads=[1,1,1,1]> (x, w0, b0) r0 = Clip(c0, low, high)"
        "  c1 = Conv <pads=[1,1,1,1], group=8> (r0, w1, b1) r1 = Clip(c1, low, high)"
        "  c2 = Conv(r1, w2, b2) s = Add(c2, r0) r2 = Relu(s) g = GlobalAveragePool(r2)"
        "  f = Flatten(g) y = Gemm <transB=1> (f, w3, b3) }"
    )
    for name, shape in names.items():
        tensor = weights(*shape)
        tensor.name = name
        model.graph.initializer.append(tensor)
    for name, size in biases.items():
        value = rng.normal(0, 0.1, size).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    for name, bound in (("low", 0), ("high", 6)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(bound), name))
    path = tmp_path / "float32.onnx"
    onnx.save(model, path)
    return path


def pictures() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(16)]


def kernels(model: bytes) -> Counter[str]:
    rewritten = onnx.load_model_from_string(optimized_model(model, "all"))
    return Counter(node.op_type for node in rewritten.graph.node)


def run(model: bytes, *, optimized: bool) -> Any:
    with OnnxRuntimeEngine(model, EngineOptions(optimize="all" if optimized else "none")) as engine:
        return np.concatenate([engine.run(one)["y"] for one in pictures()])


def quantize_static(float32: Path, out: Path, **how: Any) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    batches = iter(pictures())

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return next(batches, None)

    settings = {"per_channel": True, "activation_type": QuantType.QUInt8, **how}
    quantize(str(float32), str(out), Reader(), quant_format=QuantFormat.QDQ, **settings)
    return out.read_bytes()


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
