"""Run an engine that was built: device buffers, a stream, and where it is wanted a CUDA graph.

Memory is taken when shapes are seen for the first time and kept until they change. Inputs and
outputs go through page-locked memory, so that copies run in the order of the stream.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EngineError, InputError
from ..tensors import Array, Arrays
from .driver import Cuda
from .network_builder import DTYPES, quiet_logger

_SHOWN = 2  # of the errors that were logged


@dataclass(frozen=True)
class EngineTensor:
    """One input or output of an engine.

    Attributes:
        name: Its name in the graph.
        is_input: Whether it goes in.
        dtype: TensorRT's type.
        shape: Sizes; -1 for one that is free.
        least: Least shape of an input; its own where nothing is free.
        largest: Largest shape of an input.
    """

    name: str
    is_input: bool
    dtype: Any
    shape: tuple[int, ...]
    least: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass
class _Buffer:
    """Memory of one tensor, on the device and page-locked on the host."""

    device: int
    host_address: int
    host: Array


class Execution:
    """A loaded engine and all that it runs with; :meth:`close` frees it.

    Args:
        trt: The module ``tensorrt`` or ``tensorrt_rtx``.
        driver: The GPU's driver.
        index: Number of the GPU.
        plan: The engine, built by the same version for this GPU.
        cuda_graph: Whether to record an inference and launch the record.
        kernels: What :meth:`compiled` gave before, for an engine that compiles its kernels when it
            is loaded; empty where it was never asked, ``None`` where it shall not be.

    Raises:
        EngineError: ``E_BACKEND`` where the engine cannot be loaded, or wants inputs that only the
            host could give.
    """

    def __init__(
        self,
        trt: Any,
        driver: Cuda,
        index: int,
        plan: bytes,
        *,
        cuda_graph: bool = False,
        kernels: bytes | None = None,
    ) -> None:
        self._trt, self._driver, self._index = trt, driver, index
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._settings: Any = None  # of the context, which does not keep them alive
        self._kernels: Any = None
        self.took_kernels = False
        """Whether kernels that were compiled before serve here."""
        self._buffers: dict[str, _Buffer] = {}
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._wants_graph, self._graph, self._stream = cuda_graph, 0, 0
        self._logger = quiet_logger(trt)
        self._context_handle = driver.retain(index)
        driver.use(self._context_handle)
        try:
            self._runtime = trt.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise EngineError(
                    "E_BACKEND",
                    f"{trt.__name__} {trt.__version__} does not load the engine on this GPU"
                    f"{self._said()}.",
                    mend="Is the GPU one that this version supports, and its memory free?",
                )
            self._context = self._new_context(kernels)
            if self._context is None:
                raise self._failed("gives no execution context")
            self._tensors = self._read_tensors()
            self._stream = driver.stream()
        except BaseException:
            self.close()
            raise

    def _new_context(self, kernels: bytes | None) -> Any:
        if kernels is None:
            return self._engine.create_execution_context()
        self._settings = self._engine.create_runtime_config()
        self._kernels = self._settings.create_runtime_cache()
        self.took_kernels = bool(kernels) and bool(self._kernels.deserialize(kernels))
        self._settings.set_runtime_cache(self._kernels)
        return self._engine.create_execution_context(self._settings)

    def compiled(self) -> bytes:
        """The kernels that were compiled so far; empty where they were not asked for."""
        if self._kernels is None:
            return b""
        self._driver.use(self._context_handle)
        return bytes(memoryview(self._kernels.serialize()))

    def tensors(self) -> tuple[EngineTensor, ...]:
        """Inputs and outputs, in the engine's order."""
        return self._tensors

    def layers(self) -> str:
        """What the engine inspector says of each layer, as JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run once.

        Args:
            feeds: One array for each input, of its type and rank.

        Raises:
            InputError: ``E_INPUT`` for a size that the engine was not built for.
            EngineError: ``E_BACKEND`` where the GPU or TensorRT fails.
        """
        self._driver.use(self._context_handle)
        shapes = {name: array.shape for name, array in feeds.items()}
        if shapes != self._shapes:
            self._prepare(shapes)
        for tensor in self._tensors:
            if tensor.is_input:
                buffer = self._buffers[tensor.name]
                np.copyto(buffer.host, feeds[tensor.name])
                self._driver.copy_in(buffer.device, buffer.host, self._stream)
        if self._graph:
            self._driver.launch(self._graph, self._stream)
        else:
            self._enqueue()
        outputs = [tensor.name for tensor in self._tensors if not tensor.is_input]
        for name in outputs:
            buffer = self._buffers[name]
            self._driver.copy_out(buffer.host, buffer.device, self._stream)
        self._driver.wait(self._stream)
        return {name: self._buffers[name].host.copy() for name in outputs}

    def close(self) -> None:
        """Free everything; closing twice does no harm."""
        handle, self._context_handle = self._context_handle, 0
        if not handle:
            return
        self._driver.use(handle)
        if self._stream:
            self._driver.wait(self._stream)
        self._forget()
        self._context = self._settings = self._kernels = self._engine = self._runtime = None
        if self._stream:
            self._driver.destroy_stream(self._stream)
            self._stream = 0
        self._driver.release(self._index)

    def _read_tensors(self) -> tuple[EngineTensor, ...]:
        engine, found = self._engine, list[EngineTensor]()
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            is_input = engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            shape = tuple(engine.get_tensor_shape(name))
            if engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
                raise EngineError(
                    "E_BACKEND",
                    f"'{name}' decides on shapes, so that TensorRT wants it outside of the GPU.",
                    mend="Export the network with these sizes fixed.",
                    path=name,
                )
            least = largest = shape
            if is_input and -1 in shape:
                least, _, largest = (tuple(one) for one in engine.get_tensor_profile_shape(name, 0))
            dtype = engine.get_tensor_dtype(name)
            found.append(EngineTensor(name, is_input, dtype, shape, least, largest))
        return tuple(found)

    def _prepare(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Tell the shapes, take memory, and record the work where that is wanted."""
        self._shapes = None
        self._forget()
        for tensor in self._tensors:
            if tensor.is_input:
                shape = shapes[tensor.name]
                check_shape(tensor, shape)
                if not self._context.set_input_shape(tensor.name, shape):
                    raise self._failed(f"refuses the shape {shape} of '{tensor.name}'")
        for tensor in self._tensors:
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            if -1 in shape:
                raise EngineError(
                    "E_BACKEND",
                    f"the size of the output '{tensor.name}' depends on the data.",
                    mend="Export the network up to before that step (non-maximum suppression, "
                    "non-zero), and do the step outside.",
                    path=tensor.name,
                )
            buffer = self._buffers[tensor.name] = self._buffer(tensor, shape)
            if not self._context.set_tensor_address(tensor.name, buffer.device):
                raise self._failed(f"refuses the memory of '{tensor.name}'")
        if self._wants_graph:
            self._enqueue()  # what is set up lazily must not be recorded
            self._driver.wait(self._stream)
            self._driver.begin_capture(self._stream)
            try:
                self._enqueue()
            finally:
                self._graph = self._driver.end_capture(self._stream)
        self._shapes = shapes

    def _buffer(self, tensor: EngineTensor, shape: tuple[int, ...]) -> _Buffer:
        kind = np.dtype(DTYPES[tensor.dtype.name])
        size = max(1, math.prod(shape) * kind.itemsize)
        device = self._driver.allocate(size)
        try:
            address = self._driver.allocate_host(size)
        except EngineError:
            self._driver.free(device)
            raise
        raw = memoryview((ctypes.c_uint8 * size).from_address(address)).cast("B")
        host: Array = np.frombuffer(raw, dtype=kind, count=math.prod(shape)).reshape(shape)
        return _Buffer(device, address, host)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise self._failed("could not start the inference")

    def _failed(self, what: str) -> EngineError:
        return EngineError(
            "E_BACKEND",
            f"{self._trt.__name__} {self._trt.__version__} {what}{self._said()}.",
            mend="Free memory of the GPU, or run smaller inputs; then try again.",
        )

    def _said(self) -> str:
        """What it has logged of the last thing that failed, as the end of a sentence."""
        told = [line.rstrip(".") for line in self._logger.errors[-_SHOWN:]]
        self._logger.errors.clear()
        return ": " + "; ".join(told) if told else ""

    def _forget(self) -> None:
        if self._graph:
            self._driver.destroy_graph(self._graph)
            self._graph = 0
        for buffer in self._buffers.values():
            self._driver.free(buffer.device)
            self._driver.free_host(buffer.host_address)
        self._buffers.clear()


def check_shape(tensor: EngineTensor, shape: tuple[int, ...]) -> None:
    """Refuse an input that the engine was not built for.

    Raises:
        InputError: ``E_INPUT``.
    """
    fits = len(shape) == len(tensor.least) and all(
        low <= size <= high
        for low, size, high in zip(tensor.least, shape, tensor.largest, strict=True)
    )
    if not fits:
        raise InputError(
            "E_INPUT",
            f"input '{tensor.name}' is {shape}; the engine was built for {tensor.least} to "
            f"{tensor.largest}.",
            mend="Run what lies between, or build it for more: 'edgepress engine --batch', or "
            "Session.open(..., build=BuildOptions(batch=...)).",
            path=tensor.name,
        )
