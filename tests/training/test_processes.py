"""Two gloo processes give the same loss and gradients as one process does for the same images."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from programs.gradients import OBJECTIVES

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def gradients(once: Callable[..., Path], launch: Launch) -> tuple[dict, dict]:
    """What two processes and one left, by objective."""

    def left(processes: int, name: str) -> dict:
        def make(path: Path) -> None:
            done = launch(processes, "programs.gradients", path)
            assert done.returncode == 0, done.stderr

        return torch.load(once(name, make), weights_only=True)

    return left(2, "gradients-of-two.pt"), left(1, "gradients-of-one.pt")


@pytest.mark.parametrize("what", OBJECTIVES)
def test_two_processes_train_as_one_does_on_the_same_images(gradients: tuple[dict, dict], what: str) -> None:
    two, one = (grads[what] for grads in gradients)
    assert two["loss"].item() == pytest.approx(one["loss"].item(), abs=1e-5)
    assert set(two["grads"]) == set(one["grads"]) and len(one["grads"]) > 20
    worst = max((two["grads"][name] - grad).abs().max().item() for name, grad in one["grads"].items())
    assert worst <= 1e-5, worst
    assert max(grad.abs().max().item() for grad in one["grads"].values()) > 1e-3


def test_processes_follow_the_curriculum_together(tmp_path: Path, launch: Launch) -> None:
    """One that rehearses while another asks would wait for it for ever."""
    done = launch(2, "programs.curriculum", tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / rank).read_text() for rank in "01")
    assert first == second
    # A mean of 0.5, then of 1: neither goes by the accuracy that it has alone.
    before, after = (line.split() for line in first.splitlines())
    assert before[:2] == ["1", "questions"] and after == ["2", "rehearsal", "0.0000"]


# As the README says; --standalone takes a free port.
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


CLI = "simmim_export.training.cli"


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, CLI, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


@pytest.mark.parametrize("length", [("--steps", "5"), ("--minutes", "0.03")])
def test_two_processes_train_on_twice_the_images_and_report_once(
    tmp_path: Path, launch: Launch, length: tuple[str, str]
) -> None:
    from simmim_export.models.simmim.checkpoint import build, load

    path = tmp_path / "ckpt.pt"
    words = ("pretrain", *length, "--batch-size", "4", "--eval-scenes", "0", "-o", path)
    done = torchrun(*words) if "--steps" in length else launch(2, CLI, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    checkpoint = load(path)
    build(checkpoint)
    assert checkpoint.provenance["processes"] == 2
    assert checkpoint.provenance["samples"] == checkpoint.provenance["steps"] * 8
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


def test_two_processes_that_are_killed_resume_to_the_same_weights(
    tmp_path: Path, run_cli: Launch, launch: Launch, kill_launched: Callable[[], None]
) -> None:
    from simmim_export.models.simmim.checkpoint import load

    common = ("finetune", "--steps", "8", "--batch-size", "4", "--save-every", "3", "--eval-scenes", "0", "-o")
    done = launch(2, CLI, *common, tmp_path / "whole.pt")
    assert done.returncode == 0, done.stderr
    killed, state = tmp_path / "killed.pt", tmp_path / "killed.pt.trainer"
    with ThreadPoolExecutor() as threads:
        running = threads.submit(launch, 2, CLI, *common, killed)
        while not state.exists():
            assert not running.done(), "the run ended before it could be killed"
            time.sleep(0.01)
        kill_launched()
    assert running.result().returncode == -signal.SIGKILL
    assert not killed.exists()
    refused = run_cli("train", *common, killed, "--resume")
    assert refused.returncode == 2 and "processes were 2, are 1" in refused.stderr
    resumed = launch(2, CLI, *common, killed, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    a, b = load(tmp_path / "whole.pt"), load(killed)
    assert all(torch.equal(a.state[key], b.state[key]) for key in a.state)
    assert b.provenance["steps"] == 8 and not state.exists()


def test_processes_that_cannot_see_each_other_do_not_train() -> None:
    """A launcher's variables without its rendezvous: each process would train the same batches alone."""
    code = "import os; os.environ['WORLD_SIZE'] = '2'; from simmim_export.training.processes import state; state()"
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert "UsageError: 2 processes" in done.stderr
