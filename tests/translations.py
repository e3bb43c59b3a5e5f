"""Keeps the table of translations that PyTorch's exporter makes anew for every graph: 0.6 s of CPU each, hundreds of times in a
run of all tests. Only tests use it: it replaces a private function."""

from __future__ import annotations

import functools
import importlib
import pkgutil


def keep_translations() -> None:
    """Let the exporter read its table of ONNX functions once in this process. Imports onnxscript."""
    import onnxscript._framework_apis as versions

    for version in pkgutil.iter_modules(versions.__path__):
        module = importlib.import_module(f"{versions.__name__}.{version.name}")
        read = getattr(module, "get_torchlib_ops", None)
        if read is not None and not hasattr(read, "cache_info"):
            module.get_torchlib_ops = functools.cache(read)  # type: ignore[attr-defined]
