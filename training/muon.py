"""Muon with its orthogonalisation in a type that the device multiplies fast.

Knows tensors. Must not know models. torch.optim.Muon orthogonalises in bfloat16, one matrix at a time; a CPU without bfloat16
products emulates them, and two thirds of a step of preset tiny went there. On CPUs it is float32, all matrices of one shape at
once: the same update, rounded less, on every processor.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """Momentum, orthogonalised (Jordan et al., 2024): the options, defaults and state are those of :class:`torch.optim.Muon`;
    rates are adjusted as by its ``match_rms_adamw`` (Liu et al., 2025), 0.2 * sqrt(max(rows, columns))."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; returns what ``closure`` does."""
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
                updates = orthogonalise(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
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


def orthogonalise(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """[n, rows, columns] to about the nearest matrices with orthonormal rows or columns (singular values 0.5 to 1.5), by the
    quintic Newton-Schulz iteration of Jordan et al., 2024."""
    a, b, c = coefficients
    tall = matrices.shape[-2] > matrices.shape[-1]
    found = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    found = found.mT if tall else found
    found = found / found.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return (found.mT if tall else found).to(matrices.dtype)
