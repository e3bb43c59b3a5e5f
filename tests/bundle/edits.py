"""Edits of a manifest's content, and what reading an edited manifest must end in."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from simmim_export.bundle import digest_of, parse_manifest
from simmim_export.errors import BundleError

Content = dict[str, Any]
Edit = Callable[[Content], object]


def put(*path: str | int, value: Any) -> Edit:
    """An edit that sets one place to ``value``."""
    return lambda content: _holder(content, path).__setitem__(path[-1], copy.deepcopy(value))


def drop(*path: str | int) -> Edit:
    """An edit that removes one place."""
    return lambda content: _holder(content, path).__delitem__(path[-1])


def again(*path: str | int) -> Edit:
    """An edit that repeats the first item of a list at its end."""

    def edit(content: Content) -> None:
        items = _holder(content, path)[path[-1]]
        items.append(copy.deepcopy(items[0]))

    return edit


def every(name: str, **fields: Any) -> Edit:
    """An edit that changes fields of each tensor called ``name``."""

    def edit(content: Content) -> None:
        for graph in content["graphs"]:
            for tensor in (*graph["inputs"], *graph["outputs"]):
                if tensor["name"] == name:
                    tensor.update(copy.deepcopy(fields))

    return edit


def both(*edits: Edit) -> Edit:
    """One edit after the other."""

    def edit(content: Content) -> None:
        for one in edits:
            one(content)

    return edit


def _holder(content: Any, path: tuple[str | int, ...]) -> Any:
    for key in path[:-1]:
        content = content[key]
    return content


def dumped(content: Content) -> str:
    """``content`` as JSON with a digest that matches, as an attacker would write it."""
    text = json.dumps(content, allow_nan=True)
    try:
        return json.dumps(content | {"digest": digest_of(content)}, allow_nan=True)
    except BundleError:
        return text


def refused_places(content: Content) -> list[str]:
    """The places that the error names when ``content`` is read."""
    with pytest.raises(BundleError) as caught:
        parse_manifest(dumped(content), "the file")
    assert caught.value.exit_code == 5 and caught.value.fix and caught.value.where == "the file"
    return [line.split(": ")[0].split()[-1] for line in caught.value.what.splitlines() if ": " in line]
