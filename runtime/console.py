"""What all commands share: ``--json``, errors as messages and exit statuses, progress, tables.

Human output goes to stdout; with ``--json`` stdout carries exactly one JSON object and everything
else, whatever prints it, goes to stderr.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, cast

import click
import numpy as np
from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .errors import EdgepressError
from .progress import Progress as Report

_P = ParamSpec("_P")

INTERRUPTED = 130
OUR_BUG = 1
_FOR_MAIN = (
    click.ClickException,
    click.exceptions.Exit,
    click.Abort,
    BrokenPipeError,
    ModuleNotFoundError,
    SystemExit,
)
_BAR_AFTER_S = 2.0
_LINE_EVERY_S = 10.0


class Console:
    """Where a command says what it has to say.

    Attributes:
        as_json: Whether the user asked for JSON.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._result: Mapping[str, object] | None = None

    def say(self, text: str = "") -> None:
        """A line for people: stdout, or stderr with ``--json``."""
        click.echo(text, err=self.as_json)

    def note(self, text: str) -> None:
        """A line beside the result, such as a warning: always stderr."""
        click.echo(text, err=True)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None
    ) -> None:
        """A table for people; numbers come formatted.

        Args:
            columns: Headings; one that starts with ``>`` is set to the right.
            rows: Cells, shown by ``str``.
            title: A line above it.
        """
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in columns:
            right = column.startswith(">")
            table.add_column(column.removeprefix(">"), justify="right" if right else "left")
        for row in rows:
            table.add_row(*[str(cell) for cell in row])
        stream = sys.stderr if self.as_json else sys.stdout
        rich = RichConsole(file=stream, highlight=False, markup=False, emoji=False)
        if not rich.is_terminal:
            rich.width = 200  # a pipe has no width; do not cut cells
        rich.print(table)

    def result(self, values: Mapping[str, object]) -> None:
        """What ``--json`` prints when the command ends, beside an error if one comes later."""
        self._result = values

    def failed(self, error: Mapping[str, object]) -> None:
        """Add an error to what ``--json`` prints; for `report_errors`."""
        self._result = {**(self._result or {}), "error": error}

    @contextlib.contextmanager
    def progress(self) -> Generator[Report, None, None]:
        """Show progress on stderr, once the work has taken over two seconds.

        Yields:
            A function to call with the stage's name, how much is done, and of how much.
        """
        shown = _Progress()
        try:
            yield shown.report
        finally:
            shown.stop()

    def print_result(self, stream: Any) -> None:
        """Print the JSON object to ``stream``; for `report_errors`."""
        stream.write(to_json(self._result or {}) + "\n")
        stream.flush()


def to_json(values: Mapping[str, object]) -> str:
    """One JSON object, in ASCII; numbers that JSON does not have become null."""
    return json.dumps(_plain(values), indent=1, allow_nan=False)


def report_errors(
    command: Callable[Concatenate[Console, _P], None],
) -> Callable[_P, None]:
    """Make a command out of a function that takes a `Console` first.

    Adds ``--json`` and ``--debug``. An `EdgepressError` becomes its message on stderr and its exit
    status (with ``--json`` also ``{"error": {"code", "message", "mend", "path"}}`` on stdout,
    beside the result if there is one), Ctrl-C exit status 130, anything else exit status 1 and a
    request to report it. A package that is not installed is left to ``__main__``, which knows the
    extra that brings it.
    """

    @click.option(
        "--json", "as_json", is_flag=True, help="One JSON object on stdout, the rest on stderr."
    )
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(command)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> None:
        as_json = bool(kwargs.pop("as_json"))
        debug = bool(kwargs.pop("debug"))
        console = Console(as_json)
        stdout = sys.stdout
        try:
            with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
                command(console, *args, **kwargs)
        except _FOR_MAIN:
            raise
        except BaseException as error:
            status = _tell(console, error, debug)
            if as_json:
                console.print_result(stdout)
            sys.exit(status)
        if as_json:
            console.print_result(stdout)

    return cast("Callable[_P, None]", wrapper)


def _tell(console: Console, error: BaseException, debug: bool) -> int:
    """Say what went wrong; the exit status that it ends the command with."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, EdgepressError):
        code, message, mend, path = error.code, error.message, error.mend, error.path
        status = error.exit_status
    elif isinstance(error, KeyboardInterrupt):
        code, message, mend, path = "E_INTERRUPTED", "interrupted.", "", None
        status = INTERRUPTED
    else:
        code, path, status = "E_BUG", None, OUR_BUG
        message = f"unexpected {type(error).__name__}: {error}"
        mend = "This is a bug of edgepress: please report it with the output of --debug."
    click.echo(f"Error: {message} [{code}]", err=True)
    if mend:
        click.echo(mend, err=True)
    console.failed({"code": code, "message": message, "mend": mend, "path": path})
    return status


class _Progress:
    """A bar on a terminal, a line now and then elsewhere; neither in the first two seconds."""

    def __init__(self) -> None:
        self._rich = RichConsole(stderr=True)
        self._lock = threading.Lock()
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._state: dict[str, tuple[int, int | None]] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self._last_line = time.monotonic() - _LINE_EVERY_S + _BAR_AFTER_S
        self._timer: threading.Timer | None = None
        if self._rich.is_terminal:
            self._timer = threading.Timer(_BAR_AFTER_S, self._start)
            self._timer.daemon = True
            self._timer.start()

    def report(self, stage: str, done: int, total: int | None = None) -> None:
        with self._lock:
            if done < self._state.get(stage, (done, None))[0]:  # the same work begins once more
                self._began.pop(stage)
                if self._bar is not None and stage in self._tasks:
                    self._bar.reset(self._tasks[stage])
            self._state[stage] = (done, total)
            began, from_ = self._began.setdefault(stage, (time.monotonic(), done))
            if self._bar is not None:
                self._show(self._bar, stage)
            elif self._timer is None and time.monotonic() - self._last_line >= _LINE_EVERY_S:
                self._last_line = time.monotonic()
                told = f"{stage}: {done} of {total}" if total is not None else f"{stage} ..."
                spent = time.monotonic() - began
                if total is not None and done > from_ and spent > _LINE_EVERY_S:
                    told += f", about {_duration(spent * (total - done) / (done - from_))} left"
                click.echo(told, err=True)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._timer = None
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _start(self) -> None:
        with self._lock:
            if self._timer is None:
                return
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._rich,
                transient=True,
            )
            for stage in self._state:
                self._show(self._bar, stage)
            self._bar.start()

    def _show(self, bar: Progress, stage: str) -> None:
        done, total = self._state[stage]
        if stage not in self._tasks:
            self._tasks[stage] = bar.add_task(stage, total=total)
        bar.update(self._tasks[stage], completed=done, total=total)


def _duration(seconds: float) -> str:
    """A time for people: seconds below two minutes, minutes below two hours, hours."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}" if unit > 60 else f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return _plain(cast("Any", value).item())
    if isinstance(value, np.ndarray):
        return _plain(cast("Any", value).tolist())
    if isinstance(value, Mapping):
        return {
            str(key): _plain(one) for key, one in cast("Mapping[object, object]", value).items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in cast("Sequence[object]", value)]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)
