"""How to optimize, and how to fine-tune: plain values that can be checked before PyTorch is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simmim_export.errors import UsageError

OPTIMIZERS = ("muon", "adamw")
MIXED = ("no", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to optimize: for a number of ``steps``, or for ``minutes`` of wall-clock time.

    With ``minutes`` the learning rate follows the clock, so a slow machine takes fewer steps and still ends at a rate of
    zero. Only ``steps`` gives the same weights twice. ``optimizer`` is ``adamw``, or ``muon`` for the matrices of hidden
    layers with AdamW for the rest. ``lr`` is AdamW's peak rate; Muon's is a fixed multiple of it.

    Raise :class:`UsageError` for values that make no sense.
    """

    steps: int | None = None
    minutes: float | None = None
    optimizer: str = "muon"
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    accumulate: int = 1
    mixed_precision: str = "no"
    seed: int = 0
    save_every: int = 500

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise UsageError("give --minutes or --steps: how long to train", fix="add --minutes 3")
        if self.steps is not None and self.minutes is not None:
            raise UsageError("--steps and --minutes cannot be given together", fix="drop --steps, or drop --minutes")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--steps must be 1 or more, not {self.steps}", fix="give --steps 1000")
        if self.minutes is not None and not positive(self.minutes):
            raise UsageError(f"--minutes must be above zero and finite, not {self.minutes}", fix="give --minutes 3")
        if not positive(self.lr):
            raise UsageError(f"--lr must be above zero and finite, not {self.lr}", fix="give --lr 1e-3")
        # torch.manual_seed takes up to 64 bits; every process adds a little to the seed.
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed must be 0 or more and below 2**63, not {self.seed}", fix="give --seed 0")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"unknown optimizer {self.optimizer!r}", fix=f"choose {' or '.join(OPTIMIZERS)}")
        if self.mixed_precision not in MIXED:
            what = f"unknown mixed precision {self.mixed_precision!r}"
            raise UsageError(what, fix=f"choose one of {', '.join(MIXED)}")

    def lr_scale(self, done: float) -> float:
        """The factor on ``lr`` when the share ``done`` in [0, 1] of training is over: linear warm-up, then a cosine to 0."""
        return min(1.0, (done + 1e-3) / self.warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def positive(value: float) -> bool:
    """Whether ``value`` is above zero and finite; NaN is neither."""
    return math.isfinite(value) and value > 0


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How to fine-tune.

    ``rehearse``: every n-th batch of questions is a batch of pretraining instead (0: never), so that embeddings and matching
    do not drift while the encoders learn to answer. ``curriculum``: ask easy questions first.
    """

    rehearse: int = 8
    curriculum: bool = True
