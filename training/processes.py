"""What the processes of one training run share: one loss over the batches of all, one clock, one decision to stop.

DistributedDataParallel averages gradients over W processes. So that this average is the gradient of the loss of the whole
batch, every process computes that whole loss from gathered embeddings (:func:`gather`), or its own sum over the mean count
(:func:`mean_of_all`). In a single process both do nothing.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simmim_export.errors import UsageError
from simmim_export.system.telemetry import without_telemetry

with without_telemetry("accelerate"):
    from accelerate import PartialState


def on_cpu() -> bool:
    """Whether several processes share a machine without an accelerator, which Accelerate must be told."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def state() -> PartialState:
    """Which process this is, and of how many.

    Raise :class:`UsageError` where the launcher started more processes than found each other: each would train the same
    batches alone.
    """
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    fix = "launch with torchrun --nproc-per-node N, or accelerate launch"
    try:
        found = PartialState(cpu=on_cpu())
    except ValueError as error:
        raise UsageError(f"{wanted} processes were launched, but do not find each other: {error}", fix=fix) from error
    if found.num_processes != wanted:
        what = f"{wanted} processes were launched, but this one sees {found.num_processes}"
        raise UsageError(what, fix=fix)
    return found


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def leave() -> None:
    """Part from the other processes, all at once, when there is nothing more to share.

    A process that ends while it still belongs to a group may be aborted by its own communication threads.
    """
    if count() > 1:
        dist.barrier()
        dist.destroy_process_group()


def every(own: Any) -> list[Any]:
    """``own`` of every process in order of rank."""
    if count() == 1:
        return [own]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, own)
    return found


def gather(values: Tensor) -> Tensor:
    """[b, ...] of every process in order of rank, [W b, ...]; all must have the same shape. Gradients flow back to each."""
    if count() == 1:
        return values
    found: Tensor = _Gather.apply(values) if values.requires_grad else _gathered(values)
    return found


def _gathered(values: Tensor) -> Tensor:
    parts = [torch.empty_like(values) for _ in range(count())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """Every process's loss depends on every process's values, so their gradients are the sum over all of them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _gathered(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad.chunk(count())[rank()]


def agreed(value: float, stop: int = 0) -> tuple[float, int]:
    """``value`` (0 or more) of the first process, and the largest ``stop`` of any, in all of them.

    Clocks differ, and a signal may reach one process alone, but all must stop at the same step.
    """
    if count() == 1:
        return value, stop
    # On the device that processes talk through: between GPUs NCCL takes no tensor of the CPU.
    own = (value if rank() == 0 else 0.0, float(stop))
    shared = torch.tensor(own, dtype=torch.float64, device=state().device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return shared[0].item(), int(shared[1])


def mean_of_all(total: Tensor, number: int) -> Tensor:
    """``total`` (a sum over ``number`` items of this process), scaled so that the average over processes is the mean over
    the items of all of them."""
    if count() == 1:
        return total / max(number, 1)
    every = torch.tensor(float(number), device=total.device)
    dist.all_reduce(every)
    return total * count() / every.clamp_min(1)
