"""Targets: an engine on a device, as frozen data."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError

_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")
_TOLD = (
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "CPU implementer",
    "CPU variant",
    "CPU part",
    "CPU revision",
    "Hardware",
    "Model",
)
"""What Linux tells of a core and of its board: the first five on x86, the others on Arm."""


@dataclass(frozen=True)
class Target:
    """An engine on a device, and what it wants to read.

    Attributes:
        name: What the user writes, e.g. ``onnxruntime-cpu``.
        engine: The runtime's engine that serves it.
        dialect: How that engine wants to read INT8 on this processor.
        precisions: What it can run, the narrowest first.
        channel_multiple: Channel counts worth keeping when a layer is made narrower.
    """

    name: str
    engine: str
    dialect: str
    precisions: tuple[str, ...]
    channel_multiple: int


TARGET_NAMES = ("onnxruntime-cpu", "openvino-cpu", "tensorrt", "tensorrt-rtx")


def target(name: str) -> Target:
    """The target called ``name``, its dialect chosen for the processor at hand.

    Raises:
        InputError: ``E_TARGET`` for a name that is not a target.
    """
    if name not in TARGET_NAMES:
        raise InputError(
            "E_TARGET",
            f"unknown target '{name}'.",
            mend="Known targets: " + ", ".join(TARGET_NAMES),
        )
    if name == "openvino-cpu":
        return Target(name, "openvino", openvino_dialect(), ("int8", "float32"), 8)
    if name in ("tensorrt", "tensorrt-rtx"):
        return Target(name, name, name, ("int8", "float16", "float32"), 8)
    return Target(name, "onnxruntime", onnxruntime_dialect(), ("int8", "float32"), 8)


def onnxruntime_dialect() -> str:
    """``onnxruntime-arm`` on Arm, else ``onnxruntime-x86-vnni`` or ``onnxruntime-x86``, by flags.

    Without VNNI, ONNX Runtime's kernels add pairs of products in 16 bits, which saturates with
    full-range weights; that dialect therefore uses half the weights' range. Where the flags cannot
    be read (not Linux), the careful dialect is taken.
    """
    if _is_arm():
        return "onnxruntime-arm"
    return "onnxruntime-x86-vnni" if _has_vnni() else "onnxruntime-x86"


def openvino_dialect() -> str:
    """``openvino``, or ``openvino-half`` on an x86 processor without VNNI.

    There OpenVINO's kernels add pairs of products in 16 bits as ONNX Runtime's do.
    """
    return "openvino" if _is_arm() or _has_vnni() else "openvino-half"


def serves(dialect: str) -> bool:
    """Whether this processor is one that a dialect was made for.

    The careful x86 dialects run right on every x86 processor, and as well as any where there is no
    VNNI. A dialect that does not depend on the processor, or is not known, is no reason against.
    """
    wanted = {
        "onnxruntime-x86-vnni": not _is_arm() and _has_vnni(),
        "onnxruntime-x86": not _is_arm(),
        "onnxruntime-arm": _is_arm(),
        "openvino": _is_arm() or _has_vnni(),
    }
    return wanted.get(dialect, True)


def processor() -> str:
    """Kind and model of the processor at hand and of its board, as far as the system tells.

    On Arm two processors may go by one name, or by none: there the numbers of the cores tell them
    apart, each kind of core once, and the board by its own name.
    """
    found: list[str] = []
    for line in _read(_CPUINFO).splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name in _TOLD:
            found.append(f"{name} {value}")
    board = _read(_BOARD).rstrip("\0\n")
    told = [*dict.fromkeys(found), board] if found else [platform.processor(), board]
    return ", ".join(filter(None, [platform.machine(), *told]))


def _is_arm() -> bool:
    return platform.machine().lower() in ("aarch64", "arm64", "armv7l")


def _has_vnni() -> bool:
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(_read(_CPUINFO).split())


def _read(path: Path) -> str:
    """What the system tells in a file of its own; nothing where it has none such."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
