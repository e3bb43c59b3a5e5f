"""The kind of machine: read from Linux' files, and the same for machines of one kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simmim_export.system.host import (
    FEATURES,
    available_threads,
    cgroup_quota,
    cpu_features,
    fingerprint,
    has_integer_dot,
    integer_dot,
    parse_cpuinfo,
)

X86 = "processor\t: 0\nmodel name\t: Some CPU @ 2.6GHz\nflags\t\t: fpu sse2 avx2 avx512f avx512_vnni\n\n"
OLD = "processor\t: 0\nmodel name\t: Old CPU\nflags\t\t: fpu sse2 avx2\n\n"
ARM = "processor\t: 0\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd asimdhp asimddp\nCPU part\t: 0xd0b\n\n"
PI_4 = (
    "processor\t: 0\nmodel name\t: ARMv8 Processor rev 3 (v8l)\nFeatures\t: fp asimd crc32\n"
    "CPU implementer\t: 0x41\nCPU part\t: 0xd08\n\n"
)
PI_3 = PI_4.replace("0xd08", "0xd03")
SMALL = "processor\t: 1\nFeatures\t: fp asimd\n\n"


def test_cpuinfo_gives_name_and_features() -> None:
    assert parse_cpuinfo(X86 * 4) == ("Some CPU @ 2.6GHz", {"avx2", "avx512f", "avx512_vnni"})
    assert parse_cpuinfo(OLD) == ("Old CPU", {"avx2"})
    assert parse_cpuinfo(ARM) == (None, {"asimdhp", "asimddp"})
    # A feature that one core lacks does not count, because a thread may run on any core.
    assert parse_cpuinfo(ARM + SMALL) == (None, frozenset())
    assert parse_cpuinfo("") == (None, frozenset())


def test_arm_processors_have_different_names() -> None:
    """A Raspberry Pi 3 and a Pi 4 have the same features, and Linux' "model name" is the same for both."""
    assert parse_cpuinfo(PI_3 * 4) == ("Cortex-A53", frozenset()) and parse_cpuinfo(PI_4 * 4) == (
        "Cortex-A72",
        frozenset(),
    )
    # The cores of one processor may differ.
    assert parse_cpuinfo(PI_4 * 2 + PI_3 * 4)[0] == parse_cpuinfo(PI_3 * 4 + PI_4 * 2)[0] == "Cortex-A53 + Cortex-A72"
    unknown = PI_4.replace("0xd08", "0xfff")
    assert parse_cpuinfo(unknown)[0] == "Arm implementer 0x41 part 0xfff"


@given(text=st.text(), flags=st.lists(st.sampled_from([*FEATURES, "fpu", "avx512"]), max_size=6))
def test_any_cpuinfo_is_read(text: str, flags: list[str]) -> None:
    parse_cpuinfo(text)
    name, features = parse_cpuinfo(f"model name : {' '.join(flags)}\nflags : {' '.join(flags)}\n")
    assert features == set(flags) & set(FEATURES) and (name or "") == " ".join(flags)


def test_products_of_full_range_are_exact_with_integer_dot() -> None:
    assert integer_dot({"avx2", "avx512_vnni"}, "x86_64") is True and integer_dot({"avx_vnni"}, "AMD64") is True
    assert integer_dot({"avx2", "avx512f"}, "x86_64") is False
    assert integer_dot(None, "AMD64") is None
    assert integer_dot(frozenset(), "aarch64") is True and integer_dot(None, "arm64") is True


def test_a_fingerprint_identifies_a_kind_and_not_a_machine() -> None:
    import platform

    kind = fingerprint()
    assert kind == fingerprint() and json.loads(json.dumps(kind)) == kind
    assert kind["threads"] == available_threads() >= 1 and set(kind["features"]) <= set(FEATURES)
    text = json.dumps(kind)
    assert platform.node() not in text and str(Path.home()) not in text


def grant(folder: Path, quota: str, version: int = 2) -> None:
    """Make a control group that grants ``quota`` CPUs, or "max"."""
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (folder / "cpu.max").write_text(f"{quota if quota == 'max' else int(float(quota) * 100000)} 100000\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text("-1" if quota == "max" else str(int(float(quota) * 100000)))
        (folder / "cpu.cfs_period_us").write_text("100000")


@pytest.mark.parametrize(
    ("version", "granted", "groups", "expected"),
    [
        (2, {".": "1.5"}, "0::/", 1.5),
        (2, {".": "max"}, "0::/", None),
        # CPUQuota= of a systemd unit and of its slice.
        (2, {"system.slice/vision.service": "2"}, "0::/system.slice/vision.service", 2.0),
        (2, {"edge.slice": "1", "edge.slice/vision.service": "max"}, "0::/edge.slice/vision.service", 1.0),
        (2, {"edge.slice": "3", "edge.slice/vision.service": "2.5"}, "0::/edge.slice/vision.service", 2.5),
        (2, {"edge.slice/other.service": "1"}, "0::/edge.slice/vision.service", None),
        (2, {"unified/vision": "2"}, "4:cpu,cpuacct:/\n0::/vision", 2.0),
        (1, {"cpu": "0.5"}, "4:cpu:/", 0.5),
        (1, {"cpu,cpuacct/vision": "2", "cpu,cpuacct": "max"}, "4:cpu,cpuacct:/vision\n3:cpuset:/x", 2.0),
        # A container on v1: the path is the host's, but the mounted group is its own.
        (1, {"cpu": "3"}, "4:cpu:/docker/1cbc", 3.0),
        (2, {".": "1"}, "nonsense\n0:\n::\n", 1.0),
        (2, {}, None, None),
    ],
)
def test_the_smallest_quota_limits_threads(
    tmp_path: Path, version: int, granted: dict[str, str], groups: str | None, expected: float | None
) -> None:
    for folder, quota in granted.items():
        grant(tmp_path / "cgroup" / folder, quota, version)
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "groups") == expected


def test_doctor_lists_the_processors_features(run_cli) -> None:
    examination = json.loads(run_cli("export", "doctor", "--json").stdout)
    assert set(examination["features"]) == set(cpu_features() or ())
    assert any("VNNI" in problem for problem in examination["problems"]) == (has_integer_dot() is False)
