"""Warnings that repeat are shown once, with a count."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from simmim_export.console.notices import repeated_warnings_counted
from simmim_export.system.printing import READER_GONE

BOTH_KINDS = """
import warnings
from simmim_export.console import run_app
from simmim_export.errors import InputError, NoCache, TruncatedText
def command():
    for number in range(30):
        what = f"text {number} was cut to the model's limit of {number + 20}: 'it{number}' lost {number!r}"
        warnings.warn(what, TruncatedText)
    warnings.warn("no cache", NoCache)
    RAISED
run_app(command)
"""


def ended(raised: str, stderr: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BOTH_KINDS.replace("RAISED", raised)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60)


def warned(messages: list[tuple[str, type[Warning]]], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr after these warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with repeated_warnings_counted():
            for message, category in messages:
                warnings.warn(message, category, stacklevel=1)
    return capsys.readouterr().err.splitlines()


def test_warnings_of_one_kind_are_shown_once_with_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    lines = warned([(f"file {n} is 'n{n}'", UserWarning) for n in range(1500)], capsys)
    assert lines[0] == "warning: file 0 is 'n0'" and len(lines) == 2
    assert "1,499 more" in lines[1]


def test_a_single_warning_has_no_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert warned([("once", UserWarning)], capsys) == ["warning: once"]


def test_different_messages_and_classes_are_shown_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    class Other(UserWarning):
        """Another class."""

    messages = [("a graph", UserWarning), ("another graph", UserWarning), ("a graph", Other)]
    assert warned(messages, capsys) == ["warning: a graph", "warning: another graph", "warning: a graph"]


def test_a_count_of_several_kinds_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    lines = warned([("a 1", UserWarning), ("b 1", UserWarning), ("b 2", UserWarning)], capsys)
    assert len(lines) == 3 and "1 more" in lines[2] and "b 1" in lines[2]


def test_the_count_comes_before_the_error_that_ends_the_command() -> None:
    done = ended("raise InputError('the end')")
    lines = done.stderr.splitlines()
    assert done.returncode == 5 and len(lines) == 4
    assert "text 0" in lines[0] and "29 more" in lines[2] and lines[3] == "error: the end"


def test_a_count_that_cannot_be_written_keeps_the_exit_code() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert ended("pass", writer).returncode == READER_GONE
    finally:
        os.close(writer)


def test_embedding_many_long_texts_warns_once(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{'red circle ' * (40 if number % 4 == 0 else 1)}\n" for number in range(200)))
    done = run_cli("export", "embed", tiny_bundle, "--texts", texts, "--json")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
    assert 1 <= len(lines) <= 2 and "49 more" in lines[-1]
