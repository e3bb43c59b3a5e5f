"""Which TensorRT this process uses: TensorRT, or TensorRT for RTX.

Their Python modules offer the same names, and their libraries define the same symbols. So a process loads one of them, and the
other modules of this package say ``from simmim_export.engines.tensorrt.library import trt`` for whichever it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from simmim_export.errors import EngineUnavailable
from simmim_export.system.conflicts import installed

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["RTX", "TENSORRT", "Library", "trt", "use"]


@dataclass(frozen=True, kw_only=True)
class Library:
    """``title`` is what messages call it. ``modules`` are the names under which it can be imported, and ``distributions`` the
    packages that bring one of them. ``oldest`` is the oldest version that is supported."""

    title: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    oldest: tuple[int, int]

    def module(self) -> str | None:
        """The name of the module that is installed, or None. Imports nothing."""
        return next((name for name in self.modules if find_spec(name) is not None), None)

    def why_missing(self) -> str | None:
        """None if it is installed in a version that is supported, else the reason in one line. Imports nothing."""
        if self.module() is None:
            return f"not installed: {self.distributions[0]}"
        versions = {name: text for name in self.distributions if (text := installed(name))}
        for text in versions.values():
            if tuple(map(int, text.split(".")[:2])) < self.oldest:
                return f"{self.title} {text} is too old: {'.'.join(map(str, self.oldest))} or newer is needed"
        if len(set(versions.values())) > 1:
            listed = ", ".join(f"{name} {text}" for name, text in versions.items())
            return f"the packages of {self.title} have different versions: {listed}"
        return None


TENSORRT = Library(
    title="TensorRT",
    modules=("tensorrt",),
    distributions=("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    oldest=(10, 12),
)
# The metapackage has the first module, and the wheel that it installs has the second.
RTX = Library(
    title="TensorRT for RTX",
    modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
    distributions=("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"),
    oldest=(1, 7),
)

_used: dict[Library, ModuleType] = {}


def use(library: Library) -> ModuleType:
    """Load ``library`` for this process, and return its module.

    Raise :class:`EngineUnavailable` if it cannot be loaded, or if this process already uses the other one.
    """
    if library not in _used:
        if _used:
            what = f"this process already uses {next(iter(_used)).title}, and cannot load {library.title} as well"
            raise EngineUnavailable(what, fix="use one of the two in a process of its own")
        try:
            _used[library] = import_module(library.module() or library.modules[0])
        except (ImportError, OSError) as error:
            fix = f"pip install --force-reinstall {' '.join(library.distributions[:1])}"
            raise EngineUnavailable(f"{library.title} cannot be loaded: {error}", fix=fix) from error
    return _used[library]


def used() -> Library:
    """What this process uses. ModuleNotFoundError if :func:`use` was not called yet, because this is also what importing one of
    the modules that need it then raises."""
    if not _used:
        raise ModuleNotFoundError("no TensorRT was chosen for this process", name="tensorrt")
    return next(iter(_used))


def __getattr__(name: str) -> Any:
    if name == "trt":
        return _used[used()]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
