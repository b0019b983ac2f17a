"""The line for ``trtexec``, for those who would rather build the same engine by themselves."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..engines.build_options import BuildOptions
from ..tensors import TensorSpec

_PROGRAMS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
_MIB = 2**20


def trtexec_line(
    engine: str,
    model: str,
    inputs: Sequence[TensorSpec],
    options: BuildOptions,
    *,
    plan: str = "model.plan",
    version: str | None = None,
) -> str:
    """The command that builds the engine that edgepress would build.

    Args:
        engine: ``tensorrt`` or ``tensorrt-rtx``.
        model: Path of the ONNX file.
        inputs: Its inputs.
        options: How it is built.
        plan: Path of the engine that it shall write.
        version: Of TensorRT; from 11 on every network is strongly typed, and the flag that asks for
            it is left out. ``None`` writes it, as 10.3 to 10.16 need it.

    Raises:
        InputError: ``E_SHAPE`` as :meth:`BuildOptions.shapes`.
    """
    words = [_PROGRAMS[engine], f"--onnx={model}", f"--saveEngine={plan}"]
    if engine == "tensorrt" and (version is None or int(version.split(".")[0]) < 11):
        words.append("--stronglyTyped")
    shaped = [(spec.name, shapes) for spec in inputs if (shapes := options.shapes(spec))]
    for i, word in enumerate(("min", "opt", "max")):
        told = [f"{name}:{'x'.join(map(str, shapes[i]))}" for name, shapes in shaped]
        words += [f"--{word}Shapes={','.join(told)}"] if told else []
    if engine == "tensorrt":
        words.append("--noTF32")
    if options.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_bytes / _MIB:g}")
    if options.level is not None:
        words.append(f"--builderOptimizationLevel={options.level}")
    if options.dla_core is not None:
        words.append(f"--useDLACore={options.dla_core}")
        words += ["--allowGPUFallback"] if options.gpu_fallback else []
    return shlex.join([*words, "--profilingVerbosity=detailed"])
