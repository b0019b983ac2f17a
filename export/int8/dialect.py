"""Dialects: how one engine wants to read INT8. A new one is a :class:`Dialect` and its test."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...runtime.errors import InputError

__all__ = ["DIALECTS", "MOVING", "Dialect", "dialect"]

MOVING = frozenset(
    {
        *("DepthToSpace", "Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Resize", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
"""Operators that only move values, but for forms of some that :func:`.layout.moves` knows."""


@dataclass(frozen=True)
class Dialect:
    """What an engine fuses, and in which types.

    Attributes:
        name: As targets and bundles name it.
        activation: ``uint8`` or ``int8``.
        weight_limit: Largest magnitude of a quantized weight; 127, or 63 where the processor adds
            pairs of products in 16 bits.
        weighted: Operators with constant weights that run in INT8.
        reads_signed: Whether kernels take activations in int8 as well as in uint8.
        products: Those of them that multiply two activations in INT8, too, and give floats.
        elementwise: Operators on activations alone that run in INT8 between a quantized input and
            output.
        moving: Operators that only move values: their output takes its input's scale, and the
            quantizers around them vanish.
        free_output: Weighted operators that may give float32 straight out.
        seized: Operators that the engine turns into INT8 by itself, weights included, wherever it
            finds dequantized inputs; where they stay float32, something must stand in between.
        moves_codes: Whether moving operators are written on the codes themselves, or on the floats
            that these stand for, where the engine carries the scale through by itself.
        symmetric: Whether every zero point is 0.
        float_bias: Whether biases stay floats, or become int32 codes.
        at_inputs: Whether codes are made at the inputs of INT8 nodes only, for an engine that moves
            quantizers to where it wants them; every other node reads the float tensor.
        weight_only: Whether weights alone become codes.
        least_channels: A convolution over fewer channels than these stays in float.
        uint8_weights: Whether kernels take weights in uint8, too, around a zero point; on x86 these
            are slower than those of int8 weights, and never add in 16 bits.
        gates: Activation functions and gates of floats that run inside of the INT8 kernel in front
            of them, where nothing is quantized in between.
        splits_dequantizers: Whether the engine gives each reader of a dequantized tensor a
            dequantizer of its own, so that they no longer share the tensor that they read.
        joins_channels: Whether codes of different scales are put together as they are, each channel
            at its own scale, where only floats are made of what comes out.
        moves_strides: Whether the engine moves the strides of convolutions over single values to
            where their input is made, between that and its quantizer, so that they run in float;
            strides are then taken by a node of their own, which moves codes.
    """

    name: str
    activation: str
    weight_limit: int
    weighted: frozenset[str]
    elementwise: frozenset[str]
    moving: frozenset[str]
    free_output: frozenset[str]
    seized: frozenset[str]
    moves_codes: bool = True
    symmetric: bool = False
    float_bias: bool = False
    at_inputs: bool = False
    weight_only: bool = False
    least_channels: int = 1
    uint8_weights: bool = False
    gates: frozenset[str] = frozenset()
    splits_dequantizers: bool = False
    reads_signed: bool = False
    products: frozenset[str] = frozenset()
    joins_channels: bool = False
    moves_strides: bool = False

    @property
    def lowest(self) -> int:
        """The lowest code of an activation; the zero point of everything behind a ReLU."""
        return 0 if self.activation == "uint8" else -128

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code of an activation."""
        return self.lowest, self.lowest + 255


