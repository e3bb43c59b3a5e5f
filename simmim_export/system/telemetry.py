"""Keeps third-party packages from reporting their use to their makers.

Everything in this project that imports such a package does so in a block::

    with without_telemetry("onnxruntime"):
        import onnxruntime

``console.run_app`` and ``system.children`` set the same environment variables for a whole command and for the processes that it
starts, because a package can also be imported by another one.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from simmim_export.errors import TelemetryOn


@dataclass(frozen=True)
class Switch:
    """What keeps a package quiet: environment ``variables`` that it reads, or ``blocked`` modules that it must not find.

    ``at_import`` is true for a package that reads its variables only once, when it is imported.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    blocked: tuple[str, ...] = ()
    at_import: bool = False


# Reads HF_HUB_DISABLE_TELEMETRY and DO_NOT_TRACK; other tools respect the latter too (https://donottrack.sh).
_HUB = Switch({"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"})
# Importing openvino or nncf writes a client id into the home folder and sends an event with it from a forked process. That takes
# seconds if nothing answers, and fails without a home folder. It does not happen if the package that sends cannot be imported.
_OPENVINO = Switch(blocked=("openvino_telemetry",))

SWITCHES: Mapping[str, Switch] = {
    # From 1.32 on (on Linux) the import writes ~/.cache/Microsoft/DeveloperTools, and looks up a host some seconds later.
    # onnxruntime.disable_telemetry_events() prevents neither.
    "onnxruntime": Switch({"ORT_DISABLE_TELEMETRY": "1"}, at_import=True),
    "openvino": _OPENVINO,
    "nncf": _OPENVINO,
    "huggingface_hub": _HUB,
    # These two import huggingface_hub.
    "transformers": _HUB,
    "accelerate": _HUB,
}


def set_quiet_variables(environment: MutableMapping[str, str], *packages: str) -> None:
    """Set in ``environment`` the variables of ``packages``, or of all of them if none is named.

    A variable that has a value keeps it: someone who sets ORT_DISABLE_TELEMETRY=0 wants the telemetry.
    """
    for package in packages or SWITCHES:
        for name, value in SWITCHES[package].variables.items():
            if not environment.get(name):
                environment[name] = value


@contextmanager
def without_telemetry(*packages: str) -> Iterator[None]:
    """For a block that imports ``packages``, which must be in :data:`SWITCHES`: they do not report their use.

    After the block an application that wants the blocked modules can import them again. The environment variables stay set,
    because a package may read them later, and child processes inherit them. If the application has already imported a package
    that reads its variables only at import, it is too late; then there is one :class:`TelemetryOn` warning.
    """
    late = [
        f"{package} was imported before simmim_export without {name}={value}, so it may report its use to its maker; "
        f"set that variable before the import"
        for package in packages
        if SWITCHES[package].at_import and package in sys.modules
        for name, value in SWITCHES[package].variables.items()
        if not os.environ.get(name)
    ]
    set_quiet_variables(os.environ, *packages)
    for message in late:
        warnings.warn(message, TelemetryOn, stacklevel=3)
    blocked = [name for package in packages for name in SWITCHES[package].blocked]
    before = {name: sys.modules[name] for name in blocked if name in sys.modules}
    for name in blocked:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in blocked:
            sys.modules.pop(name, None)
        sys.modules.update(before)
