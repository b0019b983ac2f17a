"""A virtual environment whose Python, and whatever that starts, runs on an emulated x86 processor.

It is the one that makes it, seen through qemu: its packages are not copied. The processor has AVX2
and no VNNI, and ``/proc/cpuinfo`` tells of such a one, so that the runtime and the engines see the
same.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from helpers.processors import COFFEE_LAKE

_CPU = "Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid"  # without what qemu would warn of
_PYTHON = """\
#!/bin/sh
exec "{qemu}" -cpu {cpu} -L "{root}" -0 "$0" "{python}" "$@"
"""


def emulated_python(folder: Path, qemu: Path) -> Path:
    """Make the environment in ``folder``, anew, and give its Python.

    Args:
        folder: Where it lies.
        qemu: ``qemu-x86_64``, of version 7.2 or later, which knows AVX2.
    """
    shutil.rmtree(folder, ignore_errors=True)
    root, python = folder / "root", folder / "bin" / "python"
    for below in (root / "proc", python.parent):
        below.mkdir(parents=True)
    (root / "proc" / "cpuinfo").write_text(COFFEE_LAKE, encoding="utf-8")
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    started = os.path.realpath(sys.executable)
    text = _PYTHON.format(qemu=qemu, cpu=_CPU, root=root, python=started)
    python.write_text(text, encoding="utf-8")
    python.chmod(0o755)
    return python
