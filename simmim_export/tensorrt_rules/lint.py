"""Whether TensorRT takes a graph, before a device with a GPU is at hand.

Every rule reads the graph alone, so no engine is built, and a finding names the node and the PyTorch module to change. The rules
are in :mod:`simmim_export.tensorrt_rules.parser` and :mod:`simmim_export.tensorrt_rules.int8`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from simmim_export.tensorrt_rules.graph import Graph, label
from simmim_export.tensorrt_rules.int8 import INT8_RULES
from simmim_export.tensorrt_rules.parser import PARSER_RULES

# Each rule in one sentence.
RULES: Mapping[str, str] = PARSER_RULES.sentences() | INT8_RULES.sentences()
# The rules that TensorRT does not insist on.
ADVICE = frozenset(PARSER_RULES.advice | INT8_RULES.advice)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """``node`` breaks ``rule``, in the way that ``what`` says. ``module`` is the PyTorch module it was exported from, or "".
    ``advice``: TensorRT takes the graph all the same."""

    rule: str
    node: str
    module: str
    what: str
    advice: bool = False

    def __str__(self) -> str:
        place = f"{self.node} ({self.module})" if self.module else self.node
        return f"{self.rule}: {place}: {self.what}"


def lint(model: onnx.ModelProto) -> list[Finding]:
    """Everything in ``model`` that breaks one of :data:`RULES`, rule by rule. The model is not changed."""
    graph = Graph(model)
    findings = []
    for rule, check in (PARSER_RULES.checks | INT8_RULES.checks).items():
        for place, what in check(graph):
            node, module = (place, "") if isinstance(place, str) else (label(place), graph.module(place))
            findings.append(Finding(rule=rule, node=node, module=module, what=what, advice=rule in ADVICE))
    return findings
