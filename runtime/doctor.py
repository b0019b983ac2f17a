"""Is an engine usable here? Proved by running a tiny model in a child process, where it may crash.

The child runs :func:`main`, which prints one JSON object.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .child_process import child_command, how_it_ended
from .engine_registry import computes_in, open_engine
from .engines.engine import PRECISION_WORDS
from .errors import EdgepressError, EngineError, MissingExtraError

TIMEOUT_S = 60.0

# Conv (3x3, weights (k - 4) / 8 for k in 0..8), Relu; x and y (N, 1, 4, 4); opset 13, IR 8.
_TINY_ONNX = base64.b64decode(
    "CAgSADqmAQoiCgF4CgF3EgFjIgRDb252KhEKBHBhZHNAAUABQAFAAaABBwoMCgFjEgF5IgRSZWx1EgFnKjMIAQgBCAMI"
    "AxABQgF3SiQAAAC/AADAvgAAgL4AAAC+AAAAAAAAAD4AAIA+AADAPgAAAD9aHAoBeBIXChUIARIRCgMSAU4KAggBCgII"
    "BAoCCARiHAoBeRIXChUIARIRCgMSAU4KAggBCgIIBAoCCARCBAoAEA0="
)


@dataclass(frozen=True)
class EngineReport:
    """What was found of one engine.

    Attributes:
        engine: Its name.
        ok: Whether it ran the tiny model and gave the right numbers.
        version: The backend's version, or ``None`` where it did not come that far.
        providers: What serves inside it.
        reason: Why it is not ok; empty when it is.
        mend: What can be done about it; may be empty.
        installed: Whether it is there at all, and the hardware that it is for; an optional one need
            not be.
        precisions: What it can compute a graph's floats in on this processor.
    """

    engine: str
    ok: bool
    version: str | None = None
    providers: tuple[str, ...] = ()
    reason: str = ""
    mend: str = ""
    installed: bool = True
    precisions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return asdict(self)


def examine_engine(engine: str, timeout_s: float = TIMEOUT_S) -> EngineReport:
    """Prove an engine in a child process; whatever the child does, this one goes on.

    Args:
        engine: One of `edgepress.runtime.engine_registry.ENGINE_NAMES`.
        timeout_s: How long the child may take.
    """
    started = child_command(f"{__package__}.doctor", engine)
    try:
        child = subprocess.run(started, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return EngineReport(engine, False, reason=f"it did not end within {timeout_s:g} s")
    if child.returncode < 0:
        return EngineReport(engine, False, reason=f"it {how_it_ended(child.returncode)}")
    try:
        told: Any = json.loads(child.stdout.decode("utf-8"))
        told["providers"] = tuple(told["providers"])
        told["precisions"] = tuple(told["precisions"])
        return EngineReport(**told)
    except (ValueError, TypeError, KeyError):
        last = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        said = f", saying: {last[0]}" if last else ""
        return EngineReport(engine, False, reason=f"it {how_it_ended(child.returncode)}{said}")


def prove_engine(engine: str) -> EngineReport:
    """Run the tiny model in this process.

    Raises:
        EngineError: ``E_ENGINE`` for a name that is not an engine.
    """
    made = open_engine(engine)(b"" if engine == "null" else _TINY_ONNX)
    try:
        with made:
            facts = made.facts()
            _compute(made)
    except MissingExtraError as error:
        return EngineReport(engine, False, reason="not installed", mend=error.mend, installed=False)
    except EngineError as error:
        there = error.code != "E_DRIVER"  # without the hardware there is nothing to be broken
        return EngineReport(engine, False, reason=error.message, mend=error.mend, installed=there)
    providers: Any = facts.get("providers", [])
    floats = tuple(word for one, word in PRECISION_WORDS.items() if computes_in(engine, one))
    version = str(facts.get("version"))
    return EngineReport(engine, True, version, tuple(providers), precisions=floats)


def _compute(engine: Any) -> None:
    spec = engine.inputs[0]
    x = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4) - 15
    got = next(iter(engine.run({spec.name: x}).values()))
    if engine.name == "null":
        return
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    weights = (np.arange(9, dtype=np.float32).reshape(3, 3) - 4) / 8
    expected = sum(
        weights[row, column] * padded[:, :, row : row + 4, column : column + 4]
        for row in range(3)
        for column in range(3)
    )
    if not np.allclose(got, np.maximum(expected, 0), atol=1e-4):
        raise EngineError(
            "E_BACKEND",
            "it gave wrong numbers for a convolution of 4 x 4 values.",
            mend="Install another version of it, or of the driver that it uses.",
        )


def main() -> int:
    """Prove the engine that the command line names, and print the report as JSON."""
    try:
        report = prove_engine(sys.argv[1])
    except EdgepressError as error:
        report = EngineReport(sys.argv[1], False, reason=error.message, mend=error.mend)
    sys.stdout.write(json.dumps(report.to_dict()))
    return 0 if report.ok else 1
