"""INT8 files of other tools, from one float32 graph and the same calibration pictures."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["NNCF_CI"] = "1"  # NNCF sends telemetry otherwise
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx

from edgepress.benchmarks import Images
from edgepress.runtime import Preprocessing, TensorSpec
from edgepress.runtime.engines.telemetry import without_telemetry

CALIBRATION = 300
MODELOPT = "ModelOpt (made for TensorRT)"

_MODELOPT = """
import sys, numpy, onnx
from modelopt.onnx.quantization import quantize
model, data, out = sys.argv[1:]
name = onnx.load(model).graph.input[0].name
quantize(model, quantize_mode="int8", calibration_data={name: numpy.load(data)},
         calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=out)
"""


def calibration_of(images: Images) -> Images:
    """The pictures of a pool that our own command calibrates with."""
    return images.split(CALIBRATION, 0, own_test=True).calibration


def feeds(images: Images, given: Preprocessing, name: str, batch: int) -> Iterator[dict[str, Any]]:
    """Calibration pictures as the graph takes them."""
    spec = (TensorSpec(name, "float32", ("N", "C", "H", "W")),)
    for one_batch in images.batches(spec, given, batch):
        yield one_batch.inputs


def quantize_static(float32: Path, out: Path, images: Images, given: Preprocessing) -> Path:
    """ONNX Runtime's own tool, as its documentation advises for x86."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load(float32).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = feeds(images, given, name, 1)

        def get_next(self) -> Any:
            return next(self.batches, None)

    logging.disable(logging.WARNING)
    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(float32), str(prepared))
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out


def nncf_quantize(float32: Path, out: Path, images: Images, given: Preprocessing) -> Path:
    """NNCF with its defaults."""
    nncf = _nncf()
    model = onnx.load(float32)
    name = model.graph.input[0].name
    quantized = nncf.quantize(
        model, nncf.Dataset(list(feeds(images, given, name, 1))), subset_size=len(images)
    )
    onnx.save(quantized, out)
    return out


def _nncf() -> Any:
    """NNCF and OpenVINO, whose import writes into the home folder and sends telemetry otherwise."""
    with without_telemetry():
        return importlib.import_module("nncf")


def modelopt(
    python: Path | None, float32: Path, out: Path, images: Images, given: Preprocessing
) -> Path:
    """NVIDIA's tool with its defaults but for float32 in place of float16, in its own environment."""
    if python is None:
        raise LookupError("not made: --modelopt names no Python that has nvidia-modelopt")
    name = onnx.load(float32).graph.input[0].name
    data = out.with_suffix(".npy")
    np.save(data, np.concatenate([batch[name] for batch in feeds(images, given, name, 1)]))
    call([python, "-c", _MODELOPT, float32, data, out])
    data.unlink()
    return out


def transcode(file: Path, out: Path, target: str) -> Path:
    """A file rewritten for a target by ``edgepress transcode``, no data given."""
    ours = (sys.executable, "-m", "edgepress")
    if "transcode" not in call([*ours, "--help"]):
        raise LookupError("not made: this edgepress has no command transcode")
    call([*ours, "transcode", file, "--target", target, "--out", out, "--force"])
    return out


PEERS: dict[str, Callable[[Path, Path, Images, Preprocessing], Path]] = {
    "quantize_static": quantize_static,
    "NNCF": nncf_quantize,
}
"""Those that run in this environment."""


def call(words: list[object]) -> str:
    """Run a command; its last words where it fails."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    if done.returncode:
        told = [line for line in done.stderr.strip().splitlines() if line.strip()]
        errors = [line for line in told if "Error" in line] or told[-1:]
        raise RuntimeError(" ".join(errors[-1:]) or f"ended with {done.returncode}")
    return done.stdout
