"""Whether a test asserts something whichever way it goes, read off its source.

A test that may end without an assertion passes on the day when what it waits for never comes: the
branch is not taken, the loop is empty. What counts must stand on every way to the end of the test:
``assert``, ``pytest.raises`` and its like, or a function of the tests that itself asserts on every
way. ``pytest.skip`` ends a way without fault, and tells of it.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

_RAISES = ("pytest.raises", "pytest.warns")
_ENDS = ("pytest.skip", "pytest.fail")
_PASSED_ON = ("enumerate", "list", "reversed", "sorted", "tuple", "zip")
_LATER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)

Ways = set[bool]
"""Of the ways that lead to a place: whether something was asserted on them."""


def without_assertion(folder: Path) -> list[str]:
    """Every test below ``folder`` that may end without having asserted, as ``file::test``."""
    files = {path.stem: File(path) for path in sorted(folder.rglob("*.py"))}
    for one in files.values():
        one.others = files
    return [
        f"{one.path.relative_to(folder).as_posix()}::{name}"
        for stem, one in files.items()
        if stem.startswith("test_")
        for name, test in one.functions.items()
        if name.startswith("test_") and not asserts(test, one)
    ]


class File:
    """A file of the tests: what is defined in it, and what it takes from the others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.others: dict[str, File] = {}
        self.found: dict[ast.FunctionDef, bool] = {}
        self.module = ast.parse(path.read_text(encoding="utf-8"))

    @cached_property
    def functions(self) -> dict[str, ast.FunctionDef]:
        """Every function by its name, and the methods of classes as ``Class.method``."""
        nodes = list(ast.walk(self.module))
        found = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
        for kind in (node for node in nodes if isinstance(node, ast.ClassDef)):
            methods = (node for node in kind.body if isinstance(node, ast.FunctionDef))
            found |= {f"{kind.name}.{node.name}": node for node in methods}
        return found

    @cached_property
    def known(self) -> dict[str, tuple[ast.FunctionDef, File]]:
        """What may be called in it by these names, and where that stands."""
        found = {name: (node, self) for name, node in self.functions.items()}
        for other, name, known_as in self._taken:
            if name in other.functions:
                found[known_as] = (other.functions[name], other)
        return found

    @cached_property
    def filled(self) -> set[str]:
        """Names that stand for something written out, here or there, which is not empty."""
        found = _filled(self.module.body)
        for other, name, known_as in self._taken:
            found |= {known_as} if name in _filled(other.module.body) else set()
        return found

    @cached_property
    def _taken(self) -> list[tuple[File, str, str]]:
        """What it imports from the others: from where, what, and its name here."""
        return [
            (self.others[stem], alias.name, alias.asname or alias.name)
            for node in ast.walk(self.module)
            if isinstance(node, ast.ImportFrom)
            if (stem := (node.module or "").rpartition(".")[2]) in self.others
            for alias in node.names
        ]


def asserts(function: ast.FunctionDef, file: File) -> bool:
    """Whether it asserts on every way to its end; one that calls itself is taken not to."""
    if function not in file.found:
        file.found[function] = False
        reader = _Reader(function, file)
        falls = reader.run(function.body, {False})
        file.found[function] = False not in falls | reader.returned
    return file.found[function]


class _Reader:
    """Goes the ways through one function."""

    def __init__(self, function: ast.FunctionDef, file: File) -> None:
        self.file = file
        self.filled = file.filled | _filled(function.body)
        arguments = (*function.args.args, *function.args.kwonlyargs)
        kinds = ((one.arg, one.annotation) for one in arguments)
        self.kinds = {name: kind.id for name, kind in kinds if isinstance(kind, ast.Name)}
        self.returned: Ways = set()
        self.left: Ways = set()  # by break and continue

    def run(self, body: Sequence[ast.stmt], ways: Ways) -> Ways:
        for statement in body:
            if ways:
                ways = self.step(statement, ways)
        return ways

    def step(self, node: ast.stmt, ways: Ways) -> Ways:
        match node:
            case ast.Assert():
                return {True}
            case ast.Raise():
                return set()
            case ast.Expr(ast.Call(func)) if ast.unparse(func) in _ENDS:
                return set()
            case ast.Return():
                self.returned |= {True} if self.certain(node) else ways
                return set()
            case ast.Break() | ast.Continue():
                self.left |= ways
                return set()
            case ast.If():
                ways = {True} if self.certain(node.test) else ways
                return self.run(node.body, ways) | self.run(node.orelse, ways)
            case ast.For() | ast.While():
                outer, self.left = self.left, set()
                inside = self.run(node.body, ways) | self.left
                self.left = outer
                entered = isinstance(node, ast.For) and self.is_filled(node.iter)
                return inside if entered else inside | ways
            case ast.With():
                inside = self.run(node.body, ways)
                calls = [one.context_expr for one in node.items]
                if any(ast.unparse(one).startswith("contextlib.suppress(") for one in calls):
                    return inside | ways
                return {True} if any(map(self.certain, calls)) else inside
            case ast.Try():
                inside = self.run([*node.body, *node.orelse], ways)
                caught = (self.run(handler.body, ways) for handler in node.handlers)
                return self.run(node.finalbody, inside.union(*caught))
            case _:
                return {True} if self.certain(node) else ways

    def certain(self, node: ast.AST) -> bool:
        """Whether what stands here calls something that asserts, and always does."""
        match node:
            case ast.Call(func):
                start, dot, rest = ast.unparse(func).partition(".")
                name = f"{self.kinds.get(start, start)}{dot}{rest}"
                if name in _RAISES or name.rpartition(".")[2].startswith("assert_"):
                    return True
                if name in self.file.known and asserts(*self.file.known[name]):
                    return True
            case ast.BoolOp():
                return self.certain(node.values[0])
            case ast.IfExp():
                return self.certain(node.test)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                return self.certain(node.generators[0].iter)
            case _:
                pass
        return not isinstance(node, _LATER) and any(map(self.certain, ast.iter_child_nodes(node)))

    def is_filled(self, node: ast.expr) -> bool:
        """Whether one sees that there is something in what a loop goes through."""
        match node:
            case ast.Tuple() | ast.List() | ast.Set() | ast.Dict():
                return _is_written_out(node)
            case ast.Name():
                return node.id in self.filled
            case ast.Call(ast.Name("range"), args):
                return all(isinstance(one, ast.Constant) for one in args)
            case ast.Call(ast.Name(name), args) if name in _PASSED_ON:
                return bool(args) and all(map(self.is_filled, args))
            case ast.Call(ast.Attribute(value, "items" | "values" | "keys")):
                return self.is_filled(value)
            case _:
                return False


def _filled(body: Sequence[ast.stmt]) -> set[str]:
    found: set[str] = set()
    for node in body:
        match node:
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, value):
                found |= {name} if value and _is_written_out(value) else set()
            case _:
                pass
    return found


def _is_written_out(node: ast.expr) -> bool:
    match node:
        case ast.Tuple(parts) | ast.List(parts) | ast.Set(parts):
            return any(not isinstance(one, ast.Starred) for one in parts)
        case ast.Dict(keys):
            return any(key is not None for key in keys)
        case _:
            return False
