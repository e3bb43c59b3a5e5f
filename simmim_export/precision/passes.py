"""The passes by variant, and results that were made before. Knows which pass makes what; must not know how.

A variant is a form of a graph that some engine wants for a precision (``Engine.variant``). The cache is keyed by everything
that decides a result: the graph with its weights, the inputs that calibrate it, the options and the versions of the code.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx

from simmim_export.engines import versions
from simmim_export.errors import UsageError
from simmim_export.precision import fp16, int8, int8_s8
from simmim_export.precision.quantizer import Feeds
from simmim_export.spec import Precision
from simmim_export.system.cache import kept
from simmim_export.system.files import digest
from simmim_export.system.outputs import replacing

# precision -> its variants: that of CPU engines first, which plans are made of.
VARIANTS: Mapping[Precision, tuple[str, ...]] = {
    Precision.FP16: (fp16.VARIANT,),
    Precision.INT8: (int8.VARIANT, int8_s8.VARIANT),
}


@dataclass(frozen=True)
class Options:
    """``keep_float``: nodes that stay as they are. ``full_range``: of the variant for CPUs; see
    :func:`simmim_export.precision.int8.to_int8`."""

    keep_float: tuple[str, ...] = ()
    full_range: bool = False


def apply(variant: str, source: Path, target: Path, feeds: Feeds, options: Options) -> None:
    """Write ``variant`` of the FP32 graph ``source`` to ``target``."""
    if variant == int8.VARIANT:
        int8.to_int8(source, target, feeds, options.keep_float, options.full_range)
    elif variant == int8_s8.VARIANT:
        int8_s8.to_int8_s8(source, target, feeds, options.keep_float)
    else:
        fp16.to_fp16(source, target, feeds)


def provable(variant: str, path: Path, folder: Path) -> Path:
    """The file that shows on this CPU what the variant at ``path`` computes; written to ``folder`` where it is another.

    ONNX Runtime computes FP16 in FP32 and drops the roundings between nodes; with them written out it keeps them.
    """
    if variant != fp16.VARIANT:
        return path
    onnx.save(fp16.rounded(onnx.load(path)), folder / path.name)
    return folder / path.name


class Passes:
    """:func:`apply` with a memory; ``feeds`` are the inputs of each graph for every calibration sample."""

    def __init__(self, feeds: Mapping[str, Feeds]) -> None:
        self._feeds = feeds
        self._digests: dict[str, str] = {}

    def _samples(self, graph: str) -> str:
        if graph not in self._digests:
            found = hashlib.sha256()
            for feed in self._feeds[graph]:
                for name, array in sorted(feed.items()):
                    found.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
            self._digests[graph] = found.hexdigest()
        return self._digests[graph]

    def make(self, graph: str, variant: str, source: Path, target: Path, options: Options) -> None:
        """Write ``variant`` of ``graph``, whose FP32 form is ``source``, to ``target``."""
        # By name, because ONNX Runtime comes in two packages.
        made_by = repr(sorted((versions("ort") | {"onnx": version("onnx")}).items()))
        parts = [self._samples(graph), variant, digest(source), repr(options), _code(), made_by]
        with kept("passes", hashlib.sha256(chr(0).join(parts).encode()).hexdigest()) as folder:
            before = None if folder is None else folder / "graph.onnx"
            if before is not None and before.is_file():
                shutil.copyfile(before, target)
                return
            with replacing(target) as temporary:
                apply(variant, source, temporary, self._feeds[graph], options)
            if before is not None:
                # A cache that is full, or has vanished, costs no result.
                with suppress(OSError, UsageError), replacing(before) as temporary:
                    shutil.copyfile(target, temporary)


def _code() -> str:
    """SHA-256 of this package's own modules: a result of older code is none of this one."""
    return digest(Path(__file__).parent)


def nodes_of(groups: Mapping[str, Sequence[str]], kept: Collection[str]) -> tuple[str, ...]:
    """The nodes of the groups ``kept``, in order."""
    return tuple(node for group, nodes in groups.items() if group in kept for node in nodes)
