"""What the processes of one training run share: one loss over all batches, one clock, one decision to stop.

DistributedDataParallel averages gradients over W processes. For this average to be the gradient of the loss of the
whole batch, each process computes that whole loss from gathered embeddings (:func:`gather`), or divides its own sum by
the mean count (:func:`mean_of_all`). In a single process both do nothing.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from simmim_export.errors import UsageError
from simmim_export.system.telemetry import without_telemetry

with without_telemetry("accelerate"):
    from accelerate import PartialState


def on_cpu() -> bool:
    """Whether several processes share a machine without an accelerator; Accelerate must be told."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def state() -> PartialState:
    """Which process this is, and how many there are.

    Raise :class:`UsageError` if the launcher started more processes than have joined: each would train on the same
    batches alone.
    """
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    fix = "launch with torchrun --nproc-per-node N, or accelerate launch"
    try:
        joined = PartialState(cpu=on_cpu())
    except ValueError as error:
        raise UsageError(
            f"{wanted} processes were launched, but they cannot reach each other: {error}", fix=fix
        ) from error
    if joined.num_processes != wanted:
        what = f"{wanted} processes were launched, but this one sees {joined.num_processes}"
        raise UsageError(what, fix=fix)
    return joined


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def leave() -> None:
    """Leave the process group, all processes at once, when nothing is left to share.

    A process that ends while it still belongs to the group may be aborted by its own communication threads.
    """
    if count() > 1:
        dist.barrier()
        dist.destroy_process_group()


def every(own: Any) -> list[Any]:
    """``own`` of every process, in order of rank."""
    if count() == 1:
        return [own]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, own)
    return values


def gather(values: Tensor) -> Tensor:
    """[b, ...] of every process in order of rank, as [W b, ...]. All must have the same shape. Gradients flow back to
    each."""
    if count() == 1:
        return values
    return torch.cat(all_gather(values.contiguous()))


def agreed(value: float, stop: int = 0) -> tuple[float, int]:
    """The first process's ``value`` (0 or more) and the largest ``stop`` of any process, the same in all of them.

    Clocks differ and a signal may reach only one process, but all must stop at the same step.
    """
    if count() == 1:
        return value, stop
    # On the device that the processes communicate through: NCCL takes no CPU tensors.
    own = (value if rank() == 0 else 0.0, float(stop))
    shared = torch.tensor(own, dtype=torch.float64, device=state().device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return shared[0].item(), int(shared[1])


def mean_of_all(total: Tensor, number: int) -> Tensor:
    """``total``, a sum over ``number`` items of this process, scaled so that the average over processes is the mean
    over the items of all processes."""
    if count() == 1:
        return total / max(number, 1)
    items = torch.tensor(float(number), device=total.device)
    dist.all_reduce(items)
    return total * count() / items.clamp_min(1)
