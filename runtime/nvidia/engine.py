"""An engine of NVIDIA's, on a GPU: built or found in the cache, then run.

The order of things keeps what is native from crashing this process: the driver is asked first, then
the module is imported, the engine is built in a child, and only what was built for exactly this
GPU, driver and version is loaded here.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from ..engines.build_options import BuildOptions
from ..engines.dimension_names import free_names
from ..engines.engine import Engine, EngineOptions
from ..errors import EngineError, InputError
from ..tensors import Array, Arrays
from .child_builder import build_engine
from .driver import Cuda, Gpu, cuda
from .engine_cache import EngineCache
from .execution import EngineTensor, Execution
from .network_builder import spec_of

_PROVIDER = re.compile(r"(GPU|DLA)(?::([0-9]{1,3}))?")


class NvidiaEngine(Engine):
    """Runs an ONNX graph in TensorRT or TensorRT-RTX, on a GPU or a DLA core.

    ``options.provider`` is ``GPU`` (the default), ``GPU:1``, or ``DLA:0``; with ``options.cache``
    an engine that was built is kept in that folder, with the kernels that it compiles when it is
    loaded, and found there the next time; with ``options.remember`` so is how it was asked to be
    built.

    Args:
        model: An ONNX model in the engine's dialect: its types are those that are computed.
        options: How to run it, and in ``options.build`` how to build it.
    """

    builds = True
    timing_caches = False
    """Whether this engine times kernels while it is built, and can remember what it measured."""
    compiles_late = False
    """Whether this engine compiles its kernels when it is loaded, and can keep them."""

    def __init__(self, model: bytes, options: EngineOptions | None = None) -> None:
        super().__init__(model, options)
        self._running: Execution | None = None
        self._facts: dict[str, object] = {}
        self._made_of: dict[str, object] = {}
        self._kernels: bytes | None = None  # as they lie in the cache
        self._busy = Lock()  # an execution context serves one caller at a time

    def facts(self) -> dict[str, object]:
        """Version, GPU, driver, providers, and whether a cached engine was found."""
        return {**super().facts(), **self._facts}

    def layers(self) -> str:
        """The layers as the engine runs them: JSON, as TensorRT's engine inspector writes it.

        Raises:
            EngineError: ``E_CLOSED`` outside of the context.
        """
        return self._open_execution().layers()

    def build_options(self) -> BuildOptions:
        """How it is built: as asked for, else as it was last asked for, else the defaults.

        Raises:
            InputError: ``E_WRITE`` or ``E_CACHE`` for a cache folder that cannot be used.
        """
        if self.options.build is not None:
            return self.options.build
        found = None
        if self.options.cache is not None:
            found = EngineCache(Path(self.options.cache)).build(self._asked())
        return found or BuildOptions()

    @classmethod
    @abstractmethod
    def backend(cls) -> Any:
        """The module that this engine stands on; each engine's own file imports it."""

    def _load(self) -> None:
        self._check_options()
        driver = cuda()  # before anything of TensorRT is imported
        index, build = self._device()
        gpu = driver.gpu(index)
        self._check_gpu(gpu)
        trt = self.backend()
        plan, facts = self._plan(str(trt.__version__), gpu, build)
        self._kernels = self._kept_kernels()
        self._running = _start(trt, driver, index, plan, build.cuda_graph, self._kernels)
        try:
            self._learn(self._running.tensors())
            self._keep_kernels()
        except BaseException:  # a type that is none of ours: give the GPU's memory back
            self._unload()
            raise
        served = "GPU" if build.dla_core is None else f"DLA:{build.dla_core}"
        self._facts = {
            "version": str(trt.__version__),
            "provider_asked": self.options.provider or "GPU",
            "providers": [served, "GPU"] if build.gpu_fallback else [served],
            # TensorRT does not say which layers of an accelerator's engine went to the GPU
            "fell_back": None if build.gpu_fallback else False,
            "device": gpu.name,
            "compute_capability": gpu.compute_capability,
            "driver": gpu.driver,
            "cuda_graph": build.cuda_graph,
            "build": build.of_engine(),
            **({"kernels_from_cache": self._running.took_kernels} if self.compiles_late else {}),
            **facts,
        }

    def _check_gpu(self, gpu: Gpu) -> None:
        """Refuse a GPU that this engine is known not to serve."""

    def _learn(self, tensors: Sequence[EngineTensor]) -> None:
        """What goes in and comes out."""
        symbols = free_names(self.model)
        for is_input in (True, False):
            specs = tuple(
                spec_of(one.name, one.dtype, one.shape, symbols.get(one.name, ()))
                for one in tensors
                if one.is_input is is_input
            )
            if is_input:
                self.inputs = specs
                self.largest_batch = _largest_batch(tensors)
            else:
                self.outputs = specs

    def _unload(self) -> None:
        if self._running is not None:
            try:
                self._keep_kernels()
            finally:
                self._running.close()
                self._running = None

    def _kept_kernels(self) -> bytes | None:
        if not self.compiles_late or self.options.cache is None:
            return None
        return (
            EngineCache(Path(self.options.cache)).find({**self._made_of, "part": "kernels"}) or b""
        )

    def _keep_kernels(self) -> None:
        """Keep what was compiled since; a folder that may not be written is left as it is."""
        if self._kernels is None or self._running is None or self.options.cache is None:
            return
        made = self._running.compiled()
        if made and made != self._kernels:
            self._kernels = made
            with contextlib.suppress(InputError):
                cache = EngineCache(Path(self.options.cache))
                cache.put({**self._made_of, "part": "kernels"}, made)

    def _run(self, feeds: Mapping[str, Array]) -> Arrays:
        with self._busy:
            return self._open_execution().run(feeds)

    def _open_execution(self) -> Execution:
        if self._running is None:
            raise EngineError(
                "E_CLOSED", f"the {self.name} engine is not open.", mend="Use it inside 'with'."
            )
        return self._running

    def _check_options(self) -> None:
        if self.options.precision != "f32":
            raise EngineError(
                "E_PRECISION",
                f"{self.name} computes in the types that the graph says, "
                f"{self.options.precision} was asked for.",
                mend="Leave the precision at 'f32', and write the graph in the one you want.",
            )
        if self.options.optimize != "all":
            raise EngineError(
                "E_USAGE",
                f"{self.name} cannot be told to optimize '{self.options.optimize}'.",
                mend="Leave the option at 'all', or use the engine onnxruntime for it.",
            )

    def _device(self) -> tuple[int, BuildOptions]:
        """The GPU's number, and the options with the accelerator that the provider names."""
        match = _PROVIDER.fullmatch(self.options.provider or "GPU")
        if match is None:
            raise EngineError(
                "E_PROVIDER",
                f"{self.name} has no provider '{self.options.provider}'.",
                mend="Write GPU, GPU:1 or DLA:0.",
            )
        number, build = int(match[2] or 0), self.build_options()
        if match[1] == "GPU":
            return number, build
        fallback = build.gpu_fallback or self.options.allow_fallback
        return 0, replace(build, dla_core=number, gpu_fallback=fallback)

    def _asked(self) -> dict[str, object]:
        """What a way of building it is remembered by."""
        return {
            "engine": self.name,
            "provider": self.options.provider or "",
            "model_sha256": hashlib.sha256(self.model).hexdigest(),
        }

    def _plan(self, version: str, gpu: Gpu, build: BuildOptions) -> tuple[bytes, dict[str, object]]:
        device: dict[str, object] = {
            "engine": self.name,
            "version": version,
            "gpu": gpu.name,
            "compute_capability": gpu.compute_capability,
            "driver": gpu.driver,
            "machine": f"{platform.system()} {platform.machine()}",
        }
        made_of = self._made_of = {
            **device,
            "model_sha256": hashlib.sha256(self.model).hexdigest(),
            "options": build.of_engine(),
        }
        if self.options.cache is None:
            made = build_engine(self.name, self.model, build, gpu=gpu)
            return made.plan, {**made.facts, "from_cache": False}
        cache = EngineCache(Path(self.options.cache))
        found = self._cached(cache, device, made_of, build, gpu)
        asked = self.options.build if self.options.remember else None
        if asked not in (None, cache.build(self._asked())):  # it was built, and so can be again
            cache.put_build(self._asked(), asked)
        return found

    def _cached(
        self,
        cache: EngineCache,
        device: dict[str, object],
        made_of: dict[str, object],
        build: BuildOptions,
        gpu: Gpu,
    ) -> tuple[bytes, dict[str, object]]:
        found = cache.find(made_of)  # before the lock: a folder that may not be written has it too
        if found is not None:
            return found, {"from_cache": True}
        with cache.lock(made_of):
            found = cache.find(made_of)
            if found is not None:
                return found, {"from_cache": True}
            timing = cache.timing(device) if self.timing_caches else None
            made = build_engine(self.name, self.model, build, gpu=gpu, timing_cache=timing)
            cache.put(made_of, made.plan)
            if made.timing_cache:
                cache.put_timing(device, made.timing_cache)
            return made.plan, {**made.facts, "from_cache": False}


def _start(
    trt: Any, driver: Cuda, index: int, plan: bytes, cuda_graph: bool, kernels: bytes | None
) -> Execution:
    try:
        return Execution(trt, driver, index, plan, cuda_graph=cuda_graph, kernels=kernels)
    except (EngineError, InputError):
        raise
    except Exception as error:  # what the bindings raise
        raise EngineError(
            "E_BACKEND",
            f"{trt.__name__} cannot load the engine that it built: {error}",
            mend="Is the GPU's memory full? Otherwise empty the cache folder and try again.",
        ) from error


def _largest_batch(tensors: Sequence[EngineTensor]) -> int | None:
    """Most samples that go in at once; ``None`` where no input leaves that free."""
    free = [one.largest[0] for one in tensors if one.is_input and one.shape[:1] == (-1,)]
    return min(free, default=None)
