"""The process that builds engines, started with a folder as its argument.

A builder is native code that may crash on a model, or never end; what asks for an engine must live
on. FOLDER holds ``request.json`` and ``model.onnx``; the answer is ``answer.json``, and beside it
``engine.plan`` and ``timing.cache``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..child_process import error_to_json
from ..engine_registry import load_backend
from ..engines.build_options import BuildOptions
from ..errors import EdgepressError
from .build_protocol import ANSWER, MODEL, NEEDS_GPU, PLAN, REQUEST, TIMING
from .driver import cuda
from .network_builder import build_in_process


def main() -> int:
    """Answer the request in the folder named on the command line."""
    folder = Path(sys.argv[1])
    request: Any = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    try:
        answer = _build(folder, request)
    except EdgepressError as error:
        answer = {"error": error_to_json(error)}
    (folder / ANSWER).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def _build(folder: Path, request: Any) -> dict[str, object]:
    if request["engine"] in NEEDS_GPU:
        driver = cuda()
        driver.use(driver.retain(int(request["gpu"])))
    trt = load_backend(request["engine"])
    timing = folder / TIMING
    measured = timing.read_bytes() if timing.is_file() else None
    options = BuildOptions.from_dict(request["options"])
    model, capability = (folder / MODEL).read_bytes(), request.get("compute_capability", "")
    made = build_in_process(trt, model, options, measured, compute_capability=capability)
    (folder / PLAN).write_bytes(made.plan)
    if measured is not None:
        timing.write_bytes(made.timing_cache)
    return {"facts": made.facts}
