"""What the parser and the builder of TensorRT for RTX say of ONNX models, beside what our lint says: prints JSON by model.

``python verdicts.py broken`` takes the graphs that each break one rule, and builds those that parse. ``python verdicts.py onnx``
takes the models of ONNX's own tests of single operators, and only parses them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import onnx
import tensorrt_rtx_bindings as trt

from simmim_export.tensorrt_rules.lint import lint

# Every dynamic axis has this size: below 16, which some of the graphs need.
SIZE = 15


class Log(trt.ILogger):
    """Prints nothing."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: Any, msg: str) -> None:
        """Called by TensorRT."""


def broken() -> Iterator[tuple[str, onnx.ModelProto]]:
    """The graphs of the modules broken and broken_int8, and the one that breaks no rule."""
    import broken_int8
    from broken import BREAKING

    yield from ((name, make()) for name, make in BREAKING.items())
    yield "good", broken_int8.good()


def of_onnx() -> Iterator[tuple[str, onnx.ModelProto]]:
    """The models of ONNX's tests of single operators, which onnx makes."""
    from onnx.backend.test.case.node import collect_testcases

    yield from ((case.name, case.model) for case in collect_testcases(None) if case.model is not None)


def verdict(builder: trt.Builder, log: Log, model: onnx.ModelProto, *, build: bool) -> dict[str, Any]:
    """Why the parser refuses ``model`` (None if it does not), and whether it can be built (None if it was not tried)."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        error = parser.get_error(0)
        return {"refused": [error.code().name, error.node_operator(), error.desc().strip()[:300]], "built": None}
    return {"refused": None, "built": _built(builder, network) if build else None}


def _built(builder: trt.Builder, network: trt.INetworkDefinition) -> bool:
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = trt.Dims([SIZE if tensor.shape[axis] < 0 else tensor.shape[axis] for axis in range(len(tensor.shape))])
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


def main() -> None:
    """Print the verdicts."""
    log = Log()
    builder = trt.Builder(log)
    models, build = (broken(), True) if sys.argv[1] == "broken" else (of_onnx(), False)
    rows = {}
    for name, model in models:
        row = verdict(builder, log, model, build=build)
        try:
            findings = lint(model)
        except Exception as error:  # noqa: BLE001 - the row says so, and the test fails
            row["lint"] = [["error", str(error)]]
        else:
            row["lint"] = sorted({(f.rule, f.advice) for f in findings})
        row["operators"] = sorted({node.op_type for node in model.graph.node})
        rows[name] = row
    sys.stdout.write(json.dumps(rows))


if __name__ == "__main__":
    main()
