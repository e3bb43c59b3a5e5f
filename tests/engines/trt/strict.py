"""Modules made from a surface (surface.py) of the real bindings. Unknown names, arguments and types raise, as in the real ones.

What a call does comes from a table of behaviors. A call without a behavior raises, so that a fake never returns an answer that
nobody thought about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

Behaviors = Mapping[str, Callable[..., Any]]


class StrictModule(ModuleType):
    """A module whose unknown names say so."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class Member:
    """A member of a pybind11 enum: not a number, but can be converted to one."""

    def __init__(self, name: str, value: int) -> None:
        self.name, self.value = name, value

    def __int__(self) -> int:
        return self.value

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__}.{self.name}: {self.value}>"


_PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "bytes": (bytes,), "tuple": (tuple,),
    "slice": (slice,), "Buffer": (bytes, bytearray, memoryview), "None": (type(None),),
}  # fmt: skip


def _is(value: Any, kind: str, classes: Mapping[str, type]) -> bool:
    if kind.startswith("list"):
        inner = kind[5:-1]
        return isinstance(value, list | tuple) and all(not inner or _is(v, inner, classes) for v in value)
    if kind in _PLAIN:
        return isinstance(value, _PLAIN[kind]) and not (kind == "int" and isinstance(value, bool))
    return kind in ("Any", "object") or value is None or isinstance(value, classes[kind])


def bound(
    rows: list[dict[str, Any] | None], args: tuple, kwargs: dict[str, Any], classes: Mapping[str, type]
) -> dict[str, Any] | None:
    """The arguments by name for the first of the overloads ``rows`` that takes them; None if none does."""
    for row in rows:
        assert row is not None, "this signature cannot be read: do not use it"
        parameters = row["parameters"]
        names = [p["name"] for p in parameters]
        given = dict(zip(names, args, strict=False)) | kwargs
        complete = all(p["default"] or p["name"] in given for p in parameters)
        unique = len(args) + len(kwargs) == len(given) and len(args) <= len(names)
        if complete and unique and set(given) <= set(names):
            kinds = {p["name"]: p["type"] for p in parameters}
            if all(_is(value, kinds[name], classes) for name, value in given.items()):
                return given
    return None


def pybind_module(name: str, surface: dict[str, Any], behaviors: Behaviors) -> ModuleType:
    """A module like the one that ``surface`` was read from. A behavior ``Class.method`` gets the object and the arguments by
    name; ``Class.property`` gives its value; ``Class.__init__`` makes an object ready. ``new(Class)`` on the module makes one
    of a class that cannot be constructed."""
    module = StrictModule(name)
    classes: dict[str, type] = {}
    unknown = {key for key in behaviors if not _has(surface["classes"], key)}
    assert not unknown, f"behaviors of what the bindings do not have: {sorted(unknown)}"
    waiting = list(surface["classes"])
    while waiting:
        qualified = waiting.pop(0)
        row = surface["classes"][qualified]
        if not all(base in classes for base in row["bases"]):
            waiting.append(qualified)
            continue
        classes[qualified] = cls = _class(qualified, row, classes, behaviors)
        owner = classes[qualified.rpartition(".")[0]] if "." in qualified else module
        setattr(owner, cls.__name__, cls)
    module.__version__ = surface["version"]  # type: ignore[attr-defined]
    module.new = lambda kind: classes[kind].__new__(classes[kind])  # type: ignore[attr-defined]
    return module


def _has(classes: dict[str, Any], key: str) -> bool:
    name, _, member = key.rpartition(".")
    row = classes.get(name, {"methods": {}, "properties": {}})
    return name in classes and (member in ("__init__", "__buffer__") or member in row["methods"] | row["properties"])


