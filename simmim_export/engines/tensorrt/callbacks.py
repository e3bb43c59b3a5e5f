"""What TensorRT calls back: its log and its progress.

Both are called from C++, and the bindings swallow what they raise, so an exception is kept and raised later. This module imports
TensorRT, so import it inside functions.
"""

from __future__ import annotations

from collections import deque
from functools import cache

import tensorrt as trt

from simmim_export.system.watch import Watch

SHOWN = 5


class Log(trt.ILogger):
    """Keeps the last errors, which our error messages quote, and prints nothing."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: deque[str] = deque(maxlen=SHOWN)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT for each message."""
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors.append(msg.strip())

    def quoted(self) -> str:
        """The last errors, one a line, indented."""
        return "".join(f"\n  {message}" for message in self.errors) or " (TensorRT gave no reason)"

    def out_of_memory(self) -> bool:
        """Whether one of the errors is about missing memory."""
        return any(word in m.lower().replace(" ", "") for m in self.errors for word in ("outofmemory", "memoryalloc"))


@cache
def log() -> Log:
    """The log of this process. TensorRT uses the first logger that it gets, and ignores others as long as any of its objects is
    alive. A second logger would stay empty, and one that goes away while TensorRT uses it would crash."""
    return Log()


class Monitor(trt.IProgressMonitor):
    """Passes progress on as ``watch(step, done, total)``. If ``watch`` raises, the build is canceled, and :meth:`reraise` raises
    that error afterwards."""

    def __init__(self, title: str, watch: Watch) -> None:
        trt.IProgressMonitor.__init__(self)
        self._title, self._watch = title, watch
        self._steps: dict[str, int] = {}
        self._stopped: BaseException | None = None

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Called by TensorRT when a phase begins."""
        self._steps[phase_name] = num_steps
        self._say(phase_name, 0)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT when a step is done; returning false cancels the build."""
        self._say(phase_name, step + 1)
        return self._stopped is None

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT when a phase ends, also if it was canceled."""
        self._steps.pop(phase_name, None)

    def _say(self, phase: str, done: int) -> None:
        try:
            self._watch(f"{self._title}: {phase}", done, self._steps.get(phase, done))
        except BaseException as error:  # noqa: BLE001 - no exception may pass through C++
            self.stop(error)

    def stop(self, error: BaseException) -> None:
        """Cancel the build at its next step; ``error`` is the reason."""
        self._stopped = error

    def reraise(self) -> None:
        """Raise the reason for canceling, if there is one."""
        if self._stopped is not None:
            raise self._stopped
