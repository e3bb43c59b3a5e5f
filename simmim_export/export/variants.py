"""Lower precisions of traced graphs: which files there are, and which the planner may choose from.

Knows a bundle in the making. Must not know how a graph is quantised, or how a plan is searched for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from simmim_export.engines.base import Engine
from simmim_export.engines.checks import INTEGER_DOT, require_host
from simmim_export.errors import EngineUnavailable
from simmim_export.precision import int8
from simmim_export.precision.passes import Options, Passes, nodes_of
from simmim_export.spec import Precision
from simmim_export.tensorrt_rules.groups import by_group


@dataclass
class Variants:
    """The INT8 and FP32 files of every graph under ``root``; ``kept`` says what stays float in the INT8 ones, by graph."""

    root: Path
    graphs: Sequence[str]
    passes: Passes
    full_range: bool = False
    kept: dict[str, frozenset[str]] = field(default_factory=dict)
    _groups: dict[str, Mapping[str, Sequence[str]]] = field(default_factory=dict, init=False, repr=False)

    def path(self, graph: str, variant: str) -> Path:
        """Where ``variant`` of ``graph`` is, or will be."""
        return self.root / f"{graph}.{variant}.onnx"

    def make(self, graph: str, variant: str) -> Path:
        """Write ``variant`` of ``graph`` as :attr:`kept` says."""
        kept = nodes_of(self.groups_of(graph), self.kept.get(graph, frozenset()))
        options = Options(kept, self.full_range)
        self.passes.make(graph, variant, self.path(graph, "fp32"), self.path(graph, variant), options)
        return self.path(graph, variant)

    def keep(self, graph: str, groups: Collection[str]) -> bool:
        """Let ``groups`` stay float as well, and write the INT8 file of ``graph`` again; False if they did already."""
        before = self.kept.get(graph, frozenset())
        if before.issuperset(groups):
            return False
        self.kept[graph] = before | set(groups)
        self.make(graph, int8.VARIANT)
        return True

    def needs(self, graph: str, variant: str) -> dict[str, str]:
        """What the file of ``variant`` needs of a host, as ``built_for`` of its artifact says it."""
        if variant != int8.VARIANT or not int8.saturates(onnx.load(self.path(graph, variant))):
            return {}
        return {"needs": INTEGER_DOT}

    def groups_of(self, graph: str) -> Mapping[str, Sequence[str]]:
        """The nodes that INT8 could touch, by PyTorch module."""
        if graph not in self._groups:
            model = onnx.load(self.path(graph, "fp32"))
            self._groups[graph] = by_group(model, int8.touched(model))
        return self._groups[graph]


class Choice:
    """What a plan for ``engine`` may choose from; see :class:`simmim_export.planning.planner.Graphs`. ``refused`` says why an
    INT8 file is no choice on this processor, by graph."""

    def __init__(self, variants: Variants, engine: Engine, scratch: Path) -> None:
        self._variants, self._scratch = variants, scratch
        self._engine, self._has = engine, dict[Precision, str]()
        self.refused: dict[str, str] = {}
        # A planner asks again and again, and files of base are hundreds of megabytes.
        self._found: dict[str, Mapping[Precision, Path]] = {}
        self._made: dict[tuple[str, frozenset[str]], Path] = {}
        for precision in Precision:
            try:
                self._has[precision] = engine.variant(precision)
            except EngineUnavailable:
                continue  # what an engine lacks is no choice

    def names(self) -> Sequence[str]:
        """Every graph."""
        return self._variants.graphs

    def candidates(self, graph: str) -> Mapping[Precision, Path]:
        """The files that the engine can run. One that INT8 left as it was is no choice."""
        if graph not in self._found:
            self._found[graph] = self._look(graph)
        return self._found[graph]

    def _look(self, graph: str) -> Mapping[Precision, Path]:
        found = {p: path for p, v in self._has.items() if (path := self._variants.path(graph, v)).exists()}
        if Precision.INT8 in found and not self._variants.groups_of(graph):
            del found[Precision.INT8]
        if Precision.INT8 in found:
            try:
                require_host(self._engine, self._variants.needs(graph, self._has[Precision.INT8]), where=graph)
            except EngineUnavailable as error:
                self.refused[graph] = f"{graph}: {error.what}"
                del found[Precision.INT8]
        return found

    def groups(self, graph: str) -> Sequence[str]:
        """The PyTorch modules whose nodes INT8 touches; not those that are float already, for another engine."""
        known = self._variants.kept.get(graph, frozenset())
        return [group for group in self._variants.groups_of(graph) if group not in known]

    def quantise(self, graph: str, kept: frozenset[str]) -> Path:
        """Its INT8 file with the nodes of the groups ``kept``, and of those kept for another engine, left float."""
        variants = self._variants
        every = kept | variants.kept.get(graph, frozenset())
        if (graph, every) in self._made:
            return self._made[graph, every]
        nodes = nodes_of(variants.groups_of(graph), every)
        target = self._scratch / f"{graph}.{len(list(self._scratch.iterdir()))}.onnx"
        options = Options(nodes, variants.full_range)
        variants.passes.make(graph, int8.VARIANT, variants.path(graph, "fp32"), target, options)
        self._made[graph, every] = target
        return target
