"""How a command ends: exit codes, and one message."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest


def ended_by(raised: str) -> subprocess.CompletedProcess[str]:
    """Run a command that raises ``raised``."""
    code = f"from simmim_export.console import run_app\ndef command(): raise {raised}\nrun_app(command)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("raised", ["ZeroDivisionError", f"PermissionError({errno.EPERM}, 'a priority of a thread')"])
def test_a_bug_keeps_its_traceback(raised: str) -> None:
    done = ended_by(raised)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_bug_in_a_typer_command_keeps_its_traceback() -> None:
    code = (
        "from simmim_export.console import new_app, run_app\napp = new_app('x')\n"
        "@app.command()\ndef a(): raise ZeroDivisionError\n"
        "@app.command()\ndef b(): pass\nrun_app(app)"
    )
    done = subprocess.run([sys.executable, "-c", code, "a"], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENAMETOOLONG])
def test_an_error_of_the_system_is_a_message(number: int) -> None:
    done = ended_by(f"OSError({number}, {os.strerror(number)!r}, 'out.onnx')")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert os.strerror(number) in done.stderr and "where: out.onnx" in done.stderr and "next:" in done.stderr


@pytest.mark.parametrize(
    ("kind", "code"), [("UsageError", 2), ("EngineUnavailable", 3), ("GateFailed", 4), ("InputError", 5)]
)
def test_each_kind_of_error_has_its_exit_code(kind: str, code: int) -> None:
    done = ended_by(f"__import__('simmim_export.errors').errors.{kind}('what', where='here', fix='this')")
    assert (done.returncode, done.stderr) == (code, "error: what\n  where: here\n  next:  this\n")


def test_ctrl_c_prints_nothing() -> None:
    done = ended_by("KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "")


def test_a_program_without_words_shows_its_help(run_cli) -> None:
    done = run_cli("export")
    assert done.returncode == 2 and len(done.stderr.splitlines()) > 10
