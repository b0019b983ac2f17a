"""On what a measurement was taken. It names no user and no host."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from ... import __version__

_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "f16c",
    "fma",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
"""Instruction sets that decide how fast a network runs, as Linux calls them."""

_PACKAGES = ("numpy", "pillow", "onnxruntime", "openvino")
_CGROUP = Path("/sys/fs/cgroup")


def fingerprint(engine: Mapping[str, object] | None = None) -> dict[str, object]:
    """Machine and software, JSON values only.

    Args:
        engine: What the engine says of itself (:meth:`Engine.facts`); goes in as it is.

    Returns:
        ``cpu`` (model, machine, flags of interest, cores, affinity, governor, quota in cores),
        ``memory_bytes``, ``system`` (os, kernel, libc, virtual machine, container), ``software``
        (edgepress, python, numpy, pillow, the engines), ``timer_resolution_ns``, ``time_utc``. What
        this system does not tell is ``None``.
    """
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    result: dict[str, object] = {
        "cpu": {
            "model": info.get("model name") or info.get("Model") or platform.processor() or None,
            "machine": platform.machine(),
            "flags": [flag for flag in _FLAGS if flag in flags],
            "cores": os.cpu_count(),
            "affinity": _affinity(),
            "governor": _line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "quota_cores": _quota(),
        },
        "memory_bytes": _memory_bytes(),
        "system": {
            "os": _os_name(),
            "kernel": platform.release(),
            "libc": " ".join(platform.libc_ver()).strip() or None,
            "virtual_machine": "hypervisor" in flags if flags else None,
            "container": _container(),
        },
        "software": {
            "edgepress": __version__,
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            **{name: _version(name) for name in _PACKAGES},
        },
        "timer_resolution_ns": round(time.get_clock_info("perf_counter").resolution * 1e9),
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if engine is not None:
        result["engine"] = dict(engine)
    return result


def load_average() -> float | None:
    """Processes that wanted a core in the last minute, on average; ``None`` where unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def processor_ticks() -> tuple[int, int] | None:
    """All ticks of all cores since the start, and those that the hypervisor took (steal).

    ``None`` where the system does not tell.
    """
    line = _line("/proc/stat")
    if line is None or not line.startswith("cpu "):
        return None
    ticks = [int(word) for word in line.split()[1:9]]
    return (sum(ticks), ticks[7]) if len(ticks) == 8 else None


def _cpuinfo() -> dict[str, str]:
    """The first core's entries, and those that follow all cores."""
    found: dict[str, str] = {}
    for line in _lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    if not found and sys.platform == "darwin":
        found["model name"] = platform.processor()
    return found


def _affinity() -> list[int] | None:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return None


def _quota() -> float | None:
    """Cores' worth of time that the control group allows; ``None`` where there is no limit."""
    words = (_line(_CGROUP / "cpu.max") or "").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
        return int(words[0]) / int(words[1])
    return None


def _memory_bytes() -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _os_name() -> str:
    for line in _lines("/etc/os-release"):
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip().strip('"')
    return platform.system()


def _container() -> str | None:
    """Which container this is, as far as it shows; ``None`` for none."""
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    for line in _lines("/proc/1/cgroup"):
        for name in ("kubepods", "docker", "lxc", "containerd"):
            if name in line:
                return name
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _line(path: str | Path) -> str | None:
    return next(_lines(path), None)


def _lines(path: str | Path) -> Iterator[str]:
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            yield line.rstrip("\n")
