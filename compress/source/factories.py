"""Factories: the user's own function that builds a network, in a file or a module."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ...runtime.errors import InputError


def call_factory(where: str, name: str) -> torch.nn.Module:
    """Call a factory.

    A file's folder can be imported from while its factory is imported and runs, as Python does for
    a script; for a module's name it is the working folder. Nothing is written beside the user's
    files.

    Args:
        where: ``path/to/file.py``, or the dotted name of a module.
        name: A function in it (or a class) that takes no arguments and returns a module.

    Raises:
        InputError: ``E_FILE`` where there is no such file; ``E_FACTORY`` for code that cannot be
            imported, or a factory that is missing, raises, needs arguments or returns no module.
    """
    is_file = where.endswith(".py")
    if is_file and not Path(where).is_file():
        raise InputError(
            "E_FILE",
            f"there is no file '{where}'.",
            mend="Check the path before the colon.",
            path=where,
        )
    with _importable(Path(where).resolve().parent if is_file else Path.cwd()):
        module = _import_file(Path(where)) if is_file else _import_module(where)
        return _call(_factory(module, where, name), f"{where}:{name}")


@contextlib.contextmanager
def _importable(folder: Path) -> Generator[None, None, None]:
    entry = str(folder)
    wrote = sys.dont_write_bytecode
    sys.path.insert(0, entry)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote
        with contextlib.suppress(ValueError):  # the user's code may have changed sys.path itself
            sys.path.remove(entry)


def _import_file(path: Path) -> ModuleType:
    name = "edgepress_user_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(
            "E_FACTORY",
            f"'{path}' cannot be imported: {_told(error)}",
            mend="Fix that first.",
            path=str(path),
        ) from error
    return module


def _import_module(where: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise InputError(
            "E_FACTORY",
            f"the module '{where}' cannot be imported: {_told(error)}",
            mend="Is it installed here? A file is written with its path: path/to/file.py:factory.",
            path=where,
        ) from error


def _factory(module: ModuleType, where: str, name: str) -> Callable[..., object]:
    found = getattr(module, name, None)
    if callable(found):
        return found
    offered = sorted(
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == module.__name__
    )
    raise InputError(
        "E_FACTORY",
        f"'{where}' has no function '{name}'.",
        mend="It has: " + (", ".join(offered[:20]) or "none") + ".",
        path=where,
    )


def _call(factory: Callable[..., Any], spec: str) -> torch.nn.Module:
    try:
        made: object = factory()
    except (Exception, SystemExit) as error:
        trace = error.__traceback__
        if isinstance(error, TypeError) and trace is not None and trace.tb_next is None:
            raise InputError(
                "E_FACTORY",
                f"the factory {spec} needs arguments: {error}",
                mend="Give a factory that takes none; a lambda or functools.partial will do.",
                path=spec,
            ) from error
        raise InputError(
            "E_FACTORY",
            f"the factory {spec} failed: {_told(error)}",
            mend="Call it in Python by itself until it gives the network.",
            path=spec,
        ) from error
    if not isinstance(made, torch.nn.Module):
        raise InputError(
            "E_FACTORY",
            f"the factory {spec} returned a {type(made).__name__}.",
            mend="It must return a torch.nn.Module.",
            path=spec,
        )
    return made


def _told(error: BaseException) -> str:
    """The error and the line that raised it: the user's own code is at fault, not ours."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
