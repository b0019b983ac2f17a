"""Transcode: the scales that a file has, written in the dialect of the engine that will run it.

What it does: the file is taken apart (:mod:`.stripping`), each quantizer gets the form that the
dialect fuses, and the graph is written anew by :mod:`.dialects.qdq`. No data, no recalibration.

- int8 activations become uint8 where the dialect wants them, and back: the same scale, the zero
  point moved by 128.
- Behind a ReLU or Clip the zero point becomes the lowest code and the scale stays. A symmetric int8
  quantizer there only ever used its codes 0 to 127, and these stay what they were; the codes above
  them are clipped, so that what saturated goes on to saturate at the same value.
- Of two different quantizers on one tensor the wider is kept, for all that reads it.
- An output without a quantizer gets one from what reads it (:mod:`.filling`). Where one of these
  tells none, or the network gives it out, the node stays float32.
- Scales for each channel of an activation go into the weights on both sides where only depthwise
  convolutions read it (exact), else they become one scale with the widest range.
- Values that are only moved (sliced, padded, pooled by their maximum) keep the scale that they had
  before; where the given file's scale behind them is so different that a layer would lie more than
  a step off, they are quantized anew there.
- Weights keep their codes; only where the dialect cannot hold them are they quantized again.
- TensorRT has codes around 0, at the inputs of INT8 layers alone: :mod:`.input_codes`. Roundings
  elsewhere are left out, biases are float32. Codes that are not symmetric around 0 get a coarser
  step, which is told; where that takes a layer further than a step, the file is refused as any.

When it is exact: to within a quantization step at every layer, given the same inputs of that layer;
:mod:`.equality` proves it on random inputs before anything is written.

When it refuses: as :mod:`.stripping` and :mod:`.exact`; ``E_BOUND`` where the proof fails.

Source: ONNX Runtime's qdq_transformer (selectors and ClipQuantFusion), 1.23 to 1.31; folding of
scales into neighbouring weights as in Nagel et al. 2019 (arXiv:1906.04721, section 4.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import onnx

from ...runtime.errors import BoundError
from ..graph.normalize import normalize
from ..graph.onnx_files import read_onnx
from ..int8.dialect import Dialect
from .parse_qdq import parse_qdq
from .tensorrt_inputs import InputQuantizers
from .transcode_plan import Change, Liberties, TranscodePlan
from .verify_layers import LayerEquality, ReferenceFile, compare_layers

LARGEST_STEPS = 1.01
"""How far a layer may lie from the given file's, in steps: one, and float32's own rounding."""


@dataclass(frozen=True)
class Transcoded:
    """A file written anew.

    Attributes:
        model: Its bytes.
        dialect: Name of the dialect.
        changes: What is different from the given file.
        kept_float: Nodes with quantized inputs that stay float32.
        equality: How far its layers lie from those of the given file.
        int8_nodes: How many nodes were written in INT8.
        coarser: By tensor whose codes are not symmetric around 0, in a dialect that wants them so:
            how many times as coarse its step is now.
    """

    model: bytes
    dialect: str
    changes: tuple[Change, ...]
    kept_float: tuple[Change, ...]
    equality: LayerEquality
    int8_nodes: int
    coarser: Mapping[str, float] = field(default_factory=dict[str, float])

    def to_dict(self) -> dict[str, object]:
        """JSON form, without the bytes."""
        return {
            "dialect": self.dialect,
            "int8_nodes": self.int8_nodes,
            "changes": [vars(change) for change in self.changes],
            "changes_by_rule": dict(Counter(change.rule for change in self.changes)),
            "kept_float": [vars(change) for change in self.kept_float],
            "coarser": dict(self.coarser),
            "equality": self.equality.to_dict(),
        }


def transcode(
    path: str, dialect: Dialect, *, engine: str = "onnxruntime", force: bool = False
) -> Transcoded:
    """Write the INT8 file ``path`` in a dialect; nothing is written to disk.

    Args:
        path: An ONNX file with quantizers.
        dialect: How it shall be written.
        engine: What runs it, and proves it here. A dialect of inputs alone, TensorRT's, is proved
            in ONNX Runtime without optimizations, so that no GPU is needed.
        force: Give the result where a layer lies more than a step from the given file's, too.

    Raises:
        InputError: Where the file cannot be read or taken apart.
        BoundError: ``E_BOUND`` where a layer lies more than a step from the given file's.
        EngineError: ``E_BACKEND`` where one of the two files does not run; ``E_ENGINE``.
        MissingExtraError: Where the engine is not installed.
    """
    given = read_onnx(path)
    result = _attempt(given, path, dialect, engine, Liberties())
    fewer = _FEWER_LIBERTIES[0 if dialect.reads_signed else 1 :]
    for less in [Liberties(one_scale=False)] if dialect.at_inputs else fewer:
        if result.equality.layer_steps > LARGEST_STEPS:
            other = _attempt(given, path, dialect, engine, less)
            result = min(result, other, key=lambda one: one.equality.layer_steps)
    if result.equality.layer_steps > LARGEST_STEPS and not force:
        raise _too_far(path, result)
    return result


def _too_far(path: str, result: Transcoded) -> BoundError:
    message = (
        f"'{path}' in the dialect {result.dialect} would differ from the given file by "
        f"{result.equality.layer_steps:.2f} steps at '{result.equality.worst_tensor}'; one is "
        "allowed."
    )
    other = "Choose another --dialect"
    if result.coarser:
        message += (
            f" The codes of {len(result.coarser)} activations, '{next(iter(result.coarser))}' "
            "first, are not symmetric around 0, as this dialect's are: their steps would be up to "
            f"{max(result.coarser.values()):.2f} times as coarse."
        )
        other = (
            "Quantize with symmetric int8 activations (in quantize_static activation_type=QInt8 "
            "with ActivationSymmetric)"
        )
    mend = f"Nothing was written. {other}, or take it as it is with --accept-difference."
    return BoundError("E_BOUND", message, mend=mend, path=path)


_FEWER_LIBERTIES = [
    Liberties(*kept, signed=False)
    for kept in sorted(product((True, False), repeat=3), key=sum, reverse=True)
]


def _attempt(
    given: onnx.ModelProto, path: str, dialect: Dialect, engine: str, liberties: Liberties
) -> Transcoded:
    stripped = parse_qdq(given, path)
    original = dict(stripped.codes)
    makes = InputQuantizers if dialect.at_inputs else TranscodePlan
    decided = makes(stripped, dialect, liberties)
    decided.tell_left_out()
    folded = decided.fold()
    graph = normalize(
        stripped.model, source=path, keep=sorted(original.keys() | stripped.codes.keys())
    )
    quantized = decided.write(graph)
    filled = {name: decided.known[name] for name in decided.filled}
    truth = ReferenceFile(given, original, stripped.views, folded, filled)
    at_inputs = dialect.at_inputs
    by = "onnxruntime" if at_inputs else engine
    equality = compare_layers(truth, quantized, graph.inputs, by, at_inputs=at_inputs)
    changes, kept = tuple(decided.changes), tuple(decided.kept)
    units = len(quantized.units)
    return Transcoded(
        quantized.model, dialect.name, changes, kept, equality, units, decided.coarser
    )
