"""Every error a user can cause, and the exit code each one ends a command with.

::

    SimmimError                    (never raised itself)
    ├── UsageError            2    the request makes no sense: a bad option, a name that does not exist
    ├── EngineUnavailable     3    the engine, device or precision asked for is not available here
    ├── GateFailed            4    a parity or accuracy gate was measured and missed
    └── InputError            5    a file or value handed in cannot be used
        ├── CheckpointError
        ├── BundleError
        ├── ImageError
        ├── TextError
        └── DataError

Anything else that escapes a command is a bug: a traceback and exit code 1. Nothing falls back in silence; a message says
what is wrong, where, and what to type next.
"""

from __future__ import annotations

import re
from typing import ClassVar

_ON_ONE_LINE = str.maketrans({"\n": "\\n", "\t": "\\t"})

# What to do about a bundle that cannot be used as it is.
EXPORT_AGAIN = "export it again: simmim-export onnx ckpt.pt -o BUNDLE --overwrite"


class SimmimError(Exception):
    """A user's error: *what* is wrong, *where* (a file, key or argument), and the *fix* (what to do or type next)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix

    def __str__(self) -> str:
        # What quotes a name with a line break in it must not look like a line of ours: later lines are indented further.
        lines = [re.sub("\n(  )?", "\n    ", self.what)]
        if self.where is not None:
            lines.append(f"  where: {self.where.translate(_ON_ONE_LINE)}")
        if self.fix is not None:
            lines.append(f"  next:  {self.fix.translate(_ON_ONE_LINE)}")
        return "\n".join(lines)


class UsageError(SimmimError):
    """The request itself makes no sense: an unknown name, options that exclude each other, an output that exists."""

    exit_code = 2


class EngineUnavailable(SimmimError):
    """The engine, device or precision that was asked for cannot run here. Never answered by a slower stand-in."""

    exit_code = 3


class GateFailed(SimmimError):
    """A parity or accuracy gate was measured and missed."""

    exit_code = 4


class InputError(SimmimError):
    """A file or value that was handed in cannot be used."""

    exit_code = 5


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, hostile, of another schema, or does not fit its own configuration."""


class BundleError(InputError):
    """A bundle is missing a file, was altered, leaves its own folder, or has another schema."""


class ImageError(InputError):
    """An image is missing, empty, truncated, not an image, or too large to decode safely."""


class TextError(InputError):
    """A text is empty or not UTF-8."""


class DataError(InputError):
    """A data set on disk is malformed, empty, or does not fit the model."""


class TruncatedText(UserWarning):
    """A text was longer than the model reads and was cut; the message names the text and both lengths."""


class UnknownWords(UserWarning):
    """A text has words that are not in the model's vocabulary; the message names the text and the words."""


class FewSamples(UserWarning):
    """There are fewer calibration samples than are needed for ranges to rely on, or others than were asked for; the message
    gives their number."""


class NoCache(UserWarning):
    """A cache folder cannot be written, so that work is done again each time; the message names it and why."""


class FewerThreads(UserWarning):
    """An engine is wrong on several threads here and runs on one; the message says which graph."""


class UnknownHost(UserWarning):
    """This system does not say what a graph needs to know of it; the message says what, and what may go wrong."""


class NotCaptured(UserWarning):
    """A graph runs without a CUDA graph, which costs the time to launch its kernels one by one; the message names it."""


class ShortcutLearned(UserWarning):
    """A head is hardly better than one that does not look; the message gives both figures."""


class LeftOut(UserWarning):
    """A bundle lacks a form of a graph that was asked for and that nothing in it needs; the message says why."""


class BundleRestored(UserWarning):
    """A bundle was put back in its place: an export that was to replace it had been killed half-way; the message names it."""


class CertificatesLost(UserWarning):
    """A certificate.json that could not be read was replaced; the message says what was wrong with it."""


class TelemetryOn(UserWarning):
    """A package that reports its use was imported by the application before it could be kept quiet; the message names it."""
