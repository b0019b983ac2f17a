"""What keeps a node out of INT8 in TensorRT, or its builder from taking the file at all.

Source: NVIDIA TensorRT Developer Guide, "Working with quantized types", and small graphs of one
fault each given to the builder of TensorRT-RTX 1.7: it refuses biases in int32, zero points other
than 0 and weights in uint8. Activations in uint8 around 0 it takes, and has no such type: what is
above code 127 is lost.
"""

from __future__ import annotations

import onnx

from ..graph.onnx_graph import attribute
from .cpu_fusion_rules import Finding, FusionRules

REMEDIES = {
    "Int32 bias": "writes it in float32, the same value",
    "zero point is not 0": "puts the codes around 0; where they do not fit, at a coarser step",
    "uint8 activation": "writes it as int8; where its codes do not fit, at a coarser step",
    "uint8 weights": "writes them as int8; those that do not fit are quantized again",
    "zero point of weights": "puts the codes around 0; those that do not fit are quantized again",
    "quantizer off the inputs": "leaves it out",
    "too few channels": "nothing: the node stays float32",
}
"""By rule, what transcoding does about it; ``RULES`` of the other engines has more."""

REFUSED = frozenset({"Int32 bias", "zero point is not 0", "uint8 weights", "zero point of weights"})
"""Rules for which the builder refuses the whole file."""

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class BuilderRules(FusionRules):
    """The rules of TensorRT, for the nodes of one file."""

    def has_quantized_inputs(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes and reads dequantized activations, weights or a bias."""
        if node.op_type not in _LAYERS:
            return super().has_quantized_inputs(node)
        return any(
            self._quantizer_of(name) is not None or self._dequantizer_of(name) is not None
            for name in node.input
        )

    def findings(self, node: onnx.NodeProto) -> tuple[Finding, ...]:
        """Every rule that a node breaks, the first that keeps it out first; empty for none."""
        found = [one for name in node.input if name for one in self._input(name)]
        if node.op_type in _LAYERS:
            found += self._constants(node)
        if node.op_type in self.dialect.weighted:
            found += self._layer(node)
        elif node.op_type in self.dialect.elementwise:
            found += self._sum(node)
        else:
            text = f"{self.title} has no INT8 kernel for {node.op_type}: it only rounds, and costs"
            if node.op_type == "ConvTranspose" and not self.dialect.weight_only:
                text = f"edgepress leaves it float: no kernel of {self.title} was proved"
            found.append(Finding("quantizer off the inputs", text))
        found.sort(key=lambda one: one.rule not in REFUSED)
        return tuple(found)

    def _input(self, name: str) -> list[Finding]:
        """What is wrong with the quantizer of an activation."""
        quantizer = self._quantizer_of(name)
        if quantizer is None:
            return []
        found: list[Finding] = []
        if quantizer.zero.any():
            text = f"'{name}' has its zero point at {int(quantizer.zero.reshape(-1)[0])}"
            found.append(Finding("zero point is not 0", f"{text}: its builder refuses the file"))
        elif quantizer.kind == "uint8":
            text = f"'{name}' is read as int8: what is above code 127 is lost"
            found.append(Finding("uint8 activation", text))
        if quantizer.scale.size > 1:
            found.append(Finding("per-channel activation", f"'{name}' has a scale a channel"))
        return found

    def _constants(self, node: onnx.NodeProto) -> list[Finding]:
        """What is wrong with the types of weights and bias."""
        found: list[Finding] = []
        dequantizer = self._dequantizer_of(node.input[1])
        if dequantizer is not None:
            codes = self.constants.get(dequantizer.input[0])
            zero = self.constants.get(dequantizer.input[2]) if len(dequantizer.input) > 2 else None
            if codes is not None and codes.dtype.name == "uint8":
                found.append(Finding("uint8 weights", "its builder refuses the file"))
            elif zero is not None and zero.any():
                found.append(Finding("zero point of weights", "its builder refuses the file"))
        if len(node.input) > 2 and self._is_int32(node.input[2]):
            found.append(Finding("Int32 bias", "its builder refuses the file"))
        return found

    def _layer(self, node: onnx.NodeProto) -> list[Finding]:
        """Whether a layer with an INT8 kernel has codes where that wants them."""
        found = self._weights(node)
        quantized = self._quantizer_of(node.input[0]) is not None
        if self.dialect.weight_only:
            if quantized:
                text = f"{self.title} has INT8 weights alone: it only rounds, and costs"
                found.append(Finding("quantizer off the inputs", text))
            return found
        if not quantized:
            found.append(
                Finding("missing input quantizer", f"'{node.input[0]}' comes in as float32")
            )
        shape = self._shape(node)
        least = self.dialect.least_channels
        if node.op_type == "Conv" and shape and shape[1] * attribute(node, "group", 1) < least:
            text = f"it reads fewer than {least} channels: {self.title} may have no kernel for it"
            found.append(Finding("too few channels", text))
        return found

    def _sum(self, node: onnx.NodeProto) -> list[Finding]:
        """Whether codes stand between a convolution and the addition that it takes in."""
        if any(self._quantizer_of(name) is None for name in node.input):
            return []
        text = "both its inputs are codes: only the skip connection shall be, the other is exact"
        return [Finding("quantizer off the inputs", text)]

    def _dequantizer_of(self, name: str) -> onnx.NodeProto | None:
        """The dequantizer that gives a constant, through what brings it into another form."""
        maker = self.walk.producer.get(name)
        while maker is not None and maker.op_type in ("Transpose", "Reshape", "Identity"):
            maker = self.walk.producer.get(maker.input[0])
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def _shape(self, node: onnx.NodeProto) -> tuple[int, ...]:
        dequantizer = self._dequantizer_of(node.input[1])
        value = self.constants.get(node.input[1] if dequantizer is None else dequantizer.input[0])
        return () if value is None else value.shape
