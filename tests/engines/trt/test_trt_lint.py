"""The lint beside the parser and builder of TensorRT for RTX, on graphs that break rules and on ONNX's tests of operators.

They differ in places. The tables below list each with its reason, and a difference that they do not list fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import bindings
import pytest

from simmim_export.tensorrt_rules.lint import ADVICE

HERE = Path(__file__).parent
# Rules whose graphs are built all the same, and why each is an error.
SILENT = {
    "both-inputs": "the product is computed in float, and the pair costs time for nothing",
    "bias": "a dequantized bias that is an Add of its own keeps the product in float; one of a Conv is refused",
    "double": "it is computed as FLOAT",
    "fp16-range": "the number becomes infinite",
    "per-channel": "an activation or the wrong axis of a weight is dequantized in a kernel of its own",
    "placement": "the pair is rounding without gain: nothing multiplies in INT8",
    "scale": "an infinite or computed scale is read; zero is refused",
    "scale-opset": "ONNX itself does not allow scales by channel below opset 13; in FP16 they are refused",
    "zero-point": "UINT8 with the zero point 0 is read as INT8, which saturates at 127",
}
# In ONNX's tests of operators: rules that the parser does not have. It only parses here; some of these fail to build.
NOT_PARSED = {
    "attention": "the builder finds no kernel for it in FP32",
    "double": SILENT["double"],
    "fp16-range": SILENT["fp16-range"],
    "per-channel": SILENT["per-channel"],
    "scale": "the scale is an input of the graph; the builder would read it",
    "topk": "K is an input of the graph, which the builder does not take",
    "uint8": "Equal takes UINT8; it would be the only operator besides Cast and Shape",
    "zero-point": SILENT["zero-point"],
}
# Operators that the parser refuses with attributes, ranks or types that no rule is about: no graph that we export has them.
NOT_COVERED = {
    "Attention": "a mask, a cache or a softmax precision that TensorRT's attention does not have",
    "AveragePool": "dilations",
    "BatchNormalization": "training mode",
    "Celu": "FP16",
    "Clip": "INT8",
    "DeformConv": "TensorRT has a plugin for it, TensorRT for RTX has not",
    "DequantizeLinear": "an odd number of weights in 4 bits",
    "Dropout": "training mode",
    "Identity": "a sequence",
    "Loop": "limits that are inputs of the graph",
    "LpPool": "norms other than 1 and 2, and dilations",
    "MatMul": "a vector times a batch of matrices",
    "MaxPool": "dilations and indices",
    "Mod": "floating point",
    "OneHot": "a depth that is an input of the graph",
    "Range": "FP16, and limits that are inputs of the graph",
    "Resize": "several modes, antialiasing, and sizes that are inputs of the graph",
    "RoiAlign": "TensorRT has a plugin for it, TensorRT for RTX has not",
    "STFT": "a step that is an input of the graph",
    "ScatterElements": "a reduction",
    "Split": "sizes that do not add up in a graph made of primitives",
    "TensorScatter": "circular mode, and a cache that is not 4D",
    "Upsample": "scales that are inputs of the graph",
}


@cache
def verdicts(what: str) -> dict[str, dict[str, Any]]:
    """What verdicts.py prints of ``what``."""
    try:
        folder = bindings.folder("rtx")
    except bindings.NotInstalled as reason:
        pytest.skip(str(reason))
    path = os.pathsep.join(map(str, (folder, HERE.parents[1] / "tensorrt_rules")))
    command = [sys.executable, str(HERE / "verdicts.py"), what]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def errors(row: dict[str, Any]) -> set[str]:
    """The rules that are broken, advice left out."""
    return {rule for rule, advice in row["lint"] if not advice}


def test_the_builder_takes_what_breaks_no_rule_and_what_is_only_advice() -> None:
    rows = verdicts("broken")
    taken = {name: row for name, row in rows.items() if not errors(row)}
    assert "good" in taken and {rule for row in taken.values() for rule, _ in row["lint"]} == ADVICE
    assert all(row["built"] for row in taken.values()), {k: r["refused"] for k, r in taken.items() if not r["built"]}


def test_only_the_listed_rules_are_broken_silently() -> None:
    rows = {name: row for name, row in verdicts("broken").items() if errors(row)}
    built = {rule for row in rows.values() if row["built"] for rule in errors(row)}
    assert built == set(SILENT)
    refused = {rule for row in rows.values() if not row["built"] for rule in errors(row)}
    assert len(refused - built) >= 9


def test_lint_and_parser_agree_on_the_tests_of_onnx() -> None:
    rows = verdicts("onnx")
    counts = Counter((bool(errors(row)), row["refused"] is not None) for row in rows.values())
    only_lint = {rule for row in rows.values() if not row["refused"] for rule in errors(row)}
    # The parser does not always say which operator it means; then the model has no other.
    only_parser = {
        row["refused"][1] or row["operators"][0] for row in rows.values() if row["refused"] and not errors(row)
    }
    assert only_lint == set(NOT_PARSED)
    assert only_parser == set(NOT_COVERED)
    agree = counts[True, True] + counts[False, False]
    assert len(rows) > 1800 and agree > 0.9 * len(rows), counts
