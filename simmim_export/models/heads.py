"""Task heads: what is read off the fused vector.

Knows one vector a sample. Must not know where it came from. A head is a row of ``HEADS``; its classes come from the
configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from simmim_export.errors import UsageError


class MatchHead(nn.Module):
    """fused [b, D] to logits [b, 2]: does this text describe this image (0 no, 1 yes)?"""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, classes)

    def forward(self, fused: Tensor) -> Tensor:
        """Logits [b, classes]."""
        return self.classify(fused)


class VqaHead(nn.Module):
    """fused [b, D] to logits [b, answers], through one hidden layer of 2 D."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, classes))

    def forward(self, fused: Tensor) -> Tensor:
        """Logits [b, classes]."""
        return self.classify(fused)


@dataclass(frozen=True)
class HeadRow:
    """A head: its module, the tensor it reads, and the pipeline that runs it (the verb a user calls)."""

    module: type[nn.Module]
    reads: str
    pipeline: str


HEADS: Mapping[str, HeadRow] = {
    "match": HeadRow(MatchHead, "fused", "match"),
    "vqa": HeadRow(VqaHead, "fused", "answer"),
}


def head(name: str, width: int, classes: int) -> nn.Module:
    """The head called ``name``; raise :class:`UsageError` naming the choices."""
    if name not in HEADS:
        raise UsageError(f"unknown head {name!r}", fix=f"choose one of {', '.join(HEADS)}")
    return HEADS[name].module(width, classes)
