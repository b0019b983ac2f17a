"""The rules of the house, read off the source: who imports whom, where things lie."""

from __future__ import annotations

import ast
import importlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from helpers.assertions import without_assertion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).resolve().parent.parent
ROOMS = ("compress", "export", "benchmarks", "runtime")
BELOW = {
    "compress": {"compress", "export", "benchmarks", "runtime"},
    "export": {"export", "runtime"},
    "benchmarks": {"benchmarks", "runtime"},
    "runtime": {"runtime"},
}
FOR_DEVICES = ("runtime", "benchmarks")
NOT_ON_DEVICES = {
    "nncf",
    "onnx",
    "onnxscript",
    "safetensors",
    "timm",
    "torch",
    "torch_pruning",
    "torchvision",
}
BORDERS = {  # the rest: one file each, any file
    "onnxruntime": "runtime/engines/onnxruntime.py",
    "openvino": "runtime/engines/openvino.py",
    "tensorrt": "runtime/nvidia/tensorrt.py",
    "tensorrt_rtx": "runtime/nvidia/tensorrt_rtx.py",
}
ONE_BORDER = (*BORDERS, "nncf", "onnxscript", "safetensors", "torch_pruning")
ERRORS = ("InputError", "EngineError", "BundleError", "BoundError", "UnsettledError")
TERMINAL = ("click", "rich")
LONGEST = 400
FULLEST = 20  # Python files in one folder
SEVERAL_MEANINGS = {  # public names that stand in several files, and why
    "backend_version": "each engine's file has one, called through the registry",
    "load": "each of NVIDIA's engines has one",
    "profile": "each engine that has a profiler has one",
    "main": "what a child process starts",
    "combine": "the command, and what it calls",
    "compress": "the command, and what it calls",
    "transcode": "the command, and what it calls",
}
CROWDED: dict[str, str] = {}  # folders of more files, each with its reason

SCRIPTS = PROJECT / "benchmarks" / "proofs"  # no part of the package
FILES = [
    *PROJECT.glob("*.py"),
    *(path for r in ROOMS for path in (PROJECT / r).rglob("*.py") if SCRIPTS not in path.parents),
]
MODULES = sorted(path.relative_to(PROJECT) for path in FILES)
PACKAGES = sorted({path.parent for path in MODULES if path.name == "__init__.py"})


def tree(path: Path) -> ast.Module:
    return ast.parse((PROJECT / path).read_text(encoding="utf-8"), feature_version=(3, 10))


def imported(path: Path) -> Iterator[str]:
    """The dotted name of everything that a file imports, wherever in it; ours begin with a dot."""
    package = path.parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            base = [*base, *(node.module or "").split(".")]
            yield from ("." + ".".join([*base, alias.name]).strip(".") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield str(first.value)


def foreign(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path) if not name.startswith(".")}


def listed_packages() -> list[str]:
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["tool"]["setuptools"]["packages"]


def dotted(package: Path) -> str:
    return ".".join(["edgepress", *package.parts])


by_module = pytest.mark.parametrize("path", MODULES, ids=str)
by_package = pytest.mark.parametrize("package", [p for p in PACKAGES if p.parts], ids=dotted)


def test_root_holds_exactly_two_python_files() -> None:
    assert sorted(path.name for path in PROJECT.glob("*.py")) == ["__init__.py", "__main__.py"]


def test_root_imports_nothing_of_the_package() -> None:
    assert set(imported(Path("__init__.py"))) == set()


def test_every_package_is_listed_for_the_wheel() -> None:
    assert sorted(listed_packages()) == sorted(dotted(package) for package in PACKAGES)


def test_every_module_lies_in_a_package() -> None:
    homeless = [path for path in MODULES if path.parent not in PACKAGES]
    assert not homeless, f"no __init__.py beside {homeless}"


@by_module
def test_imports_run_downward(path: Path) -> None:
    names = list(imported(path))
    absolute = [name for name in names if name.split(".")[0] == "edgepress"]
    assert not absolute, f"imports inside the package are relative, not {absolute}"
    if len(path.parts) > 1:
        ours = {name.split(".")[1] for name in names if name.startswith(".")}
        rooms = ours & {*ROOMS, "__main__"}
        allowed = BELOW[path.parts[0]]
        assert rooms <= allowed, f"{path} may import {sorted(allowed)}, not {rooms - allowed}"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports inside of functions and for types alone count as well."""
    graph = {module_name(path): set(ours_imported(path)) for path in MODULES}
    assert sum(map(len, graph.values())) > len(graph), "the imports were read"
    assert circles(graph) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def module_name(path: Path) -> str:
    return dotted(path.parent if path.name == "__init__.py" else path.with_suffix(""))


def ours_imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, by their dotted names."""
    known = {module_name(one) for one in MODULES}
    for name in imported(path):
        full = f"edgepress{name}"
        for module in (full, full.rpartition(".")[0]):
            if name.startswith(".") and module in known:
                yield module
                break


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""

    def reached(start: str) -> set[str]:
        found, todo = set[str](), [start]
        while todo:
            new = graph.get(todo.pop(), set()) - found
            found |= new
            todo += new
        return found

    reach = {name: reached(name) for name in graph}
    groups = {
        tuple(sorted(one for one in reach[name] if name in reach.get(one, ())))
        for name in graph
        if name in reach[name]
    }
    return sorted(list(group) for group in groups)


