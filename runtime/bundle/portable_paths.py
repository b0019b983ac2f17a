"""Paths inside bundles: names that mean one and the same file on every system."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from ..errors import BundleError

MAX_PATH_LENGTH = 240

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def check_path(path: str) -> None:
    """Check that a relative path means one and the same file on every system.

    Raises:
        BundleError: ``E_PATH``.
    """
    reason = _path_fault(path)
    if reason:
        raise path_error(
            "E_PATH",
            f"the path {path!r} {reason}",
            "Expected a relative path of plain names with '/' between them.",
            path,
        )


def check_portable(paths: Iterable[str]) -> None:
    """Check every path, and that no two are one file where names ignore case or Unicode form.

    Raises:
        BundleError: ``E_PATH`` or ``E_DUPLICATE``.
    """
    seen: dict[str, str] = {}
    for path in paths:
        check_path(path)
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
        other = seen.setdefault(folded, path)
        if other is not path:
            raise path_error(
                "E_DUPLICATE",
                f"{path!r} and {other!r} are the same file on some systems",
                "Expected names that differ in more than case or Unicode form.",
                path,
            )


def path_error(code: str, message: str, mend: str, path: object) -> BundleError:
    """A `BundleError` for one path."""
    return BundleError(code, f"{message}.", mend=mend, path=str(path))


def _path_fault(path: str) -> str:
    if not path or len(path) > MAX_PATH_LENGTH:
        return f"has {len(path)} characters, 1 to {MAX_PATH_LENGTH} are allowed"
    if _FORBIDDEN.search(path):
        return "holds a character that some systems do not allow"
    if path.startswith("/"):
        return "is absolute"
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid Unicode"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return f"has a part {part!r}"
        if part[-1] in ". " or part[0] == " ":
            return "has a part that ends in a dot, or starts or ends with a space"
        if _RESERVED.fullmatch(part):
            return "has a part that Windows reserves"
    return ""
