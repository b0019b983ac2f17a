"""NVIDIA's driver, spoken to directly: is it there, which GPU, memory, streams, graphs.

TensorRT crashes, or gives ``None`` for an answer, where there is no driver; so this is asked first,
before anything of TensorRT is imported. Only functions of the CUDA driver API are used, which the
driver itself brings: no CUDA toolkit has to be installed, on a desktop or on a Jetson.

Source: CUDA Driver API, https://docs.nvidia.com/cuda/cuda-driver-api (names with ``_v2`` are those
that the header's macros stand for).
"""

from __future__ import annotations

import ctypes
import re
import sys
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..tensors import Array

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_...: other threads may go on with their own work
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not serialized with the default stream
_VERSION = re.compile(r"\b[0-9]{3,4}(?:\.[0-9]+){1,3}\b")
_TOLD_BY = ("/proc/driver/nvidia/version", "/etc/nv_tegra_release")  # a desktop's, a Jetson's


@dataclass(frozen=True)
class Gpu:
    """One GPU and its driver.

    Attributes:
        index: Its number.
        name: Its name.
        compute_capability: Such as ``8.7``.
        driver: Version of the driver: its own where the system tells, and of CUDA that it serves.
    """

    index: int
    name: str
    compute_capability: str
    driver: str


@lru_cache(maxsize=1)
def cuda() -> Cuda:
    """The driver, loaded and started once in a process.

    Raises:
        EngineError: ``E_DRIVER`` where there is no driver, or no GPU.
    """
    return Cuda(_LIBRARY)


