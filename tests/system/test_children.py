"""Commands that are run to their end: their output, their own errors as data, and how they ended."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from simmim_export.errors import InputError
from simmim_export.system.children import TIMED_OUT, describe_end, our_command, python_code, run


def test_the_output_of_a_command_is_returned() -> None:
    done = run(
        python_code("import os, sys; print(sys.argv[1]); print(os.environ['X'], file=sys.stderr)", "a"),
        changes={"X": "é"},
    )
    assert (done.code, done.output(), done.stderr, done.error) == (0, "a\n", "é\n", None)


def test_a_command_of_ours_ends_with_its_own_error(tmp_path: Path) -> None:
    done = run(our_command("simmim-export", "inspect", tmp_path / "none"))
    assert done.code == 5
    with pytest.raises(InputError) as caught:
        done.output()
    assert caught.value is done.error
    assert caught.value.where == str(tmp_path / "none") and caught.value.fix and "no such bundle" in caught.value.what


@pytest.mark.parametrize(
    ("command", "end"),
    [
        (our_command("simmim-export", "inspect", "--nope"), "exit code 2"),
        (python_code("import sys; print('the reason'); sys.exit(7)"), "exit code 7"),
        (python_code("import os; os.abort()"), "signal SIGABRT"),
    ],
)
def test_any_other_failure_is_a_bug_that_quotes_what_was_said(command: list[str], end: str) -> None:
    done = run(command)
    with pytest.raises(RuntimeError, match=end):
        done.output()
    said = (done.stderr or done.stdout).strip().splitlines()
    assert done.error is None and all(line in done.failure for line in said)


def test_a_command_that_takes_too_long_is_killed() -> None:
    done = run(python_code("import time; print('begun', flush=True); time.sleep(60)"), seconds=1)
    assert done.code == TIMED_OUT and done.stdout == "begun\n" and "1 s" in done.failure


def test_bytes_that_are_not_utf_8_are_escaped() -> None:
    assert run(python_code("import sys; sys.stdout.buffer.write(bytes([255, 65]))")).output() == "\\xffA"


def test_the_end_of_a_process_in_words() -> None:
    assert [describe_end(code) for code in (0, 3, -signal.SIGSEGV, -63)] == [
        "exit code 0", "exit code 3", "signal SIGSEGV", "signal 63",
    ]  # fmt: skip
