"""Starts every other Python process of this project: without code from the working directory, and without telemetry.

A command of ours that fails hands its error to the process that started it as data.

``python -m`` and ``python -c`` put the working directory first on ``sys.path``. A command that works on a bundle may run inside a
folder that a stranger filled, so a ``json.py`` there must never be imported.
"""

from __future__ import annotations

import builtins
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from simmim_export import errors
from simmim_export.errors import SimmimError
from simmim_export.system.telemetry import set_quiet_variables

# Python's own switch, from 3.11 on: leave the working directory (or a script's folder) off sys.path. Inherited by grandchildren.
SAFE_PATH = "PYTHONSAFEPATH"
# The module that each of our commands runs.
PROGRAMS = {
    "simmim-train": "simmim_export.training.cli",
    "simmim-export": "simmim_export.cli",
    "simmim-bench": "simmim_export.benchmarks.cli",
}
# The environment variable that names the file in which a command of ours leaves the error that ended it.
ERROR_FILE = "SIMMIM_EXPORT_ERROR_FILE"
# The exit code of a command that was stopped because it took too long, as timeout(1) has it.
TIMED_OUT = 124
# So many of the last lines that a failed command wrote are quoted.
QUOTED_LINES = 12


def python_command(module: str, *words: object, python: Path | None = None) -> list[str]:
    """The command that runs ``module`` with ``words`` in this interpreter, or in ``python`` (3.11 or newer)."""
    return [_interpreter(python), "-P", "-m", module, *map(str, words)]


def python_code(code: str, *words: object, python: Path | None = None) -> list[str]:
    """The command that runs the source text ``code`` with ``words``, as :func:`python_command` does a module."""
    return [_interpreter(python), "-P", "-c", code, *map(str, words)]


def _interpreter(python: Path | None) -> str:
    """A path, never a name that is looked up on the search path. A link stays one: that is how a virtual environment is found."""
    return sys.executable if python is None else str(python.absolute())


def our_command(program: str, *words: object) -> list[str]:
    """The command that runs ``program``, one of :data:`PROGRAMS`, with ``words``."""
    return python_command(PROGRAMS[program], *words)


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child process: this one's with ``changes``, which protects its own children as well."""
    environment = dict(os.environ) | dict(changes or {})
    protect_children(environment)
    return environment


def protect_children(environment: MutableMapping[str, str]) -> None:
    """Set in ``environment`` what keeps Python processes started with it safe and quiet."""
    environment[SAFE_PATH] = "1"
    set_quiet_variables(environment)


def describe_end(code: int) -> str:
    """How a process ended that has the return code ``code``: ``exit code 1`` or ``signal SIGKILL``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # one of the unnamed real-time signals
        return f"signal {-code}"


def known_kind(raised: type) -> str:
    """The name of the class nearest to ``raised`` that every process knows: one of ``errors.py`` or of Python itself."""
    return next(kind.__name__ for kind in raised.__mro__ if kind.__module__ in (errors.__name__, builtins.__name__))


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """A :class:`SimmimError` as data. ``kind`` is its class, or the class of ``errors.py`` that it derives from."""

    kind: str
    what: str
    where: str | None
    fix: str | None

    @classmethod
    def of(cls, error: SimmimError) -> Failure:
        """``error`` as data."""
        return cls(kind=known_kind(type(error)), what=error.what, where=error.where, fix=error.fix)

    def error(self) -> SimmimError:
        """The error to raise."""
        return getattr(errors, self.kind)(self.what, where=self.where, fix=self.fix)


def leave_for_parent(error: SimmimError) -> None:
    """Write ``error`` to :data:`ERROR_FILE`, if the process that started this command asked for it."""
    if path := os.environ.get(ERROR_FILE):
        Path(path).write_bytes(msgspec.json.encode(Failure.of(error)))


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that has ended, with all that it wrote. ``error`` is the error that ended it, if it is a command of ours."""

    command: Sequence[str]
    code: int
    stdout: str
    stderr: str
    error: SimmimError | None

    @property
    def failure(self) -> str:
        """How it ended, and the last lines that it wrote to stderr, or else to stdout."""
        said = "\n".join((self.stderr.strip() or self.stdout.strip()).splitlines()[-QUOTED_LINES:])
        return f"{shlex.join(self.command)} ended with {describe_end(self.code)}" + (f":\n{said}" if said else "")

    def output(self) -> str:
        """What it wrote to stdout. Raise its own error if it failed with one, and RuntimeError with :attr:`failure` if it failed
        in another way."""
        if self.code != 0:
            raise self.error or RuntimeError(self.failure)
        return self.stdout


def run(
    command: Sequence[str],
    *,
    seconds: float | None = None,
    changes: Mapping[str, str] | None = None,
    show_stderr: bool = False,
) -> Finished:
    """Run ``command`` to its end and return what it wrote.

    After ``seconds`` it is killed and counts as ended with :data:`TIMED_OUT`. ``changes`` go into its environment. With
    ``show_stderr`` its messages go to this process's stderr as they come, and are not captured.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "error"
        environment = child_environment({**(changes or {}), ERROR_FILE: str(file)})
        errors = None if show_stderr else subprocess.PIPE
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                timeout=seconds,
                env=environment,
            )
        except subprocess.TimeoutExpired as error:
            said = f"{_text(error.stderr)}\nit did not end in {seconds:g} s and was killed"
            return Finished(command=command, code=TIMED_OUT, stdout=_text(error.stdout), stderr=said, error=None)
        own = None
        if done.returncode and file.is_file():
            own = msgspec.json.decode(file.read_bytes(), type=Failure).error()
    stdout, stderr = _text(done.stdout), _text(done.stderr)
    return Finished(command=command, code=done.returncode, stdout=stdout, stderr=stderr, error=own)


def _text(output: bytes | None) -> str:
    return (output or b"").decode("utf-8", errors="backslashreplace").replace("\r\n", "\n")
