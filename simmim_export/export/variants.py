"""The lower precisions of traced graphs: which files there are, and which of them a precision plan may choose."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from simmim_export.engines.base import Engine
from simmim_export.engines.checks import INTEGER_DOT, require_host
from simmim_export.errors import EngineUnavailable
from simmim_export.precision.base import Options
from simmim_export.precision.int8_u8 import saturates, touched
from simmim_export.precision.passes import CachedPasses, nodes_of
from simmim_export.spec import Precision, Variant
from simmim_export.tensorrt_rules.groups import by_group


@dataclass(kw_only=True)
class VariantFiles:
    """The files of every graph under ``root``. ``float_groups`` says, for each graph, which groups of nodes the INT8 files leave
    in float; see :func:`simmim_export.tensorrt_rules.groups.group_of`."""

    root: Path
    graphs: Sequence[str]
    passes: CachedPasses
    full_range: bool = False
    float_groups: dict[str, frozenset[str]] = field(default_factory=dict)
    _groups: dict[str, Mapping[str, Sequence[str]]] = field(default_factory=dict, init=False, repr=False)

    def path(self, graph: str, variant: Variant) -> Path:
        """The file of ``variant`` of ``graph``, written or not."""
        return self.root / f"{graph}.{variant}.onnx"

    def write(self, graph: str, variant: Variant) -> None:
        """Write ``variant`` of ``graph`` with its :attr:`float_groups` in float."""
        self.write_to(self.path(graph, variant), graph, variant=variant, float_groups=self.floats(graph))

    def write_to(self, target: Path, graph: str, *, variant: Variant, float_groups: Collection[str]) -> None:
        """Write ``variant`` of ``graph`` with ``float_groups`` in float to ``target``."""
        options = Options(keep_float=nodes_of(self.groups_of(graph), float_groups), full_range=self.full_range)
        source = self.path(graph, Variant.FP32)
        self.passes.write(graph, variant, source=source, target=target, options=options)

    def leave_float(self, graph: str, groups: Collection[str]) -> bool:
        """Leave ``groups`` in float as well and write the INT8 file for CPUs again. False if they were already in float."""
        if self.floats(graph).issuperset(groups):
            return False
        self.float_groups[graph] = self.floats(graph) | set(groups)
        self.write(graph, Variant.INT8_U8)
        return True

    def floats(self, graph: str) -> frozenset[str]:
        """The groups of ``graph`` that are left in float."""
        return self.float_groups.get(graph, frozenset())

    def host_needs(self, graph: str, variant: Variant) -> dict[str, str]:
        """What a processor needs to run the file of ``variant``, as ``built_for`` of its artifact says it."""
        if variant is not Variant.INT8_U8 or not saturates(onnx.load(self.path(graph, variant))):
            return {}
        return {"needs": INTEGER_DOT}

    def groups_of(self, graph: str) -> Mapping[str, Sequence[str]]:
        """The nodes that INT8 for CPUs quantizes, by PyTorch module."""
        if graph not in self._groups:
            model = onnx.load(self.path(graph, Variant.FP32))
            self._groups[graph] = by_group(model, touched(model))
        return self._groups[graph]


class EngineChoices:
    """What a precision plan for ``engine`` may choose from: a :class:`simmim_export.planning.planner.Choices`. ``refused`` says
    why this processor cannot run the INT8 file of a graph. Files that only the search needs go to ``scratch``."""

    def __init__(self, files: VariantFiles, engine: Engine, *, scratch: Path) -> None:
        self._files, self._engine, self._scratch = files, engine, scratch
        self.refused: dict[str, str] = {}
        # The search asks again and again, and files of base are hundreds of megabytes.
        self._candidates: dict[str, Mapping[Precision, Path]] = {}
        self._trial_files: dict[tuple[str, frozenset[str]], Path] = {}
        self._variants: dict[Precision, Variant] = {}
        for precision in Precision:
            try:
                self._variants[precision] = Variant(engine.variant(precision))
            except EngineUnavailable:
                continue  # the engine lacks this precision

    def names(self) -> Sequence[str]:
        """Every graph."""
        return self._files.graphs

    def candidates(self, graph: str) -> Mapping[Precision, Path]:
        """The files that the engine can run here. Omits INT8 if quantization changed nothing."""
        if graph not in self._candidates:
            self._candidates[graph] = self._runnable(graph)
        return self._candidates[graph]

    def _runnable(self, graph: str) -> Mapping[Precision, Path]:
        files = {precision: self._files.path(graph, variant) for precision, variant in self._variants.items()}
        files = {precision: path for precision, path in files.items() if path.exists()}
        if Precision.INT8 not in files:
            return files
        try:
            require_host(self._engine, self._files.host_needs(graph, self._variants[Precision.INT8]), where=graph)
        except EngineUnavailable as error:
            self.refused[graph] = f"{graph}: {error.what}"
        if graph in self.refused or not self._files.groups_of(graph):
            del files[Precision.INT8]
        return files

    def groups(self, graph: str) -> Sequence[str]:
        """The groups of nodes that INT8 quantizes, except those that are already in float for another engine."""
        return [group for group in self._files.groups_of(graph) if group not in self._files.floats(graph)]

    def quantize(self, graph: str, float_groups: frozenset[str]) -> Path:
        """The INT8 file of ``graph`` with ``float_groups``, and the groups of :meth:`VariantFiles.floats`, in float."""
        key = graph, float_groups | self._files.floats(graph)
        if key not in self._trial_files:
            target = self._scratch / f"{graph}.{len(self._trial_files)}.onnx"
            self._files.write_to(target, graph, variant=Variant.INT8_U8, float_groups=key[1])
            self._trial_files[key] = target
        return self._trial_files[key]
