"""Two gloo processes and one: the same loss and the same gradients for the same images."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

# Each process takes its part of batch 0 and leaves the averaged gradients, as DistributedDataParallel makes them. Batch
# norm uses its running statistics here: in training every process normalises by its own images, as DDP does.
PROGRAM = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tokenizers import Tokenizer
from simmim_export.models.checkpoint import build
from simmim_export.training.assemble import NewModel, new_checkpoint, with_head
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.pretrain import Pretrain
from simmim_export.training.source import Source
from simmim_export.training.tasks import Answers, Plan

target, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
# They meet in a file: a port chosen in advance may be taken on a shared machine.
dist.init_process_group("gloo", init_method=f"file://{target}.meet", rank=rank, world_size=world)
started = new_checkpoint(NewModel(), seed=0)
model, tokenizer = build(started), Tokenizer.from_str(started.tokenizer)

class Joined:
    # The parts of two processes as one batch of one process.
    def __init__(self, stage): self.stage = stage
    def batch(self):
        parts = []
        for process in range(2):
            self.stage.source = Source(self.stage.source.data, 4, process, 2)
            parts.append(self.stage.batch(0, 0.5))
        longest = {}
        for part in parts:
            for key, value in part.items():
                if value.ndim == 2: longest[key] = max(longest.get(key, 0), value.shape[1])
        pad = lambda key, v: torch.nn.functional.pad(v, (0, longest[key] - v.shape[1])) if v.ndim == 2 else v
        return {key: torch.cat([pad(key, part[key]) for part in parts]) for key in parts[0]}

found = {}
for what in ("itc", "mlm", "tags", "vqa"):
    source = Source(Shapes(0), 4, rank, world)
    torch.manual_seed(0)
    model.zero_grad()
    if what == "vqa":
        stage = Answers("vqa", model, tokenizer, source, Plan(rehearse=0, curriculum=False))
    else:
        stage = Pretrain(model, tokenizer, source, {what: 1.0})
    stage.eval()
    batch = stage.batch(0, 0.5) if world == 2 else Joined(stage).batch()
    wrapped = DistributedDataParallel(stage, find_unused_parameters=True)
    loss = wrapped(batch)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    grads = {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None}
    found[what] = {"loss": mean / world, "grads": grads}
if rank == 0:
    torch.save(found, target)
dist.barrier()  # a process that leaves while another still listens aborts it
dist.destroy_process_group()
"""


# The first process answers right for a while and the second wrong, then both right. What they do next is printed.
CURRICULUM_PROGRAM = """
import sys, torch, torch.distributed as dist
from tokenizers import Tokenizer
from simmim_export.models.checkpoint import build
from simmim_export.training.assemble import NewModel, new_checkpoint
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.source import Source
from simmim_export.training.tasks import CURRICULUM, Answers, Plan

target, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{target}.meet", rank=rank, world_size=world)
started = new_checkpoint(NewModel(), seed=0)
model, tokenizer = build(started), Tokenizer.from_str(started.tokenizer)
stage = Answers("vqa", model, tokenizer, Source(Shapes(0), 4, rank, world), Plan(rehearse=2)).train()
last = model.heads["vqa"].classify[-1]
with torch.no_grad():  # it answers class 0, whatever it is asked
    last.weight.zero_()
    last.bias.zero_()[0] = 9
stage.level.fill_(len(CURRICULUM) - 1)
stage.accuracy.fill_(CURRICULUM[-1][0] - 0.01)
batch = stage.batch(0, 0.0)
for wrong, steps in ((rank, 2), (0, 8)):
    batch["answers"] = torch.full_like(batch["answers"], wrong)
    with torch.no_grad():
        for _ in range(steps):
            stage(batch)
    kind = "rehearsal" if "caption_ids" in stage.batch(1, 0.0) else "questions"
    print(int(stage.level), kind, f"{float(stage.accuracy):.4f}")
dist.barrier()
dist.destroy_process_group()
"""


