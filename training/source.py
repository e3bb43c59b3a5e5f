"""Where batches come from. Knows how processes share a data set's numbered stream; must not know what is in a batch."""

from __future__ import annotations

from dataclasses import dataclass

from simmim_export.training.data.base import Data


@dataclass(frozen=True)
class Source:
    """A data set, ``images`` of them a batch, and this process's place among ``processes``."""

    data: Data
    images: int
    process: int = 0
    processes: int = 1

    def number(self, index: int) -> int:
        """The number, in the data set's stream, of this process's part of batch ``index``."""
        return index * self.processes + self.process
