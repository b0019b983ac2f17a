"""Makes the emulation: qemu, and an aarch64 Python with what edgepress needs, in one folder.

The folder may be moved::

    bin/                qemu, for the host
    root/               what Debian's packages and the wheels hold
    cortex-a76/         the same as links, with the /proc/cpuinfo of one processor
      usr/bin/python    starts the emulated Python on it
    made-of.txt         the packages, with their exact versions

``PYTHONPATH=tests python -m emulation.toolchain .work`` makes it ahead of the tests.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from emulation import fetching

_PACKAGES = Path("usr/local/lib/python3.11/dist-packages")

_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
PROCESSORS = {  # qemu's name for it: part, variant and revision, features as Linux prints them
    "cortex-a76": (
        ("0xd0b", "0x4", 1),
        f"{_FEATURES} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
    "cortex-a72": (("0xd08", "0x0", 3), f"{_FEATURES} cpuid"),
}
"""One that has the dot product of INT8 (a Raspberry Pi 5's), and one that has not (a Pi 4's)."""

# The shell is the host's. A child that the emulated Python starts through sys.executable comes back
# here: qemu hands execve to the host's kernel, which could not start an aarch64 file.
_PYTHON = """\
#!/bin/sh
here=${{0%/*}}
exec "$here/../../../bin/qemu-aarch64-static" -cpu {processor} -L "$here/../.." -0 "$0" \\
  "$here/../../../root/usr/bin/python3.11" "$@"
"""
_PROOF = (
    "import click, numpy, onnxruntime, platform, rich.console, PIL.Image; print(platform.machine())"
)


def toolchain(parent: Path, variables: Mapping[str, str]) -> Path:
    """The folder of the emulation below ``parent``, made where it is not there yet.

    Its name has a hash of the pins and of what makes it, so that a change of either makes another.

    Args:
        parent: Where it lies, and stays for the next run.
        variables: The user's environment, for apt and pip.

    Raises:
        ToolMissingError: apt is not there, or is not Debian 12's.
    """
    made_from = (fetching.DEBIAN, fetching.WHEELS, Path(fetching.__file__), Path(__file__))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in made_from)).hexdigest()
    folder = parent / f"emulation-aarch64-{digest[:12]}"
    return made_once(folder, lambda unfinished: _make(unfinished, variables))


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """``folder``, made by the first process that asks; the others wait, and none sees half of it.

    Args:
        folder: What is to be there.
        make: Fills an empty folder, which then gets that name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            if unfinished.exists():  # whoever made it died over it
                shutil.rmtree(unfinished)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


def python(folder: Path, processor: str) -> Path:
    """What starts the emulated Python."""
    return folder / processor / "usr" / "bin" / "python"


def guest(variables: Mapping[str, str]) -> dict[str, str]:
    """An environment without what is meant for the host's libraries and the host's Python."""
    foreign = ("LD_", "OPENBLAS_", "PYTHON", "QEMU_")
    return {name: value for name, value in variables.items() if not name.startswith(foreign)}


def _make(folder: Path, variables: Mapping[str, str]) -> None:
    fetching.check_tools()
    archives, root = folder / "archives", folder / "root"
    fetched = fetching.fetch(archives, variables)
    for archive in fetched:
        if archive.name.startswith("qemu-"):
            fetching.take_programs(archive, folder / "bin")
        else:
            fetching.run(["dpkg-deb", "--extract", str(archive), str(root)], variables)
    names = [archive.stem for archive in fetched]
    (folder / "made-of.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    shutil.rmtree(archives)
    fetching.install_wheels(root / _PACKAGES, variables)
    for name in PROCESSORS:
        _add_processor(folder, name)
        # Nobody gets what does not run. Python keeps the bytecode for later.
        machine = fetching.run([str(python(folder, name)), "-c", _PROOF], guest(variables))
        assert machine.strip() == "aarch64", machine


def _add_processor(folder: Path, name: str) -> None:
    """The root once more, as links, with what a kernel would tell of the processor.

    qemu 7.2 shows the host's ``/proc/cpuinfo``, and ONNX Runtime chooses kernels by it.
    """
    (part, variant, revision), features = PROCESSORS[name]
    root, sysroot = folder / "root", folder / name
    for below in ("proc", "usr/bin"):
        (sysroot / below).mkdir(parents=True)
    for entry in root.iterdir():
        if entry.name != "usr":
            (sysroot / entry.name).symlink_to(f"../root/{entry.name}")
    for entry in (root / "usr").iterdir():
        if entry.name != "bin":
            (sysroot / "usr" / entry.name).symlink_to(f"../../root/usr/{entry.name}")
    cores = [
        f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: {variant}\nCPU part\t: {part}\nCPU revision\t: {revision}\n\n"
        for core in range(os.cpu_count() or 1)
    ]
    (sysroot / "proc" / "cpuinfo").write_text("".join(cores), encoding="utf-8")
    starter = python(folder, name)
    starter.write_text(_PYTHON.format(processor=name), encoding="utf-8")
    starter.chmod(0o755)


if __name__ == "__main__":
    print(toolchain(Path(sys.argv[1]).resolve(), os.environ))
