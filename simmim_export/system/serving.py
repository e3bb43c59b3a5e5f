"""The process of a :class:`~simmim_export.system.workers.Worker`: ``python -m simmim_export.system.serving MODULE:CLASS``.

It makes one object of the class and calls the methods that it is asked for until stdin closes. Ctrl-C is left to the process that
started this one, which ends it.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Before the other imports, which take time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

import os
import sys
import traceback
import warnings
from contextlib import suppress
from importlib import import_module
from typing import IO, Any, get_type_hints

from simmim_export.errors import SimmimError
from simmim_export.system.libraries import guard_imports
from simmim_export.system.messages import Failure, Notice
from simmim_export.system.workers import Answer, Bug, Request, encode, receive, typed


def _own_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Requests and replies, as streams of their own: from now on stdin is empty, and what is printed to stdout goes to stderr."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


class _Server:
    """Answers requests with the methods of one object, which is made when it is first needed."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._served: Any = None

    def answer(self, request: Request) -> bytes:
        """The reply to ``request``, encoded."""
        try:
            return encode(Answer(self._call(request)))
        except SimmimError as error:
            return encode(Failure.of(error))
        except Exception:  # noqa: BLE001 - whatever it is, the process that asked has to know
            return encode(Bug(traceback.format_exc()))

    def _call(self, request: Request) -> Any:
        if self._served is None:
            module, _, name = self._target.partition(":")
            self._served = getattr(import_module(module), name)()
        method = getattr(self._served, request.method)
        hints = get_type_hints(method)
        return method(**{name: typed(value, hints[name]) for name, value in request.arguments.items()})


def main(target: str) -> None:
    """Serve an object of the class ``target``, written ``module:class``, until stdin closes."""
    requests, replies = _own_streams()
    server = _Server(target)
    guard_imports()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        # At once: the process may crash before it answers.
        with suppress(BrokenPipeError):
            replies.write(encode(Notice.of(str(message), category)))
            replies.flush()

    warnings.showwarning = show
    while True:
        try:
            reply = server.answer(receive(requests, Request))
        except EOFError:
            return
        try:
            replies.write(reply)
            replies.flush()
        except BrokenPipeError:  # the process that asked has ended, and nobody waits for this
            os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