def _class(qualified: str, row: dict[str, Any], classes: dict[str, type], behaviors: Behaviors) -> type:
    if row["members"]:
        cls = type(qualified.rpartition(".")[2], (Member,), {})
        for value, member in enumerate(row["members"]):
            setattr(cls, member, cls(member, value))
        return cls
    space: dict[str, Any] = {}

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        given = bound(row["init"], args, kwargs, classes) if row["init"] else None
        if given is None:
            raise TypeError(f"{qualified}.__init__ does not take {args} {kwargs}")
        if f"{qualified}.__init__" in behaviors:
            behaviors[f"{qualified}.__init__"](self, **given)

    def refuse(self: Any, key: str, value: Any) -> None:
        # Objects of pybind11 have no attributes but their own; a subclass in Python has.
        if type(self) is cls and not key.startswith("_fake") and not isinstance(vars(cls).get(key), property):
            raise AttributeError(f"{qualified!r} object has no attribute {key!r}")
        object.__setattr__(self, key, value)

    space |= {"__init__": construct, "__setattr__": refuse}
    for name, overloads in row["methods"].items():
        space[name] = _method(f"{qualified}.{name}", overloads, classes, behaviors)
    for name, kind in row["properties"].items():
        space[name] = _property(f"{qualified}.{name}", kind, classes, behaviors)
    if f"{qualified}.__buffer__" in behaviors:
        space["__bytes__"] = behaviors[f"{qualified}.__buffer__"]
    cls = type(qualified.rpartition(".")[2], tuple(classes[base] for base in row["bases"]), space)
    return cls


def _method(name: str, rows: list, classes: dict[str, type], behaviors: Behaviors) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = bound(rows, args, kwargs, classes)
        if given is None:
            raise TypeError(f"{name} does not take {args} {kwargs}")
        if name not in behaviors:
            raise NotImplementedError(f"the fake has no behavior for {name}")
        return behaviors[name](self, **given)

    return call


def _property(name: str, kind: dict[str, Any], classes: dict[str, type], behaviors: Behaviors) -> property:
    key = f"_fake_{name.rpartition('.')[2]}"

    def read(self: Any) -> Any:
        if name in behaviors:
            return behaviors[name](self)
        if not hasattr(self, key):
            raise NotImplementedError(f"the fake has no behavior for {name}")
        return getattr(self, key)

    def write(self: Any, value: Any) -> None:
        if not _is(value, kind["type"], classes):
            raise TypeError(f"{name} cannot be {value!r}")
        object.__setattr__(self, key, value)

    return property(read, write if kind["writable"] else None)


def cython_module(name: str, surface: dict[str, Any], behaviors: Behaviors) -> ModuleType:
    """A module like cuda.bindings.runtime: a behavior gets its arguments in order, and gives the results after the error, or a
    member of cudaError_t alone."""
    import enum

    module = StrictModule(name)
    classes: dict[str, type] = {}
    unknown = set(behaviors) - set(surface["functions"])
    assert not unknown, f"behaviors of what the bindings do not have: {sorted(unknown)}"
    for key, row in surface["classes"].items():
        classes[key] = enum.Enum(key, row["values"]) if row["values"] else _structure(key, row["properties"])  # type: ignore[misc]
        setattr(module, key, classes[key])
    for key, value in surface["constants"].items():
        setattr(module, key, value)
    for key, row in surface["functions"].items():
        setattr(module, key, _function(key, row, classes, behaviors))
    return module


def _structure(name: str, fields: list[str]) -> type:
    def construct(self: Any, value: int = 0, **given: Any) -> None:
        assert set(given) <= set(fields), f"{name} has no {set(given) - set(fields)}"
        self._value = value
        for key, field in given.items():
            setattr(self, key, field)

    return type(
        name, (), {"__init__": construct, "__int__": lambda self: self._value, "__slots__": (*fields, "_value")}
    )


def _function(name: str, row: dict[str, Any], classes: dict[str, type], behaviors: Behaviors) -> Callable[..., Any]:
    error = classes["cudaError_t"]

    def call(*args: Any, **kwargs: Any) -> tuple:
        given = bound([row], args, kwargs, classes)
        if given is None:
            raise TypeError(f"{name} does not take {args} {kwargs}")
        if name not in behaviors:
            raise NotImplementedError(f"the fake has no behavior for {name}")
        result = behaviors[name](*given.values())
        if isinstance(result, error):
            return (result, *([None] * len(row["returns"])))
        result = result if isinstance(result, tuple) else () if result is None else (result,)
        assert len(result) == len(row["returns"]), f"{name} gives {row['returns']}"
        return (error.cudaSuccess, *result)  # type: ignore[attr-defined]

    return call
