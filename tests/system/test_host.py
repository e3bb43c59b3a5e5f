"""The kind of machine: parsed from what Linux says, the same for machines of one kind, and a cache that can be turned off."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simmim_export.bundle import Bundle
from simmim_export.engines import base, get_engine
from simmim_export.engines.base import INTEGER_DOT, require_host
from simmim_export.errors import EngineUnavailable, NoCache, UnknownHost
from simmim_export.runtime import load
from simmim_export.system.host import (
    FEATURES,
    available_threads,
    cache_folder,
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
SMALL = "processor\t: 1\nFeatures\t: fp asimd\n\n"


def test_what_linux_says_is_read() -> None:
    assert parse_cpuinfo(X86 * 4) == ("Some CPU @ 2.6GHz", {"avx2", "avx512f", "avx512_vnni"})
    assert parse_cpuinfo(OLD) == ("Old CPU", {"avx2"})
    assert parse_cpuinfo(ARM) == (None, {"asimdhp", "asimddp"})
    # A thread may run on any core.
    assert parse_cpuinfo(ARM + SMALL) == (None, frozenset())
    assert parse_cpuinfo("") == (None, frozenset())


@given(text=st.text(), flags=st.lists(st.sampled_from([*FEATURES, "fpu", "avx512"]), max_size=6))
def test_any_text_is_read(text: str, flags: list[str]) -> None:
    parse_cpuinfo(text)
    name, found = parse_cpuinfo(f"model name : {' '.join(flags)}\nflags : {' '.join(flags)}\n")
    assert found == set(flags) & set(FEATURES) and (name or "") == " ".join(flags)


def test_whether_products_of_full_range_are_exact() -> None:
    assert integer_dot({"avx2", "avx512_vnni"}, "x86_64") is True and integer_dot({"avx_vnni"}, "AMD64") is True
    assert integer_dot({"avx2", "avx512f"}, "x86_64") is False
    assert integer_dot(None, "AMD64") is None
    assert integer_dot(frozenset(), "aarch64") is True and integer_dot(None, "arm64") is True


def test_a_fingerprint_is_of_a_kind_and_not_of_a_machine() -> None:
    import platform

    found = fingerprint()
    assert found == fingerprint() and json.loads(json.dumps(found)) == found
    assert found["threads"] == available_threads() >= 1 and set(found["features"]) <= set(FEATURES)
    text = json.dumps(found)
    assert platform.node() not in text and str(Path.home()) not in text


def grant(folder: Path, quota: str, version: int = 2) -> None:
    """Make a control group that grants so many CPUs, or "max"."""
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
        # CPUQuota= of a unit of systemd, and of the slice that it is in.
        (2, {"system.slice/vision.service": "2"}, "0::/system.slice/vision.service", 2.0),
        (2, {"edge.slice": "1", "edge.slice/vision.service": "max"}, "0::/edge.slice/vision.service", 1.0),
        (2, {"edge.slice": "3", "edge.slice/vision.service": "2.5"}, "0::/edge.slice/vision.service", 2.5),
        (2, {"edge.slice/other.service": "1"}, "0::/edge.slice/vision.service", None),
        (2, {"unified/vision": "2"}, "4:cpu,cpuacct:/\n0::/vision", 2.0),
        (1, {"cpu": "0.5"}, "4:cpu:/", 0.5),
        (1, {"cpu,cpuacct/vision": "2", "cpu,cpuacct": "max"}, "4:cpu,cpuacct:/vision\n3:cpuset:/x", 2.0),
        # A container on v1: the path is the host's, and what is mounted is its own.
        (1, {"cpu": "3"}, "4:cpu:/docker/1cbc", 3.0),
        (2, {".": "1"}, "nonsense\n0:\n::\n", 1.0),
        (2, {}, None, None),
    ],
)
def test_threads_respect_the_quota_of_the_own_group_and_of_those_above(
    tmp_path: Path, version: int, granted: dict[str, str], groups: str | None, expected: float | None
) -> None:
    for folder, quota in granted.items():
        grant(tmp_path / "cgroup" / folder, quota, version)
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "groups") == expected


def test_a_cache_is_where_it_was_asked_for_or_nowhere(tmp_path: Path) -> None:
    assert cache_folder("x", {"SIMMIM_EXPORT_CACHE": "off"}) is None
    assert cache_folder("x", {"SIMMIM_EXPORT_CACHE": str(tmp_path / "a")}) == tmp_path / "a/x"
    assert cache_folder("x", {"XDG_CACHE_HOME": str(tmp_path / "b")}) == tmp_path / "b/simmim-export/x"
    assert (tmp_path / "a/x").is_dir() and (tmp_path / "b/simmim-export/x").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.warns(NoCache, match="SIMMIM_EXPORT_CACHE"):
        assert cache_folder("x", {"SIMMIM_EXPORT_CACHE": str(tmp_path / "file")}) is None


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_cache_that_others_may_write_to_is_not_used(tmp_path: Path, mode: int) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(mode)
    with pytest.warns(NoCache, match="other users"):
        assert cache_folder("x", {"SIMMIM_EXPORT_CACHE": str(tmp_path)}) is None
    made = cache_folder("y", {"SIMMIM_EXPORT_CACHE": str(tmp_path)})
    assert made is not None and not made.stat().st_mode & 0o077


def test_a_user_without_a_home_has_no_cache() -> None:
    """As in a container that runs under a number: no HOME, and nothing about it in passwd."""
    code = """
