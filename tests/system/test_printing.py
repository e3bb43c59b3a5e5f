"""Standard streams that are closed, full or no longer read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simmim_export.system.children import child_environment, python_command
from simmim_export.system.printing import READER_GONE, printable

# What no user should ever see, whatever happens to a stream.
NOISE = ("Traceback", "Exception ignored", "AttributeError")
COMMANDS = {
    "inspect": ("simmim_export.cli", "inspect", "{bundle}"),
    "inspect --json": ("simmim_export.cli", "inspect", "{bundle}", "--json"),
    "embed": ("simmim_export.cli", "embed", "{bundle}", "--text", "red circle"),
    "ask": ("simmim_export.cli", "ask", "{bundle}", "{picture}", "what shape is red ?"),
    "verify": ("simmim_export.cli", "verify", "{bundle}"),
    "draw": ("simmim_export.training.cli", "draw", "-o", "{out}", "--count", "1", "--overwrite"),
    "bench": (
        "simmim_export.benchmarks.cli",
        "--bundle",
        "{bundle}",
        "--engine",
        "ort",
        "--rounds",
        "1",
        "--iterations",
        "1",
    ),
}


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest, tiny_bundle: Path, picture: Path, tmp_path: Path) -> list[str]:
    module, *words = COMMANDS[request.param]
    return python_command(
        module, *(word.format(bundle=tiny_bundle, picture=picture, out=tmp_path / "o") for word in words)
    )


def shell(command: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
    """Run ``command`` as a shell does with ``redirection``, such as ``>&-``."""
    words = ["bash", "-c", f'"$@" {redirection}', "bash", *command]
    return subprocess.run(
        words, capture_output=True, text=True, timeout=120, env=child_environment(), stdin=subprocess.DEVNULL
    )


def require_quiet(done: subprocess.CompletedProcess[str]) -> None:
    assert not [noise for noise in NOISE if noise in done.stdout + done.stderr], done.stderr


def test_a_command_works_with_stdout_closed(command: list[str]) -> None:
    done = shell(command, ">&-")
    assert done.returncode == 0 and done.stdout == ""
    assert "stdout" in done.stderr
    require_quiet(done)


@pytest.mark.parametrize("redirection", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_command_works_with_streams_closed(redirection: str, tiny_bundle: Path) -> None:
    done = shell(python_command("simmim_export.cli", "verify", tiny_bundle), redirection)
    assert done.returncode == 0 and done.stderr == ""
    assert bool(done.stdout) == (redirection == "2>&-")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_an_error_keeps_its_exit_code_with_streams_closed(redirection: str, tmp_path: Path) -> None:
    done = shell(python_command("simmim_export.cli", "verify", tmp_path), redirection)
    assert done.returncode == 5
    assert ("error: " in done.stderr) == (redirection == ">&-")
    assert shell(python_command("simmim_export.cli", "no-such-command"), redirection).returncode == 2
    require_quiet(done)


def test_closed_streams_do_not_change_an_output_file(tiny_bundle: Path, tmp_path: Path) -> None:
    words = ("embed", tiny_bundle, "--text", "red circle", "-o")
    assert shell(python_command("simmim_export.cli", *words, tmp_path / "a.npz"), "").returncode == 0
    assert shell(python_command("simmim_export.cli", *words, tmp_path / "b.npz"), ">&- 2>&-").returncode == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def unread(command: list[str], *, both: bool) -> subprocess.CompletedProcess[str]:
    """Run ``command`` with a stdout, and with ``both`` a stderr, whose reader is already gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        where = {"stdout": writer, "stderr": writer if both else subprocess.PIPE}
        return subprocess.run(command, text=True, timeout=120, env=child_environment(), **where)  # type: ignore[call-overload]
    finally:
        os.close(writer)


def test_a_reader_that_goes_away_ends_a_command_quietly(command: list[str]) -> None:
    done = unread(command, both=False)
    assert done.returncode == READER_GONE
    assert not [noise for noise in NOISE if noise in done.stderr], done.stderr
    assert unread(command, both=True).returncode == READER_GONE


def test_a_reader_may_read_only_one_line(tiny_bundle: Path) -> None:
    done = shell(python_command("simmim_export.cli", "inspect", tiny_bundle), "| head -1")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 and done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", ["inspect", "ask", "inspect --json"])
def test_an_output_that_cannot_be_written_is_an_error(name: str, tiny_bundle: Path, picture: Path) -> None:
    module, *words = COMMANDS[name]
    done = shell(python_command(module, *(w.format(bundle=tiny_bundle, picture=picture) for w in words)), "> /dev/full")
    assert done.returncode == 2 and "error: " in done.stderr and "where: standard output" in done.stderr
    require_quiet(done)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("redirection", ["2> /dev/full", "> /dev/full 2> /dev/full"])
def test_an_error_that_cannot_be_written_keeps_its_exit_code(redirection: str, tmp_path: Path) -> None:
    command = python_command("simmim_export.cli", "verify", tmp_path)
    assert shell(command, redirection).returncode == 5
    assert shell(python_command("simmim_export.cli", "no-such-command"), redirection).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_report_that_cannot_be_written_is_an_error(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    command = python_command("simmim_export.cli", "embed", tiny_bundle, picture, tmp_path / "text.png")
    assert shell(command, "2> /dev/full").returncode == 2
    done = shell(command, "> /dev/full")
    # Which error ends the command depends on when Python flushes its buffer.
    assert done.returncode in (2, 5) and "where: standard output" in done.stderr


def test_a_traceback_is_escaped() -> None:
    code = (
        "from simmim_export.console import run_app\ndef command(): raise RuntimeError('a\\x1b[2Jb')\nrun_app(command)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "a\\x1b[2Jb" in done.stderr


@pytest.mark.parametrize("letter", ["\ufffe", "\uffff", "\U0001ffff", "\ufdd0"])
def test_what_is_never_a_character_is_escaped(letter: str) -> None:
    """XML forbids some of them."""
    assert printable(f"a{letter}b") == f"a{letter.encode('unicode_escape').decode()}b"
