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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import second_family
from support import Once

from simmim_export.proof.evidence import Evidence, Task

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


def trained(steps: int = 120, batch: int = 32) -> Any:
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
    task = Task("squares", texts, np.tile(np.array([1, 0], np.int64), (len(colors), 1)))
    return Evidence(
        {"squares": images}, {"decision": task}, {"name": "squares"}, tuple(f"a {color} square" for color in names)
    )


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
        words = ("--precision", "fp16", "--precision", "int8", "--budget", "answers=5pt,cosine=0.98")
        done = run("cli", "onnx", checkpoint, "-o", path, *words)
        assert done.returncode == 0, done.stderr

    return once("second-bundle", export)


def test_the_family_is_small() -> None:
    assert len(Path(second_family.__file__).read_text().splitlines()) < 80


def test_the_bundle_has_the_familys_own_names(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["family"] == "second"
    assert [graph["name"] for graph in manifest["graphs"]] == ["eye", "ear", "judge"]
    variants = {(row["graph"], row["variant"]) for row in manifest["artifacts"]}
    assert {(graph, form) for graph in ("eye", "ear", "judge") for form in ("fp32", "fp16", "int8-u8")} <= variants
    assert manifest["plans"]["ort"]


def test_the_bundle_verifies_in_every_precision(run: Run, bundle: Path) -> None:
    for precision in ("fp32", "int8"):
        done = run("cli", "verify", bundle, "--precision", precision, "--json")
        assert done.returncode == 0, done.stderr


def test_the_bundle_embeds_and_answers(run: Run, bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    images, colors = photos(3, seed=3)
    paths = [tmp_path / f"{color}-{index}.png" for index, color in enumerate(colors)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    done = run("cli", "embed", bundle, *paths, "--text", "a red square", "-o", tmp_path / "vectors.npz")
    assert done.returncode == 0, done.stderr
    for path, color in zip(paths, colors, strict=True):
        done = run("cli", "ask", bundle, path, f"is it {color} ?", "--json")
        assert done.returncode == 0, done.stderr
        assert "yes" in done.stdout


def test_a_verb_that_the_family_lacks_is_an_error(run: Run, bundle: Path, picture: Path) -> None:
    done = run("cli", "match", bundle, picture, "a red square")
    assert done.returncode == 2 and "match" in done.stderr, done.stderr


def test_the_bundle_is_certified(run: Run, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    done = run("cli", "certify", copy)
    assert done.returncode == 0, done.stderr
    assert (copy / "certificate.json").is_file()


def test_the_bundle_is_benchmarked(run: Run, bundle: Path, checkpoint: Path) -> None:
    done = run("benchmarks.cli", "latency", bundle, "--checkpoint", checkpoint, "--engine", "torch", "--engine", "ort")
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_of_simmim_is_still_simmims(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    code = f"from simmim_export.models.family import family_of; print(family_of({str(tiny_checkpoint)!r}).name)"
    assert code


def test_a_package_in_the_working_directory_adds_no_family(checkpoint: Path, tmp_path: Path) -> None:
    """Also where Python itself searches the working directory, as ``python -m`` does."""
    planted = install(tmp_path / "planted")
    (planted / "second_family.py").write_text("raise SystemExit('code from the working directory ran')\n")
    for safe in (True, False):
        done = run_in(planted, None)("cli", "onnx", checkpoint, "-o", tmp_path / "bundle", safe=safe)
        assert done.returncode == 5, done.stderr
        assert "working directory ran" not in done.stderr + done.stdout


def test_a_family_that_cannot_be_imported_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    site = install(tmp_path / "site")
    (site / "second_family.py").write_text("import a_package_that_is_not_there\n")
    done = run_in(tmp_path, site)("cli", "onnx", checkpoint, "-o", tmp_path / "bundle")
    assert done.returncode == 3 and "second-family" in done.stderr, done.stderr
