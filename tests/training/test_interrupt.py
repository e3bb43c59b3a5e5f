"""Training that is ended by a signal: what is kept, what is printed, and the weights after continuing."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from test_loop import Line

from simmim_export.models.simmim.checkpoint import load
from simmim_export.training import loop
from simmim_export.training.interrupt import Stopped
from simmim_export.training.loop import train
from simmim_export.training.recipe import Recipe

COMMAND = (sys.executable, "-m", "simmim_export.training.cli")
# More steps than anybody waits for; no save by their number.
ARGUMENTS = ("finetune", "--steps", "100000", "--batch-size", "4", "--eval-scenes", "0", "--save-every", "100000", "-o")


# As many threads in every run: sums of another order are other weights.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def started(*arguments: object, watched: str) -> subprocess.Popen[str]:
    """A real command, once a line of its stderr contains ``watched``."""
    command = [*COMMAND, *map(str, arguments)]
    # A shell lets its background ignore Ctrl-C, and a test may run there.
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if watched in line:
            return process
    raise AssertionError("".join(lines))


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for a command to end; return the rest of its stderr."""
    return process.communicate(timeout=60)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_state_and_says_how_to_continue(tmp_path: Path, number: signal.Signals) -> None:
    output = tmp_path / "with a space" / "ckpt.pt"
    process = started(*ARGUMENTS, output, watched="step ")
    process.send_signal(number)
    said = ended(process)
    assert process.returncode == 128 + number and "Traceback" not in said
    assert [path.name for path in output.parent.iterdir()] == ["ckpt.pt.trainer"]
    assert torch.load(tmp_path / "with a space/ckpt.pt.trainer", weights_only=True)["progress"]["step"] >= 1
    words = shlex.split(said.strip().splitlines()[-1])
    assert words == [*COMMAND, *ARGUMENTS, str(output), "--resume"]


def test_the_printed_command_continues_training(tmp_path: Path) -> None:
    arguments = ("pretrain", "--steps", "12", "--batch-size", "4", "--eval-scenes", "0", "-o", tmp_path / "ckpt.pt")
    process = started(*arguments, watched="step ")
    process.send_signal(signal.SIGINT)
    said = ended(process)
    assert process.returncode == 130 and not (tmp_path / "ckpt.pt").exists()
    command = shlex.split(said.strip().splitlines()[-1])
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "ckpt.pt").provenance["steps"] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


def test_a_signal_during_evaluation_keeps_the_state(tmp_path: Path) -> None:
    arguments = ("finetune", "--steps", "2", "--batch-size", "4", "--eval-scenes", "100000", "-o", tmp_path / "ckpt.pt")
    process = started(*arguments, watched="of 100000")
    process.send_signal(signal.SIGTERM)
    assert "--resume" in ended(process) and process.returncode == 143
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt.trainer"]


class Signalled(Line):
    """Sends its own process signals, as a user would while a step runs."""

    def __init__(self, at: dict[int, list[int]]) -> None:
        super().__init__()
        self.at = at

    def batch(self, index: int, done: float):
        for number in self.at.get(index, ()):
            os.kill(os.getpid(), number)
        return super().batch(index, done)


def stopped(at: dict[int, list[int]], path: Path, steps: int = 10) -> Stopped:
    with pytest.raises(Stopped) as caught:
        train(Signalled(at), Recipe(steps=steps), state_path=path)
    return caught.value


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["progress"]["step"]


def test_a_run_resumed_after_a_signal_ends_with_the_same_weights(tmp_path: Path) -> None:
    recipe, layers = Recipe(steps=10, lr=0.1), []
    for at in ({}, {3: [signal.SIGINT]}):
        torch.manual_seed(0)
        line, path = Signalled(at), tmp_path / f"s{len(at)}"
        if at:
            with pytest.raises(Stopped):
                train(line, recipe, state_path=path)
            torch.manual_seed(1)
            line = Signalled({})
        train(line, recipe, state_path=path, resume=bool(at))
        layers.append(line.layer)
    assert torch.equal(layers[0].weight, layers[1].weight) and torch.equal(layers[0].bias, layers[1].bias)


@pytest.mark.parametrize("step", [0, 3, 9])
def test_the_step_is_finished_first(tmp_path: Path, step: int) -> None:
    end = stopped({step: [signal.SIGTERM]}, tmp_path / "s")
    assert end.exit_code == 143 and end.kept == tmp_path / "s" and step_of(tmp_path / "s") == step + 1


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path: Path) -> None:
    end = stopped({3: [signal.SIGINT, signal.SIGINT]}, tmp_path / "s")
    assert end.exit_code == 130 and end.kept is None and not (tmp_path / "s").exists()


def test_signal_handlers_are_restored_and_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        done = train(Signalled({1: [signal.SIGHUP]}), Recipe(steps=3), state_path=tmp_path / "s")
    finally:
        signal.signal(signal.SIGHUP, old)
    assert done.step == 3 and signal.getsignal(signal.SIGTERM) is before


def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(train, Line(), Recipe(steps=3), state_path=tmp_path / "s")
    assert done.result().step == 3 and threading.current_thread() is threading.main_thread()


def test_the_state_is_saved_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few seconds between saves there is a state long before the number of steps asks for one."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.2)
    steps, saved = [], []

    class Slow(Line):
        def batch(self, index: int, done: float):
            time.sleep(0.05)
            return super().batch(index, done)

    def watch(progress: loop.Progress, done: float) -> None:
        steps.append(progress.step)
        if (tmp_path / "s").exists():
            saved.append(step_of(tmp_path / "s"))

    train(Slow(), Recipe(steps=20), state_path=tmp_path / "s", watch=watch)
    assert len(steps) == 20 and len(set(saved)) >= 3 and saved[-1] == 20


def test_a_signal_to_one_process_stops_all(tmp_path: Path, launch: Callable, kill_launched: Callable) -> None:
    common = ("pretrain", "--steps", "100000", "--batch-size", "4", "--eval-scenes", "0", "--save-every", "5", "-o")
    state = tmp_path / "stopped.pt.trainer"
    before = set(psutil.Process().children(recursive=True))
    with ThreadPoolExecutor() as threads:
        running = threads.submit(launch, 2, "simmim_export.training.cli", *common, tmp_path / "stopped.pt")
        try:
            while not state.exists():
                assert not running.done(), running.result().stderr
                time.sleep(0.01)
            # One of the two alone: they have no children, their launcher has.
            after = set(psutil.Process().children(recursive=True)) - before
            workers = [process for process in after if not process.children()]
            assert len(workers) == 2
            workers[1].send_signal(signal.SIGTERM)
            running.result(timeout=120)
        finally:
            kill_launched()
    assert running.result().returncode != 0
    assert "--resume" in running.result().stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.pt.trainer"]
    assert len(torch.load(state, weights_only=True)["processes"]) == 2
