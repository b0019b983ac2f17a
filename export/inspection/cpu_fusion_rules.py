"""What keeps a node out of an engine's INT8 kernels, rule by rule, read off the file.

Source: ONNX Runtime's qdq_transformer (selectors), 1.23 to 1.31; for OpenVINO its low precision
transformations, and graphs that 2026.4 executed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from ...runtime.tensors import Array
from ..graph.onnx_files import constant_tensors
from ..graph.onnx_graph import Walk, clip_bounds
from ..int8.dialect import Dialect
from ..int8.quant_params import declared_code_type
from ..int8.stride_hoisting import over_single_values

RULES = {
    "per-channel activation": "folds the scales into the weights around it, or makes them one",
    "missing input quantizer": "fills it in from what tells one: what it came from, what reads it",
    "missing output quantizer": "fills it in from what reads the tensor, where something tells it",
    "int8 activation": "writes it as uint8: the same scale, the zero point moved by 128",
    "mixed types": "writes all activations in one type: same scales, zero points moved by 128",
    "zero point behind an activation function": "moves it to the lowest code, at the same scale",
    "scale behind a Clip": "clips the codes where the Clip ended, at the same scale",
    "output read as float, too": "lets the other readers read the dequantized codes",
    "float bias of Gemm": "writes the bias in int32",
    "computed weights": "nothing: the node stays float32",
    "float weights": "nothing: the node stays float32",
    "no INT8 kernel": "nothing: the node stays float32, its input as rounded as it was",
    "float16": "writes float32 around the INT8 kernels: this processor computes in no other",
    "not explained": "writes it in the form that is known to fuse",
    "scale in a list of one": "writes it as a scalar",
    "scale listed as an input": "takes it off the inputs: it is a constant again",
    "unfolded BatchNormalization": "writes it as an INT8 convolution of size 1",
    "strides over single values": "takes them by a MaxPool of single values before it",
    "quantizer inside of a kernel": "leaves it out: the activation function runs in the kernel",
    "stray quantizers": "leaves them out where they only reach into INT8 kernels",
}
"""By rule, what transcoding does about it."""

_HARMLESS = {
    "openvino": frozenset(
        {
            "scale in a list of one",
            "scale listed as an input",
            "int8 activation",
            "mixed types",
            "zero point behind an activation function",
            "scale behind a Clip",
            "output read as float, too",
            "float bias of Gemm",
        }
    )
}
"""By engine, rules that keep nothing out of its INT8 kernels."""

TITLES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}
"""What engines are called to people."""

_FREE = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "MaxPool")


@dataclass(frozen=True)
class Finding:
    """One rule that a node breaks."""

    rule: str
    why: str


@dataclass(frozen=True)
class _Quantizer:
    scale: Array
    zero: Array

    @property
    def kind(self) -> str:
        return self.zero.dtype.name

    @property
    def ends(self) -> tuple[float, float]:
        limits = np.iinfo(self.zero.dtype)
        scale, zero = float(self.scale.reshape(-1)[0]), int(self.zero.reshape(-1)[0])
        return (int(limits.min) - zero) * scale, (int(limits.max) - zero) * scale


class FusionRules:
    """The rules of one engine, for the nodes of one file."""

    def __init__(self, model: onnx.ModelProto, dialect: Dialect, engine: str) -> None:
        self.walk, self.dialect = Walk(model), dialect
        self.title = TITLES.get(engine, engine)
        self.harmless = _HARMLESS.get(engine, frozenset())
        self.constants = {
            name: numpy_helper.to_array(tensor) for name, tensor in constant_tensors(model)
        }
        self.listed = self.walk.input_names & self.constants.keys()

    def has_quantized_inputs(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes and reads a dequantized activation."""
        idle = node.op_type in (*_FREE, "Relu", "Clip", "Constant", "Cast")
        if idle or node.op_type.endswith("Linear") or node.op_type in self.dialect.moving:
            return False
        return any(self._quantizer_of(name) is not None for name in node.input)

    def findings(self, node: onnx.NodeProto) -> tuple[Finding, ...]:
        """Every rule that a node breaks, the first that keeps it out first; never empty."""
        weighted = node.op_type in self.dialect.weighted
        if node.op_type == "BatchNormalization":
            text = "quantizers around it keep it from being folded into the convolution"
            return (Finding("unfolded BatchNormalization", text),)
        if not weighted and node.op_type not in self.dialect.elementwise:
            return (Finding("no INT8 kernel", f"{self.title} has none for {node.op_type}"),)
        found = self._listed(node, weighted)
        if weighted:
            found += self._weights(node)
        reads = list(node.input[:1]) if weighted else [name for name in node.input if name]
        quantizers = {name: self._quantizer_of(name) for name in reads}
        for name, quantizer in quantizers.items():
            if quantizer is None and name not in self.constants:
                found.append(Finding("missing input quantizer", f"'{name}' comes in as float32"))
        given = [quantizer for quantizer in quantizers.values() if quantizer is not None]
        if any(quantizer.scale.size > 1 or quantizer.zero.size > 1 for quantizer in given):
            found.append(
                Finding("per-channel activation", "its input has a scale for each channel")
            )
        if not weighted and any(one.scale.shape == (1,) for one in given):
            found.append(Finding("scale in a list of one", "its kernel takes scalars only"))
        found += self._output(node, given)
        if node.op_type == "Gemm" and len(node.input) > 2 and not self._is_int32(node.input[2]):
            found.append(Finding("float bias of Gemm", "QGemm takes an int32 bias"))
        found = [finding for finding in found if finding.rule not in self.harmless]
        plain = not found and "int8 activation" not in self.harmless
        if plain and self.dialect.activation not in {one.kind for one in given}:
            text = f"the kernels of this processor take {self.dialect.activation}"
            found.append(Finding("int8 activation", text))
        if (
            not found
            and self.dialect.moves_strides
            and node.op_type == "Conv"
            and over_single_values(node, self._kernel(node))
        ):
            text = f"{self.title} moves its strides up to where its input is made, in floats"
            found.append(Finding("strides over single values", text))
        return tuple(found) or (Finding("not explained", f"{self.title} did not fuse it"),)

    def _listed(self, node: onnx.NodeProto, weighted: bool) -> list[Finding]:
        """Whether a scale around a node is an input with a default, which nothing may fold."""
        tail = self._tail(node)
        readers = self.walk.consumers.get((tail or node).output[0], [])
        found = [
            name for one in readers if one.op_type == "QuantizeLinear" for name in one.input[1:]
        ]
        for i, name in enumerate(node.input):
            maker = self._maker_of(name)
            if maker is not None and maker.op_type == "DequantizeLinear":
                of_weights = weighted and i > 0  # whose zero points may be anything
                found += maker.input[1:2] if of_weights else maker.input[1:]
        name = next((name for name in found if name in self.listed), None)
        if name is None:
            return []
        text = f"'{name}' is an input, too: it could be given another value at any run"
        return [Finding("scale listed as an input", text)]

    def _kernel(self, node: onnx.NodeProto) -> tuple[int, ...]:
        """Sizes of a layer's kernel; none where its weights are not constant."""
        name = node.input[1]
        while name in self.walk.producer and name not in self.constants:
            name = next(iter(self.walk.producer[name].input), "")
        return self.constants[name].shape[2:] if name in self.constants else ()

    def _weights(self, node: onnx.NodeProto) -> list[Finding]:
        maker = self.walk.producer.get(node.input[1])
        while maker is not None and maker.op_type in ("Transpose", "Reshape", "Identity"):
            maker = self.walk.producer.get(maker.input[0])
        if maker is None or maker.op_type == "Constant":
            if node.input[1] in self.constants:
                return [Finding("float weights", "its weights are float32 in the file")]
            return [Finding("computed weights", "its weights come into the network")]
        source = maker
        while source.op_type in ("DequantizeLinear", "QuantizeLinear"):
            if source.input[0] in self.constants:
                return []
            if source.input[0] not in self.walk.producer:
                break
            source = self.walk.producer[source.input[0]]
        return [Finding("computed weights", "its weights are computed while it runs")]

    def _tail(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The activation function behind a node that nothing else reads."""
        tail = self.walk.only_consumer(node.output[0])
        return tail if tail is not None and tail.op_type in ("Relu", "Clip") else None

    def _output(self, node: onnx.NodeProto, given: list[_Quantizer]) -> list[Finding]:
        """What is wrong behind a node."""
        out, tail = node.output[0], self._tail(node)
        if tail is not None:
            out = tail.output[0]
        readers = self.walk.consumers.get(out, [])
        quantizers = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
        if not quantizers:
            if node.op_type in self.dialect.free_output:
                return []
            reason = f"'{out}' is read as float32"
            if out in self.walk.output_names:
                reason = f"the network gives '{out}' out as float32"
            return [Finding("missing output quantizer", reason)]
        found: list[Finding] = []
        quantizer = self._read(quantizers[0])
        if quantizer is None:
            return found
        if quantizer.scale.size > 1 or quantizer.zero.size > 1:
            found.append(
                Finding("per-channel activation", "its output has a scale for each channel")
            )
        if len(quantizers) < len(readers) or out in self.walk.output_names:
            found.append(Finding("output read as float, too", f"'{out}' has other readers"))
        kinds = {one.kind for one in [*given, quantizer]}
        if len(kinds) > 1:
            found.append(Finding("mixed types", f"it reads and writes {' and '.join(kinds)}"))
        whole = quantizer.zero.dtype.kind in "iu"
        bounds = None
        if tail is not None and whole:
            bounds = clip_bounds_of(tail, self.constants, self.walk)
        if bounds is not None:
            low, high = quantizer.ends
            slack = 1e-6 * (high - low)
            if low < bounds[0] - slack:
                text = f"{quantizer.kind} codes go down to {low:.4g} behind a {tail_name(tail)}"
                found.append(Finding("zero point behind an activation function", text))
            elif high > bounds[1] + slack:
                text = f"codes go up to {high:.4g}, the Clip ends at {bounds[1]:g}"
                found.append(Finding("scale behind a Clip", text))
        return found

    def _is_int32(self, name: str) -> bool:
        maker = self.walk.producer.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return False
        codes = self.constants.get(maker.input[0])
        return codes is not None and codes.dtype == np.int32

    def _quantizer_of(self, name: str) -> _Quantizer | None:
        """The quantizer of an activation, through what only moves it; ``None`` for a constant."""
        maker = self._maker_of(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        source = maker.input[0]
        made = self.walk.producer.get(source)
        if source in self.constants or (made is not None and made.input[0] in self.constants):
            return None
        return self._read(maker)

    def _maker_of(self, name: str) -> onnx.NodeProto | None:
        """What makes a tensor, through what only moves it."""
        maker = self.walk.producer.get(name)
        while maker is not None and maker.op_type in _FREE:
            maker = self.walk.producer.get(maker.input[0])
        return maker

    def _read(self, node: onnx.NodeProto) -> _Quantizer | None:
        scale = self.constants.get(node.input[1])
        given = len(node.input) > 2 and bool(node.input[2])
        zero = self.constants.get(node.input[2]) if given else np.array(0, self._kind(node))
        return None if scale is None or zero is None else _Quantizer(scale, zero)

    def _kind(self, node: onnx.NodeProto) -> str:
        """Type of codes without a zero point: as the quantizer says, or what wrote them."""
        while node.op_type != "QuantizeLinear":
            source = node.input[0]
            if source in self.constants:
                return self.constants[source].dtype.name
            if source not in self.walk.producer:  # codes come in
                return "uint8"
            node = self.walk.producer[source]
        if len(node.input) > 2 and node.input[2] in self.constants:
            return self.constants[node.input[2]].dtype.name
        return declared_code_type(node)


def tail_name(node: onnx.NodeProto | None) -> str:
    """What an activation function is called."""
    return node.op_type if node is not None else "activation function"


def clip_bounds_of(
    node: onnx.NodeProto, constants: dict[str, Array], walk: Walk
) -> tuple[float, float] | None:
    """As ``clip_bounds`` of the graph, with bounds in Constant nodes, too."""
    if node.op_type == "Relu" or all(not n or n in walk.constants for n in node.input[1:]):
        return clip_bounds(node, walk)
    low, high = [*node.input[1:], "", ""][:2]
    if any(name and name not in constants for name in (low, high)):
        return None
    return (
        float(constants[low].item()) if low else -float("inf"),
        float(constants[high].item()) if high else float("inf"),
    )
