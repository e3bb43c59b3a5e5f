"""Which optimizer trains which parameter, and Muon in a number format that the device multiplies fast."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

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


class Muon(torch.optim.Muon):
    """Orthogonalized momentum (Jordan et al., 2024), with the options, defaults and state of :class:`torch.optim.Muon`.

    Rates are adjusted as by its ``match_rms_adamw`` (Liu et al., 2025): times 0.2 * sqrt(max(rows, columns)).

    torch's own Muon orthogonalizes in bfloat16, one matrix at a time. A CPU without bfloat16 products emulates them, which
    took two thirds of a step of preset tiny. On CPUs this Muon uses float32 and stacks all matrices of one shape: the same
    update, rounded less, on every processor.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; return what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                updates = torch.stack([self._momentum(parameter, group) for parameter in parameters])
                updates = orthogonalize(updates, group["ns_coefficients"], steps=group["ns_steps"], eps=group["eps"])
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)
        return loss

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(mean, group["momentum"]) if group["nesterov"] else mean


def orthogonalize(matrices: Tensor, coefficients: tuple[float, float, float], *, steps: int, eps: float) -> Tensor:
    """[n, rows, columns] to approximately the nearest matrices with orthonormal rows or columns (singular values 0.5 to
    1.5), by the quintic Newton-Schulz iteration of Jordan et al., 2024."""
    a, b, c = coefficients
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
