"""The errors of edgepress: one tree, each with a stable code and the exit status of a command.

::

    EdgepressError            a code, what was received, how to mend it
    +-- InputError            exit 2   bad usage, file, data, model or option
    |   +-- MissingExtraError exit 2   a part that is not installed, and the pip command for it
    |   +-- EngineError       exit 2   an engine that is absent, crashed, or cannot do that
    +-- BoundError            exit 3   a bound that was asked for was not met
    +-- UnsettledError        exit 4   a comparison that would not settle
    +-- BundleError           exit 5   a bundle that is damaged or refused

Anything else that leaves a command is a bug of ours and ends it with exit status 1.
"""

from __future__ import annotations

from typing import ClassVar


class EdgepressError(Exception):
    """Base of every error that edgepress raises on purpose.

    Attributes:
        code: Stable identifier such as ``E_HASH``; tests and callers may rely on it.
        message: What was received and what was expected.
        mend: What the user can do about it; empty when the message says it all.
        path: The file or tensor at fault, or ``None``.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, code: str, message: str, *, mend: str = "", path: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.mend = mend
        self.path = path

    def __str__(self) -> str:
        parts = [f"{self.message} [{self.code}]"]
        if self.mend:
            parts.append(self.mend)
        return "\n".join(parts)


class InputError(EdgepressError):
    """Something that the user handed over cannot be used."""

    exit_status: ClassVar[int] = 2


class MissingExtraError(InputError):
    """A package that is an optional extra is not installed.

    Args:
        package: What could not be imported, e.g. ``torch``.
        extra: The extra of edgepress that brings it, e.g. ``compress``.
        purpose: What it was needed for, in a few words.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            "E_EXTRA",
            f"{purpose} needs the package '{package}', which is not installed.",
            mend=f"Install it with: pip install 'edgepress[{extra}]'",
        )


class EngineError(InputError):
    """An engine is missing, failed, or cannot do it (``E_BACKEND``, ``E_PROVIDER``, ...)."""


class BoundError(EdgepressError):
    """A bound that the user set was not met (``E_BOUND``)."""

    exit_status: ClassVar[int] = 3


class UnsettledError(EdgepressError):
    """A comparison that was asked for did not settle (``E_UNSETTLED``)."""

    exit_status: ClassVar[int] = 4


class BundleError(EdgepressError):
    """A bundle is damaged, or breaks a rule of the format (codes in ``docs/bundle-format.md``)."""

    exit_status: ClassVar[int] = 5
