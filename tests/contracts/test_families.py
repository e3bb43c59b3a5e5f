"""What every model family promises. A new family is tested by a row in model_folders.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from model_folders import ROWS
from pretrained import changed, linked

import simmim_export
from simmim_export.bundle import check_draft
from simmim_export.errors import CheckpointError, UsageError
from simmim_export.export.bundled_samples import FOLDER, PHOTOGRAPHS, with_samples
from simmim_export.export.description import describe
from simmim_export.export.golden import make_golden
from simmim_export.models.family import FAMILIES, LoadOptions, SourceModel, family_of
from simmim_export.spec import Kind, Pipeline, Score, Verb
from simmim_export.tensorrt_rules.lint import lint

# A value for every option that some family has a use for.
VALUES: dict[str, Any] = {"attention": True, "answers": ("yes", "no"), "image_size": (64, 64)}
TRANSFORMERS = [name for name, row in ROWS.items() if row.layout == "transformers"]
# Tells of each path the family that exports it, and all families that would; and whether something slow was imported.
RECOGNIZE = """
import json, sys
from pathlib import Path
from simmim_export.errors import CheckpointError
from simmim_export.models.family import FAMILIES, family_of

def recognizes(family, path):
    try:
        family_of(path, name=family).recognize(path)
    except CheckpointError:
        return False
    return True

paths = {name: Path(path) for name, path in json.loads(sys.argv[1]).items()}
found = {name: [family_of(path).name, *(f for f in FAMILIES if recognizes(f, path))] for name, path in paths.items()}
print(json.dumps({"found": found, "slow": sorted({"torch", "transformers", "onnx"} & set(sys.modules))}))
"""

Model = Callable[[str], Path]
Source = Callable[[str], SourceModel]


def test_every_family_has_a_row() -> None:
    assert {row.family for row in ROWS.values()} == set(FAMILIES)
    exported = {row.family for row in ROWS.values() if row.exported}
    assert exported == set(FAMILIES)


def test_a_model_is_recognized_by_its_own_family_alone_and_without_pytorch(family_model: Model) -> None:
    paths = json.dumps({name: str(family_model(name)) for name in ROWS})
    done = subprocess.run([sys.executable, "-c", RECOGNIZE, paths], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = {name: [row.family, row.family] for name, row in ROWS.items()}
    assert json.loads(done.stdout) == {"found": found, "slow": []}


@pytest.mark.parametrize("name", ROWS)
def test_a_loaded_model_can_become_a_bundle(name: str, family_model: Model, family_source: Source) -> None:
    model = family_source(name)
    assert isinstance(model, SourceModel) and model.config["preset"]
    check_draft(describe(model, ROWS[name].family, provenance={"checkpoint_sha256": "0" * 64}), family_model(name))


def test_every_option_has_a_value_here() -> None:
    assert set(VALUES) == {field.name for field in fields(LoadOptions)} - {"max_batch"}


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name, row in ROWS.items() for option in VALUES if option not in row.options],
)
def test_an_option_without_a_use_is_an_error(name: str, option: str, family_model: Model) -> None:
    row, path = ROWS[name], family_model(name)
    options = LoadOptions(max_batch=2, **{**row.options, option: VALUES[option]})
    with pytest.raises(UsageError) as caught:
        family_of(path).load(path, options)
    assert caught.value.exit_code == 2 and caught.value.fix


@pytest.mark.parametrize("name", ROWS)
def test_outputs_fit_their_specs_at_every_size(name: str, family_source: Source) -> None:
    model, batches = with_samples(family_source(name)), set()
    specs = [graph.spec for graph in model.graphs.values()]
    golden = make_golden(model, ROWS[name].max_batch)
    # Every tensor: its type, its sizes, and that it is finite.
    golden.check(specs)
    for case in golden.cases:
        for spec in specs:
            for tensor in spec.outputs:
                rows = golden.expected(case, spec)[tensor.name]
                batches.add(len(rows))
                if tensor.kind is Kind.EMBEDDING:
                    np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-5)
                # The shortest texts are all alike. Else what a model sees makes a difference.
                if tensor.kind in (Kind.EMBEDDING, Kind.LOGITS) and case == golden.largest():
                    assert np.ptp(rows, axis=0).max() > 1e-4
    assert {1, ROWS[name].max_batch} <= batches


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.exported])
def test_every_verb_of_a_bundle_can_be_called(name: str, family_bundle: Model) -> None:
    picture = FOLDER / PHOTOGRAPHS[1]
    with simmim_export.load(family_bundle(name), engine="ort") as model:
        manifest = model.bundle.manifest
        assert manifest.family == ROWS[name].family and manifest.pipelines
        for pipeline in manifest.pipelines:
            clip = Kind.FRAMES in manifest.takes(pipeline)
            assert model.pipeline(pipeline.verb, clip=clip) == pipeline
            ask(model, pipeline, model.encode_clip([picture] * 3) if clip else picture)
        if manifest.similarity is not None:
            answers = model.classify(picture, ["a flower", "a red dog"])
            assert {answer.label for answer in answers} == {"a flower", "a red dog"}
            if manifest.similarity.score is Score.SOFTMAX:
                assert sum(answer.score for answer in answers) == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.exported])
def test_no_graph_breaks_a_rule_of_tensorrt(name: str, family_bundle: Model) -> None:
    graphs = sorted((family_bundle(name) / "graphs").glob("*.fp32.onnx"))
    assert graphs
    for path in graphs:
        broken = [str(finding) for finding in lint(onnx.load(path)) if not finding.advice]
        assert not broken, f"{path.name}: {broken}"


def ask(model: simmim_export.Model, pipeline: Pipeline, image: Any) -> None:
    """Call the verb of ``pipeline``, and look at what it gives."""
    texts = ["what is red ?", "two dogs", "a small square"]
    if pipeline.verb in (Verb.EMBED_IMAGE, Verb.EMBED_TEXT):
        is_image = pipeline.verb is Verb.EMBED_IMAGE
        rows = model.embed_image([image] * 3) if is_image else model.embed_text(texts)
        assert rows.shape == (3, model.bundle.manifest.embedding["dim"])
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    elif pipeline.verb is Verb.MATCH:
        scores = model.match(image, texts)
        assert scores.shape == (3,) and scores.min() >= 0 and scores.max() <= 1
    else:
        labels = model.bundle.manifest.labels[pipeline.labels]
        every = len(labels)
        if pipeline.verb is Verb.CLASSIFY:
            found = [model.classify(image, top_k=every)]
        elif pipeline.verb is Verb.CLASSIFY_TEXT:
            found = model.classify_text(image, texts, top_k=every)
        else:
            found = model.answers(image, texts, top_k=every)
        for answers in found:
            assert {answer.label for answer in answers} == set(labels)
            assert sum(answer.score for answer in answers) == pytest.approx(1, abs=1e-5)


# -- what all families of transformers refuse ------------------------------------------------------------------------------

WEIGHTS, PICKLED, MARK = "model.safetensors", "pytorch_model.bin", "executed"


class Code:
    """Makes the file :data:`MARK` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(MARK),)


