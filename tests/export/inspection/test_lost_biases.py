"""float16 biases around INT8 that ONNX Runtime loses: named where they are, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from edgepress.__main__ import main
from edgepress.export.inspection.why_slow import why_slow
from edgepress.export.int8.dialect import dialect
from edgepress.export.transcode.transcode import transcode
from edgepress.runtime import EngineOptions
from edgepress.runtime.engines.onnxruntime import OnnxRuntimeEngine
from helpers import int8_graphs
from helpers.int8_nets import Net

X86 = dialect(int8_graphs.X86)
STEP = np.float16(2.0**-8)  # of inputs and weights: 65,504 codes of a bias are 0.9995
LEAST, LOST = 0.99, 1.01
LOSING = ("quantizer", "Relu", "MaxPool", "Relu Reshape", "Transpose", "Relu MaxPool Reshape")


def half_net(path: Path, op: str, bias: float, behind: str, scale: np.float16 = STEP) -> str:
    """A layer between quantizers, floats in float16."""
    net = Net(3)
    zero, step = net.constant(np.int8(0)), net.constant(scale)
    y = net.op("Cast", "x", to=TensorProto.FLOAT16)
    y = net.op("DequantizeLinear", net.op("QuantizeLinear", y, step, zero), step, zero)
    if op == "Gemm":
        y = net.op("Flatten", net.op("GlobalAveragePool", y))
        y = net.op("DequantizeLinear", net.op("QuantizeLinear", y, step, zero), step, zero)
    shape = (4, 4) if op == "Gemm" else (4, 4, 1, 1)
    codes = net.constant(net.rng.integers(-9, 9, shape).astype(np.int8))
    weights = net.op("DequantizeLinear", codes, step, zero)
    y = net.op(op, y, weights, net.constant(np.full(4, bias, np.float16)))
    if behind != "nothing":
        for kind in behind.split() if behind != "quantizer" else ():
            more = {"kernel_shape": [2, 2]} if kind == "MaxPool" else {}
            shape = [net.constant(np.array([0, -1]))] if kind == "Reshape" else []
            y = net.op(kind, y, *shape, **more)
        out = net.constant(np.float16(0.02))
        y = net.op("DequantizeLinear", net.op("QuantizeLinear", y, out, zero), out, zero)
    return net.write(path, net.op("Cast", y, to=TensorProto.FLOAT), opset=19)


def moved_by(path: str) -> float:
    """How far the file's outputs move when ONNX Runtime optimizes it at all."""
    model = Path(path).read_bytes()
    seen: list[np.ndarray] = []
    for optimize in ("none", "basic"):
        with OnnxRuntimeEngine(model, EngineOptions(optimize=optimize)) as engine:
            shape = tuple(n if isinstance(n, int) else 1 for n in engine.inputs[0].shape)
            (value,) = engine.run({"x": np.zeros(shape, np.float32)}).values()
            seen.append(value)
    return float(np.abs(seen[0] - seen[1]).max())


@pytest.mark.parametrize(
    ("op", "behind"),
    [
        (op, behind)
        for op in ("Conv", "ConvTranspose", "Gemm")
        for behind in (*LOSING, "Sigmoid", "Flatten", "nothing")
        if not (op == "Gemm" and "MaxPool" in behind)
    ],
)
@pytest.mark.parametrize("bias", [LEAST, LOST])
def test_what_is_named_is_what_onnx_runtime_loses(
    tmp_path: Path, op: str, behind: str, bias: float
) -> None:
    path = half_net(tmp_path / "a.onnx", op, bias, behind)
    lost = bias == LOST and behind in LOSING
    assert (moved_by(path) > 0.5) == lost
    told = why_slow(path, X86, runs=3).lost
    assert len(told) == lost
    if lost:
        (why,) = told.values()
        assert why.startswith("4 of 4 values; the first is 1.01, 66,176 codes of 1.53e-05")


def test_inspect_says_so_and_transcode_keeps_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = half_net(tmp_path / "a.onnx", "Conv", LOST, "quantizer")
    with pytest.raises(SystemExit) as ended:
        main(["inspect", path, "--why-slow"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "WRONG ONNX Runtime loses the float16 biases of 1 layers" in told
    fixed = tmp_path / "fixed.onnx"
    fixed.write_bytes(transcode(path, X86).model)
    assert not why_slow(str(fixed), X86, runs=3).lost
    assert moved_by(str(fixed)) == 0


def test_scales_whose_product_is_nothing_in_float16(tmp_path: Path) -> None:
    path = half_net(tmp_path / "a.onnx", "Conv", 0.5, "quantizer", np.float16(2.0**-13))
    assert moved_by(path) > 0.4
    (why,) = why_slow(path, X86, runs=3).lost.values()
    assert why.endswith("the first is 0.5, and of the product of its scales float16 makes 0")


def test_openvino_makes_nothing_of_them(tmp_path: Path) -> None:
    path = half_net(tmp_path / "a.onnx", "Conv", LOST, "quantizer")
    assert not why_slow(path, dialect("openvino"), engine="openvino", runs=3).lost
