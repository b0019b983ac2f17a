"""Build an engine in a child process, with a time limit, whatever the child does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from ..child_process import child_command, error_from_json, how_it_ended
from ..engines.build_options import BuildOptions
from ..errors import EdgepressError, EngineError, MissingExtraError
from ..files import disk_room, temporary_folder
from .build_protocol import ANSWER, MODEL, PLAN, REQUEST, TIMING
from .driver import Gpu
from .network_builder import BuiltEngine, check_model


def build_engine(
    engine: str,
    model: bytes,
    options: BuildOptions,
    *,
    gpu: Gpu | None = None,
    timing_cache: bytes | None = None,
) -> BuiltEngine:
    """Build an engine for a model, in a process of its own.

    Args:
        engine: ``tensorrt`` or ``tensorrt-rtx``; the latter needs no GPU for it.
        model: An ONNX model in the engine's dialect.
        options: How.
        gpu: For and on which GPU; ``None`` for the first one, or where none is needed, for any.
        timing_cache: As :func:`edgepress.runtime.nvidia.network_builder.build_in_process` takes it.

    Raises:
        EngineError: ``E_DRIVER`` without a driver, ``E_BACKEND`` where the model cannot be parsed
            or built, or the builder crashed or took longer than ``options.time_limit_s``.
        MissingExtraError: Where the engine is not installed.
        InputError: ``E_MODEL`` for what is no ONNX file, ``E_SHAPE`` for a free size of which
            nothing is known, ``E_WRITE`` where there is no room for temporary files.
    """
    check_model(model)
    request: dict[str, object] = {"engine": engine, "gpu": 0, "options": options.to_dict()}
    if gpu is not None:
        request |= {"gpu": gpu.index, "compute_capability": gpu.compute_capability}
    with disk_room(), temporary_folder() as folder:
        (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        (folder / MODEL).write_bytes(model)
        if timing_cache is not None:
            (folder / TIMING).write_bytes(timing_cache)
        _run(engine, folder, options.time_limit_s)
        answer: Any = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
        if "error" in answer:
            raise _error(answer["error"], engine)
        timing = folder / TIMING
        measured = timing.read_bytes() if timing_cache is not None else b""
        return BuiltEngine((folder / PLAN).read_bytes(), measured, dict(answer["facts"]))


def _run(engine: str, folder: Path, time_limit_s: float) -> None:
    try:
        child = subprocess.run(
            child_command(f"{__package__}.build_child", str(folder)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=time_limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            "E_BACKEND",
            f"{engine} did not build the engine within {time_limit_s:g} s, and was ended.",
            mend="Allow it more time, or a lower level of optimization.",
        ) from error
    if child.returncode == 0 and (folder / ANSWER).is_file():
        return
    last = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    raise EngineError(
        "E_BACKEND",
        f"the builder of {engine} {how_it_ended(child.returncode)} on this model"
        + (f": {last[0]}" if last else "."),
        mend="The file may be damaged, or the machine out of memory.",
    )


def _error(told: Any, engine: str) -> EdgepressError:
    if told["kind"] == "MissingExtraError":
        return MissingExtraError(engine, engine, f"the engine {engine}")
    return error_from_json(told)