def test_no_folder_is_a_crowd() -> None:
    folders = [
        *{path.parent for path in MODULES},
        *folders_below(PROJECT / "tests"),
        *folders_below(SCRIPTS),
    ]
    held = {one.as_posix(): len(list((PROJECT / one).glob("*.py"))) for one in folders}
    crowded = {name: count for name, count in held.items() if count > FULLEST}
    assert crowded.keys() == CROWDED.keys(), f"at most {FULLEST} files in a folder: {crowded}"


def folders_below(top: Path) -> list[Path]:
    return sorted({path.parent.relative_to(PROJECT) for path in top.rglob("*.py")})


def test_a_public_name_has_one_meaning() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for name in defined(path):
            homes[name].append(path.as_posix())
    several = {name: files for name, files in homes.items() if len(files) > 1}
    unexplained = {name: files for name, files in several.items() if name not in SEVERAL_MEANINGS}
    assert not unexplained, f"rename all but one of each: {unexplained}"
    assert several.keys() == SEVERAL_MEANINGS.keys(), "exceptions that are needed no more"


def defined(path: Path) -> Iterator[str]:
    """Public classes, functions and constants of a module."""
    for node in tree(path).body:
        names: list[str] = []
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [one.id for one in node.targets if isinstance(one, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from (name for name in names if not name.startswith("_"))


@by_module
def test_the_device_side_has_no_torch_and_no_onnx(path: Path) -> None:
    unwanted = NOT_ON_DEVICES if path.parts[0] in FOR_DEVICES else set[str]()
    assert not foreign(path) & unwanted


@by_module
def test_only_what_talks_to_the_terminal_imports_its_libraries(path: Path) -> None:
    talks = path.name in ("__main__.py", "console.py") or path.stem.endswith("commands")
    assert talks or not foreign(path) & set(TERMINAL)


def test_each_external_engine_has_one_border_module() -> None:
    users: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for name in foreign(path) & set(ONE_BORDER):
            users[name].append(path.as_posix())
    crowded = {name: files for name, files in users.items() if len(files) > 1}
    assert not crowded, f"each of these is imported by one file only: {crowded}"
    for name, border in BORDERS.items():
        assert users[name] == [border]


@by_module
def test_every_error_says_how_to_mend_it(path: Path) -> None:
    without = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ERRORS
        if "mend" not in {word.arg for word in node.keywords}
    ]
    assert without == []


@by_module
def test_files_stay_short(path: Path) -> None:
    length = len((PROJECT / path).read_text(encoding="utf-8").splitlines())
    assert length <= LONGEST, f"{path} has {length} lines: look twice, split it where it has a seam"


@by_package
def test_the_public_face_is_what_all_says(package: Path) -> None:
    module = importlib.import_module(dotted(package))
    assert isinstance(module.__doc__, str)
    declared = getattr(module, "__all__", None)
    assert declared is not None, f"{dotted(package)} has no __all__"
    assert len(declared) == len(set(declared)), "__all__ names nothing twice"
    missing = [name for name in declared if not hasattr(module, name)]
    assert not missing, f"__all__ promises {missing}"
    assert {name for name in vars(module) if _is_public(module, name)} <= set(declared)


def _is_public(module: ModuleType, name: str) -> bool:
    """A room's face holds nothing but its public names; an inner package may import for itself."""
    value = getattr(module, name)
    if name.startswith("_") or name == "annotations" or isinstance(value, ModuleType):
        return False
    is_room = module.__name__.count(".") == 1
    return is_room or getattr(value, "__module__", None) == module.__name__


@by_package
def test_a_package_holds_modules_that_import(package: Path) -> None:
    files = [path for path in MODULES if path.parent == package and path.name[:2] != "__"]
    assert files
    for path in files:
        importlib.import_module(dotted(path.with_suffix("")))


def test_the_command_table_is_true() -> None:
    import click

    from edgepress.__main__ import COMMANDS

    assert COMMANDS
    for name, entry in COMMANDS.items():
        command = getattr(importlib.import_module(f"edgepress.{entry.module}"), name)
        assert isinstance(command, click.Command)
        assert command.name == name
        assert command.help, f"{name} --help says nothing"
        options = [option for parameter in command.params for option in parameter.opts]
        assert "--json" in options, f"{name} has no --json"


def test_every_test_asserts_whichever_way_it_goes() -> None:
    assert without_assertion(PROJECT / "tests") == []


ASSERTS = """
def test_a(here):
    if here: assert True
    else: pytest.skip("why")
def test_b():
    for one in (1, 2): assert one
def test_c():
    with pytest.raises(ValueError): int("a")
def test_d(cli: Cli): cli.refused()
def test_e():
    try: int("a")
    except ValueError: raise
    finally: holds(1)
class Cli:
    def refused(self): holds(0)
def holds(what): assert what
"""
MAY_NOT = """
def test_a(here):
    if here: assert True
def test_b(some):
    for one in some: assert one
def test_c(here):
    for one in (1, 2):
        if here: continue
        assert one
def test_d(here):
    if here: return
    assert here
def test_e():
    with contextlib.suppress(ValueError): assert int("a")
def test_f():
    def inner(): assert True
def test_g(): perhaps([])
def perhaps(some): [holds(one) for one in some]
def holds(what): assert what
"""


def test_a_test_that_may_not_assert_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(ASSERTS, encoding="utf-8")
    (tmp_path / "test_two.py").write_text(MAY_NOT, encoding="utf-8")
    assert without_assertion(tmp_path) == [f"test_two.py::test_{letter}" for letter in "abcdefg"]
