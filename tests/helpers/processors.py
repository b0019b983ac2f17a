"""What ``/proc/cpuinfo`` and the device tree tell of real processors, cut short; for tests.

``EDGEPRESS_TESTS_PROCESSOR=avx2`` runs tests as on a processor with less than the one at hand: see
``LEVELS``.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from edgepress.runtime import target
from edgepress.runtime.engines import openvino
from edgepress.runtime.nvidia import driver
from edgepress.runtime.nvidia.driver import Gpu


def _x86(vendor: str, family: int, model: int, name: str, stepping: int, flags: str) -> str:
    cores = [
        f"processor\t: {core}\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: {name}\nstepping\t: {stepping}\ncpu MHz\t\t: {2000 + 17 * core}.316\n"
        f"physical id\t: 0\ncore id\t\t: {core}\nfpu\t\t: yes\nflags\t\t: {flags}\n"
        "bugs\t\t: spectre_v1 spectre_v2\nbogomips\t: 5606.42\nclflush size\t: 64\n\n"
        for core in range(2)
    ]
    return "".join(cores)


def _arm(parts: list[tuple[str, str]], features: str, name: str = "", ending: str = "") -> str:
    cores = [
        f"processor\t: {core}\n{name}BogoMIPS\t: 108.00\nFeatures\t: {features}\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
        f"CPU part\t: {part}\nCPU revision\t: {revision}\n\n"
        for core, (part, revision) in enumerate(parts)
    ]
    return "".join(cores) + ending


_COMMON = (
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse "
    "sse2 ss ht syscall nx pdpe1gb rdtscp lm constant_tsc rep_good nopl xtopology nonstop_tsc "
    "cpuid pni pclmulqdq ssse3 fma cx16 pcid sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand "
    "lahf_lm abm 3dnowprefetch fsgsbase bmi1 avx2 smep bmi2 erms invpcid"
)

TIGER_LAKE = _x86(
    "GenuineIntel", 6, 140, "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", 1,
    f"{_COMMON} avx512f avx512dq rdseed adx smap avx512ifma clflushopt clwb avx512cd sha_ni "
    "avx512bw avx512vl xsaveopt xsavec xgetbv1 xsaves avx512vbmi umip avx512_vbmi2 gfni vaes "
    "vpclmulqdq avx512_vnni avx512_bitalg avx512_vpopcntdq rdpid fsrm avx512_vp2intersect",
)  # fmt: skip
"""VNNI in AVX-512."""

ALDER_LAKE = _x86(
    "GenuineIntel", 6, 151, "12th Gen Intel(R) Core(TM) i9-12900", 2,
    f"{_COMMON} rdseed adx smap clflushopt clwb intel_pt sha_ni xsaveopt xsavec xgetbv1 xsaves "
    "split_lock_detect avx_vnni dtherm ida arat pln pts hwp umip pku ospke waitpkg gfni vaes "
    "vpclmulqdq rdpid movdiri movdir64b fsrm md_clear serialize arch_lbr flush_l1d",
)  # fmt: skip
"""VNNI in AVX, and no AVX-512."""

COFFEE_LAKE = _x86(
    "GenuineIntel", 6, 158, "Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz", 10,
    f"{_COMMON} rtm mpx rdseed adx smap clflushopt intel_pt xsaveopt xsavec xgetbv1 xsaves dtherm "
    "ida arat pln pts hwp hwp_notify hwp_act_window hwp_epp md_clear flush_l1d",
)  # fmt: skip
"""AVX2, and no VNNI."""

SKYLAKE_SERVER = _x86(
    "GenuineIntel", 6, 85, "Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz", 4,
    f"{_COMMON} mpx avx512f avx512dq rdseed adx smap clflushopt clwb avx512cd avx512bw avx512vl "
    "xsaveopt xsavec xgetbv1 xsaves ida arat pku ospke",
)  # fmt: skip
"""AVX-512, and no VNNI."""

RASPBERRY_PI_4 = _arm(
    [("0xd08", "3")] * 4,
    "fp asimd evtstrm crc32 cpuid",
    ending="Hardware\t: BCM2835\nRevision\t: c03111\nSerial\t\t: 10000000abcdef01\n"
    "Model\t\t: Raspberry Pi 4 Model B Rev 1.1\n",
)
RASPBERRY_PI_4_AGAIN = RASPBERRY_PI_4.replace("abcdef01", "fedcba10")
"""Another one of the same kind."""

_JETSON_FEATURES = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
    "asimddp uscat ilrcpc flagm"
)
JETSON_ORIN = _arm(
    [("0xd42", "1")] * 6, _JETSON_FEATURES, name="model name\t: ARMv8 Processor rev 1 (v8l)\n"
)
"""Its name is that of the next one too."""

ROCKCHIP = _arm(
    [("0xd05", "1")] * 2 + [("0xd0b", "1")] * 2,
    _JETSON_FEATURES,
    name="model name\t: ARMv8 Processor rev 1 (v8l)\n",
)
"""Small cores and large ones."""


@dataclass(frozen=True)
class Level:
    """What OpenVINO is held to, and a processor that has just that.

    Attributes:
        isa: The newest instructions that oneDNN may use, for ``ONEDNN_MAX_CPU_ISA``.
        cpuinfo: What such a processor tells of itself.
        bf16: Whether OpenVINO computes in bfloat16 on it. It asks the processor for that, and not
            oneDNN, so that what it says under the switch is not true of AVX2.
        needs: The flag that the processor at hand must have.
    """

    isa: str
    cpuinfo: str
    bf16: bool
    needs: str


LEVELS = {
    "avx2": Level("AVX2", COFFEE_LAKE, bf16=False, needs="avx2"),
    "avx2-vnni": Level("AVX2_VNNI", ALDER_LAKE, bf16=False, needs="avx_vnni"),
    "avx512-vnni": Level("AVX512_CORE_VNNI", TIGER_LAKE, bf16=True, needs="avx512_vnni"),
}


def hold_to(name: str, folder: Path) -> None:
    """Let this process and its children use no more than a level, and take it for the processor.

    ONNX Runtime knows no such switch and goes on using what there is; an emulator restricts it.
    """
    level = LEVELS[name]
    os.environ["ONEDNN_MAX_CPU_ISA"] = level.isa
    target._CPUINFO = folder / "cpuinfo"
    target._CPUINFO.write_text(level.cpuinfo, encoding="utf-8")
    if not level.bf16:
        openvino._computes_in_bf16 = lambda core, device: False


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    cpuinfo: str,
    machine: str = "x86_64",
    board: str = "",
) -> None:
    """Let the system tell of another processor; what is made of that stays as it is."""
    told, tree = folder / "cpuinfo", folder / "model"
    told.write_text(cpuinfo, encoding="utf-8")
    tree.write_text(board and f"{board}\0", encoding="utf-8")
    monkeypatch.setattr(target, "_CPUINFO", told)
    monkeypatch.setattr(target, "_BOARD", tree)
    monkeypatch.setattr(platform, "machine", lambda: machine)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """Let the driver tell of a GPU, and TensorRT be there; nothing can be run on either."""
    package = ModuleType("tensorrt")
    package.__dict__["__version__"] = "10.3.0"
    monkeypatch.setitem(sys.modules, "tensorrt", package)
    monkeypatch.setattr(driver, "cuda", lambda: SimpleNamespace(gpu=lambda: gpu))