def _onnxruntime(name: str, activation: str, weight_limit: int) -> Dialect:
    # Kernels: onnxruntime/core/optimizer/qdq_transformer/selectors_actions, release 1.23 to 1.31.
    return Dialect(
        name,
        activation,
        weight_limit,
        weighted=frozenset({"Conv", "Gemm", "MatMul"}),
        elementwise=frozenset(
            {"Add", "Mul", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool", "Concat"}
        ),
        moving=MOVING,
        free_output=frozenset({"Gemm", "MatMul"}),
        seized=frozenset(
            {
                *("Conv", "ConvTranspose", "Gemm", "MatMul"),  # weight_bias_quantization.cc
                *("Add", "Mul", "Sigmoid", "LeakyRelu", "Softmax", "Concat", "Where"),
                *("AveragePool", "GlobalAveragePool"),
            }
        ),
        uint8_weights=activation == "uint8",
        # YOLOX-Nano with its 83 dense convolutions in INT8 and SiLU in float32: 14.6 ms with a copy
        # that both readers share, 16.4 ms without.
        splits_dequantizers=True,
    )


def _openvino(name: str, weight_limit: int) -> Dialect:
    # Read from executed graphs of OpenVINO 2026.4, and timed: a residual Add runs inside of a
    # convolution where all three tensors are codes; so does an activation function or gate, but
    # only where nothing quantizes what lies between (1.5 to 1.9 times as fast as with quantizers).
    # A Transpose of codes, unlike one of floats between their quantizers, throws the next
    # convolution back to float32, and there is no INT8 SpaceToDepth. What has float32 weights stays
    # float32 between dequantized inputs, and a sum of one term is dropped: nothing stands between.
    # What is concatenated keeps a scale for each channel where a BatchNormalization reads it: with
    # one quantizer for all of it a DenseNet-121 takes 1.2 times as long. Strides of 1x1
    # convolutions that alone read a sum are moved up through it (StridesOptimization), which left
    # six of the 53 convolutions of a ResNet-50 in float32: 27.7 ms, and 19.2 ms with a MaxPool in
    # front of them.
    ours = _onnxruntime(name, "uint8", weight_limit)
    return replace(
        ours,
        elementwise=ours.elementwise - {"Sigmoid", "Mul", "LeakyRelu"},
        moving=ours.moving - {"SpaceToDepth"},
        free_output=ours.weighted,
        seized=frozenset(),
        moves_codes=False,
        uint8_weights=False,
        gates=frozenset({"Sigmoid", "Mul", "LeakyRelu", "HardSigmoid", "HardSwish", "Elu", "Tanh"}),
        reads_signed=True,
        products=frozenset({"MatMul"}),
        joins_channels=True,
        moves_strides=True,
    )


def _tensorrt() -> Dialect:
    # NVIDIA, "Working with quantized types": symmetric; the inputs of layers with weights, and of
    # a residual addition the skip connection; neither outputs nor biases. The builder moves
    # quantizers through what only moves values, so that nothing has to be written there. A
    # convolution of a picture's few channels wants padding to 4 or 32 of them, and TensorRT 10.16
    # was seen to have no INT8 kernel for one that is fused with its pooling: it stays in float.
    return Dialect(
        "tensorrt",
        "int8",
        127,
        weighted=frozenset({"Conv", "Gemm", "MatMul"}),
        elementwise=frozenset({"Add"}),
        moving=frozenset(),
        free_output=frozenset({"Conv", "Gemm", "MatMul", "Add"}),
        seized=frozenset(),
        symmetric=True,
        float_bias=True,
        at_inputs=True,
        least_channels=4,
    )


def _tensorrt_rtx() -> Dialect:
    # NVIDIA's support matrix of TensorRT-RTX 1.0 and 1.1 names INT8 for the weights of matrix
    # products alone ("INT8 WoQ GEMM"); convolutions have none. It buys size: promise no speed.
    return replace(
        _tensorrt(),
        name="tensorrt-rtx",
        weighted=frozenset({"Gemm", "MatMul"}),
        elementwise=frozenset[str](),
        weight_only=True,
        splits_dequantizers=False,
    )


DIALECTS = {
    d.name: d
    for d in (
        _onnxruntime("onnxruntime-x86-vnni", "uint8", 127),
        _onnxruntime("onnxruntime-x86", "uint8", 63),
        _onnxruntime("onnxruntime-arm", "int8", 127),
        _openvino("openvino", 127),
        _openvino("openvino-half", 63),
        _tensorrt(),
        _tensorrt_rtx(),
    )
}


def dialect(name: str) -> Dialect:
    """The dialect called ``name``.

    Raises:
        InputError: ``E_DIALECT`` for a name that is none.
    """
    if name not in DIALECTS:
        raise InputError(
            "E_DIALECT", f"unknown dialect '{name}'.", mend="Known: " + ", ".join(sorted(DIALECTS))
        )
    return DIALECTS[name]
