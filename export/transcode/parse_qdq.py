"""Read an INT8 file that anybody's tool made: the float32 network in it, and its quantizers.

What it does: every QuantizeLinear and DequantizeLinear is taken out; what they said is kept by the
name of the float32 tensor that they stood on, and quantized weights and biases become float32
constants that lie exactly on their grid. Codes that are moved or clipped between two quantizers are
followed; QLinearConv, QLinearMatMul, QLinearAdd and QGemm become what they compute. float16 becomes
float32.

When it refuses: scales, biases and paddings of codes that are computed while running, scales for
channels that are not there, types other than 8 bits, operators that compute on codes and are none
of those above, codes that go in or come out of the network.

Source: ONNX operators QuantizeLinear and DequantizeLinear, versions 10 to 23; quantize_static,
NNCF 3.4, ModelOpt 0.47 and torch's exporter for where they put them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import numpy_helper

from ...runtime.errors import InputError
from ...runtime.tensors import Array
from ..calibration.ranges import element_types, tensor_ranks
from ..graph.normalize import initializers_are_not_inputs
from ..graph.onnx_files import check_valid, constant_tensors, fold_casts
from ..graph.onnx_graph import all_names, attribute, evaluate_node, fresh_name, name_nodes, opset_of
from ..int8.dialect import MOVING
from ..int8.quant_params import CODE_RANGES, QuantParams, check_fits, read_quant_params
from .batchnorm_to_conv import as_factors
from .data_movement import move_codes
from .qoperators import QOPERATORS, plain_equal, why_not_bias, why_not_plain
from .scales_before_transpose import quantize_before_transposes

_MOVES = MOVING | {"Concat", "Identity"}
_GIVE_QDQ = "Give the Q/DQ form of the network (quant_format=QDQ in quantize_static)."
_GIVE_FLOATS = "Let the file take float32 and quantize inside."
_SHAPES = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Clip")


@dataclass(frozen=True)
class ParsedQdq:
    """An INT8 file taken apart.

    Attributes:
        model: The float32 network.
        codes: By name of a float32 tensor, the quantizer that stood on it.
        views: By name of a float32 tensor, the tensor of the given file with its values: codes
            where ``codes`` names it, else floats.
        weights: Constants of ``model`` that were quantized.
        constants: By name of one of them, its quantizer, where it has one scale.
        left_out: Tensors that stood under two different quantizers, and the narrower of them.
        raw: Outputs that the given file does not round to codes.
    """

    model: onnx.ModelProto
    codes: dict[str, QuantParams]
    views: dict[str, str]
    weights: set[str]
    constants: dict[str, QuantParams] = field(default_factory=dict[str, QuantParams])
    left_out: list[tuple[str, QuantParams]] = field(default_factory=list[tuple[str, QuantParams]])
    raw: set[str] = field(default_factory=set[str])


def parse_qdq(model: onnx.ModelProto, path: str) -> ParsedQdq:
    """Take the quantizers out of a model.

    Args:
        model: The model; its nodes are named and constants leave its inputs, otherwise it is left
            as it is.
        path: What messages call it.

    Raises:
        InputError: ``E_MODEL`` where nothing is quantized, or where codes go in or come out;
            ``E_OP`` for what cannot be taken apart.
    """
    check_valid(model, path)
    initializers_are_not_inputs(model)
    fold_casts(model)
    quantize_before_transposes(model)
    name_nodes(model)
    return _Stripper(model, path).strip()


class _Stripper:
    def __init__(self, model: onnx.ModelProto, path: str) -> None:
        self.given, self.path = model, path
        self.constants = {
            name: _to_float32(numpy_helper.to_array(t)) for name, t in constant_tensors(model)
        }
        self.taken, self.kinds = all_names(model), element_types(model)
        self.ranks = tensor_ranks(model)
        self.alias: dict[str, str] = {}  # a dequantized tensor -> the float tensor it stands for
        self.coded: dict[
            str, tuple[str, QuantParams]
        ] = {}  # codes -> the float tensor, what they mean
        self.found = ParsedQdq(onnx.ModelProto(), {}, {}, set())
        self.nodes: list[onnx.NodeProto] = []
        self.quantizers = 0

    def strip(self) -> ParsedQdq:
        for value in [*self.given.graph.input, *self.given.graph.output]:
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
                raise InputError(
                    "E_MODEL",
                    f"'{self.path}' takes or gives float16 ('{value.name}').",
                    mend="Keep float32 inputs and outputs when exporting.",
                    path=value.name,
                )
        for node in self.given.graph.node:
            if node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantize(node)
            elif node.op_type in QOPERATORS:
                self._qoperator(node)
            elif node.op_type != "Constant":
                self._other(node)
        if not self.quantizers:
            raise InputError(
                "E_MODEL",
                f"'{self.path}' has no quantizers: it is no INT8 file.",
                mend="Give a file with QuantizeLinear and DequantizeLinear; "
                "'edgepress compress' makes one from a float32 network.",
                path=self.path,
            )
        self._outputs()
        self._assemble()
        return self.found

    def _refuse(self, message: str, mend: str, name: str) -> InputError:
        return InputError("E_OP", f"'{self.path}': {message}", mend=mend, path=name)

    def _codes(
        self, node: onnx.NodeProto, inputs: list[str], kind: str = "", *, dead: bool = False
    ) -> QuantParams:
        return read_quant_params(node, inputs, self.constants, self.path, kind=kind, dead=dead)

    def _quantize(self, node: onnx.NodeProto) -> None:
        source, out = node.input[0], node.output[0]
        codes = self._codes(node, list(node.input[1:]))
        self.quantizers += 1
        if source in self.constants:
            check_fits(codes, self.constants[source], node, self.path)
            self.constants[out] = codes.encode(self.constants[source]).astype(codes.kind)
        else:
            name = self.alias.get(source, source)
            self.coded[out] = (name, codes)
            self._stands_on(name, codes, out)

    def _stands_on(self, name: str, codes: QuantParams, view: str) -> None:
        """Remember a quantizer; of two different ones on one tensor, the wider."""
        before = self.found.codes.get(name)
        if before is not None and not before.same(codes):
            wider = before.high - before.low >= codes.high - codes.low
            self.found.left_out.append((name, codes if wider else before))
            if wider:
                return
        self.found.codes[name], self.found.views[name] = codes, view

    def _dequantize(self, node: onnx.NodeProto) -> None:
        source, out = node.input[0], node.output[0]
        constant = source in self.constants
        codes = self._codes(node, list(node.input[1:]), self._kind_of(source), dead=constant)
        self.quantizers += 1
        if constant:
            check_fits(codes, self.constants[source], node, self.path)
            self.constants[out] = codes.decode(self.constants[source])
            self.found.weights.add(out)
            if not codes.per_channel and codes.kind in CODE_RANGES:
                self.found.constants[out] = codes
            return
        if source not in self.coded:
            raise InputError(
                "E_MODEL",
                f"'{self.path}' takes codes in: '{source}' is dequantized but never quantized.",
                mend=_GIVE_FLOATS,
                path=source,
            )
        name, meant = self.coded[source]
        if not codes.same(meant):
            raise self._refuse(
                f"'{node.name}' reads codes at another scale than they were written at.",
                "Such a pair multiplies; export the network without that trick.",
                node.name,
            )
        self.alias[out] = name

    def _kind_of(self, name: str) -> str:
        if name in self.coded:
            return self.coded[name][1].kind
        return self.constants[name].dtype.name if name in self.constants else ""

    def _qoperator(self, node: onnx.NodeProto) -> None:
        """An operator on codes: what it computes, between floats."""
        shape, inputs = QOPERATORS[node.op_type], list[str]()
        reason = why_not_plain(node, opset_of(self.given))
        if reason is not None:
            raise self._refuse(f"'{node.name}' ({node.op_type}) {reason}.", _GIVE_QDQ, node.name)
        operands = shape.operands_of(node)
        for at in operands:
            name = node.input[at]
            codes = self._codes(node, list(node.input[at + 1 : at + 3]))
            if name in self.coded:
                source, written = self.coded[name]
                if not codes.steps_as(written):
                    raise self._refuse(
                        f"'{node.name}' reads '{name}' by another scale than it was written by.",
                        _GIVE_QDQ,
                        node.name,
                    )
                inputs.append(source)
            elif name in self.constants:
                if codes.per_channel:
                    codes = replace(codes, axis=shape.weight_axis(node))
                check_fits(codes, self.constants[name], node, self.path)
                value = self.constants[name]
                inputs.append(self._dequantized(f"{name}_float", codes, value))
            else:
                raise self._refuse(
                    f"'{node.name}' reads codes that come in.", _GIVE_FLOATS, node.name
                )
        if len(node.input) > shape.bias and node.input[shape.bias]:
            scales = [self.constants[node.input[at + 1]].reshape(-1) for at in operands]
            bias = self.constants.get(node.input[shape.bias])
            reason = why_not_bias(bias, scales)
            if bias is None or reason is not None:
                raise self._refuse(f"the bias of '{node.name}' {reason}.", _GIVE_QDQ, node.name)
            factor = float(attribute(node, "alpha", 1.0)) * scales[0] * scales[1]
            value = (bias.astype(np.float64) * factor).astype(np.float32)
            inputs.append(self._constant(f"{node.input[shape.bias]}_float", value))
        out = node.output[0]
        self.nodes.append(plain_equal(node, inputs, out))
        result = list(node.input[shape.result : shape.result + 2])
        if not any(result):  # QGemm without a scale gives floats
            return
        self.quantizers += 1
        codes = self._codes(node, result)
        self.coded[out] = (out, codes)
        self._stands_on(out, codes, out)

    def _dequantized(self, name: str, codes: QuantParams, value: Array) -> str:
        """A constant of codes, as what they stand for."""
        name = self._constant(name, codes.decode(value))
        self.found.weights.add(name)
        if not codes.per_channel:
            self.found.constants[name] = codes
        return name

    def _constant(self, name: str, value: Array) -> str:
        name = fresh_name(self.taken, name)
        self.constants[name] = value
        return name

    def _other(self, node: onnx.NodeProto) -> None:
        reads = [name for name in node.input if name in self.coded]
        integer_kernel = node.op_type.startswith(("QLinear", "Dynamic")) or (
            "Integer" in node.op_type or node.op_type == "QGemm"
        )
        if reads and node.op_type == "Clip" and self._clip_codes(node):
            return
        if reads and node.op_type in _MOVES:
            self._move(node)
            return
        if reads or integer_kernel:
            raise self._refuse(
                f"'{node.name}' ({node.op_type}) computes on codes, which cannot be taken apart.",
                _GIVE_QDQ,
                node.name,
            )
        if self._casts_float(node) or self._folds(node):
            return
        copy = self._scaled(node) if self._scales_codes(node) else onnx.NodeProto()
        if not copy.op_type:
            copy.CopyFrom(node)
        for i, name in enumerate(copy.input):
            copy.input[i] = self.alias.get(name, name)
        if node.op_type == "Cast" and attribute(node, "to") == onnx.TensorProto.FLOAT16:
            del copy.attribute[:]
            copy.attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT))
        self.nodes.append(copy)

    def _folds(self, node: onnx.NodeProto) -> bool:
        """Whether a node only brings a constant into another form, which is then done here."""
        if node.op_type not in _SHAPES or any(n and n not in self.constants for n in node.input):
            return False
        feeds = {name: self.constants[name] for name in node.input if name}
        self.constants[node.output[0]] = evaluate_node(node, self.given.opset_import, feeds)
        if node.input[0] in self.found.weights:
            self.found.weights.add(node.output[0])
        return True

    def _scales_codes(self, node: onnx.NodeProto) -> bool:
        """Whether a BatchNormalization reads codes, which nothing may fold it across."""
        if node.op_type != "BatchNormalization" or node.input[0] not in self.alias:
            return False
        constant = all(name in self.constants for name in node.input[1:])
        return constant and len(node.output) == 1 and self.ranks.get(node.input[0], 0) > 2

    def _scaled(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A BatchNormalization as what has an INT8 kernel."""
        gain, offset, mean, variance = (self.constants[name] for name in node.input[1:])
        epsilon = float(attribute(node, "epsilon", 1e-5))
        factor, bias = as_factors(gain, offset, mean, variance, epsilon)
        shape = [-1] + [1] * (self.ranks[node.input[0]] - 1)
        out = node.output[0]
        weights = self._constant(f"{out}_factor", factor.reshape(shape))
        self.found.weights.add(weights)
        inputs = [node.input[0], weights, self._constant(f"{out}_offset", bias)]
        return onnx.helper.make_node("Conv", inputs, [out], name=node.name, group=len(factor))

    def _casts_float(self, node: onnx.NodeProto) -> bool:
        """Whether a node casts floats to floats: all are float32 here, so that it is left out."""
        floats = (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT)
        if node.op_type != "Cast" or attribute(node, "to") not in floats:
            return False
        source, out = node.input[0], node.output[0]
        if source in self.constants or self.kinds.get(source) not in floats:
            return False
        self.alias[out] = self.alias.get(source, source)
        return True

    def _clip_codes(self, node: onnx.NodeProto) -> bool:
        """Clip on codes, which torch writes for a fake quantizer of fewer than 256 levels."""
        if any(one and one not in self.constants for one in node.input[1:]):
            return False
        if sum(node.input[0] in one.input for one in self.given.graph.node) > 1:
            return False  # somebody reads what is not clipped
        name, codes = self.coded[node.input[0]]
        low, high = [*node.input[1:], "", ""][:2]
        fewer = replace(
            codes,
            lowest=max(codes.lowest, int(self.constants[low].item()) if low else codes.lowest),
            highest=min(codes.highest, int(self.constants[high].item()) if high else codes.highest),
        )
        self.coded[node.output[0]] = (name, fewer)
        self.found.codes[name], self.found.views[name] = fewer, node.output[0]
        return True

    def _move(self, node: onnx.NodeProto) -> None:
        """Codes that are moved: the floats that they stand for are moved alike."""
        copy, codes = move_codes(node, self.coded, self.constants, self._dequantized, self.path)
        self.nodes.append(copy)
        for name in node.output:
            self.coded[name] = (name, codes)
            self._stands_on(name, codes, name)

    def _outputs(self) -> None:
        """Give the float tensors that the network gives out the names it gives them out under."""
        outputs = [value.name for value in self.given.graph.output]
        for name in outputs:
            if name in self.coded:
                raise InputError(
                    "E_MODEL",
                    f"'{self.path}' gives codes out: '{name}'.",
                    mend="Let it end with a DequantizeLinear.",
                    path=name,
                )
            source = self.alias.get(name)
            if source is None:
                self.found.raw.add(name)
                continue
            if source in outputs or source in {value.name for value in self.given.graph.input}:
                self.nodes.append(onnx.helper.make_node("Identity", [source], [name]))
                continue
            for node in self.nodes:
                for names in (node.input, node.output):
                    for i, used in enumerate(names):
                        if used == source:
                            names[i] = name
            for table in (self.found.codes, self.found.views):
                if source in table:
                    table[name] = table.pop(source)  # pyright: ignore[reportArgumentType]
            left_out = self.found.left_out
            left_out[:] = [(name if n == source else n, codes) for n, codes in left_out]
            self.alias = {k: name if v == source else v for k, v in self.alias.items()}

    def _assemble(self) -> None:
        model = self.found.model
        model.CopyFrom(self.given)
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        used |= {value.name for value in model.graph.output}
        for name, value in self.constants.items():
            if name in used:
                model.graph.initializer.append(numpy_helper.from_array(value, name))
        for name in {n for node in self.nodes for n in node.output} - self.found.views.keys():
            self.found.views[name] = name


def _to_float32(value: Array) -> Array:
    return value.astype(np.float32) if value.dtype == np.float16 else value
