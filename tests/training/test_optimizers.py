"""Our Muon takes the same steps as torch's, on any processor."""

from __future__ import annotations

import copy

import pytest
import torch

from simmim_export.training.optimizers import Muon, orthogonalize

COEFFICIENTS = (3.4445, -4.775, 2.0315)


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (48, 48)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    matrices = orthogonalize(torch.randn(3, *shape, generator=torch.manual_seed(0)), COEFFICIENTS, steps=5, eps=1e-7)
    values = torch.linalg.svdvals(matrices)
    assert matrices.shape == (3, *shape) and values.min() > 0.3 and values.max() < 1.3


def test_steps_agree_with_torchs_muon() -> None:
    """Up to its rounding to bfloat16, which has 8 bits."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((24, 96), (96, 24), (24, 96), (40, 40))]
    theirs = copy.deepcopy(ours)
    optimizers = (
        Muon(ours, lr=0.01, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    start = [p.detach().clone() for p in ours]
    for _ in range(3):
        for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        moved = (other - before).norm()
        assert (mine - other).norm() <= 0.03 * moved
    # One without a gradient stays.
    assert torch.equal(ours[-1], start[-1])
    assert optimizers[0].state_dict()["state"].keys() == optimizers[1].state_dict()["state"].keys()
