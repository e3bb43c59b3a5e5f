"""The demo's stages: what they print without a terminal, and how a failing or interrupted one ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simmim_export.training import demo

RUN = """
import sys
from simmim_export.console import run_app
from simmim_export.training import demo
stage = demo.Stage(name="short", purpose="do something", seconds=1, commands=(tuple(sys.argv[1:]),))
demo.building = lambda **minutes: [stage]
sys.argv[1:] = []
run_app(demo.main)
"""


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The demo with a single stage that runs one command."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )


def test_a_failing_stage_ends_the_demo_with_its_exit_code_and_the_end_of_the_log(tmp_path: Path) -> None:
    process = start(tmp_path, "simmim-train", "evaluate", "none.pt")
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 5
    lines = shown.splitlines()
    assert lines[0].startswith("short: ") and "demo/log.txt" in shown
    assert any("none.pt" in line and "where" in line for line in lines)
    log = (tmp_path / "demo/log.txt").read_text()
    assert "$ simmim-train evaluate none.pt" in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_and_its_command(tmp_path: Path, number: signal.Signals) -> None:
    words = ("pretrain", "--steps", "100000", "--batch-size", "2", "--eval-scenes", "0", "-o", "x.pt")
    process = start(tmp_path, "simmim-train", *words)
    log = tmp_path / "demo/log.txt"
    while not log.exists() or "step " not in log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 128 + number and "Traceback" not in shown
    # The command has ended too: it saved its state and said how to continue.
    assert "--resume" in log.read_text() and (tmp_path / "x.pt.trainer").exists()


def test_a_stage_prints_a_line_when_it_starts_and_one_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    demo.FOLDER.mkdir()
    draw = demo.command("simmim-train", "draw", "--count", 1, "-o", demo.IMAGES)
    with demo.shown() as run:
        run(demo.Stage(name="draw", purpose="draw an image", seconds=3, commands=(draw,)))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("draw: draw an image") and second.startswith("draw: done in ")
    assert (demo.IMAGES / "0000.png").exists()


def test_every_command_of_the_demo_parses() -> None:
    import importlib

    import typer

    from simmim_export.system.children import PROGRAMS

    rows = [{"question": f"question {n}?", "answer": "yes"} for n in range(4)]
    records = [{"image": f"{n}.png", "questions": rows, "captions": ["a", "b"]} for n in range(2)]
    stages = [*demo.building(align=1, pretrain=1, finetune=1), demo.asking(records)]
    commands = [words for stage in stages for words in stage.commands] + demo.suggestions(records)
    for program, *words in commands:
        application = typer.main.get_command(importlib.import_module(PROGRAMS[program]).app)
        application.make_context(program, [*words], resilient_parsing=False)
        name, *arguments = words
        if name in application.commands:  # type: ignore[attr-defined]
            application.commands[name].make_context(name, arguments, resilient_parsing=False)  # type: ignore[attr-defined]


def test_the_time_left_is_that_of_the_work_so_far() -> None:
    from simmim_export.training.progress import Countdown, clock

    assert (clock(0), clock(59.6), clock(187)) == ("0:00", "1:00", "3:07")
    countdown = Countdown(4)
    assert countdown.left(0) == "" and countdown.left(4) == ", 0:00 left"
