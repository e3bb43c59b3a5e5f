"""Checks that every engine shares: what it is asked for, what it is fed, what comes out, and what this machine takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simmim_export.engines.base import LATENCY, THROUGHPUT
from simmim_export.errors import EXPORT_AGAIN, BundleError, EngineUnavailable, UsageError
from simmim_export.spec import BATCH, Axis, GraphSpec, Precision, TensorSpec, Variant
from simmim_export.system.host import available_threads, has_integer_dot

# More threads than any machine has; engines fail in ways of their own over far too many.
MOST_THREADS = 4096


def check_feeds(
    feeds: Mapping[str, np.ndarray], inputs: tuple[TensorSpec, ...], *, axes: tuple[Axis, ...] = ()
) -> dict[str, np.ndarray]:
    """The ``inputs`` of a graph taken out of ``feeds`` (which may hold more), each checked.

    Raise :class:`UsageError` for an input that is missing or does not fit, and for a dynamic axis that is empty (the mean of
    nothing is NaN), has two sizes, or is longer than its maximum in ``axes``: beyond the table of positions ONNX Runtime fails
    and OpenVINO answers nonsense. A batch may be larger than what was proven, because its rows do not depend on each other.
    """
    arrays = {}
    for spec in inputs:
        if spec.name not in feeds:
            raise UsageError(f"input {spec.name!r} is missing", fix=f"feed {', '.join(s.name for s in inputs)}")
        array = feeds[spec.name]
        # An array, or a tensor on a device that has the attributes of an array.
        if not (hasattr(array, "dtype") and hasattr(array, "shape") and hasattr(array, "ndim")):
            raise UsageError(f"input {spec.name!r} is {type(array).__name__}, not an array", fix="feed NumPy arrays")
        spec.check(array)
        arrays[spec.name] = array
    largest = {axis.name: axis.maximum for axis in axes if axis.name != BATCH}
    for name, size in axis_sizes(arrays, inputs).items():
        if size < 1:
            raise UsageError(f"axis {name!r} is empty", fix="feed one row or more")
        if size > largest.get(name, size):
            what = f"axis {name!r} is {size}, and the graph was exported for {largest[name]} at most"
            raise UsageError(what, fix=f"feed {largest[name]} or fewer")
    return arrays


def axis_sizes(arrays: Mapping[str, np.ndarray], inputs: tuple[TensorSpec, ...]) -> dict[str, int]:
    """The size of every dynamic axis of ``inputs``; raise :class:`UsageError` for an axis with two sizes. A shared input may have
    a single row, whatever the size of the batch."""
    sizes: dict[str, int] = {}
    alone = all(spec.shared for spec in inputs)
    for spec in inputs:
        for axis, size in zip(spec.shape, arrays[spec.name].shape, strict=True):
            if spec.shared and axis == BATCH and size == 1 and not alone:
                continue
            if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                raise UsageError(f"axis {axis!r} is {sizes[axis]} in one input and {size} in {spec.name!r}")
    return sizes


def check_outputs(engine: str, spec: GraphSpec, *, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, Any]) -> None:
    """Raise :class:`BundleError` unless ``outputs``, which ``engine`` computed from ``feeds``, are what ``spec`` promises.

    Every output must be there with its dtype, rank and fixed sizes, and each dynamic axis must have the size of the input's axis
    of that name. An axis that no input has may have any size, but the same one in all outputs. ``feeds`` were checked before
    (:func:`check_feeds`).
    """
    sizes = axis_sizes(feeds, spec.inputs)
    wanted: list[int | str]
    for tensor in spec.outputs:
        array = outputs.get(tensor.name)
        shape = getattr(array, "shape", None)
        if shape is not None and getattr(array, "dtype", None) == tensor.dtype and len(shape) == len(tensor.shape):
            wanted = [
                sizes.setdefault(d, n) if isinstance(d, str) else d for d, n in zip(tensor.shape, shape, strict=True)
            ]
            if wanted == list(shape):
                continue
        else:
            wanted = [sizes[d] if isinstance(d, str) and d in sizes else d for d in tensor.shape]
        got = f"{getattr(array, 'dtype', type(array).__name__)} {'' if shape is None else list(shape)}".strip()
        what = f"engine {engine!r} gave {tensor.name!r} of {spec.name} as {got if array is not None else 'nothing'}"
        raise BundleError(f"{what}, and the manifest says {tensor.dtype} {wanted}", fix=EXPORT_AGAIN)


def int8_for_this_cpu() -> tuple[Variant, ...]:
    """The INT8 variants whose products are exact on this processor, the best first.

    int8-dot is among them only if this processor is known to have integer dot products: elsewhere its products would saturate,
    which changes answers.
    """
    return (Variant.INT8_DOT, Variant.INT8_U8) if has_integer_dot() else (Variant.INT8_U8,)


def require_variants(
    engine: str, precision: Precision, *, variants: Mapping[Precision, tuple[Variant, ...]]
) -> tuple[Variant, ...]:
    """Those of ``variants`` for ``precision``. Raise :class:`EngineUnavailable` if ``engine`` has none."""
    if precision not in variants:
        what = f"engine {engine!r} has no {precision} (it has: {', '.join(variants)})"
        raise EngineUnavailable(what, fix=f"use --precision {next(iter(variants))}")
    return variants[precision]


def require_hint(engine: str, hint: str, *, has: tuple[str, ...]) -> None:
    """Raise :class:`UsageError` for an unknown hint, and :class:`EngineUnavailable` for one that ``engine`` lacks."""
    if hint not in (LATENCY, THROUGHPUT):
        raise UsageError(f"unknown hint {hint!r}", fix=f"choose {LATENCY} or {THROUGHPUT}")
    if hint not in has:
        what = f"engine {engine!r} has no {hint} hint (it has: {', '.join(has)})"
        raise EngineUnavailable(what, fix="leave the hint out")


def threads_for(threads: int | None) -> int:
    """``threads``, or what this process may use for None. Raise :class:`UsageError` for fewer than one and for anything but a
    whole number, and for more than :data:`MOST_THREADS`."""
    if threads is None:
        return available_threads()
    fix = f"give 1 to {MOST_THREADS}, or None for what this process may use"
    count = require_count("threads", threads, fix=fix)
    if count > MOST_THREADS:
        raise UsageError(f"threads is {count}", fix=fix)
    return count


def require_count(name: str, value: Any, *, least: int = 1, fix: str | None = None) -> int:
    """``value`` as an int. Raise :class:`UsageError`, calling it ``name``, unless it is a whole number (Python's or NumPy's, but
    not a bool) of ``least`` or more."""
    fix = fix or f"give {least} or more"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UsageError(f"{name} is {value!r}, which is not a whole number", fix=fix)
    if value < least:
        raise UsageError(f"{name} is {value}", fix=fix)
    return int(value)