import os, pwd, warnings
from simmim_export.system.host import cache_folder
os.environ.pop("HOME")
if os.getuid() == 0:
    os.setuid(54321)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert cache_folder("x", {}) is None or os.getuid() != 54321
print(*(f"{w.category.__name__}: {w.message}" for w in caught))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert os.getuid() != 0 or ("NoCache" in done.stdout and "SIMMIM_EXPORT_CACHE" in done.stdout)


@pytest.fixture
def without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without integer dot products, as base.require_host sees it."""
    monkeypatch.setattr(base, "has_integer_dot", lambda: integer_dot(parse_cpuinfo(OLD)[1], "x86_64"))


def test_int8_of_full_range_is_refused_without_vnni_by_what_saturates(
    tiny_bundle: Path, tmp_path: Path, without_vnni: None
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    artifacts = {a.graph: a for a in manifest.artifacts if a.variant == "int8-u8"}
    # Weights in 7 bits need nothing.
    assert all(artifact.built_for == {} for artifact in artifacts.values())
    whole = tuple(
        replace(a, built_for={"needs": INTEGER_DOT}) if a is artifacts["image_encoder"] else a
        for a in manifest.artifacts
    )
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / "manifest.json").write_text(replace(manifest, artifacts=whole).dumps(), encoding="utf-8")
    with load(bundle, "openvino", precision="int8") as model:
        with pytest.raises(EngineUnavailable, match="saturate in engine 'openvino' without VNNI") as caught:
            model.session("image_encoder")
        assert caught.value.exit_code == 3 and "--full-range" in str(caught.value)
        model.session("head.match")
    for engine, precision in (("openvino", "image_encoder=fp32"), ("ort", "int8")):
        with load(bundle, engine, precision=precision) as model:
            model.session("image_encoder")


def test_a_host_that_does_not_say_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "has_integer_dot", lambda: None)
    with pytest.warns(UnknownHost, match="does not say"):
        require_host(get_engine("openvino"), {"needs": INTEGER_DOT}, "x.onnx")
    require_host(get_engine("openvino"), {}, "x.onnx")
    require_host(get_engine("ort"), {"needs": INTEGER_DOT}, "x.onnx")


def test_a_need_of_the_future_is_refused() -> None:
    with pytest.raises(EngineUnavailable, match="'fp8', which this version does not know"):
        require_host(get_engine("ort"), {"needs": "fp8"}, "x.onnx")


def test_doctor_says_what_the_processor_has(run_cli) -> None:
    found = json.loads(run_cli("export", "doctor", "--json").stdout)
    assert set(found["features"]) == set(cpu_features() or ())
    assert any("VNNI" in problem for problem in found["problems"]) == (has_integer_dot() is False)
