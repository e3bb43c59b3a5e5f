"""What every program of several processes begins with."""

from __future__ import annotations

import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from simmim_export.models.simmim.checkpoint import build
from simmim_export.models.simmim.model import SimMIM
from simmim_export.training.assemble import NewModel, new_checkpoint


def join() -> tuple[int, int, SimMIM, Tokenizer]:
    """Meet the others; this one's rank, how many there are, and the model and tokenizer that all of them have."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    started = new_checkpoint(NewModel(), seed=0)
    return dist.get_rank(), dist.get_world_size(), build(started), Tokenizer.from_str(started.tokenizer)


def leave() -> None:
    """Wait for the others: a process that leaves while another still listens aborts it."""
    dist.barrier()
    dist.destroy_process_group()
