"""What users install: the wheel and the sdist, and the wheel alone in a fresh environment."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgepress.runtime import Session

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow
Make = Callable[..., Any]  # the fixture `base_environment`

IMPORT_ALL = """
import importlib, importlib.util, json, pkgutil, sys
import edgepress
loaded = []
for room in ("runtime", "benchmarks"):
    package = importlib.import_module(f"edgepress.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"edgepress.{room}."):
        importlib.import_module(module.name)
        loaded.append(module.name)
absent = [n for n in ("torch", "onnx", "nncf", "torch_pruning") if not importlib.util.find_spec(n)]
print(json.dumps({"file": edgepress.__file__, "loaded": loaded, "absent": absent}))
"""


def pyproject(project: Path) -> dict[str, Any]:
    return tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))


def package_files(project: Path) -> set[str]:
    """What the wheel must hold besides its metadata: each listed package's Python files."""
    files = {"edgepress/py.typed"}
    for package in pyproject(project)["tool"]["setuptools"]["packages"]:
        folder = project.joinpath(*package.split(".")[1:])
        files |= {f"{package.replace('.', '/')}/{path.name}" for path in folder.glob("*.py")}
    return files


def test_the_wheel_holds_the_package_and_nothing_else(distributions: Path, project: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(archive.read(metadata).decode("utf-8"))
        typed = archive.read("edgepress/py.typed")
    assert {name for name in names if ".dist-info/" not in name} == package_files(project)
    assert len(names) == len(set(names))
    assert typed == b""
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.10"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_base_install_asks_for_neither_torch_nor_onnx(
    distributions: Path, project: Path
) -> None:
    needs = {requirement_name(line) for line in pyproject(project)["project"]["dependencies"]}
    assert needs == {"numpy", "pillow", "onnxruntime", "click", "rich", "tomli"}
    (wheel,) = distributions.glob("*.whl")
    assert wheel.stat().st_size < 1_000_000


def test_the_sdist_builds_the_same_wheel(distributions: Path) -> None:
    """`python -m build` makes the wheel from the sdist, so what it needs is known to be inside."""
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "__init__.py", "__main__.py"} <= names
    assert not [name for name in names if name.startswith(("demo/", ".ci", ".venv"))]


def test_every_requirement_is_pinned(project: Path) -> None:
    settings = pyproject(project)
    lines = [*settings["project"]["dependencies"], *settings["dependency-groups"]["dev"]]
    for extra in settings["project"]["optional-dependencies"].values():
        lines += extra
    pins = (project / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {requirement_name(line) for line in pins if line and not line.startswith("#")}
    assert {requirement_name(line) for line in lines} <= pinned
    assert not [line for line in pins if "://" in line or line.startswith("-")]


def requirement_name(line: str) -> str:
    return re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0].lower().replace("_", "-")


def test_the_device_side_imports_with_the_base_install_alone(base_environment: Make) -> None:
    environment = base_environment()
    done = environment.run("python", "-I", "-W", "error", "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["file"]).is_relative_to(environment.folder)
    assert found["absent"] == ["torch", "onnx", "nncf", "torch_pruning"]
    assert "edgepress.runtime.engines.onnxruntime" in found["loaded"]
    assert "edgepress.benchmarks.commands" in found["loaded"]


def test_the_base_install_has_the_command_line(base_environment: Make) -> None:
    environment = base_environment()
    shown = environment.run("edgepress", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "doctor" in shown.stdout
    done = environment.run("edgepress", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "onnxruntime" in json.dumps(report)
    assert "error" not in report


@pytest.mark.parametrize("command", ["compress", "export", "evaluate"])
def test_a_command_that_needs_torch_names_the_extra(
    base_environment: Make, tmp_path: Path, command: str
) -> None:
    (tmp_path / "net.py").write_text("import torch\ndef net(): return torch.nn.Identity()\n")
    (tmp_path / "class").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "class" / "one.png")
    options = {
        "compress": ["--data", ".", "--out", "out"],
        "export": ["--out", "out.onnx"],
        "evaluate": ["--data", "."],
    }
    done = base_environment().run(
        "edgepress", command, "net.py:net", *options[command], cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert "pip install 'edgepress[compress]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("command", ["compress", "export", "evaluate", "inspect", "bench"])
def test_every_command_explains_itself_with_the_base_install(
    base_environment: Make, command: str
) -> None:
    done = base_environment().run("edgepress", command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: edgepress {command} ")


@pytest.mark.parametrize(
    "floor",
    [{"onnxruntime": "1.23.2"}, {"python": "3.10"}],
    ids=["onnxruntime 1.23", "python 3.10"],
)
def test_the_floors_of_the_runtime_hold(base_environment: Make, floor: dict[str, str]) -> None:
    environment = base_environment(**floor)
    done = environment.run("python", "-I", "-W", "error", "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    asked = "import onnxruntime, sys; print(onnxruntime.__version__, sys.version)"
    versions = environment.run("python", "-c", asked).stdout
    assert versions.startswith("1.23.2 ")
    assert f" {floor.get('python', '3.')}" in versions
    proved = environment.run("edgepress", "doctor", "--json")
    assert proved.returncode == 0, proved.stderr


@pytest.mark.parametrize("floor", [{}, {"onnxruntime": "1.23.2"}, {"python": "3.10"}], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_bundle_gives_the_same_there(
    base_environment: Make,
    small_bundle: Path,
    tmp_path: Path,
    floor: dict[str, str],
    packed: bool,
) -> None:
    environment = base_environment(**floor)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    with Session.open(small_bundle) as session:
        here = session.predict(tmp_path / "picture.png").top(4)
    bundle = tmp_path / ("bundle.zip" if packed else "bundle")
    if packed:
        done = environment.run("edgepress", "pack", small_bundle, "--out", bundle)
        assert done.returncode == 0, done.stderr
    else:
        shutil.copytree(small_bundle, bundle)
    done = environment.run("edgepress", "verify", bundle, "--json")
    assert done.returncode == 0, done.stderr
    done = environment.run("edgepress", "predict", bundle, "picture.png", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (prediction,) = json.loads(done.stdout)["predictions"]
    there = prediction["candidates"]
    assert [one["label"] for one in there] == [one.label for one in here]
    assert [one["score"] for one in there] == pytest.approx([one.score for one in here], abs=1e-5)


def test_inspect_reads_a_bundle_with_the_base_install(
    base_environment: Make, small_bundle: Path
) -> None:
    done = base_environment().run("edgepress", "inspect", small_bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert "float32" in json.dumps(json.loads(done.stdout))
