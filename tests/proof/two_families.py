"""Two small models that share no name with SimMIM, as real ONNX graphs, and what NumPy says of them.

The ``eye`` embeds photos and the ``ear`` embeds words; the ``judge`` reads a photo and words together. A photo is uint8
[n, 4, 4, 3], words are int64 [n, length] with a mask that is named ``real``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from simmim_export.bundle import Manifest
from simmim_export.engines import get_engine
from simmim_export.engines.base import Session
from simmim_export.spec import Axis, GraphSpec, Kind, Pipeline, Precision, TensorSpec, Verb

LENGTH, CLASSES = 6, 3
TABLE = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(6, CLASSES)).astype(np.float32)
PHOTO = TensorSpec("photo", "uint8", ("batch", 4, 4, 3), Kind.IMAGE)
LOOK = TensorSpec("look", "float32", ("batch", 3), Kind.EMBEDDING)
SENSE = TensorSpec("sense", "float32", ("batch", 3), Kind.EMBEDDING)
VERDICT = TensorSpec("verdict", "float32", ("batch", CLASSES), Kind.LOGITS)
SEE = Pipeline("see", ("eye",), ("look",), Verb.EMBED_IMAGE)
HEAR = Pipeline("hear", ("ear",), ("sense",), Verb.EMBED_TEXT)
DECIDE = Pipeline("decide", ("judge",), ("verdict",), Verb.ANSWER, "decision")


def graph_specs(length: str | int) -> dict[str, GraphSpec]:
    """The graphs, with texts of any length up to 6 (``length`` is the name of the axis) or of a fixed one."""
    batch = Axis("batch", 1, 4)
    axes = (batch, Axis(length, 1, LENGTH)) if isinstance(length, str) else (batch,)
    words = TensorSpec("words", "int64", ("batch", length), Kind.TOKEN_IDS)
    real = TensorSpec("real", "int64", ("batch", length), Kind.TEXT_MASK)
    return {
        "eye": GraphSpec("eye", (PHOTO,), (LOOK,), (batch,)),
        "ear": GraphSpec("ear", (words, real), (SENSE,), axes),
        "judge": GraphSpec("judge", (PHOTO, words, real), (VERDICT,), axes),
    }


def manifest_of(specs: Mapping[str, GraphSpec], *pipelines: Pipeline) -> Manifest:
    """The manifest of a model with the graphs that ``pipelines`` name."""
    names = dict.fromkeys(name for pipeline in pipelines for name in pipeline.graphs)
    return Manifest(
        family="second",
        model={},
        graphs=tuple(specs[name] for name in names),
        pipelines=pipelines,
        preprocessing={},
        labels={"decision": tuple(map(str, range(CLASSES)))},
        embedding={},
        files={},
        artifacts=(),
        metrics={},
        provenance={},
    )


def _nodes(graph: str) -> list[onnx.NodeProto]:
    seen = [
        helper.make_node("Cast", ["photo"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "space"], ["color"], keepdims=0),
        helper.make_node("Div", ["color", "white"], ["seen"]),
    ]
    heard = [
        helper.make_node("Gather", ["table", "words"], ["vectors"]),
        helper.make_node("Cast", ["real"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["vectors", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["heard"], keepdims=0),
    ]
    if graph == "eye":
        return [*seen, helper.make_node("LpNormalization", ["seen"], ["look"], axis=1)]
    if graph == "ear":
        return [*heard, helper.make_node("LpNormalization", ["heard"], ["sense"], axis=1)]
    both = helper.make_node("Concat", ["seen", "heard"], ["both"], axis=1)
    return [*seen, *heard, both, helper.make_node("MatMul", ["both", "weights"], ["verdict"])]


def write_graph(spec: GraphSpec, path: Path) -> Path:
    """The ONNX file of a graph."""
    constants = {
        "space": np.array([1, 2]),
        "white": np.float32(255),
        "table": TABLE,
        "last": np.array([2]),
        "one": np.array([1]),
        "weights": WEIGHTS,
    }
    types = {"uint8": TensorProto.UINT8, "int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    sides = [
        [helper.make_tensor_value_info(tensor.name, types[tensor.dtype], tensor.shape) for tensor in tensors]
        for tensors in (spec.inputs, spec.outputs)
    ]
    nodes = _nodes(spec.name)
    used = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items() if name in used]
    graph = helper.make_graph(nodes, spec.name, *sides, initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


class Sessions:
    """Real sessions of ONNX Runtime by graph; ``rows`` has how many rows each was asked."""

    def __init__(self, specs: Mapping[str, GraphSpec], folder: Path) -> None:
        self._sessions = {
            name: get_engine("ort").open(write_graph(spec, folder / f"{name}.onnx"), spec, precision=Precision.FP32)
            for name, spec in specs.items()
        }
        self.rows: dict[str, int] = {}
        self.lengths: set[int] = set()

    def __call__(self, graph: str) -> Session:
        session = self._sessions[graph]

        class Counted:
            inputs, outputs = session.inputs, session.outputs
            close, precision_proof = session.close, session.precision_proof

            @staticmethod
            def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
                first = next(iter(feeds.values()))
                self.rows[graph] = self.rows.get(graph, 0) + len(first)
                self.lengths |= {feeds["words"].shape[1]} if "words" in feeds else set()
                return session.run(feeds)

        return Counted()


def tokens_of(length: int | None = None) -> Callable[[list[str]], dict[str, np.ndarray]]:
    """Turns texts of numbers to words, padded with 0 to the longest of them or to ``length``."""

    def tokens(texts: list[str]) -> dict[str, np.ndarray]:
        rows = [[int(word) for word in text.split()] for text in texts]
        words = np.zeros((len(rows), length or max(map(len, rows))), np.int64)
        real = np.zeros_like(words)
        for row, numbers in enumerate(rows):
            words[row, : len(numbers)], real[row, : len(numbers)] = numbers, 1
        return {"words": words, "real": real}

    return tokens


def look(photo: np.ndarray) -> np.ndarray:
    """What the eye sees of one photo, before its length becomes 1."""
    return photo.mean(axis=(0, 1), dtype=np.float32) / np.float32(255)


def sense(text: str) -> np.ndarray:
    """What the ear hears in one text, before its length becomes 1."""
    return TABLE[[int(word) for word in text.split()]].sum(axis=0)


def verdict(photo: np.ndarray, text: str) -> np.ndarray:
    """The judge's logits for one photo and one text."""
    return np.concatenate([look(photo), sense(text)]) @ WEIGHTS


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
