"""What kind of machine this is: its processor, the instructions that matter to engines, and the threads that may be used.

Nothing here identifies one machine among others of its kind: no name, no address, no path.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from simmim_export.system import nvidia

# The instructions that decide which kernels an engine has, as Linux spells them, on x86 and on Arm.
FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "asimdhp",
    "bf16",
)
# Instructions that multiply 8-bit numbers and add four products in 32 bits. x86 without them first adds two products in 16 bits,
# which saturates if both factors use their full range.
_INTEGER_DOT = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")
_X86 = ("x86_64", "amd64", "i386", "i686")
# Arm processors do not tell their name, only who made them and which part they are (MIDR_EL1). The names of the parts that edge
# devices and servers have, from Linux' arch/arm64/include/asm/cputype.h.
_ARM_PARTS = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd44"): "Cortex-X1",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
}
# The name of a feature in macOS's sysctl -> its name in Linux.
_DARWIN = {
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "avx512_vnni",
}


def parse_cpuinfo(text: str) -> tuple[str | None, frozenset[str]]:
    """The processor's name and which of :data:`FEATURES` it has, from the text of Linux' /proc/cpuinfo on x86 or Arm.

    On Arm the name is that of the part, or its two numbers if it is not in :data:`_ARM_PARTS`; the line "model name" there, if
    any, is the same for different parts. Where cores differ, the name has all of them, and a feature counts if all of them have
    it. The name is None if the text has none.
    """
    name, cores, parts, implementer = None, [], set(), ""
    for line in text.splitlines():
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not value:
            continue
        if key == "model name":
            name = name or value
        elif key in ("flags", "Features"):
            cores.append(frozenset(value.split()))
        elif key == "CPU implementer":
            implementer = value
        elif key == "CPU part" and implementer:
            parts.add(_ARM_PARTS.get((implementer, value), f"Arm implementer {implementer} part {value}"))
    if parts:
        name = " + ".join(sorted(parts))
    return name, frozenset(FEATURES) & frozenset.intersection(*cores) if cores else frozenset()


@cache
def _processor() -> tuple[str | None, frozenset[str] | None]:
    """Name and features; None for each that this system does not tell."""
    if sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string")
        return name, frozenset(feature for key, feature in _DARWIN.items() if _sysctl(key) == "1")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None, None
    return parse_cpuinfo(text)


def _sysctl(key: str) -> str | None:
    done = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def cpu_model() -> str:
    """The processor's name, or its architecture if the system does not tell the name."""
    return _processor()[0] or platform.machine()


def cpu_features() -> frozenset[str] | None:
    """Those of :data:`FEATURES` that the processor has; None if the system does not tell (Windows)."""
    return _processor()[1]


def integer_dot(features: Collection[str] | None, machine: str) -> bool | None:
    """Whether INT8 products of full range are exact on a processor with ``features``; None if that is not known.

    ``machine`` is the architecture as :func:`platform.machine` spells it. Arm without dot products widens to 16 bits without
    saturating, so only x86 can be wrong.
    """
    if machine.lower() not in _X86:
        return True
    return None if features is None else any(feature in features for feature in _INTEGER_DOT)


def has_integer_dot() -> bool | None:
    """:func:`integer_dot` of this machine."""
    return integer_dot(cpu_features(), platform.machine())


def fingerprint() -> dict[str, Any]:
    """The kind of this machine as JSON. Machines of one kind have the same fingerprint, and what was measured on one holds on the
    others."""
    kind = {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "features": sorted(cpu_features() or ()),
        "threads": available_threads(),
    }
    # Only with a GPU: the certificates of machines without one do not have this key.
    if (driver := nvidia.driver()) is not None:
        kind["gpus"] = [gpu.name for gpu in driver.gpus]
    return kind


def available_threads() -> int:
    """How many threads this process may really use, by its CPU affinity and the smallest quota of its control group (v2 or v1)
    and the groups above it."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cgroup_quota(root: Path, groups: Path) -> float | None:
    """The CPUs granted under ``root`` to the groups that the file ``groups`` lists, or None if there is no limit.

    A line of the file is "0::/path" for v2, and "4:cpu,cpuacct:/path" for v1, whose controllers have folders of their own. In a
    container the path may be the host's, which is not visible there. Then the group mounted at the top is the container's own.
    """
    quotas = [_quota(root), _quota(root / "cpu")]
    with contextlib.suppress(OSError):
        for line in groups.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = (*line.split(":", 2), "", "")[:3]
            tops = (root, root / "unified") if not controllers else (root / controllers, root / "cpu")
            if not controllers or "cpu" in controllers.split(","):
                parts = [part for part in path.split("/") if part not in ("", ".", "..")]
                quotas += [_quota(top.joinpath(*parts[:depth])) for top in tops for depth in range(len(parts) + 1)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(folder: Path) -> float | None:
    """The CPUs that the control group ``folder`` itself grants, or None."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        granted, period = (folder / "cpu.max").read_text().split()
        return None if granted == "max" else int(granted) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        microseconds = int((folder / "cpu.cfs_quota_us").read_text())
        return None if microseconds <= 0 else microseconds / int((folder / "cpu.cfs_period_us").read_text())
    return None
