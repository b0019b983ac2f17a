"""Which files are run how, and which of them are timed against which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgepress.runtime.engines.engine import Precision, computed_in

from .peers import MODELOPT, PEERS

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
OURS = "edgepress for {engine}"


@dataclass(frozen=True)
class Way:
    """A file in an engine.

    Attributes:
        file: What tables call the file.
        engine: What runs it.
        precision: What that computes floats in.
    """

    file: str
    engine: str
    precision: Precision = "f32"

    @property
    def key(self) -> str:
        """What tables call it."""
        told = self.file
        if self.precision == "bf16":
            told = "bfloat16" if told == "float32" else f"{told} with bfloat16"
        return f"{told} in {ENGINES[self.engine]}"


FLOAT = {engine: Way("float32", engine) for engine in ENGINES}
BF16 = Way("float32", "openvino", "bf16")
MADE = {engine: Way(OURS.format(engine=engine), engine) for engine in ENGINES}
FLOATS: dict[str, tuple[Precision, ...]] = {
    "onnxruntime": ("f32",),
    "openvino": ("f32", "bf16"),  # by itself it takes the second where the processor has it
}
"""What an engine computes the floats of other tools' files in."""

THEIRS = {
    engine: tuple(
        Way(name, engine, precision)
        for peer in (*PEERS, MODELOPT)
        for name in (peer, f"{peer}, transcoded for {engine}")
        for precision in FLOATS[engine]
    )
    for engine in ENGINES
}
WAYS = (
    *(FLOAT["onnxruntime"], *THEIRS["onnxruntime"], MADE["onnxruntime"]),
    *(FLOAT["openvino"], BF16, *THEIRS["openvino"], MADE["openvino"]),
)


def computed(way: Way, files: Mapping[str, Mapping[str, Any]]) -> Precision:
    """What a way's engine computes floats in: for our bundles, what they say."""
    held = files.get(way.file, {}).get("precision")
    return way.precision if held is None else computed_in(held)


def best_floats(engine: str) -> tuple[Way, ...]:
    """The unquantized ways to run a network on an engine."""
    return (FLOAT[engine], BF16) if engine == "openvino" else (FLOAT[engine],)


def pairs(*, most: bool) -> Iterator[tuple[Way, Way]]:
    """What is timed against what, the most telling first.

    Args:
        most: Ours against everything, and nothing besides.
    """
    base = FLOAT["onnxruntime"]
    for engine, ours in MADE.items():
        for floats in best_floats(engine):
            yield ours, floats
    if not most:
        yield FLOAT["openvino"], base
        yield BF16, base
    yield MADE["openvino"], base
    for engine, ours in MADE.items():
        for theirs in THEIRS[engine]:
            yield ours, theirs
    for engine, floats in () if most else FLOAT.items():
        for theirs in THEIRS[engine]:
            yield theirs, floats
