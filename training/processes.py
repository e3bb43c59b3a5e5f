"""One loss over the batches of all processes. Knows torch.distributed; must not know losses.

DistributedDataParallel averages gradients over W processes. So that this average is the gradient of the loss of the whole
batch, every process computes that whole loss from gathered embeddings (:func:`gather`), or its own sum over the mean count
(:func:`mean_of_all`). In a single process both do nothing.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(values: Tensor) -> Tensor:
    """[b, ...] of every process in order of rank, [W b, ...]; all must have the same shape. Gradients flow back to each."""
    if count() == 1:
        return values
    if values.is_floating_point():
        return torch.cat(list(all_gather(values)))
    parts = [torch.empty_like(values) for _ in range(count())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def mean_of_all(total: Tensor, number: int) -> Tensor:
    """``total`` (a sum over ``number`` items of this process), scaled so that the average over processes is the mean over
    the items of all of them."""
    if count() == 1:
        return total / max(number, 1)
    every = torch.tensor(float(number), device=total.device)
    dist.all_reduce(every)
    return total * count() / every.clamp_min(1)
