"""The matrix's step for other tools: their files of the same graph beside our bundles, engine by engine.

``quantize_static`` and NNCF take the float32 graph of the network and the pictures that we calibrate with. Each file is
compared with float32 and timed in turn with what our bundle holds for that engine; in OpenVINO as that runs it by
itself, what is float in bfloat16 where the processor has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepress.benchmarks import compare, fixed_batch
from edgepress.benchmarks.data.images import Images
from edgepress.benchmarks.tasks.agreement import Agreements
from edgepress.runtime import EngineOptions, open_engine
from edgepress.runtime.engine_registry import computes_in
from edgepress.runtime.engines.engine import Precision

from ..peers.peers import PEERS
from .matrix_networks import Entry
from .matrix_table import ENGINES

_BATCH = 8
_PRESET = "quick"


def beside(entry: Entry, folder: Path, calibration: Images, test: Images) -> dict[str, Any]:
    """How far the files of other tools agree with float32, and how fast ours is beside them.

    Args:
        entry: The network.
        folder: Holds its graph and the bundles of the engines' steps.
        calibration: Pictures that the other tools calibrate with.
        test: Pictures to compare on.
    """
    how, float32 = entry.how(), folder / "float32.onnx"
    bundles = {engine: folder / f"{engine}-cpu" for engine in ENGINES}
    missing = [engine for engine, path in bundles.items() if not path.exists()]
    if missing:
        return {"error": f"no bundle for {' and '.join(missing)}: their steps come first, timed"}
    told: dict[str, Any] = {engine: {} for engine in ENGINES}
    for peer, tool in PEERS.items():
        file = folder / f"{peer}.onnx"
        try:
            tool(float32, file, calibration, how)
        except Exception as error:
            for engine in ENGINES:
                told[engine][peer] = {"error": _short(error)}
            continue
        for engine, path in bundles.items():
            try:
                precision: Precision = "bf16" if computes_in(engine, "bf16") else "f32"
                cosine = _cosine(entry, float32, file, engine, precision, test)
                times = _timed(entry, path, file, engine, precision)
                told[engine][peer] = {"cosine": cosine, **times}
            except Exception as error:
                told[engine][peer] = {"error": _short(error)}
    return told


def _timed(
    entry: Entry, bundle: Path, file: Path, engine: str, precision: Precision
) -> dict[str, Any]:
    """Ours over theirs: how many times as fast."""
    with open_engine(engine)(file.read_bytes(), EngineOptions()) as running:
        (spec,) = running.inputs
    free = any(isinstance(side, str) for side in spec.shape[1:])
    found = compare(
        bundle,
        file,
        preset=_PRESET,
        engine=engine,
        against_engine=engine,
        against_precision=precision,
        shapes={spec.name: (1, 3, *entry.sides())} if free else None,
    )
    ratios = {"ratio": found.ratio, "low": found.ratio_low, "high": found.ratio_high}
    return {**ratios, "settled": found.settled, "faster": found.faster}


def _cosine(
    entry: Entry, float32: Path, file: Path, engine: str, precision: Precision, test: Images
) -> float:
    """The cosine of the output that agrees least."""
    agreements = Agreements()
    options = EngineOptions(precision=precision)
    with (
        open_engine("onnxruntime")(float32.read_bytes(), EngineOptions()) as original,
        open_engine(engine)(file.read_bytes(), options) as running,
    ):
        wanted = fixed_batch(original.run, original.inputs)
        run = fixed_batch(running.run, running.inputs)
        for batch in test.batches(original.inputs, entry.how(), _BATCH):
            exact = wanted(batch.inputs)
            (given,) = batch.inputs.values()
            found = run({running.inputs[0].name: given})
            agreements.add(dict(zip(exact, found.values(), strict=True)), exact, len(batch))
    told: dict[str, Any] = agreements.to_dict()
    return min(one["mean_cosine"] for one in told.values())


def _short(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"
