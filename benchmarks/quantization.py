"""What precision costs a text tower with real weights: cosine to FP32, nearest neighbours kept, and speed.

Knows sentences, the commands that make a bundle, and engines by name. Must not know how a graph was quantised.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from simmim_export.benchmarks import driver
from simmim_export.benchmarks.report import ratio_to
from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine
from simmim_export.errors import GateFailed, TruncatedText
from simmim_export.files import digest
from simmim_export.host import has_integer_dot
from simmim_export.precision import peers
from simmim_export.precision.weights import unshare
from simmim_export.proof.figures import agreement
from simmim_export.runtime import load
from simmim_export.spec import Precision

EXACT = driver.Contestant("ort")
GRAPH = "text_encoder"
# The graph for TensorRT, run on a CPU to see what its ranges cost.
SYMMETRIC = "int8-s8"
# Ours for engines whose products saturate on this processor.
REDUCED = "ours, 7 bits"
# Sentences that are for calibration, behind those that judge.
CALIBRATION = 128
Watch = Callable[[str, int, int], None]


def sentences() -> list[str]:
    """English sentences of Python's own language reference, which every Python carries: shuffled with a fixed seed.

    About 1,600 of 30 to 200 characters, mostly words. No model here was trained on them; the last :data:`CALIBRATION` calibrate,
    and none of those judges.
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


def make_bundles(
    text_encoder: str, preset: str, texts: Sequence[str], contestants: Sequence[driver.Contestant], folder: Path
) -> tuple[Path, list[driver.Contestant]]:
    """A bundle of ``preset`` with the weights of a Hugging Face encoder, in FP32 and INT8 of full range, calibrated on
    ``texts``; and the contestants, those whose engine cannot multiply that exactly here with a bundle in 7 bits of their own."""
    checkpoint, bundle, reduced, samples = (folder / name for name in ("ckpt.pt", "bundle", REDUCED, "samples"))
    samples.mkdir()
    (samples / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    lowered = ("--precision", "int8", "--calibration", str(samples))
    _run("training.cli", "init", "--preset", preset, "--text-encoder", text_encoder, "-o", str(checkpoint))
    _run("cli", "onnx", str(checkpoint), *lowered, "--full-range", "-o", str(bundle))
    found = []
    for one in contestants:
        if one.precision == Precision.INT8 and has_integer_dot() is False and get_engine(one.engine).saturates:
            if not reduced.exists():
                _run("cli", "onnx", str(checkpoint), *lowered, "--reduce-range", "-o", str(reduced))
            one = replace(one, recipe=REDUCED, bundle=reduced)
        found.append(one)
    return bundle, found


def _run(module: str, *words: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"simmim_export.{module}", *words], capture_output=True, text=True)
    if done.returncode:
        raise GateFailed(f"the bundle was not made: {done.stderr[-1000:]}", where=" ".join(words))


def with_recipe(bundle: Path, recipe: str, texts: Sequence[str], folder: Path) -> Path:
    """A copy of ``bundle`` whose INT8 text encoder another quantiser made, calibrated on the same ``texts``; for the recipe
    "int8-s8" the one that is written for TensorRT. They say nothing of what they need, so nothing is refused."""
    opened = Bundle.open(bundle)
    copy, made = folder / recipe, opened.artifact(GRAPH, "int8-u8")
    shutil.copytree(bundle, copy)
    target = copy / made.path
    if recipe == SYMMETRIC:
        shutil.copyfile(bundle / opened.artifact(GRAPH, SYMMETRIC).path, target)
    else:
        with load(bundle) as model:
            feeds = [model.tokens([text]) for text in texts]
        source = opened.file(opened.artifact(GRAPH, "fp32").path)
        peers.RECIPES[recipe][0](source, target, feeds)
        made_by_peer = onnx.load(target)
        unshare(made_by_peer)
        onnx.save(made_by_peer, target)
    artifacts = tuple(
        replace(each, sha256=digest(target), bytes=target.stat().st_size, built_for={}) if each == made else each
        for each in opened.manifest.artifacts
    )
    (copy / "manifest.json").write_text(replace(opened.manifest, artifacts=artifacts).dumps(), encoding="utf-8")
    return copy


def measure(
    bundle: Path, contestants: Sequence[driver.Contestant], texts: Sequence[str], rounds: int, watch: Watch
) -> dict[str, Any]:
    """``rows``: for each contestant its agreement with ONNX Runtime at FP32, and its latency at batch 1 as a share of that
    of the same engine at FP32 where that takes part (with a 95 % interval). ``cut`` counts sentences over the limit.

    An embedding that is not finite counts as one of zeros: ``broken`` says how many.
    """
    exact: np.ndarray | None = None
    cut = 0
    rows: list[dict[str, Any]] = []
    everyone = list(dict.fromkeys([EXACT, *contestants]))
    for index, contestant in enumerate(everyone):
        watch(f"embed {len(texts)} sentences, {contestant}", index, 2 * len(everyone))
        with (
            load(contestant.bundle or bundle, contestant.engine, contestant.precision) as model,
            warnings.catch_warnings(record=True) as said,
        ):
            warnings.simplefilter("always")
            found = np.concatenate([model.embed_text([text]) for text in texts])
        cut = sum(issubclass(warning.category, TruncatedText) for warning in said)
        exact = found if exact is None else exact
        broken = ~np.isfinite(found).all(axis=1)
        found[broken] = 0
        name = {"engine": contestant.engine, "precision": contestant.precision, "recipe": contestant.recipe}
        rows.append(name | {"broken": int(broken.sum())} | agreement(exact, found))
    plan = driver.Plan(bundle, None, everyone, [f"graph:{GRAPH}"], [GRAPH], 1, rounds, iterations=30, warmup=5)
    measured = driver.measure(plan, lambda step, done, total: watch(step, total + done, 2 * total))
    for row, result in zip(rows, measured.results, strict=True):
        assert (row["engine"], row["precision"]) == (result.engine, result.precision)
        own = ratio_to(result, measured.results, result.engine)
        row["share_of_own_fp32"] = None if own is None else (1 / own.value, 1 / own.high, 1 / own.low)
    return {"sentences": len(texts), "cut": cut, "rounds": rounds, "rows": rows}
