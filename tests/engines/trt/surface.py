"""Prints, as JSON, every class, member, enum and signature of the bindings that can be imported here.

``python surface.py cuda``, or the name of a package with TensorRT's bindings; both need the bindings on PYTHONPATH. Types in
signatures are Python's, or classes of the bindings; whatever cannot be read is ``Any``. pybind11 keeps signatures in docstrings,
Cython in ``__signature__`` and docstrings.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from importlib import import_module
from typing import Any

PLAIN = {
    "int": "int", "float": "float", "str": "str", "bool": "bool", "bytes": "bytes", "object": "object", "None": "None",
    "tuple": "tuple", "list": "list", "buffer": "Buffer", "Buffer": "Buffer", "SupportsInt": "int",
    "SupportsIndex": "int", "SupportsFloat": "float", "slice": "slice", "capsule": "object",
}  # fmt: skip
LISTS = ("List", "list", "Sequence")
# Bound before their Python names were known.
CPP = {"nvonnxparser::IParserError": "ParserError", "nvinfer1::IRuntimeCache": "IRuntimeCache"}


def annotation(node: ast.expr | None, known: set[str]) -> str:
    """A type as this surface writes it."""
    if isinstance(node, ast.Subscript) and annotation_name(node.value) in LISTS:
        return f"list[{annotation(node.slice, known)}]"
    name = annotation_name(node)
    return PLAIN.get(name) or (name if name in known else "Any")


def annotation_name(node: ast.expr | None) -> str:
    """The last part of a dotted name, with the class it is nested in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Attribute):
        before = annotation_name(node.value)
        return f"{before}.{node.attr}" if before[:1].isupper() or before[:2] == "IL" else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def parse(signature: str, known: set[str]) -> dict[str, Any] | None:
    """``name(self: X, flag: int = 0) -> Y`` as parameters and result; None if it is not Python."""
    for cpp, python in CPP.items():
        signature = signature.replace(cpp, python)
    signature = re.sub(r"= <[^>]*>", "= ...", signature)
    try:
        tree = ast.parse(f"def {signature}: ...").body[0]
    except SyntaxError:
        return None
    assert isinstance(tree, ast.FunctionDef)
    arguments = tree.args.args
    defaults = len(arguments) - len(tree.args.defaults)
    parameters = [
        {"name": a.arg, "type": annotation(a.annotation, known), "default": index >= defaults}
        for index, a in enumerate(arguments)
        if a.arg != "self"
    ]
    open_ended = tree.args.vararg is not None or tree.args.kwarg is not None
    return None if open_ended else {"parameters": parameters, "returns": annotation(tree.returns, known)}


def overloads(function: Any, known: set[str]) -> list[dict[str, Any] | None]:
    """The signatures in a docstring of pybind11."""
    text = function.__doc__ or ""
    name = re.escape(function.__name__)
    lines = re.findall(rf"^(?:\d+\. )?({name}\(.*\) -> .*)$", text, re.MULTILINE)
    return [parse(line, known) for line in lines if "*args" not in line]


def classes_of(module: Any) -> dict[str, type]:
    """Every class by its qualified name, nested ones too."""
    classes: dict[str, type] = {}

    def visit(owner: Any, prefix: str) -> None:
        for name, value in vars(owner).items():
            if isinstance(value, type) and not name.startswith("_") and f"{prefix}{name}" not in classes:
                classes[prefix + name] = value
                visit(value, f"{prefix}{name}.")

    visit(module, "")
    return classes


def tensorrt(package: str) -> dict[str, Any]:
    """The surface of ``package``, which has bindings of TensorRT."""
    module = import_module(package)
    classes = {name: cls for name, cls in classes_of(module).items() if package in cls.__module__}
    known = set(classes)
    names = {id(cls): name for name, cls in reversed(classes.items())}
    surface = {}
    for name, cls in classes.items():
        members = list(getattr(cls, "__members__", ()))
        row: dict[str, Any] = {"bases": [names[id(b)] for b in cls.__bases__ if id(b) in names], "members": members}
        row |= {"methods": {}, "properties": {}, "init": overloads(cls.__init__, known)}
        for attribute, value in vars(cls).items():
            if attribute in members or (attribute.startswith("_") and attribute not in ("__getitem__", "__len__")):
                continue
            if isinstance(value, property):
                result = re.search(r"-> (.*)", (value.fget and value.fget.__doc__) or "")
                kind = parse(f"x() -> {result[1]}", known) if result else None
                writable = value.fset is not None
                row["properties"][attribute] = {"type": kind["returns"] if kind else "Any", "writable": writable}
            elif callable(value) and not isinstance(value, type):
                row["methods"][attribute] = overloads(getattr(cls, attribute), known)
        surface[name] = row
    return {"version": module.__version__, "classes": surface}


def cuda() -> dict[str, Any]:
    """The surface of cuda.bindings.runtime: functions give (error, results...)."""
    from cuda import bindings
    from cuda.bindings import runtime as module

    classes = {name: cls for name, cls in classes_of(module).items() if cls.__module__.startswith("cuda.")}
    surface: dict[str, Any] = {"version": bindings.__version__, "classes": {}, "functions": {}, "constants": {}}
    for name, cls in classes.items():
        # An Enum, or since 13.3 a faster class of their own that is none.
        values = {key: int(member) for key, member in getattr(cls, "__members__", {}).items()}
        properties = [] if values else [key for key in dir(cls) if not key.startswith("_")]
        surface["classes"][name] = {"values": values, "properties": properties}
    for name, value in vars(module).items():
        if type(value) is int and not name.startswith("_"):
            surface["constants"][name] = int(value)
        elif name.startswith("cuda") and callable(value) and name not in classes:
            surface["functions"][name] = _function(value, set(classes))
    return surface


def _function(function: Any, known: set[str]) -> dict[str, Any] | None:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:
        return None
    text = function.__doc__ or ""
    first = text.strip().split("\n")[0]
    whole = {p.name for p in parameters if re.search(rf"(int|size_t|long) {p.name}\b", first)}
    rows = []
    for p in parameters:
        kind = "int" if p.name in whole else str(p.annotation).strip("'")
        kind = kind if kind == "int" or kind in known else "Any"
        rows.append({"name": p.name, "type": kind, "default": p.default is not p.empty})
    after = re.split(r"^\s*Returns\s*\n\s*-+\s*$", text, maxsplit=1, flags=re.MULTILINE)
    section = (
        re.split(r"^\s*(?:See Also|Notes)\s*$", after[1], maxsplit=1, flags=re.MULTILINE)[0] if len(after) > 1 else ""
    )
    results = []
    for kind in re.findall(r"^ *\w+ : (.*)$", section, re.MULTILINE):
        name = re.sub(r".*~\.(\w+).*", r"\1", kind)
        results.append("int" if name in ("int", "Any") else name if name in known or name == "float" else "Any")
    return {"parameters": rows, "returns": results}


if __name__ == "__main__":
    print(json.dumps(cuda() if sys.argv[1] == "cuda" else tensorrt(sys.argv[1])))