def without(*patterns: str) -> Callable[[Path], object]:
    def remove(folder: Path) -> None:
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()

    return remove


def with_text(name: str, text: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(text, encoding="utf-8")

    return write


@contextmanager
def weights_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The weights in ``folder``. What is left of them is written again."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / WEIGHTS)
    yield state
    (folder / WEIGHTS).unlink()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})


def truncated(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_bytes(content[:-1000])


def without_a_weight(folder: Path) -> None:
    with weights_of(folder) as state:
        del state[min(state)]


def of_another_width(folder: Path) -> None:
    with weights_of(folder) as state:
        for name, tensor in state.items():
            state[name] = tensor[..., : (tensor.shape[-1] + 1) // 2] if tensor.ndim else tensor


def not_finite(folder: Path) -> None:
    with weights_of(folder) as state:
        max(state.values(), key=lambda tensor: tensor.numel()).view(-1)[7] = float("nan")


def without_a_shard(folder: Path) -> None:
    """The second of two shards is missing."""
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    with weights_of(folder) as state:
        names = sorted(state)
    shards = {name: first if index < len(names) / 2 else second for index, name in enumerate(names)}
    (folder / WEIGHTS).rename(folder / first)
    index = json.dumps({"metadata": {"total_size": (folder / first).stat().st_size}, "weight_map": shards})
    (folder / f"{WEIGHTS}.index.json").write_text(index, encoding="utf-8")


def with_code(folder: Path) -> None:
    """Besides the code, there is as much as the weights need."""
    import torch

    size = (folder / WEIGHTS).stat().st_size
    (folder / WEIGHTS).unlink()
    torch.save({"code": Code(), "zeros": torch.zeros(size // 4)}, folder / PICKLED)


BAD: dict[str, Callable[[Path], object]] = {
    "no weights": without(WEIGHTS),
    "no tokenizer": without("tokenizer*", "vocab*", "merges*"),
    "no image processor": without("preprocessor_config.json", "processor_config.json"),
    "no configuration": without("config.json"),
    "a configuration that is not JSON": with_text("config.json", "{"),
    "a tokenizer that is not one": with_text("tokenizer.json", "[]"),
    "truncated weights": truncated,
    "a missing weight": without_a_weight,
    "weights of another width": of_another_width,
    "weights that are not numbers": not_finite,
    "a missing shard": without_a_shard,
    "weights with code": with_code,
}


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_not_real_floats_are_refused(kind: torch.dtype, family_model: Model, tmp_path: Path) -> None:
    folder = linked(family_model("vit_bert"), tmp_path / "copy")
    with weights_of(folder) as weights:
        name = next(name for name, weight in weights.items() if weight.ndim == 2)
        weights[name] = weights[name].to(kind)
    refused("vit_bert", folder)


def test_a_dangling_link_beside_the_weights_is_ignored(family_model: Model, tmp_path: Path) -> None:
    folder = linked(family_model("vit_bert"), tmp_path / "copy")
    (folder / "pytorch_model.bin").symlink_to(tmp_path / "nowhere")
    assert family_of(folder).load(folder, LoadOptions(max_batch=2)).graphs


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_folder_of_links_loads(name: str, family_model: Model, tmp_path: Path) -> None:
    """So the folders below are refused for what is wrong with them."""
    assert ROWS[name].load(linked(family_model(name), tmp_path / "model")).config["preset"]


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_damaged_or_hostile_folder_is_one_error(
    name: str, case: str, family_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = linked(family_model(name), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    BAD[case](folder)
    refused(name, folder)
    assert not Path(MARK).exists()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_folder_that_asks_for_its_own_code_is_one_error(name: str, family_model: Model, tmp_path: Path) -> None:
    refused(name, changed(family_model(name), tmp_path / "model", auto_map={"AutoModel": "model.Model"}))


def refused(name: str, folder: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        ROWS[name].load(folder)
    assert caught.value.exit_code == 5 and caught.value.fix
    assert str(caught.value.where).startswith(str(folder))
