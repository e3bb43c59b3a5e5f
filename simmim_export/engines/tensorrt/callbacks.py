"""What TensorRT calls back: its log and its progress.

Both are called from C++, and the bindings swallow what they raise, so an exception is kept and raised later. This module needs
TensorRT, so import it inside functions.
"""

from __future__ import annotations

from collections import deque
from functools import cache

from simmim_export.engines.tensorrt.library import trt
from simmim_export.system.watch import Watch

SHOWN = 5
# How the message begins in which the builder lists the layers of what it built.
_LAYERS = "Layers:"


class Log(trt.ILogger):
    """Keeps the last errors, which our error messages quote, and the last list of layers. Prints nothing."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: deque[str] = deque(maxlen=SHOWN)
        self.layers: str | None = None

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT for each message."""
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors.append(msg.strip())
        elif msg.startswith(_LAYERS):
            self.layers = msg

    def clear(self) -> None:
        """Forget what was said before the next piece of work."""
        self.errors.clear()
        self.layers = None

    def quoted(self) -> str:
        """The last errors, one below the other and indented."""
        return "".join(f"\n  {indented(message)}" for message in self.errors) or " (TensorRT gave no reason)"

    def out_of_memory(self) -> bool:
        """Whether one of the errors is about missing memory."""
        return self._mentions("outofmemory", "memoryalloc")

    def no_implementation(self) -> bool:
        """Whether one of the errors says that no kernel fits a layer."""
        return self._mentions("couldnotfindanyimplementation")

    def _mentions(self, *words: str) -> bool:
        return any(word in message.lower().replace(" ", "") for message in self.errors for word in words)


def indented(text: str) -> str:
    """``text`` with its second and later lines further right than the first, so that a list of such texts stays a list."""
    return "\n    ".join(line.strip() for line in text.strip().splitlines() if line.strip())


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
        """Called by TensorRT when a phase ends, also if it was canceled. It does not report the last step as complete."""
        if self._stopped is None and phase_name in self._steps:
            self._say(phase_name, self._steps[phase_name])
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
