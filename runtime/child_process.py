"""Python processes of our own that may crash: how they are started, and how they ended."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .errors import BundleError, EdgepressError, EngineError, InputError

_START = "import sys; sys.path[:] = sys.argv[2:]; from {module} import main; sys.exit(main())"
_KINDS: dict[str, type[EdgepressError]] = {
    "BundleError": BundleError,
    "EngineError": EngineError,
    "InputError": InputError,
}


def child_command(module: str, word: str = "") -> list[str]:
    """What starts ``main`` of a module in a process that imports from where this one does.

    It does not import from the current folder, unless this one does.

    Args:
        module: Its whole name.
        word: What it finds as ``sys.argv[1]``.
    """
    return [sys.executable, "-c", _START.format(module=module), word, *sys.path]


def how_it_ended(status: int) -> str:
    """How a process ended, in words.

    Args:
        status: As :mod:`subprocess` tells it.
    """
    if status >= 0:
        return f"ended with status {status}"
    with suppress(ValueError):
        return f"crashed with {signal.Signals(-status).name}"
    return f"crashed with signal {-status}"


def error_to_json(error: EdgepressError) -> dict[str, object]:
    """An error as JSON; :func:`error_from_json` raises it on the other side."""
    fields = ("code", "message", "mend", "path")
    return {"kind": type(error).__name__, **{name: getattr(error, name) for name in fields}}


def error_from_json(told: Mapping[str, Any]) -> EdgepressError:
    """The error that :func:`error_to_json` wrote in another process."""
    kind = _KINDS.get(told["kind"], EngineError)
    return kind(told["code"], told["message"], mend=told["mend"], path=told["path"])
