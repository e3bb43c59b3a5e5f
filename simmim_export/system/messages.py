"""Errors and warnings as data: how one process tells another what went wrong.

An error arrives as the same class of ``errors.py`` that was raised, with its three parts. A class that is defined elsewhere
arrives as the class of ``errors.py`` that it derives from.
"""

from __future__ import annotations

import builtins
import os
import warnings
from pathlib import Path

import msgspec

from simmim_export import errors
from simmim_export.errors import SimmimError

# The environment variable that names the file in which a command of ours leaves the error that ended it.
ERROR_FILE = "SIMMIM_EXPORT_ERROR_FILE"


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """A :class:`SimmimError`."""

    kind: str
    what: str
    where: str | None
    fix: str | None

    @classmethod
    def of(cls, error: SimmimError) -> Failure:
        """``error`` as data."""
        return cls(kind=_kind(type(error)), what=error.what, where=error.where, fix=error.fix)

    def error(self) -> SimmimError:
        """The error to raise."""
        return getattr(errors, self.kind)(self.what, where=self.where, fix=self.fix)


class Notice(msgspec.Struct, frozen=True, kw_only=True, tag="notice"):
    """A warning."""

    kind: str
    text: str

    @classmethod
    def of(cls, text: str, category: type[Warning]) -> Notice:
        """The warning ``text`` of ``category`` as data."""
        return cls(kind=_kind(category), text=text)

    def repeat(self) -> None:
        """Warn again, in this process."""
        category = getattr(errors, self.kind, None) or getattr(builtins, self.kind)
        warnings.warn(self.text, category, stacklevel=2)


def _kind(raised: type) -> str:
    """The name of the class nearest to ``raised`` that every process knows: one of ``errors.py`` or of Python itself."""
    return next(kind.__name__ for kind in raised.__mro__ if kind.__module__ in (errors.__name__, builtins.__name__))


def leave_for_parent(error: SimmimError) -> None:
    """Write ``error`` to :data:`ERROR_FILE`, if the process that started this command asked for it."""
    if path := os.environ.get(ERROR_FILE):
        Path(path).write_bytes(msgspec.json.encode(Failure.of(error)))


def left_by_child(path: Path) -> SimmimError | None:
    """The error that a command left in the file ``path``, or None."""
    return msgspec.json.decode(path.read_bytes(), type=Failure).error() if path.is_file() else None