def start(program: str, processes: int, target: Path) -> list[str]:
    """Start the processes, which meet at ``target``, and return what each printed."""
    started = []
    for rank in range(processes):
        command = [sys.executable, "-c", program, str(target), str(rank), str(processes)]
        # RANK and WORLD_SIZE for what asks the environment, as under a launcher.
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(processes)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=environment, text=True, **pipes))
    printed = []
    for process in started:
        found, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        printed.append(found)
    return printed


def run(processes: int, target: Path) -> dict:
    """Start the processes and return what the first one left, by objective."""
    start(PROGRAM, processes, target)
    return torch.load(target, weights_only=True)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """Of two processes and of one."""
    folder = tmp_path_factory.mktemp("processes")
    return run(2, folder / "two.pt"), run(1, folder / "one.pt")


@pytest.mark.xdist_group("gradients")
@pytest.mark.parametrize("what", ["itc", "mlm", "tags", "vqa"])
def test_two_processes_train_as_one_does_on_the_same_images(gradients: tuple[dict, dict], what: str) -> None:
    two, one = (found[what] for found in gradients)
    assert two["loss"].item() == pytest.approx(one["loss"].item(), abs=1e-5)
    assert set(two["grads"]) == set(one["grads"]) and len(one["grads"]) > 20
    worst = max((two["grads"][name] - grad).abs().max().item() for name, grad in one["grads"].items())
    assert worst <= 1e-5, worst
    assert max(grad.abs().max().item() for grad in one["grads"].values()) > 1e-3


def test_processes_go_through_the_curriculum_together(tmp_path: Path) -> None:
    """One that rehearses while another asks would wait for it for ever."""
    first, second = start(CURRICULUM_PROGRAM, 2, tmp_path / "meet")
    assert first == second
    # A mean of 0.5, then of 1: neither goes by the accuracy that it has alone.
    before, after = (line.split() for line in first.splitlines())
    assert before[:2] == ["1", "questions"] and after == ["2", "rehearsal", "0.0000"]


# As the README says; --standalone takes a free port.
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, "simmim_export.training.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


@pytest.mark.parametrize("length", [("--steps", "5"), ("--minutes", "0.03")])
def test_torchrun_trains_on_twice_the_images_and_reports_once(tmp_path: Path, length: tuple[str, str]) -> None:
    from simmim_export.models.checkpoint import build, load

    path = tmp_path / "ckpt.pt"
    done = launch("pretrain", *length, "--batch-size", "4", "--eval-scenes", "0", "-o", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    checkpoint = load(path)
    build(checkpoint)
    assert checkpoint.provenance["processes"] == 2
    assert checkpoint.provenance["samples"] == checkpoint.provenance["steps"] * 8
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


def test_two_processes_that_are_killed_resume_to_the_same_weights(tmp_path: Path) -> None:
    from simmim_export.models.checkpoint import load

    common = ("finetune", "--steps", "8", "--batch-size", "4", "--save-every", "3", "--eval-scenes", "0", "-o")
    done = launch(*common, tmp_path / "whole.pt")
    assert done.returncode == 0, done.stderr
    killed, state = tmp_path / "killed.pt", tmp_path / "killed.pt.trainer"
    command = [*TORCHRUN, "simmim_export.training.cli", *common, str(killed)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not state.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    # The launcher starts each of them in a session of its own.
    for one in (*psutil.Process(process.pid).children(recursive=True), process):
        one.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    alone = [sys.executable, "-m", "simmim_export.training.cli", *common, str(killed), "--resume"]
    refused = subprocess.run(alone, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and "processes were 2, are 1" in refused.stderr
    resumed = launch(*common, killed, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    a, b = load(tmp_path / "whole.pt"), load(killed)
    assert all(torch.equal(a.state[key], b.state[key]) for key in a.state)
    assert b.provenance["steps"] == 8 and not state.exists()


def test_processes_that_cannot_see_each_other_do_not_train() -> None:
    """A launcher's variables without its rendezvous: each process would train the same batches alone."""
    code = "import os; os.environ['WORLD_SIZE'] = '2'; from simmim_export.training.processes import state; state()"
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert "UsageError: 2 processes were launched, but do not find each other" in done.stderr
