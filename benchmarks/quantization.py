"""What precision costs a text tower with real weights: cosine to FP32, nearest neighbours kept, and speed.

Knows sentences, the commands that make a bundle, and engines by name. Must not know how a graph was quantised.
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.benchmarks import driver
from simmim_export.benchmarks.report import ratio_to
from simmim_export.errors import GateFailed, TruncatedText
from simmim_export.runtime import load
from simmim_export.spec import Precision

EXACT = driver.Contestant("ort", Precision.FP32)
Watch = Callable[[str, int, int], None]


def sentences() -> list[str]:
    """English sentences of Python's own language reference, which every Python carries: shuffled with a fixed seed.

    About 1,600 of 30 to 200 characters, mostly words. No model here was trained or calibrated on them.
    """
    from pydoc_data.topics import topics

    found = set()
    for topic in topics.values():
        for paragraph in re.split(r"\n\s*\n", topic):
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                words = sum(c.isalpha() or c == " " for c in sentence)
                if re.match(r"[A-Z][a-z]", sentence) and sentence.endswith(".") and 30 <= len(sentence) <= 200:
                    found |= {sentence} if words > 0.85 * len(sentence) else set()
    ordered = sorted(found)
    return [ordered[index] for index in np.random.default_rng(0).permutation(len(ordered))]


def agreement(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How unit vectors float32 [n, E] agree, row by row: cosine (mean, 1st percentile, least), and the share of rows whose
    nearest other row is the same (``top1``)."""
    cosine = (exact * found).sum(axis=1)
    nearest = []
    for vectors in (exact, found):
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -np.inf)
        nearest.append(similarity.argmax(axis=1))
    return {
        "cosine_mean": float(cosine.mean()),
        "cosine_p1": float(np.percentile(cosine, 1)),
        "cosine_min": float(cosine.min()),
        "top1": float((nearest[0] == nearest[1]).mean()),
    }


def make_bundle(text_encoder: str, preset: str, folder: Path) -> Path:
    """A bundle of ``preset`` with the weights of a Hugging Face encoder, in FP32 and INT8."""
    checkpoint, bundle = folder / "ckpt.pt", folder / "bundle"
    for module, *words in (
        ("training.cli", "init", "--preset", preset, "--text-encoder", text_encoder, "-o", str(checkpoint)),
        ("cli", "onnx", str(checkpoint), "--precision", "int8", "-o", str(bundle)),
    ):
        done = subprocess.run([sys.executable, "-m", f"simmim_export.{module}", *words], capture_output=True, text=True)
        if done.returncode:
            raise GateFailed(f"the bundle was not made: {done.stderr[-1000:]}", where=text_encoder)
    return bundle


def measure(
    bundle: Path, contestants: Sequence[driver.Contestant], texts: Sequence[str], rounds: int, watch: Watch
) -> dict[str, Any]:
    """``rows``: for each contestant its agreement with ONNX Runtime at FP32, and its latency at batch 1 as a share of that
    of the same engine at FP32 where that takes part (with a 95 % interval). ``cut`` counts sentences over the limit.
    """
    targets, graphs = ["graph:text_encoder"], ["text_encoder"]
    exact: np.ndarray | None = None
    cut = 0
    rows: list[dict[str, Any]] = []
    everyone = list(dict.fromkeys([EXACT, *contestants]))
    for index, contestant in enumerate(everyone):
        watch(f"embed {len(texts)} sentences, {contestant}", index, 2 * len(everyone))
        with (
            load(bundle, contestant.engine, contestant.precision) as model,
            warnings.catch_warnings(record=True) as said,
        ):
            warnings.simplefilter("always")
            found = np.concatenate([model.embed_text([text]) for text in texts])
        cut = sum(issubclass(warning.category, TruncatedText) for warning in said)
        exact = found if exact is None else exact
        rows.append({"engine": contestant.engine, "precision": str(contestant.precision)} | agreement(exact, found))
    plan = driver.Plan(bundle, None, everyone, targets, graphs, 1, rounds, iterations=30, warmup=5)
    measured = driver.measure(plan, lambda step, done, total: watch(step, total + done, 2 * total))
    for row, result in zip(rows, measured.results, strict=True):
        assert (row["engine"], row["precision"]) == (result.engine, result.precision)
        own = ratio_to(result, measured.results, result.engine)
        row["share_of_own_fp32"] = None if own is None else (1 / own.value, 1 / own.high, 1 / own.low)
    return {"sentences": len(texts), "cut": cut, "rounds": rounds, "rows": rows}
