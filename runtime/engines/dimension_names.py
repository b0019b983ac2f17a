"""Names of free dimensions, read off an ONNX file: for engines that forget them.

Only the few fields on the way there are read, in protobuf's wire format as ``onnx.proto`` numbers
them; weights are stepped over.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def free_names(model: bytes) -> dict[str, tuple[str, ...]]:
    """The name of each dimension of the graph's inputs and outputs, by tensor name.

    A dimension without a name, among them those of a fixed size, is an empty text. What is no ONNX
    file, or a damaged one, has no names: whether it can be run is for its engine to say.

    Args:
        model: An ONNX model.
    """
    found: dict[str, tuple[str, ...]] = {}
    try:
        for graph in _parts(memoryview(model), 7):
            for kind in (11, 12):  # input, output
                for value in _parts(graph, kind):
                    name = "".join(_text(part) for part in _parts(value, 1))
                    found[name] = tuple(_dimensions(value))
    except (ValueError, IndexError):  # UnicodeDecodeError is a ValueError
        return {}
    return found


def _dimensions(value: memoryview) -> Iterator[str]:
    for kind in _parts(value, 2):  # type
        for tensor in _parts(kind, 1):  # tensor_type
            for shape in _parts(tensor, 2):
                for size in _parts(shape, 1):  # dim
                    yield "".join(_text(part) for part in _parts(size, 2))  # dim_param


def _text(part: memoryview) -> str:
    return bytes(part).decode("utf-8")


def _parts(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The contents of one field of a message, as often as it is there; it holds bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            size, at = _varint(message, at)
            if key >> 3 == wanted:
                yield message[at : at + size]
            at += size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
