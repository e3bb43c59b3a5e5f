"""make arm-check: what an emulated Arm processor computes, and what the check says where it cannot run."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import arm_check
import pytest
from arm_check import PROCESSORS, Emulator, Row, check, draw, judge, main

from simmim_export.errors import EngineUnavailable, SimmimError, UsageError
from simmim_export.spec import Precision
from simmim_export.system.children import Finished
from simmim_export.system.host import parse_cpuinfo
from simmim_export.system.watch import unwatched


def test_an_emulated_arm_processor_computes_what_this_machine_does(tiny_bundle: Path, tmp_path: Path) -> None:
    """INT8 on a processor without dot products; make arm-check runs the others."""
    processors, engines = ["cortex-a72"], ["ort"]
    try:
        emulator = Emulator.prepare(arm_check.FOLDER, processors=processors, engines=engines, watch=unwatched)
    except EngineUnavailable as error:
        pytest.skip(f"no Arm processor can be emulated here: {error.what}")
    picture = tmp_path / "picture.png"
    draw(picture)
    int8 = (Precision.INT8,)
    (row,) = check(emulator, tiny_bundle, processors=processors, engines=engines, precisions=int8, picture=picture)
    assert not row.failed and not row.refused
    assert row.scaled_error is not None and row.scaled_error > 1e-3  # INT8 was computed


def fails(monkeypatch: pytest.MonkeyPatch, *words: str) -> SimmimError:
    """The error that ends the program with ``words``."""
    monkeypatch.setattr(sys, "argv", ["arm_check.py", *words])
    with pytest.raises(SimmimError) as caught:
        main()
    return caught.value


@pytest.mark.parametrize("option", ["--processor", "--engine", "--qemu"])
def test_an_unknown_name_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str) -> None:
    error = fails(monkeypatch, option, "cortex-a1", "--folder", str(tmp_path / "arm"))
    assert isinstance(error, UsageError) and "cortex-a1" in str(error) and not list(tmp_path.iterdir())


def test_without_qemu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = fails(monkeypatch, "--folder", str(tmp_path / "arm"))
    assert error.exit_code == 3 and "qemu-user" in str(error.fix) and not list(tmp_path.iterdir())


def test_a_qemu_that_lacks_a_processor_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho 'qemu version 7\n  cortex-a53'\nexit 1\n")
    qemu.chmod(0o755)
    error = fails(monkeypatch, "--qemu", str(qemu), "--processor", "neoverse-n2", "--folder", str(tmp_path / "arm"))
    assert error.exit_code == 3 and "neoverse-n2" in error.what and error.where == str(qemu)


def test_without_a_network_nothing_half_downloaded_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither of Debian's packages nor of wheels."""
    if arm_check.shutil.which("apt-get") is None:
        pytest.skip("apt-get is not installed")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    emulator = Emulator(qemu="qemu", folder=tmp_path)
    makers: list[Any] = [
        lambda path: arm_check._unpack_debian(arm_check.PACKAGES, path, suite=arm_check.DEBIAN, architecture="arm64"),
        lambda path: arm_check._install_wheels("ort", path),
    ]
    for maker in makers:
        with pytest.raises(EngineUnavailable) as caught:
            emulator._complete("part", maker)
        assert "cannot download" in caught.value.what and not (tmp_path / "part").exists()


def test_doctor_knows_each_processor() -> None:
    for processor in PROCESSORS.values():
        name, features = parse_cpuinfo(processor.cpuinfo())
        assert name == processor.cpu
        assert features == set(arm_check.FEATURES) & set(processor.features.split())
    assert PROCESSORS["cortex-a72"].midr() == "0x00000000410fd083\n"


ROW = Row(processor="cortex-a72", engine="ort", precision=Precision.INT8)
DOCTOR = {"cpu": "Cortex-A72", "features": [], "engines": {name: {"available": True} for name in arm_check.ENGINES}}
VERIFY = {"parity": {"fusion": {"scaled_error": 0.04, "cosine": 0.9999, "variant": "int8-dot"}}}
EMBED = {"embeddings": [[0.6, 0.8]]}
ASK = [{"answers": [{"answer": "red", "score": 0.7}, {"answer": "blue", "score": 0.3}]}]
HERE = {"verify": VERIFY, "embed": EMBED, "ask": ASK}


def said(changes: dict[str, Any] | None = None, *, code: int = 0) -> dict[str, Finished]:
    """What the four commands print on a processor that computes what this machine does, but for ``changes``. ``code``: how verify
    ends."""
    documents = {"doctor": DOCTOR, **HERE, **(changes or {})}
    return {
        name: Finished(
            command=[name], code=code * (name == "verify"), stdout=json.dumps(value), stderr="error", error=None
        )
        for name, value in documents.items()
    }


def test_a_processor_that_computes_the_same_passes() -> None:
    row = judge(ROW, said(), HERE)
    assert row == replace(ROW, scaled_error=0.04, cosine=0.9999, embed=0.0, ask=0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"doctor": DOCTOR | {"cpu": "aarch64"}},
        {"doctor": DOCTOR | {"features": ["asimddp"]}},
        {"doctor": DOCTOR | {"engines": {"ort": {"available": False}}}},
        {"embed": {"embeddings": [[0.61, 0.79]]}},
        {"ask": [{"answers": [{"answer": "red", "score": 0.3}, {"answer": "blue", "score": 0.7}]}]},
    ],
)
def test_a_processor_that_computes_something_else_fails(changes: dict[str, Any]) -> None:
    assert judge(ROW, said(changes), HERE).failed


@pytest.mark.parametrize(
    ("engine", "precision", "code", "passes"),
    [
        ("openvino", "int8", 3, True),
        ("openvino", "fp32", 3, False),
        ("ort", "int8", 3, False),
        ("ort", "int8", 4, False),
    ],
)
def test_only_int8_of_openvino_may_be_refused(engine: str, precision: str, code: int, passes: bool) -> None:
    row = judge(replace(ROW, engine=engine, precision=Precision(precision)), said(code=code), HERE)
    assert (not row.failed) == passes and row.refused == passes


def test_another_variant_is_not_compared_with_this_machine() -> None:
    """This machine takes int8-u8 if it has no VNNI, and an Arm processor never does."""
    here = HERE | {"verify": {"parity": {"fusion": VERIFY["parity"]["fusion"] | {"variant": "int8-u8"}}}}
    row = judge(ROW, said({"embed": {"embeddings": [[0.5, 0.9]]}}), here)
    assert not row.failed and row.embed is None
