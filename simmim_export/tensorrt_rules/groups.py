"""Nodes by the PyTorch module that they were exported from, as the exporter's metadata says."""

from __future__ import annotations

import ast
from collections.abc import Iterable

import onnx

SCOPES = "pkg.torch.onnx.name_scopes"
# The exporter's name for the module of a node that no module made: sizes of symbolic axes, mostly.
NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"


def module_of(node: onnx.NodeProto) -> str:
    """The path of the module that ``node`` was exported from, as ``model.named_modules()`` has it; "" if it is unknown."""
    text = next((prop.value for prop in node.metadata_props if prop.key == SCOPES), "[]")
    try:
        scopes = [str(name) for name in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError):
        return ""
    # The last is the operator's own name.
    return scopes[-2] if len(scopes) > 1 and scopes[-2] != NO_MODULE else ""


def group_of(node: onnx.NodeProto) -> str:
    """The block of ``node``: its module's path up to the first number (``encoder.layer.3``), or the whole path."""
    parts = module_of(node).split(".")
    end = next((place + 1 for place, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[:end])


def by_group(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, list[str]]:
    """The nodes called ``names`` by their :func:`group_of`, in the graph's order. A node of no module is a group of its own."""
    wanted, groups = set(names), dict[str, list[str]]()
    for node in model.graph.node:
        if node.name in wanted:
            groups.setdefault(group_of(node) or node.name, []).append(node.name)
    return groups
