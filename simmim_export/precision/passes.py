"""The passes by variant, and a cache of their results."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import onnx

from simmim_export.engines import versions
from simmim_export.errors import UsageError
from simmim_export.precision.base import Feeds, Options, Pass
from simmim_export.precision.emulation import rounded, with_float_weights
from simmim_export.precision.fp16 import Fp16
from simmim_export.precision.int8_dot import Int8ForDotProducts
from simmim_export.precision.int8_s8 import Int8ForTensorRT
from simmim_export.precision.int8_s8_fp16 import Int8WithFp16
from simmim_export.precision.int8_u8 import Int8ForCpu
from simmim_export.precision.measure import Record
from simmim_export.spec import Precision, Variant
from simmim_export.system.cache import kept
from simmim_export.system.files import digest
from simmim_export.system.host import has_integer_dot
from simmim_export.system.outputs import replacing
from simmim_export.system.watch import Watch, unwatched

PASSES: Mapping[Variant, type[Pass]] = {
    each.variant: each for each in (Fp16, Int8ForDotProducts, Int8ForCpu, Int8ForTensorRT, Int8WithFp16)
}
# The variants that are written for a precision.
_VARIANTS: Mapping[Precision, tuple[Variant, ...]] = {
    Precision.FP32: (Variant.FP32,),
    Precision.FP16: (Variant.FP16,),
    Precision.INT8: (Variant.INT8_DOT, Variant.INT8_U8, Variant.INT8_S8),
}


def variants_of(precisions: Collection[Precision]) -> list[Variant]:
    """The variants that are written for ``precisions``, FP32 first. INT8 and FP16 together also give the one that mixes them."""
    written = [variant for each in (Precision.FP32, *precisions) for variant in _VARIANTS[each]]
    both = {Precision.INT8, Precision.FP16} <= set(precisions)
    return [*dict.fromkeys(written), *([Variant.INT8_S8_FP16] if both else [])]


def write_variant(
    source: Path,
    target: Path,
    *,
    variant: Variant,
    feeds: Feeds,
    options: Options = Options(),
    record: Record | None = None,
    watch: Watch = unwatched,
) -> Pass:
    """Write ``variant`` of the FP32 graph ``source`` to ``target``, and return the pass that made it. ``record`` is what other
    passes have measured of ``source`` on ``feeds``.

    A graph in which the pass has nothing to change is copied byte for byte. Raise :class:`UsageError` for a variant that no pass
    makes, and what :meth:`Pass.__call__` raises; then nothing has been written.
    """
    if variant not in PASSES:
        raise UsageError(f"no pass makes the variant {variant!r}", fix=f"choose one of {', '.join(PASSES)}")
    one = PASSES[variant](feeds, options, record=record, watch=watch)
    before = onnx.load(source) if record is None else record.model
    after = one(before)
    if after is before:
        shutil.copyfile(source, target)
    else:
        onnx.save(after, target)
    return one


def provable(variant: Variant, path: Path, folder: Path) -> Path:
    """The file with which a CPU can show what the ``variant`` at ``path`` computes: ``path``, or another one in ``folder``.

    ONNX Runtime computes FP16 in FP32 and drops the roundings between nodes. With the roundings written out it keeps them. INT8
    weights of 8 bits are multiplied in FP32 if INT8 products would saturate on this processor.
    """
    if variant is Variant.FP16:
        emulated = rounded
    elif variant is Variant.INT8_S8_FP16:
        emulated = rounded if has_integer_dot() else _rounded_with_float_weights
    elif variant in (Variant.INT8_DOT, Variant.INT8_S8) and not has_integer_dot():
        emulated = with_float_weights
    else:
        return path
    onnx.save(emulated(onnx.load(path)), folder / path.name)
    return folder / path.name


def _rounded_with_float_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    return with_float_weights(rounded(model))


class CachedPasses:
    """:func:`write_variant` with a cache; ``feeds`` are the inputs of each graph for every calibration sample.

    The key of a result is the digest of all that decides it: the graph with its weights, the feeds, the options and the code.
    ``watch`` is told how far a pass is.
    """

    def __init__(self, feeds: Mapping[str, Feeds], watch: Watch = unwatched) -> None:
        self._feeds, self._watch = feeds, watch
        self._digests: dict[str, str] = {}
        # Of one graph at a time: it holds the graph, and moments that are larger still.
        self._record: tuple[str, Record] | None = None

    def write(self, graph: str, variant: Variant, *, source: Path, target: Path, options: Options) -> None:
        """Write ``variant`` of ``graph``, whose FP32 form is ``source``, to ``target``."""
        exact = digest(source)
        parts = [self._digest_of_feeds(graph), variant, exact, repr(options), _versions()]
        with kept("passes", hashlib.sha256(chr(0).join(parts).encode()).hexdigest()) as folder:
            cached = None if folder is None else folder / "graph.onnx"
            if cached is not None and cached.is_file():
                shutil.copyfile(cached, target)
                return
            with replacing(target) as temporary:
                write_variant(
                    source,
                    temporary,
                    variant=variant,
                    feeds=self._feeds[graph],
                    options=options,
                    record=self._record_of(graph, source, key=exact),
                    watch=self._watch,
                )
            if cached is not None:
                # A cache that is full or has vanished does not cost the result.
                with suppress(OSError, UsageError), replacing(cached) as temporary:
                    shutil.copyfile(target, temporary)

    def _record_of(self, graph: str, source: Path, *, key: str) -> Record:
        """What has been measured of ``graph``. Its file ``source`` has the digest ``key``."""
        key = f"{graph} {key}"
        if self._record is None or self._record[0] != key:
            self._record = None  # before the next one takes as much memory
            self._record = key, Record(onnx.load(source), self._feeds[graph], self._watch)
        return self._record[1]

    def _digest_of_feeds(self, graph: str) -> str:
        if graph not in self._digests:
            hashed = hashlib.sha256()
            for feed in self._feeds[graph]:
                for name, array in sorted(feed.items()):
                    hashed.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
            self._digests[graph] = hashed.hexdigest()
        return self._digests[graph]


def _versions() -> str:
    """What made a result: the modules of this package, by digest, and the packages they use, by name because ONNX Runtime comes
    in two packages."""
    packages = versions("ort") | {name: version(name) for name in ("onnx", "onnx-ir")}
    return digest(Path(__file__).parent) + repr(sorted(packages.items()))


def nodes_of(groups: Mapping[str, Sequence[str]], names: Collection[str]) -> tuple[str, ...]:
    """The nodes of the ``groups`` called ``names``, in order."""
    return tuple(node for group, nodes in groups.items() if group in names for node in nodes)
