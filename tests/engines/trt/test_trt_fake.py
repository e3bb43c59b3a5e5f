"""The fake TensorRT does what the real TensorRT for RTX does, as far as our code can see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bindings
import onnx
import pytest
from conftest import PAIRS, surface
from fake_cuda import Gpu
from fake_tensorrt import PHASE, World, fake_tensorrt
from onnx import TensorProto, helper
from probe import probe


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> tuple[str, str]:
    """A quantized graph, and one with an operator that no parser has."""
    node = helper.make_node("Det", ["x"], ["y"], name="node.Det")
    values = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("x", [2, 3, 3]), ("y", [2]))
    )
    opset = helper.make_opsetid("", 20)
    broken = tmp_path_factory.mktemp("broken") / "operator.onnx"
    onnx.save(
        helper.make_model(helper.make_graph([node], "net", *values), opset_imports=[opset], ir_version=10), broken
    )
    return str(tiny_bundle / "graphs/text_encoder.int8-s8.onnx"), str(broken)


@pytest.fixture(scope="module")
def real(graphs: tuple[str, str]) -> dict[str, Any]:
    try:
        folder = bindings.folder("rtx")
    except bindings.NotInstalled as reason:
        pytest.skip(str(reason))
    command = [sys.executable, str(Path(__file__).with_name("probe.py")), *graphs]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("major", sorted(PAIRS))
def test_the_fake_does_what_the_real_one_does(real: dict[str, Any], graphs: tuple[str, str], major: str) -> None:
    world = World(refuse_parse="operator")
    module = fake_tensorrt(surface(PAIRS[major][0]), Gpu(), world)
    fake = probe(module, *graphs)
    assert real["parsed"] and real["built"] and not real["takes the broken graph"] and len(real["kinds"]) >= 3
    real = real | {"events": [event for event in real["events"] if event[1] == PHASE]}
    assert fake == real
