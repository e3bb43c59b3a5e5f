"""Golden tensors: golden.npz, real inputs of every graph with PyTorch's FP32 outputs for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simmim_export.errors import BundleError, UsageError
from simmim_export.spec import GraphSpec, TensorSpec
from simmim_export.system.npz import DAMAGED, pack, unpack

FILE = "golden.npz"
# An export probes nine shapes; each case is run at least once.
MAX_CASES, MAX_NAME = 100, 100
_FIX = "export the bundle again, or copy it again, whole"


@dataclass(frozen=True)
class Golden:
    """Real inputs and PyTorch's FP32 outputs for them, one case for each probed shape.

    A case maps a tensor to its array: an input by its name, an output as ``GRAPH:TENSOR``, since several graphs may give a tensor
    of the same name.
    """

    cases: Mapping[str, Mapping[str, np.ndarray]]

    def save(self) -> bytes:
        """The content of golden.npz; the same tensors always give the same bytes."""
        return pack({f"{case}/{key}": array for case, tensors in self.cases.items() for key, array in tensors.items()})

    @classmethod
    def load(cls, path: Path, graphs: Sequence[GraphSpec]) -> Golden:
        """Read golden.npz and :meth:`check` that it fits ``graphs``, those of the bundle's manifest.

        Raise :class:`BundleError` if it does not fit, or is damaged.
        """
        cases: dict[str, dict[str, np.ndarray]] = {}
        try:
            for name, array in unpack(path).items():
                case, _, key = name.partition("/")
                cases.setdefault(case, {})[key] = array
        except DAMAGED as error:
            raise BundleError(f"golden.npz cannot be read: {error}", where=path, fix=_FIX) from error
        golden = cls(cases)
        golden.check(graphs, path)
        return golden

    def check(self, graphs: Sequence[GraphSpec], where: object = None) -> None:
        """Raise :class:`BundleError`, naming the case and the tensor, unless each case holds exactly the inputs and outputs of
        ``graphs``.

        Each tensor must be finite and have the dtype, rank and fixed sizes of its spec. A dynamic axis has one size in a whole
        case, within the axis's range. For every axis, some case has its maximum: batches of one would not show what a graph does
        to several.
        """

        def refuse(what: str) -> BundleError:
            return BundleError(f"golden.npz {what}", where=where, fix=_FIX)

        if not 0 < len(self.cases) <= MAX_CASES:
            raise refuse(f"has {len(self.cases)} cases, not 1 to {MAX_CASES}")
        largest: dict[str, int] = {}
        for case, tensors in self.cases.items():
            if not case.isprintable() or not 0 < len(case) <= MAX_NAME:
                raise refuse(f"has a case named {case[:MAX_NAME]!r}")
            sizes: dict[str, int] = {}
            unused = set(tensors)
            for graph in graphs:
                outputs = [(tensor, f"{graph.name}:{tensor.name}") for tensor in graph.outputs]
                for tensor, key in [*((t, self._key(case, t.name)) for t in graph.inputs), *outputs]:
                    place = f"case {case!r}, {key or tensor.name}"
                    if key is None or key not in tensors:
                        raise refuse(f"lacks a tensor: {place}, of graph {graph.name}")
                    if problem := _misfit(tensors[key], tensor, graph=graph, sizes=sizes):
                        raise refuse(f"has a wrong tensor: {place}, of graph {graph.name}: {problem}")
                    unused.discard(key)
            if unused:
                raise refuse(f"has a tensor that no graph has: case {case!r}, {min(unused)[:MAX_NAME]!r}")
            largest |= {name: max(size, largest.get(name, 0)) for name, size in sizes.items()}
        for graph in graphs:
            for axis in graph.axes:
                if largest.get(axis.name, 0) < axis.maximum:
                    promise = f"{graph.name} promises {axis.maximum}"
                    raise refuse(f"proves {axis.name!r} up to {largest.get(axis.name, 0)}, and {promise}")

    def largest(self) -> str:
        """The case with the most values: the largest batch of the longest texts."""
        return max(self.cases, key=lambda name: sum(array.size for array in self.cases[name].values()))

    def feeds(self, case: str, spec: GraphSpec) -> dict[str, np.ndarray]:
        """The inputs of ``spec`` in ``case``. Raise KeyError for one that is missing."""
        tensors = self.cases[case]
        return {tensor.name: tensors[self._key(case, tensor.name) or tensor.name] for tensor in spec.inputs}

    def expected(self, case: str, spec: GraphSpec) -> dict[str, np.ndarray]:
        """PyTorch's outputs of ``spec`` in ``case``."""
        return {tensor.name: self.cases[case][f"{spec.name}:{tensor.name}"] for tensor in spec.outputs}

    def _key(self, case: str, name: str) -> str | None:
        """Where the input ``name`` of a graph is in ``case``: as stored, or else as the first graph before it gave it."""
        keys = (key for key in self.cases[case] if key == name or key.endswith(f":{name}"))
        return min(keys, key=lambda key: key != name, default=None)


def _misfit(array: np.ndarray, tensor: TensorSpec, *, graph: GraphSpec, sizes: dict[str, int]) -> str | None:
    """How ``array`` contradicts ``tensor`` of ``graph``; None if it does not. ``sizes`` collects those of dynamic axes."""
    try:
        tensor.check(array)
    except UsageError as error:
        return error.what
    ranges = {axis.name: axis for axis in graph.axes}
    for name, size in zip(tensor.shape, array.shape, strict=True):
        if not isinstance(name, str):
            continue
        axis = ranges.get(name)
        if axis is None or not max(1, axis.minimum) <= size <= axis.maximum:
            return f"its axis {name!r} has size {size}" + (f", not {axis.minimum} to {axis.maximum}" if axis else "")
        if sizes.setdefault(name, size) != size:
            return f"its axis {name!r} has size {size}, and {sizes[name]} in another tensor of the case"
    if not array.size:
        return "it is empty"
    return None if np.isfinite(array).all() else "it holds NaN or infinity"
