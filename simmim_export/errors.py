"""Every error that a user can cause, with the exit code that it gives a command, and every warning.

::

    SimmimError                    the base: only its subclasses are raised
    ├── UsageError            2    a wrong option or name, or an output that exists
    ├── EngineUnavailable     3    the engine, device or precision is not available here
    ├── GateFailed            4    a parity or accuracy gate was measured and missed
    └── InputError            5    a file or value cannot be used
        ├── CheckpointError
        ├── BundleError
        ├── ImageError
        ├── TextError
        └── DataError

An error says what is wrong, where, and what to type next::

    error: no such bundle
      where: bundel
      next:  make one: simmim-export onnx ckpt.pt -o BUNDLE

If any other exception ends a command, that is a bug: the command prints a traceback and ends with exit code 1. Nothing falls back
silently: asking for something that is not available is an error, and if a result is less than what was asked for, one of the
warnings below says so.
"""

from __future__ import annotations

import re
from typing import ClassVar

_ON_ONE_LINE = str.maketrans({"\n": "\\n", "\t": "\\t"})

# The fix for a damaged bundle.
EXPORT_AGAIN = "export it again: simmim-export onnx ckpt.pt -o BUNDLE --overwrite"


class SimmimError(Exception):
    """An error that the user can fix.

    ``what`` is wrong; ``where``: the file, key or argument; ``fix``: what to do or type next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix

    def __str__(self) -> str:
        # A quoted name may hold a line break. Indent what follows it further, so that it does not look like a line of ours.
        lines = [re.sub("\n(  )?", "\n    ", self.what)]
        if self.where is not None:
            lines.append(f"  where: {self.where.translate(_ON_ONE_LINE)}")
        if self.fix is not None:
            lines.append(f"  next:  {self.fix.translate(_ON_ONE_LINE)}")
        return "\n".join(lines)


class UsageError(SimmimError):
    """A wrong option or name, options that exclude each other, or an output that exists."""

    exit_code = 2


class EngineUnavailable(SimmimError):
    """The engine, device or precision that was asked for cannot run here. No slower one takes its place."""

    exit_code = 3


class GateFailed(SimmimError):
    """A parity or accuracy gate was measured and missed."""

    exit_code = 4


class InputError(SimmimError):
    """A file or value cannot be used."""

    exit_code = 5


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or hostile, has another schema, or does not fit its own configuration."""


class BundleError(InputError):
    """A bundle is missing, lacks a file, was altered, points outside its own folder, or has another schema."""


class ImageError(InputError):
    """An image is missing, empty, truncated, not an image, or too large to decode safely."""


class TextError(InputError):
    """A text is empty, too long, or not UTF-8."""


class DataError(InputError):
    """A data set or results file is missing, malformed or empty, or does not fit the model."""


class TruncatedText(UserWarning):
    """A text has more tokens than the model reads and was cut. The message names the text and both lengths."""


class UnknownWords(UserWarning):
    """A text has words that are not in the model's vocabulary; the message names the text and the words."""


class FewSamples(UserWarning):
    """There are too few samples for reliable ranges, or fewer or other ones than asked for. The message says how many."""


class NoCache(UserWarning):
    """A cache folder cannot be written, so work is repeated each time. The message names the folder and the reason."""


class FewerThreads(UserWarning):
    """An engine computes wrong results on several threads here, so it runs on one. The message names the graph."""


class NotCaptured(UserWarning):
    """A graph runs without a CUDA graph: its kernels are launched one by one, which takes longer. The message names it."""


class Dequantized(UserWarning):
    """TensorRT computes a quantized product in floating point."""


class ShortcutLearned(UserWarning):
    """A head is hardly better than a control that lacks part of the input. The message gives both figures."""


class LeftOut(UserWarning):
    """A bundle lacks a variant that was asked for and that nothing in it needs. The message says why."""


class BundleRestored(UserWarning):
    """An export was killed while it replaced a bundle, and the old bundle is back in its place. The message names it."""


class CertificatesLost(UserWarning):
    """An unreadable certificate.json was replaced. The message says what was wrong with it."""


class TelemetryOn(UserWarning):
    """The application imported a package before its telemetry could be switched off. The message names the package."""
