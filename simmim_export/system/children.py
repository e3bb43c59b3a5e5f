"""Starts every other Python process of this project: without code from the working directory, and without telemetry.

``python -m`` and ``python -c`` put the working directory first on ``sys.path``. A command that works on a bundle may run inside a
folder that a stranger filled, so a ``json.py`` there must never be imported.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simmim_export.system.telemetry import set_quiet_variables

# Python's own switch, from 3.11 on: leave the working directory (or a script's folder) off sys.path. Inherited by grandchildren.
SAFE_PATH = "PYTHONSAFEPATH"
# The module that each of our commands runs.
PROGRAMS = {
    "simmim-train": "simmim_export.training.cli",
    "simmim-export": "simmim_export.cli",
    "simmim-bench": "simmim_export.benchmarks.cli",
}


def python_command(module: str, *words: object, python: Path | None = None) -> list[str]:
    """The command that runs ``module`` with ``words`` in this interpreter, or in ``python`` (3.11 or newer)."""
    return [str(python or sys.executable), "-P", "-m", module, *map(str, words)]


def python_code(code: str, *words: object, python: Path | None = None) -> list[str]:
    """The command that runs the source text ``code`` with ``words``, as :func:`python_command` does a module."""
    return [str(python or sys.executable), "-P", "-c", code, *map(str, words)]


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child process: this one's with ``changes``, which protects its own children as well."""
    environment = dict(os.environ) | dict(changes or {})
    protect_children(environment)
    return environment


def protect_children(environment: MutableMapping[str, str]) -> None:
    """Set in ``environment`` what keeps Python processes started with it safe and quiet."""
    environment[SAFE_PATH] = "1"
    set_quiet_variables(environment)


@contextmanager
def _protected() -> Iterator[None]:
    """A block in which ``os.environ`` protects whatever is started. It is restored afterwards, because an application's own
    children may need the working directory on their path."""
    before = os.environ.get(SAFE_PATH)
    protect_children(os.environ)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SAFE_PATH, None)
        else:
            os.environ[SAFE_PATH] = before


def spawn_worker(initializer: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """A pool of one new Python process, already started, in which ``initializer(*arguments)`` runs first.

    multiprocessing starts its children with ``-c`` and offers no option for their path, so they are protected by the environment.
    """
    with _protected():
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=initializer, initargs=arguments)
        # The process starts with the first call.
        pool.submit(_started)
    return pool


def _started() -> None:
    """A first call that does nothing."""
