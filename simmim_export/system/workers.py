"""A Python process that serves one object: requests and answers are data, and so are its errors and warnings.

Each message is its length and its content in MessagePack, on a pair of pipes that nothing else writes to: whatever a library
prints in a worker goes to stderr. The process runs :mod:`simmim_export.system.serving`.
"""

from __future__ import annotations

import inspect
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, TypeVar, get_type_hints

import msgspec
import numpy as np

from simmim_export.errors import EngineUnavailable
from simmim_export.system.children import child_environment, describe_end, python_command
from simmim_export.system.messages import Failure, Notice

P = ParamSpec("P")
T = TypeVar("T")
# Seconds that a worker has to end once nobody asks it anything any more.
GRACE = 20


class Request(msgspec.Struct, frozen=True):
    """A method of the served object, and its arguments by name."""

    method: str
    arguments: dict[str, Any]


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """What the method returned."""

    value: Any


class Bug(msgspec.Struct, frozen=True, tag="bug"):
    """Any error but a :class:`SimmimError`, as its traceback."""

    traceback: str


Reply = Answer | Failure | Bug | Notice


class WorkerDied(EngineUnavailable):
    """A worker ended in the middle of a request: the system stopped it for want of memory, or the engine crashed."""


def encode(message: Any) -> bytes:
    """``message`` as it is written to a pipe. Raise TypeError for one that is not data."""
    content = msgspec.msgpack.encode(message, enc_hook=_plain)
    return len(content).to_bytes(8, "big") + content


def receive(stream: IO[bytes], kind: Any) -> Any:
    """Read one message of type ``kind``. Raise EOFError once the other process is gone."""
    size = stream.read(8)
    content = stream.read(int.from_bytes(size, "big"))
    if len(size) < 8 or len(content) < int.from_bytes(size, "big"):
        raise EOFError
    return msgspec.msgpack.decode(content, type=kind)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be sent to another process")


def typed(value: Any, kind: Any) -> Any:
    """``value``, which was received as plain data, as what the annotation ``kind`` says. Raise msgspec.ValidationError if it
    does not fit."""
    return msgspec.convert(value, kind, dec_hook=lambda wanted, text: wanted(text))


class Worker:
    """A process that serves an object of the class ``served``, which it makes without arguments at the first request.

    Use it in a ``with`` block: a block that fails kills the process. ``name`` is for messages. ``started`` is the time
    (``time.monotonic``) just before the process was started.
    """

    def __init__(self, served: type, *, name: str) -> None:
        self._name = name
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            python_command("simmim_export.system.serving", f"{served.__module__}:{served.__qualname__}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
        )

    def ask(self, method: Callable[Concatenate[Any, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call ``method`` of the served object in the worker, and return its result as the type that it is annotated with.

        Warnings of the worker are warned of here. Raise the :class:`SimmimError` that the method raised, :class:`WorkerDied` if
        the process ended meanwhile, and RuntimeError with its traceback for a bug.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        bound = inspect.signature(method).bind(self, *arguments, **named).arguments
        request = Request(method.__name__, {name: value for name, value in bound.items() if name != "self"})
        notices: list[Notice] = []
        reply: Reply | None = None
        try:
            self._process.stdin.write(encode(request))
            self._process.stdin.flush()
            while isinstance(reply := receive(self._process.stdout, Reply), Notice):
                notices.append(reply)
        except (BrokenPipeError, EOFError):
            reply = None
        for notice in notices:
            notice.repeat()
        if isinstance(reply, Answer):
            return typed(reply.value, get_type_hints(method)["return"])
        if isinstance(reply, Failure):
            raise reply.error()
        what = f"the worker of {self._name} failed while it was asked to {request.method}"
        if isinstance(reply, Bug):
            raise RuntimeError(f"{what}:\n{reply.traceback}")
        fix = "free some memory or use a smaller --batch; if it happens again, choose another --engine"
        raise WorkerDied(f"{what}: its process ended with {describe_end(self._process.wait())}", fix=fix)

    def close(self, *, kill: bool = False) -> None:
        """End the process: at once with ``kill``, else when it has finished what it does. Calling it twice is fine."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if kill:
            self._process.kill()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(kill=kind is not None)
