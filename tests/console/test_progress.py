"""How far a command is, and how long the rest takes."""

from __future__ import annotations

import time

import pytest

from simmim_export.console import progress_bar
from simmim_export.console.progress import time_left


@pytest.mark.parametrize(
    ("done", "seconds", "left"),
    [
        (25, 30.0, "1:30 left"),
        (50, 4000.0, "1:06:40 left"),
        (100, 30.0, "0:00 left"),
        (4, 100.0, ""),
        (0, 100.0, ""),
        (50, 2.0, ""),
    ],
)
def test_the_time_left_follows_from_the_work_done(done: int, seconds: float, left: str) -> None:
    assert time_left(done, 100, seconds=seconds) == left


@pytest.mark.parametrize(("estimates", "shown"), [(False, "30/120"), (True, "25%, about 1:30 left")])
def test_a_pipe_gets_lines_with_the_amount(
    estimates: bool, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, *[30.0] * 9])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress_bar("export", estimates=estimates) as update:
        update("a graph", 30, 120)
    assert f"a graph ({shown})" in capsys.readouterr().err
