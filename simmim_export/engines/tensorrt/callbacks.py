"""What TensorRT calls back: its log and its progress.

Imports TensorRT, so import it inside functions. Both are called from C++, and the bindings swallow what they raise: what has to
be raised is kept for later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache

import tensorrt as trt

SHOWN = 5


class Log(trt.ILogger):
    """Keeps the last errors and prints nothing: an error message of ours quotes them."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: deque[str] = deque(maxlen=SHOWN)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """TensorRT says ``msg``."""
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors.append(msg.strip())

    def quoted(self) -> str:
        """The last errors, one a line, indented."""
        return "".join(f"\n  {message}" for message in self.errors) or " (TensorRT gave no reason)"

    def out_of_memory(self) -> bool:
        """Whether one of them is about memory that is not there."""
        return any(word in m.lower().replace(" ", "") for m in self.errors for word in ("outofmemory", "memoryalloc"))


@cache
def log() -> Log:
    """The one of this process. TensorRT takes the first that it is given and ignores others while anything of it is alive, so
    that one of somebody's own would stay empty, or be gone while TensorRT still writes to it."""
    return Log()


class Monitor(trt.IProgressMonitor):
    """Passes progress on as ``watch(step, done, total)``. What that raises cancels the build; :meth:`reraise` raises it
    afterwards."""

    def __init__(self, title: str, watch: Callable[[str, int, int], None]) -> None:
        trt.IProgressMonitor.__init__(self)
        self._title, self._watch = title, watch
        self._steps: dict[str, int] = {}
        self._stopped: BaseException | None = None

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase, or one inside ``parent_phase``, begins."""
        self._steps[phase_name] = num_steps
        self._say(phase_name, 0)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step is done; false cancels the build."""
        self._say(phase_name, step + 1)
        return self._stopped is None

    def phase_finish(self, phase_name: str) -> None:
        """A phase ends, early or not."""
        self._steps.pop(phase_name, None)

    def _say(self, phase: str, done: int) -> None:
        try:
            self._watch(f"{self._title}: {phase}", done, self._steps.get(phase, done))
        except BaseException as error:  # noqa: BLE001  (of whatever kind: it may not pass through C++)
            self.stop(error)

    def stop(self, error: BaseException) -> None:
        """Cancel the build at its next step, for this reason."""
        self._stopped = error

    def reraise(self) -> None:
        """Raise what was kept."""
        if self._stopped is not None:
            raise self._stopped
