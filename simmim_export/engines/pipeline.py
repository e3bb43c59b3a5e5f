"""The one loop that runs graphs in order over named tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from simmim_export.engines.base import KeepsOnDevice
from simmim_export.spec import GraphSpec


class Runs(Protocol):
    """What the loop needs of a session."""

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        """Compute every output; ``feeds`` may hold more tensors than the graph takes."""
        ...


def run_graphs(
    graphs: Iterable[GraphSpec], tensors: Mapping[str, Any], session_for: Callable[[str], Runs]
) -> dict[str, Any]:
    """``tensors`` with the outputs of every graph added, run in order.

    A graph whose outputs are all in ``tensors`` is skipped: leave what an image gave there, and it is encoded once for all
    questions. ``session_for(name)`` is called just before a graph runs. A session that can leave its outputs on a GPU does so for
    every graph but the last; they become arrays by ``numpy.asarray``.
    """
    specs, given, flowing = list(graphs), set(tensors), dict(tensors)
    for spec in specs:
        if given.issuperset(tensor.name for tensor in spec.outputs):
            continue
        session = session_for(spec.name)
        if isinstance(session, KeepsOnDevice) and spec is not specs[-1]:
            flowing |= session.run_on_device(flowing)
        else:
            flowing |= session.run(flowing)
    return flowing
