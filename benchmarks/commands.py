"""Commands of ours in processes of their own, as a user would type them. Knows exit codes; must not know what a command does."""

from __future__ import annotations

import shlex
import subprocess

from simmim_export.errors import EngineUnavailable, GateFailed, InputError, SimmimError, UsageError
from simmim_export.system.children import child_environment, python_command

_KINDS: dict[int, type[SimmimError]] = {
    kind.exit_code: kind for kind in (UsageError, EngineUnavailable, GateFailed, InputError)
}


def run(module: str, *words: str) -> str:
    """What ``python -m simmim_export.MODULE WORDS`` prints on stdout.

    Raise the kind of error that it ended with, in its own words; RuntimeError, with the end of what it said, for a bug.
    """
    command = python_command(f"simmim_export.{module}", *words)
    environment = child_environment()
    done = subprocess.run(command, capture_output=True, text=True, errors="backslashreplace", env=environment)
    if done.returncode == 0:
        return done.stdout
    _, told, error = done.stderr.rpartition("error: ")
    if told and done.returncode in _KINDS:
        raise _told(_KINDS[done.returncode], error.strip())
    raise RuntimeError(f"{shlex.join((module, *words))} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def _told(kind: type[SimmimError], text: str) -> SimmimError:
    """The error that was printed as ``text``."""
    what, next_, fix = text.partition("\n  next:  ")
    what, where_, where = what.partition("\n  where: ")
    return kind(what.replace("\n    ", "\n"), where=where if where_ else None, fix=fix if next_ else None)
