"""Nodes by the PyTorch module that they were exported from. Knows the exporter's metadata; must not know what a node is for."""

from __future__ import annotations

import ast
from collections.abc import Iterable

import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
# What the exporter writes for a node of no module: sizes of symbolic axes, mostly.
NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"


def module_of(node: onnx.NodeProto) -> str:
    """The path of the module that ``node`` was exported from, as ``model.named_modules()`` has it; "" if nothing says so."""
    text = next((prop.value for prop in node.metadata_props if prop.key == SCOPES), "[]")
    try:
        scopes = [str(name) for name in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError):
        return ""
    # The last is the operator's own name.
    return scopes[-2] if len(scopes) > 1 and scopes[-2] != NO_MODULE else ""


def group_of(node: onnx.NodeProto) -> str:
    """The block that ``node`` belongs to: its module's path up to the first number (``encoder.layer.3``), or all of it."""
    parts = module_of(node).split(".")
    end = next((place + 1 for place, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[:end])


def by_group(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, list[str]]:
    """The nodes called ``names`` by their :func:`group_of`, in the graph's order."""
    wanted, found = set(names), dict[str, list[str]]()
    for node in model.graph.node:
        if node.name in wanted:
            found.setdefault(group_of(node) or node.name, []).append(node.name)
    return found
