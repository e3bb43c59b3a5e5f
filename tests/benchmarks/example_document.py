"""A benchmark file with rows of every suite, made by a formula: nothing in it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.benchmarks.code_digest import code_digest
from simmim_export.benchmarks.document import SCHEMA
from simmim_export.benchmarks.html.series import name
from simmim_export.benchmarks.results import BenchmarkResult, Failed, Floor
from simmim_export.system.plain import as_json

# contestant -> (milliseconds of a short text, cosine). A third word is the recipe of a peer.
CONTESTANTS = {
    ("torch", "fp32", ""): (12.1, 1.0),
    ("torch-bf16", "bf16", ""): (9.8, 0.99991),
    ("torch-compile", "fp32", ""): (8.9, 0.9999999),
    ("ort", "fp32", ""): (4.7, 0.9999999),
    ("ort", "int8", ""): (2.3, 0.99957),
    ("ort", "int8", "dynamic"): (3.4, 0.99385),
    ("ort", "int8", "static"): (8.2, 0.837),
    ("openvino", "fp32", ""): (4.1, 0.9999998),
    ("openvino", "bf16", ""): (2.5, 0.99998),
    ("openvino", "int8", ""): (1.7, 0.99957),
    ("openvino", "int8", "nncf"): (1.6, 0.9967),
}
OURS = [key for key in CONTESTANTS if key[0] in ("torch", "ort", "openvino") and not key[2]]


class Made:
    """Makes rows whose rounds vary by a few percent around a given time."""

    def __init__(self, seed: int = 0, *, rounds: int = 6, iterations: int = 20) -> None:
        self.random = np.random.default_rng(seed)
        self.rounds, self.iterations = rounds, iterations

    def row(self, contestant: tuple[str, str, str], milliseconds: float, **words: Any) -> BenchmarkResult:
        """A row of ``contestant`` that takes ``milliseconds``."""
        engine, precision, recipe = contestant
        each = self.random.gamma(4, 0.02, (self.rounds, self.iterations)) + 0.95
        rounds = tuple(map(tuple, (milliseconds / 1000 * each).tolist()))
        words = {"batch": 1, "inputs": "0" * 64, "suite": "latency", **words}
        own = {"engine": engine, "precision": precision, "recipe": recipe, "code": code_digest(words["suite"])}
        return BenchmarkResult(**{"rounds": rounds, **own, **words})


def rows(made: Made) -> Iterator[BenchmarkResult]:
    """Rows of every suite."""
    for contestant, (base, cosine) in CONTESTANTS.items():
        floor = Floor(seconds=0.6e-3 if contestant[1] == "int8" else 1.3e-3, flops=1.4e9, bytes=2.2e7, bound="compute")
        accuracy = {"cosine_mean": cosine, "cosine_p1": cosine - (1 - cosine), "top1": min(1.0, 0.9 + 0.1 * cosine)}
        words = {"target": "graph:text_encoder", "params": {"batch": 1}, "floor": floor, "bytes": 44_000_000}
        yield made.row(contestant, base, suite="peers", accuracy=accuracy, **words)
    for contestant in OURS:
        base, cosine = CONTESTANTS[contestant]
        parity = {"passed": True, "scaled_error": 1 - cosine + 1e-6, "cosine": cosine}
        for target, times in (
            ("graph:image_encoder", 3.1),
            ("pipeline:embed_image", 3.2),
            ("pipeline:embed_text", 1.05),
        ):
            yield made.row(contestant, base * times, target=target, params={"batch": 1}, parity=parity)
        for verb, times, extra in (("embed_image", 3.1, 4.4), ("embed_text", 1.0, 0.15)):
            for stage, more in (("graphs", 0.0), ("pipeline", 0.12), ("prepared", 0.12 + extra), ("api", 0.3 + extra)):
                words = {"suite": "ladder", "target": f"verb:{verb}", "params": {"stage": stage}}
                yield made.row(contestant, base * times + more, **words)
        for batch in (1, 2, 4, 8):
            words = {"suite": "throughput", "target": "pipeline:embed_text", "params": {"batch": batch}, "items": batch}
            yield made.row(contestant, base * batch**0.85, **words)
            words = {"suite": "growth", "target": "graph:image_encoder", "params": {"batch": batch}, "items": batch}
            yield made.row(contestant, 3 * base * batch**0.95, **words)
        for sequence in (4, 8, 16, 32, 64, 128):
            words = {"suite": "growth", "target": "graph:text_encoder", "params": {"batch": 1, "sequence": sequence}}
            yield made.row(contestant, base * (0.3 + 0.7 * sequence / 32), **words)
        for count in (1, 2, 4, 8, 16):
            words = {
                "suite": "reuse",
                "target": "verb:answer",
                "params": {"questions": count, "stage": "api"},
                "items": count,
            }
            yield made.row(contestant, base * (3 + count), **words)
        for megapixels in (0.3, 2, 12):
            stage = "pillow" if contestant[0] == "torch" else "api"
            words = {
                "suite": "photos",
                "target": "verb:embed_image",
                "params": {"megapixels": megapixels, "stage": stage},
            }
            yield made.row(contestant, base * 3 + 5 * megapixels**0.7, **words)
        memory = tuple((5.0 * i, int(3e8 + 2e7 * base + 2e6 * min(i, 5))) for i in range(24))
        yield made.row(contestant, 800, suite="soak", target="soak:mixed", params={"minutes": 2.0}, memory=memory)
    failed = Failed(error="WorkerDied", message="the worker of engine 'trt' ended: signal SIGKILL")
    yield made.row(("trt", "int8", ""), 1, target="graph:image_encoder", params={"batch": 1}, rounds=(), failed=failed)


def example(results: list[BenchmarkResult], **changes: Any) -> dict[str, Any]:
    """A document of schema 2 with these rows."""
    engines = {name(row): {"cold_start": 0.4, "peak_memory": 3.1e8} for row in results if not row.recipe}
    document = {
        "schema": SCHEMA,
        "command": ["simmim-bench", "--bundle", "example", "--save", "example.json"],
        "suites": list(dict.fromkeys(row.suite for row in results)),
        "host": {
            "cpu": "Example CPU, made by a formula",
            "gpu": None,
            "cpus": 2,
            "threads_used": 2,
            "system": "Linux",
            "python": "3.11.9",
            "packages": {"numpy": "2.3.1", "torch": "2.14.0", "onnxruntime": "1.32.0", "openvino": "2026.4"},
        },
        "load_average": 0.12,
        "warnings": [],
        "bundle": {"manifest_sha256": "0" * 64, "preset": "example"},
        "method": {"rounds": 6, "warmup": 3, "iterations": {"latency": 20}},
        "finished_rounds": 6,
        "peaks": {"fp32": 1.1e11, "int8": 7.4e11, "bandwidth": 2.1e10},
        "engines": engines,
        "results": [asdict(row) for row in results],
        "summary": [],
    }
    return as_json(document | changes)


def write_example(path: Path, results: list[BenchmarkResult] | None = None, **changes: Any) -> Path:
    """Write :func:`example` to ``path``, by default with rows of every suite."""
    path.write_text(
        json.dumps(example(list(rows(Made())) if results is None else results, **changes)), encoding="utf-8"
    )
    return path
