"""Certificates for tests: rows that are whole and agree with themselves, and files with a digest that fits."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec

from simmim_export.bundle import Bundle
from simmim_export.proof.certificate import FILE, SCHEMA, digest_of
from simmim_export.proof.records import Certificate
from simmim_export.spec import PrecisionPlan

HOST = {"system": "Linux", "machine": "x86_64", "cpu": "Some CPU", "features": ["avx2"], "threads": 4}
PARITY = {"passed": True, "checks": 34, "scaled_error": 1e-6, "cosine": 1.0}
COSINES = {"cosine_mean": 0.995, "cosine_p1": 0.99, "cosine_min": 0.98, "top1": 1.0, "n": 16, "not_finite": 0}
LINES = (
    {"name": "cosine images", "measured": 0.995, "allowed": "at least 0.99", "kept": True},
    {"name": "cosine texts", "measured": 0.995, "allowed": "at least 0.99", "kept": True},
    {"name": "references", "measured": 1e-6, "allowed": "at most 0.0001", "kept": True},
)
FAILED = ({"name": "references", "measured": 1.0, "allowed": "at most 0.0001", "kept": False, "reason": "wrong"},)


def row(
    bundle: Bundle, engine: str = "ort", *, precision: str = "int8", seconds: float = 0.01, **changes: Any
) -> dict[str, Any]:
    """A certificate of ``bundle`` as JSON, with the fields of ``changes`` instead of its own."""
    manifest, plan = bundle.manifest, PrecisionPlan.parse(precision)
    variants = {"int8": "int8-u8", "bf16": "fp32"}
    artifacts = {
        graph.name: bundle.artifact(graph.name, variants.get(plan.of(graph.name), plan.of(graph.name)))
        for graph in manifest.graphs
    }
    graphs = {
        graph.name: {
            "artifact": artifacts[graph.name].sha256,
            "variant": artifacts[graph.name].variant,
            "precision": plan.of(graph.name),
            "parity": dict(PARITY),
            "invariance": {"batch": 0.0, "padding": None},
            "executed": {"executed": {"float32": 9}, "source": "profile"},
            "compiled": None,
        }
        for graph in manifest.graphs
    }
    content = {
        "engine": engine,
        "precision": precision,
        "plan": str(plan),
        "host": dict(HOST),
        "versions": {"onnxruntime": "1.0"},
        "graphs": graphs,
        "figures": {
            "embeddings": {"images": dict(COSINES), "texts": dict(COSINES)},
            "tasks": {},
            "references": {},
            "source": {"name": "samples"},
        },
        "latency": {pipeline.name: seconds for pipeline in manifest.pipelines},
        "budget": "cosine=0.99",
        "lines": [dict(line) for line in LINES],
        "not_judged": [],
        "suspicious": [],
        "passed": True,
        "command": "simmim-export certify bundle",
        "run": "2026-01-01T00:00:00+00:00",
    }
    return copy.deepcopy(content | changes)


def typed(content: dict[str, Any]) -> Certificate:
    """A row as a certificate."""
    return msgspec.convert(content, type=Certificate)


def put(bundle: Bundle, rows: Any, /, **changes: Any) -> Path:
    """Write certificate.json with ``rows``, and a digest that fits."""
    content = {"schema": SCHEMA, "bundle": bundle.digest, "certificates": rows} | changes
    content["digest"] = digest_of(content)
    path = bundle.root / FILE
    path.write_text(json.dumps(content))
    return path
