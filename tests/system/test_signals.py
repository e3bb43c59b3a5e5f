"""A process that is asked to end cleans up first."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from simmim_export.system.signals import ENDING, ending_cleanly

# Sends itself a signal twice inside the block, and prints what happens.
BLOCK = """
import os, signal, sys
from simmim_export.system.signals import ending_cleanly
number = int(sys.argv[1])
if sys.argv[2] != "default":
    signal.signal(number, signal.SIG_IGN if sys.argv[2] == "ignored" else lambda *_: print("own"))
with ending_cleanly():
    try:
        os.kill(os.getpid(), number)
        print("went on")
    finally:
        os.kill(os.getpid(), number)
        print("cleaned up")
"""


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize(
    ("before", "code", "said"),
    [
        ("default", 128, ["cleaned up"]),
        ("ignored", 0, ["went on", "cleaned up"]),
        ("own", 0, ["own", "went on", "own", "cleaned up"]),
    ],
)
def test_a_signal_ends_the_block_unless_it_is_handled(number: int, before: str, code: int, said) -> None:
    command = [sys.executable, "-P", "-c", BLOCK, str(int(number)), before]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == (code + number if code else 0), done.stderr
    assert done.stdout.split("\n")[:-1] == said


# A library swallows the first exception; the second signal comes after the time for cleaning up.
SWALLOWED = """
import os, signal
from simmim_export.system import signals
signals.GRACE = 0.0
with signals.ending_cleanly():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        print("swallowed")
    os.kill(os.getpid(), signal.SIGTERM)
    print("went on")
"""


def test_a_second_signal_ends_a_block_that_swallowed_one() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", SWALLOWED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "swallowed\n"), done.stderr


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in ENDING]
    with ending_cleanly():
        pass
    with pytest.raises(RuntimeError), ending_cleanly():
        raise RuntimeError
    assert [signal.getsignal(number) for number in ENDING] == before


def test_another_thread_may_use_the_block() -> None:
    reached = []

    def work() -> None:
        with ending_cleanly():
            reached.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reached == [True]
