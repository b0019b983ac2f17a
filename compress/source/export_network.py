"""Export without compressing: a Graph of any network that the user can name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ...benchmarks.data.images import Images
from ...export.graph.onnx_graph import Graph
from ...export.graph.torch_capture import capture, input_names
from ...runtime.errors import InputError
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.tensors import Array
from .data_and_task import Data
from .source_network import Model, example_of, open_model, opset_for

_PICTURES = 16


def export_graph(
    model: Model,
    *,
    weights: str | None = None,
    preprocessing: Preprocessing | None = None,
    data: Data | None = None,
    example: Mapping[str, Array] | None = None,
    opset: int | None = None,
    static_shape: tuple[int, ...] | None = None,
) -> Graph:
    """Capture a network as a float32 Graph.

    Args:
        model: As :func:`edgepress.compress.compress` takes it.
        weights: File of the weights, where ``model`` names a factory.
        preprocessing: How pictures reach it; its crop gives the input's size where there is no
            ``data``.
        data: Pictures to compare on; what :meth:`edgepress.benchmarks.Images.of` takes.
        example: Input arrays by name, in place of pictures.
        opset: ONNX operator set, 18 by default; an ONNX file keeps its own.
        static_shape: ``(N, C, H, W)`` that every input shall have, batch included; free batch
            without it.

    Raises:
        InputError: ``E_SHAPE`` where nothing tells the input's shape, or the pictures have another;
            ``E_USAGE`` for an opset or a shape beside an ONNX file; what opening the network and
            capturing it raise.
    """
    opened = open_model(model, weights)
    opset = opset_for(opened, opset)
    if isinstance(opened, Graph):
        if static_shape is None:
            return opened
        raise InputError(
            "E_USAGE", "an ONNX file keeps its own shapes.", mend="Leave out --static-shape."
        )
    used = preprocessing or opened.preprocessing
    rows = static_shape[0] if static_shape else 2
    parity: list[Mapping[str, Array]] = []
    if example is None and data is not None:
        images = Images.of(data)
        count = rows if static_shape else max(rows, min(_PICTURES, len(images)))
        example = example_of(opened.module, images, used, count)
        parity.append(example)
    elif example is None:
        example = random_example(opened.module, used, static_shape)
    for name, array in example.items():
        if static_shape is not None and array.shape[1:] != static_shape[1:]:
            raise InputError(
                "E_SHAPE",
                f"--static-shape is {static_shape}, '{name}' is {array.shape}.",
                mend="Set the preprocessing's crop to that height and width.",
            )
    return capture(
        opened.module,
        {name: array[:rows] for name, array in example.items()},
        opset=opset,
        dynamic_batch=static_shape is None,
        parity_on=parity,
        source=opened.name,
    )


def random_example(
    module: torch.nn.Module, preprocessing: Preprocessing | None, shape: tuple[int, ...] | None
) -> dict[str, Array]:
    """Random numbers for every input of a module.

    Args:
        module: The network.
        preprocessing: Its crop tells the size where ``shape`` does not.
        shape: ``(N, C, H, W)``, or ``None``.

    Raises:
        InputError: ``E_SHAPE`` where nothing tells the size.
    """
    if shape is None and preprocessing is not None and preprocessing.size is not None:
        shape = (2, preprocessing.channels or 3, *preprocessing.size)
    if shape is None:
        raise InputError(
            "E_SHAPE",
            "nothing tells the shape of the network's input.",
            mend="Give --data, a --preprocessing with a crop, or --static-shape N,C,H,W.",
        )
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(shape).astype(np.float32) for name in input_names(module)
    }
