"""What fuzz targets share: seeds, folders of inputs, digests that are put right, and the rule that every target is held to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from arrays import unzipped, zipped
from mutators import Files

from simmim_export.errors import SimmimError

NO_DIGEST = "0" * 64
TEXTS = (
    "what colour is the circle ?",
    "a",
    "red " * 40,
    "Ünïcödé 漢字 \u202e 😀",
    "a" * 3000,
    "\ufeff?",
    "a\0b",
    "İ" * 30,
)


@dataclass(frozen=True)
class Sources:
    """What seeds are made from: a real bundle, a real checkpoint, and a folder to work in."""

    bundle: Path
    checkpoint: Path
    scratch: Path

    @cached_property
    def small(self) -> Path:
        """A small copy of the bundle: FP32 graphs, two golden cases, and evidence for every kind of task."""
        return small_bundle(self.bundle, self.scratch / "small-bundle")


def place(folder: Path, base: Path | None, files: Mapping[str, bytes]) -> Path:
    """A fresh ``folder`` with ``files`` over hard links to what is in ``base``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if base is not None:
        shutil.copytree(base, folder, copy_function=os.link, dirs_exist_ok=True)
    for name, data in files.items():
        path = folder / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def attempt(*steps: Callable[[], object]) -> None:
    """Take every step, also after one that raised a SimmimError; raise the first of these at the end."""
    first: SimmimError | None = None
    for step in steps:
        try:
            step()
        except SimmimError as error:
            first = first or error
    if first is not None:
        raise first


def digest_of(content: Mapping[str, Any]) -> str:
    """The digest that a manifest or certificate has of its own content."""
    plain = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def signed(text: str) -> bytes:
    """``text`` with the right digest in place of :data:`NO_DIGEST`, if it can be computed at all."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError):
        text = text.replace(NO_DIGEST, digest_of(json.loads(text)), 1)
    return text.encode("utf-8", "surrogatepass")


def sealed(files: Files, manifest: dict[str, Any]) -> Files:
    """``files`` with a manifest that names their sizes and digests."""
    content = json.loads(json.dumps(manifest))
    for name, data in files.items():
        sha256 = hashlib.sha256(data).hexdigest()
        if name in content["files"]:
            content["files"][name] = sha256
        for artifact in content["artifacts"]:
            if artifact["path"] == name:
                artifact |= {"sha256": sha256, "bytes": len(data)}
    return {"manifest.json": signed(json.dumps(content | {"digest": NO_DIGEST}))} | files


def small_bundle(bundle: Path, target: Path) -> Path:
    """See :attr:`Sources.small`."""
    from simmim_export import load
    from simmim_export.proof.evidence import Evidence, Task
    from simmim_export.proof.examine import Examiner

    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["artifacts"] = [artifact for artifact in manifest["artifacts"] if artifact["variant"] == "fp32"]
    manifest["plans"] = {"ort": {"int8-dot": "fp32"}}
    files = {artifact["path"]: (bundle / artifact["path"]).read_bytes() for artifact in manifest["artifacts"]}
    files["tokenizer.json"] = (bundle / "tokenizer.json").read_bytes()
    golden = unzipped((bundle / "golden.npz").read_bytes())
    cases = ("batch 1, sequence 3/", "batch 8, sequence 20/")
    files["golden.npz"] = zipped({name: data for name, data in golden.items() if name.startswith(cases)})
    size, labels = manifest["preprocessing"]["image"]["height"], manifest["labels"]
    count = np.zeros((3, 2), np.int64)
    asked = (("what colour is it ?", "is it red ?"), ("red circle", "a square"), ("how many", "left of the circle"))
    images = {"asked": np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)}
    tasks = {head: Task(images="asked", texts=asked, labels=count) for head in ("match", "vqa")}
    tasks["vqa"] = Task(
        images="asked", texts=asked, labels=count, scores=np.full((3, 2, len(labels["vqa"])), 0.5, np.float32)
    )
    tasks["retrieval"] = Task(images="asked", texts=asked, labels=count)
    evidence = Evidence(images=images, tasks=tasks, source={"name": "fuzz"}, plain=("a plain text",))
    manifest["files"] |= {"evidence.npz": ""}
    place(target, None, sealed(files | {"evidence.npz": evidence.save()}, manifest))
    with load(target) as model:
        outputs = Examiner(model.bundle.manifest, evidence, tokens=model.tokens).outputs(model.session)
    return place(target, None, sealed(files | {"evidence.npz": evidence.with_reference(outputs).save()}, manifest))


class Target:
    """One reader. ``make`` gives an input's files, ``run`` reads them from a folder; ``base`` is what they are laid over."""

    name: ClassVar[str]

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.base: Path | None = None
        self.seeds: list[bytes] = []
        self.prepare()

    def prepare(self) -> None:
        """Make the seeds."""

    def valid(self) -> Files:
        """An input that must be accepted."""
        return {"input": self.seeds[0]}

    def make(self, rng: random.Random) -> Files:
        """An input."""
        raise NotImplementedError

    def run(self, folder: Path) -> None:
        """Read an input. Raise SimmimError, or nothing; AssertionError for hostile input that was accepted."""
        raise NotImplementedError


def check(target: Target, folder: Path) -> SimmimError | None:
    """Run ``target``. Return the SimmimError it ended in, or None; anything else that it raises is a finding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.run(folder)
        except SimmimError as error:
            assert error.exit_code in (2, 3, 4, 5), f"{type(error).__name__} with exit code {error.exit_code}"
            assert str(error)
            return error
    return None
