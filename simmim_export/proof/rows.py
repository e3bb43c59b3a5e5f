"""Runs graphs on as few rows as their inputs have: once for each image, each distinct text, or each question about an image.

:class:`RowSession` stands in for a graph's session in :func:`~simmim_export.engines.pipeline.run_graphs`. The tensors that flow
are :class:`Rows`, which know what they have a row for and which graphs made them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from simmim_export.engines.base import Session
from simmim_export.errors import GateFailed
from simmim_export.proof.parity import cut, padded_axes
from simmim_export.spec import GraphSpec
from simmim_export.system.watch import Watch

Keep = Callable[[tuple[str, ...], Callable[[], Any]], Any]
# What a tensor has a row for, beside each image and each distinct text.
QUESTIONS = "questions"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A tensor for everything that is asked. ``each`` says what it has a row for: ``images``, ``texts`` or :data:`QUESTIONS`.
    ``origin`` names the set that it was made from, and the graphs that made it. ``read()`` gives the array, which may be computed
    only then."""

    each: str
    origin: tuple[str, ...]
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray, *, each: str, origin: tuple[str, ...]) -> Rows:
        """Rows of an array that was computed already."""
        return cls(each=each, origin=origin, read=lambda: array)


@dataclass(frozen=True, kw_only=True)
class RowSession:
    """One graph. ``open()`` gives its session, and is called only if it has to run; ``made_by`` names what that session runs.

    ``questions`` int64 [q] by ``images`` and ``texts``: the image and the text that each question is about.
    ``keep(key, make)`` may give what it kept of an earlier call with that key; it is not asked about outputs for questions, which
    take too much memory. ``batch`` rows run at once.
    """

    spec: GraphSpec
    made_by: str
    open: Callable[[], Session]
    questions: Mapping[str, np.ndarray]
    keep: Keep
    batch: int
    watch: Watch

    def run(self, feeds: Mapping[str, Rows]) -> dict[str, Any]:
        """Every output as :class:`Rows`."""
        inputs = {tensor.name: feeds[tensor.name] for tensor in self.spec.inputs}
        kinds = {rows.each for rows in inputs.values()}
        each = kinds.pop() if len(kinds) == 1 else QUESTIONS
        origin = (*dict.fromkeys(name for rows in inputs.values() for name in rows.origin), self.made_by)

        if each == QUESTIONS:
            outputs = self._compute(inputs, each)
        else:
            outputs = self.keep((self.spec.name, *origin), lambda: self._compute(inputs, each))
        return {name: Rows.of(array, each=each, origin=origin) for name, array in outputs.items()}

    def _compute(self, inputs: Mapping[str, Rows], each: str) -> dict[str, np.ndarray]:
        """All rows, in batches. Texts of similar length run together, padded only to the longest of them, as a caller would send
        them."""
        arrays = {name: rows.read() for name, rows in inputs.items()}
        # Rows are picked batch by batch: what an image gave is not copied for all of its questions.
        picked = {name: self.questions[rows.each] for name, rows in inputs.items() if rows.each != each}
        name = next(iter(arrays))
        count = len(picked.get(name, arrays[name]))

        def rows_of(name: str, rows: np.ndarray) -> np.ndarray:
            return arrays[name][picked[name][rows] if name in picked else rows]

        everything = np.arange(count)
        lengths = {axis: rows_of(mask, everything).sum(axis=1) for mask, axis in padded_axes(self.spec).items()}
        full: dict[int | str, int] = {axis: arrays[mask].shape[1] for mask, axis in padded_axes(self.spec).items()}
        order = np.argsort(sum(lengths.values(), np.zeros(count, np.int64)), kind="stable")
        session, outputs = self.open(), dict[str, np.ndarray]()
        for start in range(0, count, self.batch):
            self.watch(f"ask {self.spec.name}", start, count)
            rows = order[start : start + self.batch]
            feeds = {name: rows_of(name, rows) for name in arrays}
            for axis, all_lengths in lengths.items():
                length = max(int(all_lengths[rows].max()), self.spec.axis(axis).minimum)
                feeds = cut(feeds, self.spec.inputs, axis=axis, length=length)
            given = session.run(feeds)
            for tensor in self.spec.outputs:
                values = given[tensor.name]
                if len(values) != len(rows):
                    what = f"{self.spec.name} gave {len(values)} rows of {tensor.name} for {len(rows)}"
                    raise GateFailed(what, fix="export the bundle again")
                if tensor.name not in outputs:
                    sizes = zip(tensor.shape[1:], values.shape[1:], strict=True)
                    shape = [full.get(axis, size) for axis, size in sizes]
                    outputs[tensor.name] = np.zeros((count, *shape), values.dtype)
                # What was cut off stays zero.
                place: tuple[Any, ...] = (rows, *map(slice, values.shape[1:]))
                outputs[tensor.name][place] = values
        return outputs
