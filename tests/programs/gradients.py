"""`gradients TARGET`, run by one process or by two: save the loss and the gradients of a batch, by objective, to
TARGET.

Each of two processes takes its part of batch 0 and keeps the gradients as DistributedDataParallel averages them; a
single process takes both parts as one batch. Batch norm uses its running statistics here, because in training each
process normalizes by its own images.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from programs.ranks import join, leave
from torch.nn.parallel import DistributedDataParallel

from simmim_export.training.data.base import Source
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.pretrain import Pretrain
from simmim_export.training.recipe import FinetuneSettings
from simmim_export.training.tasks import Answers

OBJECTIVES = ("itc", "mlm", "tags", "vqa")
Batch = dict[str, torch.Tensor]


def joined(stage: Answers | Pretrain) -> Batch:
    """The parts of two processes, as one batch of a single process."""
    parts: list[Batch] = []
    for process in range(2):
        stage.source = Source(stage.source.data, 4, process=process, processes=2)
        parts.append(stage.batch(0, 0.5))
    longest: dict[str, int] = {}
    for part in parts:
        for key, value in part.items():
            if value.ndim == 2:
                longest[key] = max(longest.get(key, 0), value.shape[1])

    def padded(key: str, value: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(value, (0, longest[key] - value.shape[1])) if value.ndim == 2 else value

    return {key: torch.cat([padded(key, part[key]) for part in parts]) for key in parts[0]}


def main(target: str) -> None:
    """See the module."""
    rank, world, model, tokenizer = join()
    outcomes = {}
    for what in OBJECTIVES:
        source = Source(Shapes(0), 4, process=rank, processes=world)
        torch.manual_seed(0)
        model.zero_grad()
        stage: Answers | Pretrain
        if what == "vqa":
            stage = Answers(
                "vqa",
                model,
                tokenizer=tokenizer,
                source=source,
                settings=FinetuneSettings(rehearse=0, curriculum=False),
            )
        else:
            stage = Pretrain(model, tokenizer, source=source, weights={what: 1.0})
        stage.eval()
        batch = stage.batch(0, 0.5) if world == 2 else joined(stage)
        wrapped = DistributedDataParallel(stage, find_unused_parameters=True)
        loss = wrapped(batch)
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        grads = {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None}
        outcomes[what] = {"loss": mean / world, "grads": grads}
    if rank == 0:
        torch.save(outcomes, target)
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
