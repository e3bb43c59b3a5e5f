"""What every program of several processes begins and ends with."""

from __future__ import annotations

import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from simmim_export.models.simmim.checkpoint import build
from simmim_export.models.simmim.model import SimMIM
from simmim_export.training.assemble import NewModel, new_checkpoint


def join() -> tuple[int, int, SimMIM, Tokenizer]:
    """Join the other processes; return this one's rank, their number, and the same model and tokenizer in all of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    started = new_checkpoint(NewModel(), seed=0)
    return dist.get_rank(), dist.get_world_size(), build(started), Tokenizer.from_str(started.tokenizer)


def leave() -> None:
    """Wait for the others: a process that leaves while another still listens aborts it."""
    dist.barrier()
    dist.destroy_process_group()
