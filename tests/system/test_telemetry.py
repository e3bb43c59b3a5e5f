"""Packages that report their use to their makers."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

from simmim_export.system.telemetry import SWITCHES, set_quiet_variables, without_telemetry

VARIABLES = {name: value for switch in SWITCHES.values() for name, value in switch.variables.items()}


@pytest.mark.parametrize("package", SWITCHES)
def test_variables_stay_and_modules_come_back(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, package, raising=False)
    switch = SWITCHES[package]
    assert switch.variables or switch.blocked
    before = {name: sys.modules.get(name) for name in switch.blocked}
    with without_telemetry(package):
        for name in switch.blocked:
            with pytest.raises(ImportError):
                __import__(name)
    assert {name: sys.modules.get(name) for name in switch.blocked} == before
    assert dict(switch.variables).items() <= os.environ.items()


def test_a_users_variable_keeps_its_value() -> None:
    environment = {"ORT_DISABLE_TELEMETRY": "0", "DO_NOT_TRACK": ""}
    set_quiet_variables(environment)
    assert environment == VARIABLES | {"ORT_DISABLE_TELEMETRY": "0"}


def warned(before: str) -> list[str]:
    """The kinds of warnings of a process that runs ``before`` and then twice imports ONNX Runtime as an engine does."""
    code = (
        "import os, warnings\nfrom simmim_export.engines import get_engine\n"
        f"{before}\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        " warnings.simplefilter('always'); get_engine('ort').why_unavailable(); get_engine('ort').why_unavailable()\n"
        "print(*(one.category.__name__ for one in caught), os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_package_that_was_imported_early_is_a_warning() -> None:
    # A stand-in is enough, because only the order of imports matters.
    assert warned("import sys; sys.modules['onnxruntime'] = sys") == ["TelemetryOn", "1"]
    assert warned("") == ["1"]
    assert warned("os.environ['ORT_DISABLE_TELEMETRY'] = '1'; import onnxruntime") == ["1"]


def test_an_unknown_package_is_a_bug() -> None:
    with warnings.catch_warnings(), pytest.raises(KeyError), without_telemetry("numpy"):
        pass
