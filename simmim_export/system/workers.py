"""A Python process that serves one object: requests and answers are data, and so are its errors and warnings.

Each message is its length and its content in MessagePack, on a pair of pipes that nothing else writes to: whatever a library
prints in a worker goes to stderr. :class:`Worker` is the end that asks, :func:`serve` the end that answers.
"""

from __future__ import annotations

import builtins
import inspect
import os
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, TypeVar, get_type_hints

import msgspec
import numpy as np

from simmim_export import errors
from simmim_export.errors import EngineUnavailable, SimmimError
from simmim_export.system.children import Failure, child_environment, describe_end, known_kind, python_code
from simmim_export.system.libraries import guard_imports

P = ParamSpec("P")
T = TypeVar("T")
# Seconds that a worker has to end after its last request.
GRACE = 20
# What a worker runs. It ignores Ctrl-C from its first line on, because imports take time: the process that started it ends it.
_SERVE = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import sys
from simmim_export.system.workers import serve
serve(sys.argv[1])
"""


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


class Notice(msgspec.Struct, frozen=True, tag="notice"):
    """A warning; ``kind`` is its class, as for a :class:`~simmim_export.system.children.Failure`."""

    kind: str
    text: str

    def repeat(self) -> None:
        """Warn again, in this process."""
        category = getattr(errors, self.kind, None) or getattr(builtins, self.kind)
        warnings.warn(self.text, category, stacklevel=2)


Reply = Answer | Failure | Bug | Notice


class WorkerDied(EngineUnavailable):
    """A worker ended in the middle of a request: the system stopped it for want of memory, or the engine crashed."""


def _encode(message: Any) -> bytes:
    """``message`` as it is written to a pipe. Raise TypeError for one that is not data."""
    content = msgspec.msgpack.encode(message, enc_hook=_plain)
    return len(content).to_bytes(8, "big") + content


def _receive(stream: IO[bytes], kind: Any) -> Any:
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


def _typed(value: Any, kind: Any) -> Any:
    """``value``, which was received as plain data, as what the annotation ``kind`` says. Raise msgspec.ValidationError if it
    does not fit."""
    return msgspec.convert(value, kind, dec_hook=lambda wanted, text: wanted(text))


class Worker:
    """A process that serves an object of the class ``served``, which it makes without arguments at the first request.

    Use it in a ``with`` block: a block that fails kills the process. ``name`` is for messages. ``started`` is the time
    (``time.monotonic``) just before the process was started. ``python``: the interpreter of another environment to run it in.
    """

    def __init__(self, served: type, *, name: str, python: Path | None = None) -> None:
        self._name = name
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            python_code(_SERVE, f"{served.__module__}:{served.__qualname__}", python=python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
        )

    def ask(self, method: Callable[Concatenate[Any, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call ``method`` of the served object in the worker, and return its result as the type that it is annotated with.

        Warnings of the worker are given again here. Raise the :class:`SimmimError` that the method raised, :class:`WorkerDied` if
        the process ended meanwhile, and RuntimeError with its traceback for a bug.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        bound = inspect.signature(method).bind(self, *arguments, **named).arguments
        request = Request(method.__name__, {name: value for name, value in bound.items() if name != "self"})
        notices: list[Notice] = []
        reply: Reply | None = None
        try:
            self._process.stdin.write(_encode(request))
            self._process.stdin.flush()
            while isinstance(reply := _receive(self._process.stdout, Reply), Notice):
                notices.append(reply)
        except (BrokenPipeError, EOFError):
            reply = None
        for notice in notices:
            notice.repeat()
        if isinstance(reply, Answer):
            return _typed(reply.value, get_type_hints(method)["return"])
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


def serve(target: str) -> None:
    """In a worker: make an object of the class ``target``, written ``module:class``, and answer requests with its methods until
    stdin closes."""
    requests, replies = _own_streams()
    guard_imports()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        # At once: the process may crash before it answers.
        with suppress(BrokenPipeError):
            replies.write(_encode(Notice(known_kind(category), str(message))))
            replies.flush()

    warnings.showwarning = show
    served: Any = None
    while True:
        try:
            request = _receive(requests, Request)
        except EOFError:
            return
        try:
            if served is None:
                module, _, name = target.partition(":")
                served = getattr(import_module(module), name)()
            method = getattr(served, request.method)
            hints = get_type_hints(method)
            reply = _encode(Answer(method(**{name: _typed(v, hints[name]) for name, v in request.arguments.items()})))
        except SimmimError as error:
            reply = _encode(Failure.of(error))
        except Exception:  # noqa: BLE001 - whatever it is, the process that asked has to know
            reply = _encode(Bug(traceback.format_exc()))
        try:
            replies.write(reply)
            replies.flush()
        except BrokenPipeError:  # the process that asked has ended, and nobody waits for this
            os._exit(0)


def _own_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Requests and replies, as streams of their own: from now on stdin is empty, and what is printed to stdout goes to stderr."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies
