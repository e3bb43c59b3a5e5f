"""The lower precisions of traced graphs: which files there are, and which of them a precision plan may choose."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from simmim_export.engines.base import Engine
from simmim_export.errors import EngineUnavailable
from simmim_export.precision.base import Options
from simmim_export.precision.passes import PASSES, CachedPasses, nodes_of
from simmim_export.spec import Precision, Variant
from simmim_export.tensorrt_rules.groups import by_group


@dataclass(kw_only=True)
class VariantFiles:
    """The files of every graph under ``root``. ``float_groups`` says, for a graph and an INT8 variant of it, which groups of
    nodes that file leaves in float; see :func:`simmim_export.tensorrt_rules.groups.group_of`."""

    root: Path
    graphs: Sequence[str]
    passes: CachedPasses
    float_groups: dict[tuple[str, Variant], frozenset[str]] = field(default_factory=dict)
    _groups: dict[tuple[str, Variant], Mapping[str, Sequence[str]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def path(self, graph: str, variant: Variant) -> Path:
        """The file of ``variant`` of ``graph``, written or not."""
        return self.root / f"{graph}.{variant}.onnx"

    def write(self, graph: str, variant: Variant) -> None:
        """Write ``variant`` of ``graph`` with its :attr:`float_groups` in float."""
        self.write_to(self.path(graph, variant), graph, variant=variant, float_groups=self.floats(graph, variant))

    def write_to(self, target: Path, graph: str, *, variant: Variant, float_groups: Collection[str]) -> None:
        """Write ``variant`` of ``graph`` with ``float_groups`` in float to ``target``."""
        options = Options(keep_float=nodes_of(self.groups_of(graph, variant), float_groups) if float_groups else ())
        source = self.path(graph, Variant.FP32)
        self.passes.write(graph, variant, source=source, target=target, options=options)

    def leave_float(self, graph: str, variant: Variant, *, groups: Collection[str]) -> bool:
        """Leave ``groups`` in float as well and write ``variant`` of ``graph`` again. False if they were already in float."""
        if self.floats(graph, variant).issuperset(groups):
            return False
        self.float_groups[graph, variant] = self.floats(graph, variant) | set(groups)
        self.write(graph, variant)
        return True

    def floats(self, graph: str, variant: Variant) -> frozenset[str]:
        """The groups that the file of ``variant`` of ``graph`` leaves in float."""
        return self.float_groups.get((graph, variant), frozenset())

    def groups_of(self, graph: str, variant: Variant) -> Mapping[str, Sequence[str]]:
        """The nodes that ``variant`` of ``graph`` may quantize, by PyTorch module."""
        if (graph, variant) not in self._groups:
            model = onnx.load(self.path(graph, Variant.FP32))
            self._groups[graph, variant] = by_group(model, PASSES[variant].touched(model))
        return self._groups[graph, variant]


class EngineChoices:
    """What a precision plan for ``engine`` may choose from: a :class:`simmim_export.planning.planner.Choices`.

    At INT8 it has the files of ``int8`` alone, one of the engine's variants. Files that only the search needs go to ``scratch``.
    """

    def __init__(self, files: VariantFiles, engine: Engine, *, int8: Variant, scratch: Path) -> None:
        self.variant = int8
        self._files, self._scratch = files, scratch
        # The search asks again and again, and files of base are hundreds of megabytes.
        self._candidates: dict[str, Mapping[Precision, Path]] = {}
        self._trial_files: dict[tuple[str, frozenset[str]], Path] = {}
        self._variants: dict[Precision, Variant] = {}
        for precision in Precision:
            try:
                self._variants[precision] = engine.variants(precision)[0]
            except EngineUnavailable:
                continue  # the engine lacks this precision
        if Precision.INT8 in self._variants:
            self._variants[Precision.INT8] = int8

    def names(self) -> Sequence[str]:
        """Every graph."""
        return self._files.graphs

    def candidates(self, graph: str) -> Mapping[Precision, Path]:
        """The files that the engine can run here. Omits INT8 if quantization changed nothing."""
        if graph not in self._candidates:
            files = {precision: self._files.path(graph, variant) for precision, variant in self._variants.items()}
            if not self._files.groups_of(graph, self.variant):
                files.pop(Precision.INT8, None)
            self._candidates[graph] = {precision: path for precision, path in files.items() if path.exists()}
        return self._candidates[graph]

    def groups(self, graph: str) -> Sequence[str]:
        """The groups of nodes that INT8 quantizes, except those that are already in float for another engine."""
        floats = self._files.floats(graph, self.variant)
        return [group for group in self._files.groups_of(graph, self.variant) if group not in floats]

    def quantize(self, graph: str, float_groups: frozenset[str]) -> Path:
        """The INT8 file of ``graph`` with ``float_groups``, and the groups of :meth:`VariantFiles.floats`, in float."""
        key = graph, float_groups | self._files.floats(graph, self.variant)
        if key not in self._trial_files:
            target = self._scratch / f"{graph}.{len(self._trial_files)}.onnx"
            self._files.write_to(target, graph, variant=self.variant, float_groups=key[1])
            self._trial_files[key] = target
        return self._trial_files[key]
