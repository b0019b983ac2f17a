"""Fetches what the emulation is made of: Debian's packages with apt, wheels with pip.

Nothing is installed, so no rights are needed, and apt works under a state of its own, so that the
machine's stays as it is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

_HERE = Path(__file__).resolve().parent
DEBIAN, WHEELS = _HERE / "debian.txt", _HERE / "wheels.txt"
_RELEASE = "bookworm"
_QEMU = ("qemu-aarch64-static", "qemu-x86_64-static")
_GLIBC_MINOR = 36


class ToolMissingError(Exception):
    """The machine has not got what the emulation is made with.

    Attributes:
        install: The package that brings it.
    """

    def __init__(self, reason: str, install: str) -> None:
        super().__init__(reason)
        self.install = install


def check_tools() -> None:
    """Refuse a machine that the packages cannot be had on.

    Raises:
        ToolMissingError: With what is not there.
    """
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool) is None:
            raise ToolMissingError(f"no {tool}", package)
    told = Path("/etc/os-release").read_text(encoding="utf-8")
    if f"VERSION_CODENAME={_RELEASE}" not in told.splitlines():
        raise ToolMissingError(
            "the emulation is made of Debian 12's packages, and this is another system",
            "Debian 12 in a container, and run the tests there",
        )


def pinned(path: Path) -> list[str]:
    """The lines of a file of pins, without its comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def fetch(archives: Path, variables: Mapping[str, str]) -> list[Path]:
    """Download what debian.txt lists, from where this machine gets its packages.

    Addresses, proxies and the keys that signatures are checked with are the machine's own. Its
    hooks are left out: they are meant for its own package lists.
    """
    state = archives / "apt"
    for below in ("lists/partial", "cache/archives/partial"):
        (state / below).mkdir(parents=True)
    (state / "status").touch()
    host = run(["dpkg", "--print-architecture"], variables).strip()
    dumped = run(["apt-config", "dump"], variables).splitlines()
    hooks = ("APT::Architecture", "APT::Update::", "APT::Sandbox::", "DPkg::")
    settings = [line for line in dumped if not line.startswith(hooks)]
    settings += [
        f'APT::Architecture "{host}";',
        f'APT::Architectures {{ "{host}"; "arm64"; }};',
        'APT::Sandbox::User "root";',  # else root fetches as a user who may not write here
        'Dir::Etc::main "/dev/null";',  # what these two say stands above
        'Dir::Etc::parts "/dev/null";',
        f'Dir::State "{state}";',
        f'Dir::State::status "{state}/status";',
        f'Dir::Cache "{state}/cache";',
    ]
    (state / "apt.conf").write_text("\n".join(settings) + "\n", encoding="utf-8")
    ours = {**variables, "APT_CONFIG": str(state / "apt.conf"), "LC_ALL": "C.UTF-8"}
    run(["apt-get", "--quiet", "update"], ours)
    wanted = [line.split() for line in pinned(DEBIAN)]
    packages = [
        f"{name}:{host if name.startswith('qemu-') else 'arm64'}={version}"
        for name, version in wanted
    ]
    run(["apt-get", "--quiet", "download", *packages], ours, cwd=archives)
    fetched = sorted(archives.glob("*.deb"))
    assert len(fetched) == len(wanted), fetched
    return fetched


def take_programs(archive: Path, target: Path) -> None:
    """Take the two emulators out of a package that has fifty of them."""
    target.mkdir()
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as members:
            for member in members:
                name = Path(member.name).name
                stream = members.extractfile(member) if name in _QEMU else None
                if stream is not None:
                    program = target / name
                    program.write_bytes(stream.read())
                    program.chmod(0o755)
    found = sorted(path.name for path in target.iterdir())
    assert process.returncode == 0, command
    assert found == sorted(_QEMU), found


def install_wheels(target: Path, variables: Mapping[str, str]) -> None:
    """Have pip unpack aarch64 wheels, whatever Python and processor it runs on itself."""
    tags = ["manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, _GLIBC_MINOR + 1))]
    platforms = [f"--platform={tag}_aarch64" for tag in tags]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    command += ["--no-deps", "--no-compile", "--only-binary=:all:", "--implementation=cp"]
    command += ["--python-version=3.11", *platforms, "--target", str(target), "-r", str(WHEELS)]
    run(command, variables)
    shutil.rmtree(target / "bin", ignore_errors=True)  # scripts for the Python that runs pip


def run(command: list[str], variables: Mapping[str, str], cwd: Path | None = None) -> str:
    """What a tool printed; an error with all of that where it failed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
