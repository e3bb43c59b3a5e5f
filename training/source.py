"""Where training batches come from: the numbered stream of a data set, shared by all processes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from simmim_export.training.data.base import Data


@dataclass(frozen=True)
class Source:
    """A data set, the number of ``images`` in a batch, and this process's number among ``processes``."""

    data: Data
    images: int
    _: KW_ONLY
    process: int = 0
    processes: int = 1

    def number(self, index: int) -> int:
        """The number, in the data set's stream, of this process's part of batch ``index``."""
        return index * self.processes + self.process
