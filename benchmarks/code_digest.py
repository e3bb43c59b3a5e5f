"""The digest of the code that a result depends on, so that figures of an earlier revision can be marked as such.

It covers what a suite runs: the modules that :data:`ROOTS` names for it, and whatever they import. That is the engines, the
runtime, the passes and the export, which decide what is in a bundle, and the driver and the workers of the benchmark. Commands,
their output, reports, pages and the comparison are left out (:data:`LEFT_OUT`), because they cannot change a figure. So are
comments, docstrings and the layout of the source.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "simmim_export"
# What every suite runs.
_ALWAYS = ("benchmarks.driver", "benchmarks.suites", "benchmarks.worker", "export.exporter", "precision.passes")
# What a suite runs besides. A suite that is not named here runs nothing else.
ROOTS = {
    "footprint": ("benchmarks.footprint", "runtime"),
    "peers": ("benchmarks.peers", "benchmarks.limit", "precision.peers"),
    "quantization": ("benchmarks.quantization", "precision.peers"),
    "train": ("benchmarks.throughput", "training.cli"),
}
# What cannot change a figure. Training does in the suite that measures it.
LEFT_OUT = (
    "version",
    "cli",
    "console",
    "training",
    "benchmarks.cli",
    "benchmarks.code_digest",
    "benchmarks.compare",
    "benchmarks.document",
    "benchmarks.html",
    "benchmarks.pages",
    "benchmarks.report",
    "benchmarks.run",
    "benchmarks.tables",
)


def code_digest(suite: str) -> str:
    """SHA-256 of the code that ``suite`` depends on, as lower-case hex. It is the same on every Python from 3.11 on."""
    left_out = tuple(name for name in LEFT_OUT if not (suite == "train" and name == "training"))
    return _digest((*_ALWAYS, *ROOTS.get(suite, ())), left_out)


@cache
def _digest(roots: tuple[str, ...], left_out: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in modules(roots, left_out=left_out):
        digest.update(f"{name}\n{_outline(_tree(name))}\n".encode())
    return digest.hexdigest()


def is_current(suite: str, digest: str | None) -> bool:
    """Whether ``digest``, which a result of ``suite`` carries, is that of the code that runs now."""
    return digest == code_digest(suite)


def modules(roots: tuple[str, ...], *, left_out: tuple[str, ...]) -> list[str]:
    """``roots`` and all modules of this package that they import, also in functions or by a name in a string; sorted.

    Names are relative to the package, so ``engines.ort`` is ``simmim_export.engines.ort``. A root that does not exist is left
    out; one that is a package brings all its modules.
    """
    waiting, reached = [each for root in roots for each in _with_submodules(root)], set[str]()
    while waiting:
        name = waiting.pop()
        hidden = any(name == each or name.startswith(f"{each}.") for each in left_out)
        if name in reached or hidden or _source(name) is None:
            continue
        reached.add(name)
        # Importing a module imports the packages that it is in.
        waiting += [name.rpartition(".")[0], *_imports(_tree(name))]
    return sorted(reached)


def _imports(tree: ast.Module) -> Iterator[str]:
    """The modules of this package that ``tree`` names. A name that is imported from a package may be a module: it is given
    too."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Engines and families are registered by the names of their modules.
            names = [node.value.partition(":")[0]]
        for name in names:
            if name.startswith(f"{PACKAGE}."):
                yield name.removeprefix(f"{PACKAGE}.")


def _with_submodules(name: str) -> list[str]:
    """``name``, and if it is a package also the modules in it."""
    source = _source(name)
    if source is None or source.name != "__init__.py":
        return [name]
    inside = (path.relative_to(source.parent).with_suffix("").parts for path in source.parent.rglob("*.py"))
    return [name, *(".".join((name, *(part for part in parts if part != "__init__"))) for parts in inside)]


def _source(name: str) -> Path | None:
    """The file of the module ``name`` of this package, which is not imported; None if there is none."""
    first, _, rest = name.partition(".")
    root = find_spec(f"{PACKAGE}.{first}" if first in ("benchmarks", "training") else PACKAGE)
    if (
        root is None
        or not root.submodule_search_locations
        or not all(part.isidentifier() for part in name.split(".") if name)
    ):
        return None
    inner = rest if first in ("benchmarks", "training") else name
    path = Path(root.submodule_search_locations[0], *inner.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


@cache
def _tree(name: str) -> ast.Module:
    path = _source(name)
    assert path is not None
    return ast.parse(path.read_bytes())


def _outline(node: object) -> str:
    """``node`` of a syntax tree as text, without docstrings and empty fields: newer versions of Python add such fields."""
    if isinstance(node, list):
        return "[" + ",".join(_outline(each) for each in node) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if (
        isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node) is not None
    ):
        fields["body"] = fields["body"][1:]
    kept = (f"{key}={_outline(value)}" for key, value in fields.items() if key != "kind" and value not in (None, []))
    # A constant keeps its value even if that is None.
    value = repr(node.value) if isinstance(node, ast.Constant) else ",".join(kept)
    return f"{type(node).__name__}({value})"
