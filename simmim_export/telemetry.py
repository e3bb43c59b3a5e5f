"""What the maker of a package would be told of its use, and is not.

Knows the packages that tell, by name. Must not import anything of this project.

Importing openvino writes a client id into the user's home and sends an event with it from a fork, which takes seconds where
nothing answers, and fails where there is no home. It does neither where the package that sends cannot be imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

SENDERS = ("openvino_telemetry",)


@contextmanager
def untold() -> Iterator[None]:
    """In the block nothing can import one of :data:`SENDERS`. After it all is as before, for an application that wants them."""
    absent = object()
    before = {name: sys.modules.get(name, absent) for name in SENDERS}
    for name in SENDERS:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name, module in before.items():
            if module is absent:
                del sys.modules[name]
            else:
                sys.modules[name] = module  # type: ignore[assignment]
