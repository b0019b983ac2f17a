"""The parent's side of a worker: start it, ask it, and be sure that it is gone afterwards."""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from ...runtime.child_process import child_command, error_from_json, how_it_ended
from ...runtime.errors import EngineError
from .worker import WorkerRequest, WorkerStarted


@dataclass(frozen=True)
class TimedBlock:
    """Inferences that ran one after another.

    Attributes:
        latencies_ms: Wall-clock time of each, ``(n,)``.
        cpu_ms: CPU time of all of them, all threads of the process.
    """

    latencies_ms: NDArray[np.float64]
    cpu_ms: float


class Worker:
    """A fresh Python process that runs one network; a context manager.

    The process has this one's module search path. Leaving the context ends it, at once where an
    error (or Ctrl-C) is on its way; should this process die without leaving, the worker sees its
    input end and goes.

    Args:
        request: What to run.
        timeout_s: How long one answer may take.
    """

    def __init__(self, request: WorkerRequest, timeout_s: float = 600.0) -> None:
        self._request = request
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    @property
    def pid(self) -> int | None:
        """The process's id, ``None`` outside the context."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Worker:
        self._errors = cast("IO[bytes]", tempfile.TemporaryFile())
        try:
            self._process = subprocess.Popen(
                child_command(f"{__package__}.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._errors.close()
            raise EngineError(
                "E_BACKEND",
                f"cannot start a process to measure in: {error.strerror or error}.",
                mend="Is there memory left, and may this user start more processes (ulimit -u)?",
            ) from error
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), daemon=True
        )
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self._process
        if process is None:
            return
        if kind is not None:
            process.kill()
        with suppress(OSError):
            cast("IO[str]", process.stdin).close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            if self._reader is not None:
                self._reader.join(timeout=5)
            cast("IO[str]", process.stdout).close()
            cast("IO[bytes]", self._errors).close()
            self._process = None

    def start(self) -> WorkerStarted:
        """Load the network and run it once.

        Raises:
            InputError, EngineError, BundleError: What the worker met, as it met it; ``E_BACKEND``
                where it crashed or gave no answer in time.
        """
        return WorkerStarted(**self._ask(asdict(self._request)))

    def block(self, count: int) -> TimedBlock:
        """Run ``count`` times.

        Raises:
            EngineError: ``E_BACKEND`` where the worker crashed or gave no answer in time.
        """
        answer = self._ask({"block": count})
        latencies = np.asarray(answer["latencies_ns"], dtype=np.float64) / 1e6
        return TimedBlock(latencies, answer["cpu_ns"] / 1e6)

    def peak_memory_bytes(self) -> int | None:
        """The most memory the worker ever held; ``None`` where the system does not tell."""
        return cast("int | None", self._ask({"peak": True})["peak_memory_bytes"])

    def _read(self, stream: IO[str]) -> None:
        with suppress(ValueError, OSError):  # the stream may be closed under this thread's hands
            for line in stream:
                self._lines.put(line)
        self._lines.put(None)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        if process is None:
            raise EngineError("E_CLOSED", "the worker is not open.", mend="Use it inside 'with'")
        stdin = cast("IO[str]", process.stdin)
        with suppress(OSError):  # it is dead: the end of its output says so below
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
        try:
            line = self._lines.get(timeout=self._timeout_s)
        except queue.Empty:
            process.kill()
            raise EngineError(
                "E_BACKEND",
                f"the engine '{self._request.engine}' gave no answer on '{self._request.path}' "
                f"within {self._timeout_s:.0f} s.",
                mend="It was ended. Try a smaller batch, or another engine",
                path=self._request.path,
            ) from None
        if line is None:
            raise self._crashed(process)
        answer = cast("dict[str, Any]", json.loads(line))
        if "error" in answer:
            raise error_from_json(cast("dict[str, Any]", answer["error"]))
        return answer

    def _crashed(self, process: subprocess.Popen[str]) -> EngineError:
        how = how_it_ended(process.wait())
        errors = cast("IO[bytes]", self._errors)
        errors.seek(0)
        lines = errors.read().decode("utf-8", "replace").strip().splitlines()
        return EngineError(
            "E_BACKEND",
            f"the process of the engine '{self._request.engine}' {how} "
            f"on '{self._request.path}'" + (f": {lines[-1]}" if lines else "."),
            mend="The file may be damaged, or the machine out of memory",
            path=self._request.path,
        )
