"""Checks with mypy every name, argument and type of the real bindings that our code uses, and lists them.

Stubs are written from the surface of one version of the bindings, and mypy reads our source with them. Whatever that version
lacks or expects differently is an error. Because mypy knows the type of every expression, the list of names is complete.
Expressions that it cannot type are listed too, so nothing slips through as Any.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mypy import build
from mypy.modulefinder import BuildSource
from mypy.nodes import MemberExpr, MypyFile, RefExpr, TypeInfo
from mypy.options import Options
from mypy.types import AnyType, Instance, get_proper_type

ROOT = Path(__file__).parents[3]
PREFIXES = ("tensorrt.", "cuda.bindings.runtime.")
HEAD = "from collections.abc import Buffer\nfrom typing import Any, overload\n\n"


def _signature(name: str, row: dict[str, Any] | None, first: str = "self") -> str:
    if row is None:
        return f"def {name}({first}, *args: Any, **kwargs: Any) -> Any: ..."
    words = [first] if first else []
    words += [f"{p['name']}: {p['type']}" + (" = ..." if p["default"] else "") for p in row["parameters"]]
    returns = row["returns"]
    return f"def {name}({', '.join(words)}) -> {returns}: ..."


def _class(name: str, classes: dict[str, Any], indent: str) -> list[str]:
    row = classes[name]
    bases = ", ".join(row["bases"])
    lines = [f"{indent}class {name.rpartition('.')[2]}{f'({bases})' if bases else ''}:"]
    inner = indent + "    "
    for nested in (n for n in classes if n.startswith(f"{name}.") and "." not in n[len(name) + 1 :]):
        lines += _class(nested, classes, inner)
    lines += [f"{inner}{member}: {name}" for member in row["members"]]
    if row["members"]:
        lines += [f"{inner}def __int__(self) -> int: ...", f"{inner}def __hash__(self) -> int: ..."]
    for key, value in row["properties"].items():
        lines += [f"{inner}@property", f"{inner}def {key}(self) -> {value['type']}: ..."]
        if value["writable"]:
            lines += [f"{inner}@{key}.setter", f"{inner}def {key}(self, value: {value['type']}) -> None: ..."]
    for key, rows in ({"__init__": row["init"]} | row["methods"]).items():
        for one in rows:
            lines += [f"{inner}@overload"] if len(rows) > 1 else []
            lines.append(inner + _signature(key, one))
    if name == "IHostMemory":
        # The buffer protocol has no docstring; NVIDIA's samples write the object to a file.
        lines.append(f"{inner}def __buffer__(self, flags: int, /) -> memoryview: ...")
    return lines if len(lines) > 1 else [f"{lines[0]} ..."]


def write_stubs(folder: Path, tensorrt: dict[str, Any], cuda: dict[str, Any]) -> None:
    """Stubs of both bindings under ``folder``."""
    lines = [HEAD, "__version__: str"]
    for name in (n for n in tensorrt["classes"] if "." not in n):
        lines += _class(name, tensorrt["classes"], "")
    (folder / "tensorrt").mkdir(parents=True)
    (folder / "tensorrt/__init__.pyi").write_text("\n".join(lines) + "\n")
    lines = [HEAD, "import enum"]
    for name, row in cuda["classes"].items():
        if row["values"]:
            lines += [f"class {name}(enum.Enum):", *(f"    {key} = {value}" for key, value in row["values"].items())]
            continue
        lines += [f"class {name}:", "    def __int__(self) -> int: ...", "    def getPtr(self) -> int: ..."]
        # Fields of structures: their types are nowhere to be read.
        lines += [f"    {key}: {FIELDS.get((name, key), 'Any')}" for key in row["properties"] if key != "getPtr"]
    lines += [f"{name}: int" for name in cuda["constants"]]
    for name, row in cuda["functions"].items():
        if row is not None:
            returns = ", ".join(["cudaError_t", *row["returns"]])
            lines.append(_signature(name, row | {"returns": f"tuple[{returns}]"}, first=""))
    (folder / "cuda/bindings").mkdir(parents=True)
    (folder / "cuda/__init__.pyi").write_text("")
    (folder / "cuda/bindings/__init__.pyi").write_text("")
    (folder / "cuda/bindings/runtime.pyi").write_text("\n".join(lines) + "\n")


FIELDS = {
    ("cudaDeviceProp", "name"): "bytes",
    ("cudaDeviceProp", "major"): "int",
    ("cudaDeviceProp", "minor"): "int",
}


@dataclass
class Checked:
    """What mypy says of some source: its ``errors``, the ``names`` of the bindings that are used (a call as ``name()``), and
    members of what has no type."""

    errors: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    untyped: list[str] = field(default_factory=list)


def _places(path: Path) -> set[tuple[int, int, str]]:
    """Where a file that imports the bindings has members: line, column of the whole expression, name. mypy's expressions do not
    know their file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    if not re.search(r"import trt|from cuda", text):
        return set()
    return {(n.lineno, n.col_offset, n.attr) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


def check(stubs: Path, files: dict[str, Path]) -> Checked:
    """Check ``files`` (module -> path) over ``stubs``."""
    options = Options()
    options.mypy_path = [str(stubs), str(ROOT)]
    options.export_types, options.preserve_asts = True, True
    options.check_untyped_defs, options.show_traceback = True, True
    options.python_version = (3, 12)  # the first that has a type for buffers
    options.follow_imports = "silent"
    options.incremental = False
    options.ignore_missing_imports = True
    result = build.build([BuildSource(str(path), module) for module, path in files.items()], options)
    places = {place: path.name for path in files.values() for place in _places(path)}
    # The stubs have faults of their own, in what nobody uses.
    checked = Checked(errors=[line for line in result.errors if not line.startswith(str(stubs))])
    for expression in result.types:
        if not isinstance(expression, MemberExpr):
            continue
        owner = expression.expr
        node = owner.node if isinstance(owner, RefExpr) else None
        if isinstance(node, MypyFile | TypeInfo):
            if (name := f"{node.fullname}.{expression.name}").startswith(PREFIXES):
                checked.names.add(name)
            continue
        kind = get_proper_type(result.types.get(owner))
        place = (expression.line, expression.column, expression.name)
        if isinstance(kind, Instance):
            definer = next((info for info in kind.type.mro if expression.name in info.names), kind.type)
            if definer.fullname.startswith(PREFIXES):
                checked.names.add(f"{definer.fullname}.{expression.name}")
        elif place in places and (kind is None or isinstance(kind, AnyType)):
            checked.untyped.append(f"{places[place]}:{expression.line} .{expression.name}")
    return checked
