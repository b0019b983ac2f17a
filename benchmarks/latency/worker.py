"""The process that is measured.

It speaks JSON, one object a line. From standard input it takes first a request
(:class:`WorkerRequest`), which it answers with what starting took (:class:`WorkerStarted`), then
any number of ``{"block": n}``, answered by the n latencies, and ``{"peak": true}``, answered by the
peak of its memory. An error of ours is answered as ``{"error": {"kind", "code", "message", "mend",
"path"}}``. At the end of its input it leaves, so that it never outlives the process that started
it.

Nothing is imported at the top that a device would not import: import and memory are measured.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...runtime.engines.build_options import BuildOptions
    from ...runtime.engines.engine import Engine, Precision
    from ...runtime.tensors import Arrays


@dataclass(frozen=True)
class WorkerRequest:
    """What a worker is to run.

    Attributes:
        path: A model file, or a bundle (a folder or a ``.zip``), absolute.
        engine: Name of the engine.
        threads: Threads for one inference; 0 leaves the choice to the engine.
        batch: Samples an inference.
        seed: Of the random inputs.
        shapes: Whole input shapes by name, for dimensions that are free.
        precision: What the engine computes floats in.
        variant: Which model of a bundle; ``None`` for its default, and for a model file.
        cache: Folder for engines that have to be built.
    """

    path: str
    engine: str
    threads: int
    batch: int
    seed: int
    shapes: dict[str, list[int]] = field(default_factory=dict[str, "list[int]"])
    precision: Precision = "f32"
    variant: str | None = None
    cache: str | None = None


@dataclass(frozen=True)
class WorkerStarted:
    """What it took to be ready.

    Attributes:
        import_ms: Importing edgepress's runtime, numpy and the engine's backend.
        read_ms: Reading the file; for a bundle also checking every hash in it.
        load_ms: From the model's bytes to an engine that can run.
        first_ms: The first inference.
        sha256: Of the model's bytes.
        size_bytes: Of the model's bytes.
        inputs: The network's inputs, as :meth:`TensorSpec.to_dict` writes them.
        outputs: Its outputs.
        feeds: The shapes it was run with, by input name.
        facts: What the engine says of itself.
    """

    import_ms: float
    read_ms: float
    load_ms: float
    first_ms: float
    sha256: str
    size_bytes: int
    inputs: list[dict[str, object]]
    outputs: list[dict[str, object]]
    feeds: dict[str, list[int]]
    facts: dict[str, object]


def main() -> int:
    """Serve one request and its blocks; the exit status is 0, whatever was answered."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is the parent's to handle: it closes our input
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a backend prints must not get between the replies
    requests = sys.stdin
    line = requests.readline()
    if not line:
        return 0
    request = WorkerRequest(**json.loads(line))
    clock = time.perf_counter()
    from ...runtime.child_process import error_to_json
    from ...runtime.errors import EdgepressError

    try:
        with ExitStack() as stack:
            _serve(request, clock, stack, requests, replies)
    except EdgepressError as error:
        _answer(replies, {"error": error_to_json(error)})
    except BrokenPipeError:
        pass  # the parent is gone, nobody is left to answer to
    return 0


def _serve(
    request: WorkerRequest, clock: float, stack: ExitStack, requests: IO[str], replies: IO[str]
) -> None:
    from ...runtime.engine_registry import import_backend, open_engine
    from ...runtime.engines.engine import EngineOptions

    engine_class = open_engine(request.engine)
    import_backend(request.engine)
    imported = time.perf_counter()
    model, golden = _read(request.path, request.variant)
    read = time.perf_counter()
    options = EngineOptions(
        threads=request.threads,
        precision=request.precision,
        cache=request.cache,
        build=_build(request, model, golden) if engine_class.builds else None,
    )
    engine = stack.enter_context(engine_class(model, options))
    loaded = time.perf_counter()

    import hashlib

    from .feeds import make_feeds

    feeds = make_feeds(engine.inputs, request.batch, request.seed, request.shapes, golden)
    before = time.perf_counter()
    engine.run(feeds)
    first = time.perf_counter() - before
    started = WorkerStarted(
        import_ms=1e3 * (imported - clock),
        read_ms=1e3 * (read - imported),
        load_ms=1e3 * (loaded - read),
        first_ms=1e3 * first,
        sha256=hashlib.sha256(model).hexdigest(),
        size_bytes=len(model),
        inputs=[spec.to_dict() for spec in engine.inputs],
        outputs=[spec.to_dict() for spec in engine.outputs],
        feeds={name: list(array.shape) for name, array in feeds.items()},
        facts=engine.facts(),
    )
    _answer(replies, asdict(started))
    for line in requests:
        asked: dict[str, Any] = json.loads(line)
        if "block" in asked:
            _answer(replies, _block(engine, feeds, int(asked["block"])))
        else:
            _answer(replies, {"peak_memory_bytes": peak_memory_bytes()})


def _build(request: WorkerRequest, model: bytes, golden: Arrays | None) -> BuildOptions:
    """For what is measured: the sizes asked for, else the golden inputs'."""
    from ...runtime.build_shapes import build_options_for

    shapes = {name: list(array.shape) for name, array in (golden or {}).items()}
    return build_options_for(model, request.batch, {**shapes, **request.shapes})


def _read(path: str, variant: str | None) -> tuple[bytes, Arrays | None]:
    """The model's bytes, and a bundle's golden inputs."""
    from ...runtime.errors import InputError

    if os.path.isdir(path) or path.lower().endswith(".zip"):
        from ...runtime.bundle.bundle import Bundle

        bundle = Bundle.open(path)
        return bundle.model(variant), bundle.golden()[0]
    try:
        with open(path, "rb") as stream:
            return stream.read(), None
    except OSError as error:
        raise InputError(
            "E_FILE",
            f"cannot read '{path}': {error.strerror or error}.",
            mend="Give a bundle (a folder or a .zip) or a model file",
            path=path,
        ) from error


def _block(engine: Engine, feeds: Arrays, count: int) -> dict[str, object]:
    """Run ``count`` times, one after another, with the garbage collector held back."""
    import gc

    run, clock = engine.run, time.perf_counter_ns
    latencies = [0] * count
    gc.collect()
    gc.disable()
    try:
        cpu = time.process_time_ns()
        for index in range(count):
            before = clock()
            run(feeds)
            latencies[index] = clock() - before
        cpu = time.process_time_ns() - cpu
    finally:
        gc.enable()
    return {"latencies_ns": latencies, "cpu_ns": cpu}


def peak_memory_bytes() -> int | None:
    """The most memory this process ever held: ``VmHWM`` of Linux, ``None`` where there is none."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _answer(replies: IO[str], message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()
