"""Which optimizer trains which parameter."""

from __future__ import annotations

import torch
from torch import nn

from simmim_export.training.muon import Muon
from simmim_export.training.recipe import Recipe

# Muon (Jordan et al., 2024) orthogonalizes the momentum of a matrix, so that rare directions move as fast as common ones.
# With it, a narrow model learned to look things up by attention in half the steps. Its updates are scaled to the size of
# AdamW's (Liu et al., 2025, "Muon is scalable"). Of 5, 10 and 20 times AdamW's rate, 5 fine-tuned best; 20 was worse than
# AdamW.
MUON_RATIO = 5.0


def make_optimizers(stage: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The optimizers of ``recipe``; each parameter that is trained belongs to exactly one of them.

    Muon takes the matrices of hidden layers (:func:`hidden_matrices`), AdamW everything else: convolutions, embeddings,
    projections to embeddings, heads and all vectors. Weight decay applies to matrices, not to vectors (biases, norms, the
    temperature).
    """
    hidden = hidden_matrices(stage) if recipe.optimizer == "muon" else []
    taken = {id(parameter) for parameter in hidden}
    rest = [p for p in stage.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)]
    if hidden:
        rate = recipe.lr * MUON_RATIO
        optimizers.append(Muon(hidden, lr=rate, weight_decay=recipe.weight_decay))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak_lr"] = group["lr"]
    return optimizers


def hidden_matrices(stage: nn.Module) -> list[nn.Parameter]:
    """The weights of the linear layers in repeated blocks (members of a ModuleList): attention and feed-forward."""
    blocks = [block for module in stage.modules() if isinstance(module, nn.ModuleList) for block in module]
    linear = {id(m.weight) for block in blocks for m in block.modules() if isinstance(m, nn.Linear)}
    return [parameter for parameter in stage.parameters() if id(parameter) in linear and parameter.requires_grad]
