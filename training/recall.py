"""The data that a checkpoint was trained on, which ``evaluate`` uses by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_export.errors import CheckpointError, UsageError
from simmim_export.training.data import DATASETS, GENERATED
from simmim_export.training.options import DataChoice


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """The data that the command line asks to evaluate on; None means the checkpoint's own."""

    name: str | None = None
    root: Path | None = None
    split: str | None = None
    seed: int | None = None

    def check(self, stream: str) -> None:
        """Raise :class:`UsageError`, before a checkpoint is read, for named data that make no sense."""
        if self.name is not None and (self.root is not None or self.name in GENERATED):
            DataChoice(self.name, root=self.root, split=self.split or "iid").open(self.seed or 0, stream, size=64)
        elif self.name is not None and self.name not in DATASETS:
            raise UsageError(f"unknown data set {self.name!r}", fix=f"choose one of {', '.join(DATASETS)}")

    def resolve(self, provenance: Mapping[str, Any], where: Path) -> tuple[DataChoice, int]:
        """The data and the seed to evaluate the checkpoint ``where`` with: as requested, else as in its ``provenance``.

        What is recorded about one data set is not used for another. A checkpoint that was never trained is evaluated on
        `shapes` with seed 0. Raise :class:`UsageError` for a recorded folder that does not exist here, and
        :class:`CheckpointError` for a malformed record.
        """
        recorded, recipe = (_mapping(provenance.get(key), key, where) for key in ("data", "recipe"))
        known = _value(recorded, "name", str, where)
        name = self.name or known or "shapes"
        same = name == known
        split = _value(recorded, "split", str, where) if same and name == "shapes" else None
        folder = _value(recorded, "root", str, where) if same else None
        seed = _value(recipe, "seed", int, where)
        root = self.root
        if root is None and folder is not None:
            # As recorded: a relative folder must be found from here.
            root = Path(folder)
            if not root.is_dir():
                what = f"the checkpoint was trained on {name} in {folder}; {root.absolute()} does not exist"
                raise UsageError(what, where=where, fix=f"say where the data are now: --data-root FOLDER of {name}")
        choice = DataChoice(name, root=root, split=self.split or split or "iid")
        return choice, next(value for value in (self.seed, seed, 0) if value is not None)


def _mapping(value: Any, name: str, where: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping | None):
        raise _malformed(name, where)
    return value or {}


def _value(record: Mapping[str, Any], name: str, kind: type, where: Path) -> Any:
    """``record[name]``, or None if it is missing. Raise :class:`CheckpointError` if it is not a ``kind``."""
    value = record.get(name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise _malformed(name, where)
    return value


def _malformed(name: str, where: Path) -> CheckpointError:
    what = f"the checkpoint's record of its training data is malformed: {name}"
    return CheckpointError(what, where=where, fix="say what to evaluate on: --data, --data-root, --split, --seed")
