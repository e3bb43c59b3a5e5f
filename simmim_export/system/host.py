"""What kind of machine this is: processor, instructions that matter to engines, usable threads, and a folder for caches.

Knows the operating system, and the driver of GPUs. Must not know engines, graphs or bundles. Says nothing that identifies one
machine among others of its kind: no name, no address, no path.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import stat
import subprocess
import sys
import warnings
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from simmim_export.errors import NoCache
from simmim_export.system import nvidia

# What decides which kernels an engine has: as Linux spells it, on x86 and on Arm.
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
# Instructions that multiply 8-bit numbers and add four products in 32 bits. x86 without them adds two in 16 bits first,
# which saturates where both factors use their whole range.
_INTEGER_DOT = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")
_X86 = ("x86_64", "amd64", "i386", "i686")
# sysctl of macOS -> the name that Linux has for it.
_DARWIN = {
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "avx512_vnni",
}
CACHE = "SIMMIM_EXPORT_CACHE"


def parse_cpuinfo(text: str) -> tuple[str | None, frozenset[str]]:
    """The processor's name and those of :data:`FEATURES` that it has, from Linux' /proc/cpuinfo of x86 or Arm.

    The name is None where the text gives none, as on most Arm boards. Of cores that differ, a feature counts if all have it.
    """
    name, found = None, []
    for line in text.splitlines():
        key, colon, value = (part.strip() for part in line.partition(":"))
        if colon and key == "model name" and value:
            name = name or value
        elif colon and key in ("flags", "Features"):
            found.append(frozenset(value.split()))
    return name, frozenset(FEATURES) & frozenset.intersection(*found) if found else frozenset()


@cache
def _processor() -> tuple[str | None, frozenset[str] | None]:
    """Name and features; None for what this system does not say."""
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
    """The processor's name, or its architecture where the system does not say."""
    return _processor()[0] or platform.machine()


def cpu_features() -> frozenset[str] | None:
    """Those of :data:`FEATURES` that the processor has; None where the system does not say (Windows)."""
    return _processor()[1]


def integer_dot(features: Collection[str] | None, machine: str) -> bool | None:
    """Whether INT8 products of full range are exact on a processor with ``features``; None where that is not known.

    ``machine`` is the architecture as :func:`platform.machine` has it. Arm without dot products widens to 16 bits without
    saturating, so that only x86 can be wrong.
    """
    if machine.lower() not in _X86:
        return True
    return None if features is None else any(feature in features for feature in _INTEGER_DOT)


def has_integer_dot() -> bool | None:
    """:func:`integer_dot` of this machine."""
    return integer_dot(cpu_features(), platform.machine())


def fingerprint() -> dict[str, Any]:
    """The kind of machine as JSON: two of one kind give the same, and what was measured on one holds on the other.

    GPUs are named where there are any, so that certificates of machines without one stay what they were.
    """
    driver = nvidia.driver()
    gpus = {} if driver is None else {"gpus": [gpu.name for gpu in driver.gpus]}
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "features": sorted(cpu_features() or ()),
        "threads": available_threads(),
    } | gpus


def available_threads() -> int:
    """Threads that this process may really use: its CPU affinity, and the least quota of its control group (v2 or v1) and of
    those above it."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cgroup_quota(root: Path, groups: Path) -> float | None:
    """CPUs granted under ``root`` to the groups that the file ``groups`` lists, or None where no limit is set.

    A line of it is "0::/path" for v2, and "4:cpu,cpuacct:/path" for v1, whose controllers have folders of their own. In a
    container the path may be that of the host, which is not to be seen there: what is mounted at the top is its own then.
    """
    found = [_quota(root), _quota(root / "cpu")]
    with contextlib.suppress(OSError):
        for line in groups.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = (*line.split(":", 2), "", "")[:3]
            tops = (root, root / "unified") if not controllers else (root / controllers, root / "cpu")
            if not controllers or "cpu" in controllers.split(","):
                parts = [part for part in path.split("/") if part not in ("", ".", "..")]
                found += [_quota(top.joinpath(*parts[:depth])) for top in tops for depth in range(len(parts) + 1)]
    return min((quota for quota in found if quota is not None), default=None)


def _quota(folder: Path) -> float | None:
    """CPUs that the control group ``folder`` itself grants, or None."""
    try:
        granted, period = (folder / "cpu.max").read_text().split()
        return None if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    try:
        microseconds = int((folder / "cpu.cfs_quota_us").read_text())
        return None if microseconds <= 0 else microseconds / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None


def cache_folder(name: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """A folder ``name`` for what can be made again: under $SIMMIM_EXPORT_CACHE, or the user's cache by the XDG convention.

    None where that variable is ``off``, and with a :class:`NoCache` warning where the folder cannot be written, or another user
    may write there, too: whoever can replace a compiled model decides what it answers.
    """
    wanted = environment.get(CACHE, "")
    if wanted == "off":
        return None
    try:
        if wanted:
            folder = Path(wanted) / name
        else:
            folder = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simmim-export" / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = folder.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        warnings.warn(f"no cache: {error}; set {CACHE} to a folder, or to off", NoCache, stacklevel=2)
        return None
    if not os.access(folder, os.W_OK):
        warnings.warn(
            f"no cache: {folder} cannot be written; set {CACHE} to a folder, or to off", NoCache, stacklevel=2
        )
        return None
    if hasattr(os, "geteuid") and (there.st_uid != os.geteuid() or there.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        what = (
            f"no cache: other users may write to {folder}; set {CACHE} to a folder of your own (chmod go-w), or to off"
        )
        warnings.warn(what, NoCache, stacklevel=2)
        return None
    return folder