class Cuda:
    """The CUDA driver API, as far as it is needed; each call that fails raises.

    Args:
        library: Name or path of the driver's library.

    Raises:
        EngineError: ``E_DRIVER`` where it cannot be loaded or started.
    """

    def __init__(self, library: str) -> None:
        try:
            self._library: Any = ctypes.CDLL(library)
            start = self._library.cuInit
        except (OSError, AttributeError) as error:
            raise _no_driver(f"the library {library} cannot be loaded ({error})") from error
        status = int(start(0))
        if status:
            raise _no_driver(f"cuInit answered {status}, {self._told(status)}")
        count = c_int()
        self._call("cuDeviceGetCount", byref(count))
        if not count.value:
            raise _no_driver("it knows of no GPU")
        self.count = count.value

    def gpu(self, index: int = 0) -> Gpu:
        """The GPU with that number.

        Raises:
            EngineError: ``E_PROVIDER`` where there are fewer.
        """
        device = self._device(index)
        name = (c_char * 256)()
        major, minor, version = c_int(), c_int(), c_int()
        self._call("cuDeviceGetName", name, c_int(256), device)
        self._call("cuDeviceGetAttribute", byref(major), c_int(_MAJOR), device)
        self._call("cuDeviceGetAttribute", byref(minor), c_int(_MINOR), device)
        self._call("cuDriverGetVersion", byref(version))
        served = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        return Gpu(
            index,
            name.value.decode("utf-8", "replace"),
            f"{major.value}.{minor.value}",
            ", ".join([*_system_driver(), served]),
        )

    def retain(self, index: int) -> int:
        """A handle of a GPU's primary context, which CUDA's runtime uses as well."""
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), self._device(index))
        return context.value or 0

    def release(self, index: int) -> None:
        """Give back what :meth:`retain` gave."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._device(index))

    def use(self, context: int) -> None:
        """Let this thread work in a context."""
        self._call("cuCtxSetCurrent", c_void_p(context))

    def allocate(self, size_bytes: int) -> int:
        """Address of device memory."""
        address = c_ulonglong()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(size_bytes))
        return address.value

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call("cuMemFree_v2", c_ulonglong(address))

    def allocate_host(self, size_bytes: int) -> int:
        """Address of page-locked host memory, which copies need not stage."""
        address = c_void_p()
        self._call("cuMemHostAlloc", byref(address), c_size_t(size_bytes), c_uint(0))
        return address.value or 0

    def free_host(self, address: int) -> None:
        """Free page-locked host memory."""
        self._call("cuMemFreeHost", c_void_p(address))

    def copy_in(self, device: int, host: Array, stream: int) -> None:
        """Copy a contiguous array to the device, in order of the stream."""
        size, source = c_size_t(host.nbytes), c_void_p(host.ctypes.data)
        self._call("cuMemcpyHtoDAsync_v2", c_ulonglong(device), source, size, c_void_p(stream))

    def copy_out(self, host: Array, device: int, stream: int) -> None:
        """Copy from the device into a contiguous array, in order of the stream."""
        size, target = c_size_t(host.nbytes), c_void_p(host.ctypes.data)
        self._call("cuMemcpyDtoHAsync_v2", target, c_ulonglong(device), size, c_void_p(stream))

    def stream(self) -> int:
        """A new stream."""
        stream = c_void_p()
        self._call("cuStreamCreate", byref(stream), c_uint(_NON_BLOCKING))
        return stream.value or 0

    def wait(self, stream: int) -> None:
        """Wait until a stream has done its work."""
        self._call("cuStreamSynchronize", c_void_p(stream))

    def destroy_stream(self, stream: int) -> None:
        """Free a stream."""
        self._call("cuStreamDestroy_v2", c_void_p(stream))

    def begin_capture(self, stream: int) -> None:
        """From now on the stream's work is recorded, not done."""
        self._call("cuStreamBeginCapture_v2", c_void_p(stream), c_int(_THREAD_LOCAL))

    def end_capture(self, stream: int) -> int:
        """What was recorded, ready to be launched any number of times."""
        graph, executable = c_void_p(), c_void_p()
        self._call("cuStreamEndCapture", c_void_p(stream), byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", byref(executable), graph, c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return executable.value or 0

    def launch(self, executable: int, stream: int) -> None:
        """Do what was recorded."""
        self._call("cuGraphLaunch", c_void_p(executable), c_void_p(stream))

    def destroy_graph(self, executable: int) -> None:
        """Free what was recorded."""
        self._call("cuGraphExecDestroy", c_void_p(executable))

    def _device(self, index: int) -> c_int:
        device = c_int()
        if not 0 <= index < self.count:
            raise EngineError(
                "E_PROVIDER",
                f"GPU {index} was asked for, this machine has {self.count}.",
                mend="They count from 0.",
            )
        self._call("cuDeviceGet", byref(device), c_int(index))
        return device

    def _call(self, name: str, *arguments: object) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise _no_driver(f"it has no {name}: it is too old") from error
        status = int(function(*arguments))
        if status:
            raise EngineError(
                "E_BACKEND",
                f"the GPU's driver failed in {name}: {self._told(status)} ({status}).",
                mend="Is its memory full, or does another process hold the GPU?",
            )

    def _told(self, status: int) -> str:
        text = c_char_p()
        try:
            self._library.cuGetErrorString(c_int(status), byref(text))
        except AttributeError:
            return "which it does not explain"
        return (text.value or b"an unknown error").decode("utf-8", "replace")


def _system_driver() -> list[str]:
    """The driver's own version, where the system tells it."""
    for file in _TOLD_BY:
        try:
            told = Path(file).read_text(encoding="utf-8", errors="replace")
            return [version_of(told.splitlines()[0].strip())]
        except (OSError, IndexError):
            continue
    return []


def version_of(line: str) -> str:
    """The driver's version in what the system tells of it; all of that where none is seen."""
    found = _VERSION.search(line)
    return found[0] if found else line


def _no_driver(why: str) -> EngineError:
    return EngineError(
        "E_DRIVER",
        f"there is no usable NVIDIA driver: {why}.",
        mend="Run this on a machine with an NVIDIA GPU and its driver; inside of a container, "
        "start that with the GPU (docker run --gpus all).",
    )
