"""What every engine is: it runs the bytes of one graph on one backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Literal, TypeAlias, TypeVar

from ..errors import EngineError
from ..tensors import Array, Arrays, TensorSpec, check_arrays
from .build_options import BuildOptions

SIZES_MEND = (
    "Check that the sizes of the inputs suit the graph: one that was frozen into it at export, in "
    "a Reshape or an Expand, fits no other."
)
"""How to mend a run that failed."""

_E = TypeVar("_E", bound="Engine")

Precision: TypeAlias = Literal["f32", "bf16"]
"""What an engine computes a graph's floats in: float32, or bfloat16 where the processor has it."""

FLOAT_PRECISIONS: tuple[Precision, ...] = ("f32", "bf16")

PRECISION_WORDS: dict[Precision, str] = {"f32": "float32", "bf16": "bfloat16"}
"""What people, and the variants of bundles, call the precisions."""

HALF_PRECISIONS = (PRECISION_WORDS["bf16"], "fp16")
"""What receipts call the precisions between float32 and INT8."""


def computed_in(named: str) -> Precision:
    """What floats are computed in by a variant whose precision a bundle names so.

    ``bfloat16`` is a float32 model in bfloat16, ``int8-bfloat16`` an INT8 one whose floats are.
    """
    return "bf16" if PRECISION_WORDS["bf16"] in named.split("-") else "f32"


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is to run.

    Attributes:
        threads: Threads for one inference; 0 leaves the choice to the engine.
        optimize: How far the engine may rewrite the graph.
        allow_fallback: Whether another provider than the one asked for may serve; it is recorded
            then.
        provider: What inside the engine is to run it, e.g. ``CPUExecutionProvider``; ``None`` is
            the engine's plainest one.
        precision: What floats are computed in; an engine that cannot refuses.
        cache: Folder where an engine that builds something keeps it for the next time; without one
            nothing is written.
        build: How an engine that builds something does so; the others have no use for it. ``None``
            is how ``cache`` remembers that it was last asked for with this model, else the
            defaults.
        remember: Whether ``cache`` remembers ``build`` for whoever asks for none; what is built to
            measure or to judge is not asked for to stay.
    """

    threads: int = 0
    optimize: Literal["all", "basic", "none"] = "all"
    allow_fallback: bool = False
    provider: str | None = None
    precision: Precision = "f32"
    cache: str | None = None
    build: BuildOptions | None = None
    remember: bool = False


class Engine(ABC):
    """Runs one graph. A context manager: nothing is allocated before entry, all is freed at exit.

    Args:
        model: The graph's bytes, as this engine reads them.
        options: How to run it.
    """

    name: ClassVar[str]
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    builds: ClassVar[bool] = False
    """Whether it builds something for this device first, which takes minutes."""
    largest_batch: int | None = None
    """Most samples in one run, of an engine that was built for no more."""

    def __init__(self, model: bytes, options: EngineOptions | None = None) -> None:
        self.model = model
        self.options = options or EngineOptions()
        self._open = False
        self._checked: list[object] | None = None

    def __enter__(self: _E) -> _E:
        self._load()
        self._checked = None
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
        self._unload()

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run once.

        Args:
            feeds: One array for each input, by name, of the input's dtype and shape.

        Returns:
            One array for each output, by name.

        Raises:
            InputError: ``E_INPUT`` where the feeds are not what the graph takes.
            EngineError: ``E_CLOSED`` outside the context, ``E_BACKEND`` where the backend fails.
        """
        if not self._open:
            raise _closed(self.name)
        signature: list[object] = [
            (name, type(array), getattr(array, "dtype", None), getattr(array, "shape", None))
            for name, array in feeds.items()
        ]
        if signature != self._checked:  # what passed once need not be looked at again
            check_arrays(self.inputs, feeds)
            self._checked = signature
        return self._run(feeds)

    def facts(self) -> dict[str, object]:
        """What served: engine, version, provider, threads; goes into fingerprints and receipts."""
        return {"engine": self.name, "threads": self.options.threads}

    @abstractmethod
    def _load(self) -> None: ...

    @abstractmethod
    def _unload(self) -> None: ...

    @abstractmethod
    def _run(self, feeds: Mapping[str, Array]) -> Arrays: ...


def _closed(name: str) -> EngineError:
    return EngineError(
        "E_CLOSED",
        f"the {name} engine is not open.",
        mend="Use it inside 'with Engine(...) as engine:'",
    )
