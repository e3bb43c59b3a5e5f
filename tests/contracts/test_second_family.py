"""A family that another package adds is exported, verified, asked, certified and benchmarked like SimMIM.

The package is second_family.py and a .dist-info folder that names it. All else here is what its owner would have: data, a
training run, and the commands.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import second_family
from support import Once

from simmim_export.bundle import Bundle
from simmim_export.errors import UsageError
from simmim_export.proof.evidence import Evidence, Task
from simmim_export.spec import PrecisionPlan

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (40, 60, 220),
    "yellow": (220, 210, 40),
    "white": (230, 230, 230),
    "black": (10, 10, 10),
}
WORDS = ("[PAD]", "[UNK]", "[END]", "is", "it", "?", "a", "square", *COLORS)
SIDE = second_family.SIDE
BUDGET = "answers=5pt,cosine=0.98"
Run = Callable[..., subprocess.CompletedProcess[str]]


def tokenizer_json() -> str:
    """A tokenizer.json whose texts end in [END], and begin with no mark."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 2)])
    return tokenizer.to_str()


def photos(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """``count`` photos uint8 [count, SIDE, SIDE, 3] of a square on a noisy gray ground, and the color of each square."""
    random = np.random.default_rng(seed)
    images = random.integers(100, 156, (count, SIDE, SIDE, 3), dtype=np.uint8)
    colors = [str(random.choice(list(COLORS))) for _ in range(count)]
    for image, color in zip(images, colors, strict=True):
        top, left = random.integers(0, SIDE - 20, 2)
        shade = random.integers(-10, 11, (20, 20, 3))
        image[top : top + 20, left : left + 20] = np.clip(np.array(COLORS[color]) + shade, 0, 255)
    return images, colors


def trained(steps: int = 250, batch: int = 32) -> Any:
    """The family's modules after a short training: the eye and the ear agree on colors, the judge answers "is it red ?"."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(0)
    # The tensors are so small that a second thread would only wait.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    parts = second_family.modules(len(WORDS)).train()
    optimizer = torch.optim.Adam(parts.parameters(), lr=5e-3)
    names = list(COLORS)
    first = WORDS.index(names[0])
    captions = torch.tensor([[6, first + color, 7, 2] for color in range(len(names))])
    questions = torch.tensor([[3, 4, first + color, 5, 2] for color in range(len(names))])
    images, colors = photos(512, seed=1000)
    pool, truths = torch.from_numpy(images), torch.tensor([names.index(color) for color in colors])
    for _ in range(steps):
        rows = torch.randint(len(pool), (batch,))
        photo, truth = pool[rows], truths[rows]
        likeness = parts["eye"](photo) @ parts["ear"](captions, torch.ones_like(captions)).T
        # Half of the questions name the color that is there.
        asked = torch.where(torch.rand(batch) < 0.5, truth, torch.randint(len(names), (batch,)))
        verdict = parts["judge"](photo, questions[asked], torch.ones(batch, 5, dtype=torch.int64))
        loss = cross_entropy(likeness / 0.1, truth) + cross_entropy(verdict, (asked == truth).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return parts.eval()


def evidence() -> Evidence:
    """Photos that training never drew, with two questions each: about the color that is there, and about another."""
    images, colors = photos(96, seed=1)
    names = list(COLORS)
    others = [names[(names.index(color) + 1 + index % 5) % 6] for index, color in enumerate(colors)]
    texts = tuple((f"is it {own} ?", f"is it {other} ?") for own, other in zip(colors, others, strict=True))
    labels = np.tile(np.array([1, 0], np.int64), (len(colors), 1))
    task = Task(images="squares", texts=texts, labels=labels)
    captions = tuple(f"a {color} square" for color in names)
    return Evidence(images={"squares": images}, tasks={"decision": task}, source={"name": "squares"}, plain=captions)


def make_checkpoint(path: Path) -> None:
    """Train, and write a checkpoint of the second family."""
    import torch
    from safetensors.torch import save_file

    images, _ = photos(48, seed=2)
    patterns = ("is it {} ?", "a {} square", "it is {}", "is a square {} ?", "it is a {} square", "{}")
    texts = [pattern.format(color) for pattern in patterns for color in COLORS]
    image = {"height": SIDE, "width": SIDE, "resize": "squash", "interpolation": "bilinear"}
    about = {
        "config": {"preset": "second", "vocabulary": len(WORDS)},
        "preprocessing": {"image": image, "text": {"max_length": second_family.LONGEST}},
        "tokenizer": tokenizer_json(),
        "texts": texts,
        "labels": {"decision": second_family.ANSWERS},
    }
    extra = {"images": torch.from_numpy(images)}
    extra["evidence"] = torch.from_numpy(np.frombuffer(evidence().save(), np.uint8).copy())
    save_file(trained().state_dict() | extra, path, {"format": "second", "about": json.dumps(about)})


def install(folder: Path) -> Path:
    """``folder`` with the package in it, as pip would leave it."""
    folder.mkdir()
    shutil.copy(second_family.__file__, folder)
    metadata = folder / "second_family-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: second-family\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[simmim_export.families]\nsecond = second_family:SecondFamily\n")
    return folder


def run_in(folder: Path, path: Path | None) -> Run:
    """Commands in the working directory ``folder``, with the packages in ``path`` installed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    environment |= {} if path is None else {"PYTHONPATH": str(path)}

    def run(module: str, *words: object, safe: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *(["-P"] if safe else []), "-m", f"simmim_export.{module}", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env=environment)

    return run


@pytest.fixture(scope="session")
def checkpoint(once: Once) -> Path:
    """A trained checkpoint of the second family."""
    return once("second.safetensors", make_checkpoint)


@pytest.fixture(scope="session")
def run(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Commands on a machine where the package of the second family is installed."""
    return run_in(tmp_path_factory.mktemp("elsewhere"), once("site", install))


@pytest.fixture(scope="session")
def bundle(once: Once, run: Run, checkpoint: Path) -> Path:
    """The bundle of ``checkpoint`` in every precision, INT8 within a budget."""

    def export(path: Path) -> None:
        words = ("--precision", "fp16", "--precision", "int8", "--budget", BUDGET)
        done = run("cli", "onnx", checkpoint, "-o", path, *words)
        assert done.returncode == 0, done.stderr

    return once("second-bundle", export)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A picture file of a square of each color."""
    from PIL import Image

    folder, paths = tmp_path_factory.mktemp("pictures"), {}
    for image, color in zip(*photos(60, seed=3), strict=True):
        if color not in paths:
            paths[color] = folder / f"{color}.png"
            Image.fromarray(image).save(paths[color])
    return paths


def test_the_family_is_small() -> None:
    assert len(Path(second_family.__file__).read_text().splitlines()) < 80


def test_the_bundle_has_the_familys_own_names(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.family == "second"
    assert [graph.name for graph in manifest.graphs] == ["eye", "ear", "judge"]
    assert [pipeline.name for pipeline in manifest.pipelines] == ["see", "hear", "decide"]
    files = {(artifact.graph, artifact.variant) for artifact in manifest.artifacts}
    assert {(graph.name, variant) for graph in manifest.graphs for variant in ("fp32", "fp16")} <= files


def test_quantization_makes_files_smaller_and_a_plan_chooses_among_them(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    sizes = {(artifact.graph, artifact.variant): artifact.bytes for artifact in manifest.artifacts}
    for variant in ("int8-dot", "int8-u8", "int8-s8"):
        quantized = [graph for graph, other in sizes if other == variant]
        assert quantized and all(sizes[graph, variant] < sizes[graph, "fp32"] for graph in quantized)
    assert manifest.plans["ort"]
    for plan in manifest.plans["ort"].values():
        PrecisionPlan.parse(plan).check(graph.name for graph in manifest.graphs)


@pytest.mark.parametrize("precision", ["fp32", "planned"])
def test_the_bundle_verifies_with_its_evidence(run: Run, bundle: Path, precision: str) -> None:
    budget = () if precision == "fp32" else ("--budget", BUDGET)
    done = run("cli", "verify", bundle, "--precision", precision, "--evidence", *budget)
    assert done.returncode == 0, done.stderr


def test_the_bundle_embeds_images_and_texts(
    run: Run, bundle: Path, pictures: Mapping[str, Path], tmp_path: Path
) -> None:
    captions = [f"a {color} square" for color in pictures]
    vectors = []
    for name, words in (("images", pictures.values()), ("texts", [w for c in captions for w in ("--text", c)])):
        done = run("cli", "embed", bundle, *words, "-o", tmp_path / f"{name}.npz")
        assert done.returncode == 0, done.stderr
        vectors.append(np.load(tmp_path / f"{name}.npz")["embeddings"])
    assert vectors[0].shape == (len(pictures), second_family.WIDTH)
    # Each picture is closest to the caption with its own color.
    assert (vectors[0] @ vectors[1].T).argmax(axis=1).tolist() == list(range(len(pictures)))


def test_the_bundle_answers_questions(run: Run, bundle: Path, pictures: Mapping[str, Path]) -> None:
    for color in ("red", "blue"):
        done = run("cli", "ask", bundle, pictures["red"], f"is it {color} ?", "--top-k", 1, "--json")
        assert done.returncode == 0, done.stderr
        assert f'"{"yes" if color == "red" else "no"}"' in done.stdout


def test_a_verb_that_the_family_lacks_is_an_error(run: Run, bundle: Path, pictures: Mapping[str, Path]) -> None:
    done = run("cli", "match", bundle, pictures["red"], "a red square")
    assert done.returncode == 2 and done.stderr.startswith("error:"), done.stderr


def test_attention_that_the_family_lacks_is_an_error(
    once: Once, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simmim_export.export.exporter import export_bundle

    monkeypatch.syspath_prepend(once("site", install))
    with pytest.raises(UsageError) as caught:
        export_bundle(checkpoint, tmp_path / "bundle", attention=True)
    assert caught.value.fix is not None and "--attention" in caught.value.fix


def test_the_bundle_is_certified(run: Run, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    done = run("cli", "certify", copy, "--engine", "ort", "--engine", "ort:int8", "--budget", BUDGET, "--rounds", 2)
    assert done.returncode == 0, done.stderr
    assert (copy / "certificate.json").is_file()
    done = run("cli", "verify", copy, "--engine", "auto")
    assert done.returncode == 0, done.stderr


def test_the_bundle_is_benchmarked(run: Run, bundle: Path, checkpoint: Path) -> None:
    engines = ("--engine", "torch", "--engine", "ort", "--engine", "ort:int8")
    done = run(
        "benchmarks.cli", "--bundle", bundle, "--checkpoint", checkpoint, *engines, "--rounds", 1, "--iterations", 2
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("see", "hear", "decide")), done.stdout


@pytest.mark.parametrize("safe", [True, False])
def test_a_package_in_the_working_directory_adds_no_family(tmp_path: Path, safe: bool) -> None:
    """Also where Python itself searches the working directory, as ``python -m`` does."""
    planted = install(tmp_path / "planted")
    (planted / "second_family.py").write_text("raise SystemExit('code from the working directory ran')\n")
    done = run_in(planted, None)("cli", "onnx", "none.safetensors", "-o", tmp_path / "bundle", safe=safe)
    assert done.returncode == 5 and "none.safetensors" in done.stderr, done.stderr


FAMILY = "class SecondFamily:\n    name = 'second'\n"
BROKEN = {
    "an import that fails": "import a_package_that_is_not_there",
    "an import that ends the process": "raise SystemExit(0)",
    "a family that is not a class": "SecondFamily = 3",
    "a family that fails to look": f"{FAMILY}    def recognize(self, path):\n        raise ValueError",
    "a family that ends the process": f"{FAMILY}    def recognize(self, path):\n        raise SystemExit(0)",
    "a family that loads nothing": f"{FAMILY}    recognize = load = lambda self, path, **_: None",
}


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_a_package_whose_family_is_broken_is_named(tmp_path: Path, tiny_checkpoint: Path, source: str) -> None:
    site = install(tmp_path / "site")
    (site / "second_family.py").write_text(source + "\n")
    done = run_in(tmp_path, site)("cli", "onnx", tiny_checkpoint, "-o", tmp_path / "bundle")
    assert done.returncode == 3 and "second-family" in done.stderr, done.stderr
    assert not (tmp_path / "bundle").exists()


def test_damaged_metadata_of_another_package_does_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "site/other-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "entry_points.txt").write_bytes(b"\xff\xfe[simmim_export.families]")
    done = run_in(tmp_path, tmp_path / "site")("cli", "onnx", "none.pt", "-o", tmp_path / "bundle")
    assert done.returncode == 5 and "none.pt" in done.stderr, done.stderr
