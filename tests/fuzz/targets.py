"""The fuzz targets: for each reader of outside data, how to make hostile input for it and how to hand it over.

A target's ``make`` gives files; they are laid over the target's ``base`` folder (a valid bundle, or nothing), and ``run`` gets
that folder. Any input must end in success or in a SimmimError. Where a file has digests, most inputs have them put right, so that
what lies behind the digests is reached as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from formats import (
    animations,
    mutate_onnx,
    mutate_picture,
    mutate_pt,
    mutate_safetensors,
    mutate_tar,
    mutate_tokenizer,
    pictures,
    uses_external_data,
)
from mutators import Files, damage, dumps, mutate_json, mutate_npz, mutate_tree, npy, read_npy, unzipped, zipped

from simmim_export.errors import SimmimError

NO_DIGEST = "0" * 64
TEXTS = ("what colour is the circle ?", "a", "red " * 40, "Ünïcödé 漢字 \u202e 😀", "a" * 3000, "\ufeff?", "a\0b", "İ" * 30)


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


# -- digests -----------------------------------------------------------------------------------------------------------


def digest_of(content: Mapping[str, Any]) -> str:
    """The digest that a manifest or certificate has of its own content."""
    plain = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def signed(text: str) -> bytes:
    """``text`` with the right digest in place of :data:`NO_DIGEST`, if it can be computed at all."""
    try:
        text = text.replace(NO_DIGEST, digest_of(json.loads(text)), 1)
    except (ValueError, RecursionError, AttributeError, TypeError):
        pass
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
    manifest["plans"] = {"ort": "fp32"}
    files = {artifact["path"]: (bundle / artifact["path"]).read_bytes() for artifact in manifest["artifacts"]}
    files["tokenizer.json"] = (bundle / "tokenizer.json").read_bytes()
    golden = unzipped((bundle / "golden.npz").read_bytes())
    cases = ("batch 1, sequence 3/", "batch 2, sequence 20/")
    files["golden.npz"] = zipped({name: data for name, data in golden.items() if name.startswith(cases)})
    size, labels = manifest["preprocessing"]["image"]["height"], manifest["labels"]
    count = np.zeros((3, 2), np.int64)
    asked = (("what colour is it ?", "is it red ?"), ("red circle", "a square"), ("how many", "left of the circle"))
    images = {"asked": np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)}
    tasks = {head: Task("asked", asked, count) for head in ("match", "vqa")}
    tasks["vqa"] = Task("asked", asked, count, np.full((3, 2, len(labels["vqa"])), 0.5, np.float32))
    tasks["retrieval"] = Task("asked", asked, count)
    evidence = Evidence(images, tasks, {"name": "fuzz"}, ("a plain text",))
    manifest["files"] |= {"evidence.npz": ""}
    place(target, None, sealed(files | {"evidence.npz": evidence.save()}, manifest))
    with load(target) as model:
        outputs = Examiner(model.bundle.manifest, evidence, model.tokens).outputs(model.session)
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


# -- bundles -----------------------------------------------------------------------------------------------------------


class OfBundle(Target):
    """A target whose input is a file of a bundle."""

    def prepare(self) -> None:
        self.base = self.sources.small
        self.manifest = json.loads((self.base / "manifest.json").read_text(encoding="utf-8"))

    def valid(self) -> Files:
        return sealed({}, self.manifest | {"metrics": {"changed": 1}})

    def read(self, name: str) -> bytes:
        assert self.base is not None
        return (self.base / name).read_bytes()


class ManifestTarget(OfBundle):
    name = "manifest"

    def make(self, rng: random.Random) -> Files:
        if rng.random() < 0.08:
            return {"manifest.json": damage(rng, self.read("manifest.json"))}
        content = json.loads(json.dumps(self.manifest | {"digest": NO_DIGEST}))
        text = dumps(mutate_tree(rng, content))
        return {"manifest.json": signed(text) if rng.random() < 0.97 else text.encode("utf-8", "surrogatepass")}

    def run(self, folder: Path) -> None:
        from simmim_export import Bundle, load

        bundle = Bundle.open(folder)
        assert len(bundle.digest) == 64
        attempt(bundle.check, lambda: load(folder, precision="planned").close(), lambda: use(load(folder)))


def use(model: Any) -> None:
    """Every verb, on one picture and one text."""
    image = np.zeros((9, 7, 3), np.uint8)
    with model:
        attempt(
            lambda: model.embed_image([image]),
            lambda: model.embed_text([TEXTS[0]]),
            lambda: model.match(image, [TEXTS[0]]),
            lambda: model.answer(image, TEXTS[0]),
            lambda: model.classify(image),
            lambda: model.classify_text(image, [TEXTS[0]]),
            lambda: model.explain(image, TEXTS[0]),
            lambda: model.encode_clip([image, image]),
        )


class GoldenTarget(OfBundle):
    name = "golden"

    def make(self, rng: random.Random) -> Files:
        return sealed({"golden.npz": mutate_npz(rng, self.read("golden.npz"))}, self.manifest)

    def run(self, folder: Path) -> None:
        from simmim_export import load

        with load(folder) as model:
            reports = model.verify()
        for report in reports:
            finite = all(np.isfinite([row.scaled_error, row.cosine]).all() for row in report.rows)
            assert not report.passed or (report.rows and finite), f"{report.graph} passed without a finite comparison"


class EvidenceTarget(OfBundle):
    name = "evidence"

    def make(self, rng: random.Random) -> Files:
        data = self.read("evidence.npz")
        if rng.random() < 0.35:
            members = unzipped(data)
            words = mutate_json(rng, read_npy(members["words.npy"]).tobytes())
            data = zipped(members | {"words.npy": npy(np.frombuffer(words, np.uint8))})
        else:
            data = mutate_npz(rng, data)
        return sealed({"evidence.npz": data}, self.manifest)

    def run(self, folder: Path) -> None:
        from simmim_export import Bundle, load
        from simmim_export.proof.examine import Examiner, require_evidence

        evidence = require_evidence(Bundle.open(folder))
        for name, array in evidence.reference.items():
            assert array.dtype == np.float32, f"a reference {name} of {array.dtype} was accepted"
            assert np.isfinite(array).all(), f"a reference {name} that is not finite was accepted"
        with load(folder) as model:
            examiner = Examiner(model.bundle.manifest, evidence, model.tokens)
            figures = examiner.figures(examiner.outputs(model.session))
        text = json.dumps(figures)
        assert "NaN" not in text and "Infinity" not in text, "figures that are not finite"


class CertificateTarget(OfBundle):
    name = "certificate"

    def prepare(self) -> None:
        super().prepare()
        from simmim_export import Bundle
        from simmim_export.certificate import Certificate, write
        from simmim_export.engines import versions
        from simmim_export.host import fingerprint

        assert self.base is not None
        bundle = Bundle.open(place(self.sources.scratch / "certified", self.base, {}))
        parity = {"passed": True, "checks": 3, "scaled_error": 1e-6, "cosine": 1.0}
        graphs = {
            artifact.graph: {
                "artifact": artifact.sha256,
                "precision": "fp32",
                "parity": parity,
                "invariance": {"batch": 0.0, "padding": 0.0},
                "executed": {"executed": {"float": 10}, "source": "profile"},
                "compiled": None,
            }
            for artifact in bundle.manifest.artifacts
        }
        task = {"loss": 0.0, "low": -0.1, "high": 0.1, "metric": "accuracy", "top1": 1.0, "n": 6}
        certificates = [
            Certificate(
                engine=engine,
                precision="fp32",
                plan="fp32",
                host=fingerprint(),
                versions=dict(versions(engine)),
                graphs=graphs,
                figures={"embeddings": {}, "tasks": {"vqa": task}, "source": {"name": "fuzz"}},
                latency={pipeline.name: 0.001 for pipeline in bundle.manifest.pipelines},
                budget="answers=1pt",
                lines=[{"name": "answers", "found": 0.0, "allowed": "at most 1", "kept": True}],
                passed=True,
                command="simmim-export certify bundle",
                run="2026-01-01T00:00:00+00:00",
            )
            for engine in ("ort", "openvino")
        ]
        self.seeds = [write(bundle, certificates).read_bytes()]

    def valid(self) -> Files:
        return {"certificate.json": self.seeds[0]}

    def make(self, rng: random.Random) -> Files:
        if rng.random() < 0.1:
            return {"certificate.json": damage(rng, self.seeds[0])}
        content = json.loads(self.seeds[0]) | {"digest": NO_DIGEST}
        return {"certificate.json": signed(dumps(mutate_tree(rng, content)))}

    def run(self, folder: Path) -> None:
        from simmim_export import Bundle, load
        from simmim_export.certificate import choose, read
        from simmim_export.engines import versions
        from simmim_export.host import fingerprint

        certificates = read(Bundle.open(folder))

        def show() -> None:
            for certificate in certificates:
                _ = certificate.name, certificate.host_name(), certificate.failures(), certificate.as_json()
                json.dumps(certificate.as_json(), allow_nan=False)

        attempt(
            show,
            lambda: choose(certificates, fingerprint(), versions, where=folder),
            lambda: load(folder, engine="auto").close(),
        )


class GraphTarget(OfBundle):
    name = "graph"
    engine = "ort"

    def valid(self) -> Files:
        return self._with("head.match", self.read("graphs/head.match.fp32.onnx"))

    def _with(self, graph: str, data: bytes) -> Files:
        """A bundle of that graph alone, so that nothing else takes time."""
        manifest = dict(self.manifest)
        manifest["graphs"] = [row for row in manifest["graphs"] if row["name"] == graph]
        manifest["artifacts"] = [row for row in manifest["artifacts"] if row["graph"] == graph]
        outputs = [tensor["name"] for tensor in manifest["graphs"][0]["outputs"]]
        manifest["pipelines"] = [{"name": "alone", "graphs": [graph], "outputs": outputs}]
        return sealed({f"graphs/{graph}.fp32.onnx": data}, manifest)

    def make(self, rng: random.Random) -> Files:
        graph = rng.choice(self.manifest["graphs"])["name"]
        data = mutate_onnx(rng, self.read(f"graphs/{graph}.fp32.onnx"))
        weights = {"graphs/w.bin": bytes(2**18), "w.bin": bytes(2**18)} if rng.random() < 0.2 else {}
        return self._with(graph, data) | weights

    def run(self, folder: Path) -> None:
        from simmim_export import load

        # A child of the driver that hangs in native code is killed; telemetry and caches must not outlive it.
        with load(folder, engine=self.engine, threads=1) as model:
            reports = model.verify()
        (artifact,) = model.bundle.manifest.artifacts
        assert not uses_external_data((folder / artifact.path).read_bytes()), "external weights were accepted"
        assert all(len(report.rows) for report in reports)


class OpenVinoTarget(GraphTarget):
    name = "graph-openvino"
    engine = "openvino"


class BundleTarget(OfBundle):
    name = "bundle"

    def make(self, rng: random.Random) -> Files:
        files: Files = {}
        for name in rng.sample(["tokenizer.json", "golden.npz", "evidence.npz", "graphs/"], rng.choice((1, 2, 3))):
            if name == "graphs/":
                name = rng.choice(self.manifest["artifacts"])["path"]
            mutate = {"json": mutate_tokenizer, "npz": mutate_npz, "onnx": mutate_onnx}[name.rpartition(".")[2]]
            files[name] = mutate(rng, self.read(name))
        manifest = self.manifest
        if rng.random() < 0.5:
            manifest = json.loads(dumps(_small_change(rng, json.loads(json.dumps(manifest)))))
        return sealed(files, manifest)

    def run(self, folder: Path) -> None:
        from simmim_export import Bundle, load

        attempt(Bundle.open(folder).check, lambda: load(folder).verify(), lambda: use(load(folder)))


def _small_change(rng: random.Random, manifest: dict[str, Any]) -> dict[str, Any]:
    part = rng.choice(("model", "graphs", "pipelines", "preprocessing", "labels", "embedding", "metrics", "provenance"))
    value = json.loads(json.dumps(manifest[part]))
    changed = mutate_tree(rng, value)
    try:
        json.loads(dumps(changed))
    except (ValueError, RecursionError):
        return manifest
    return manifest | {part: changed}


class TokenizerTarget(OfBundle):
    name = "tokenizer"

    def prepare(self) -> None:
        super().prepare()
        self.base = None
        self.seeds = [(self.sources.small / "tokenizer.json").read_bytes()]

    def valid(self) -> Files:
        return {"tokenizer.json": self.seeds[0]}

    def make(self, rng: random.Random) -> Files:
        return {"tokenizer.json": mutate_tokenizer(rng, self.seeds[0])}

    def run(self, folder: Path) -> None:
        from simmim_export.errors import BundleError
        from simmim_export.runtime.text import Tokenizer

        try:
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BundleError("not UTF-8") from None
        tokenizer = Tokenizer(text, 20)

        def encode(one: str) -> None:
            ids, mask = tokenizer.encode([one, TEXTS[0]])
            assert ids.shape == mask.shape and ids.shape[0] == 2 and ids.shape[1] <= 20, f"ids of shape {ids.shape}"
            assert ids.dtype == mask.dtype == np.int64 and (ids >= 0).all()

        attempt(*(lambda one=one: encode(one) for one in TEXTS))


class TextTarget(TokenizerTarget):
    name = "text"

    def prepare(self) -> None:
        super().prepare()
        from simmim_export.runtime.text import Tokenizer

        self._tokenizer = Tokenizer(self.seeds[0].decode(), 20)

    def valid(self) -> Files:
        return {"text": TEXTS[0].encode()}

    def make(self, rng: random.Random) -> Files:
        text = "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x110000)))) for _ in range(rng.randrange(60)))
        return {"text": damage(rng, text.encode("utf-8", "surrogatepass")) if rng.random() < 0.5 else text.encode("utf-8", "replace")}

    def run(self, folder: Path) -> None:
        data = (folder / "text").read_bytes()
        ids = [self._tokenizer.encode([given])[0] for given in (data, data.decode("utf-8", "surrogateescape"))]
        assert ids[0].tolist() == ids[1].tolist()


# -- checkpoints and training ------------------------------------------------------------------------------------------


class CheckpointTarget(Target):
    name = "checkpoint"

    def prepare(self) -> None:
        self.seeds = [self.sources.checkpoint.read_bytes()]
        from simmim_export.models import checkpoint

        folder = self.sources.scratch / "checkpoint"
        checkpoint.save(checkpoint.load(self.sources.checkpoint), folder)
        self._folder = {f"folder/{path.name}": path.read_bytes() for path in folder.iterdir()}

    def valid(self) -> Files:
        return {"ckpt.pt": self.seeds[0]}

    def make(self, rng: random.Random) -> Files:
        if rng.random() < 0.7:
            return {"ckpt.pt": mutate_pt(rng, self.seeds[0])}
        name = rng.choice(list(self._folder))
        mutate = mutate_json if name.endswith(".json") else mutate_safetensors
        return self._folder | {name: mutate(rng, self._folder[name])}

    def run(self, folder: Path) -> None:
        from simmim_export.models import checkpoint

        path = folder / "ckpt.pt" if (folder / "ckpt.pt").exists() else folder / "folder"
        loaded = checkpoint.load(path)
        model = checkpoint.build(loaded, path)
        assert not any(value.is_complex() for value in loaded.state.values()), "complex weights were accepted"
        assert model is not None


class TrainerTarget(Target):
    name = "trainer"

    def _stage(self) -> tuple[Any, Any, Any]:
        import torch

        from simmim_export.training.loop import Recipe, make_optimizers

        torch.manual_seed(0)
        stage = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        recipe = Recipe(steps=4)
        return stage, make_optimizers(stage, recipe), recipe

    def prepare(self) -> None:
        from simmim_export.training.loop import Progress, save_state

        path = self.sources.scratch / "trainer.state"
        stage, optimizers, recipe = self._stage()
        save_state(path, stage, optimizers, recipe, Progress(2, 1.0, 8, 0.5), {"data": "shapes"})
        self.seeds = [path.read_bytes()]

    def make(self, rng: random.Random) -> Files:
        return {"input": mutate_pt(rng, self.seeds[0])}

    def run(self, folder: Path) -> None:
        from simmim_export.training.loop import load_state

        progress = load_state(folder / "input", *self._stage(), {"data": "shapes"})
        assert isinstance(progress.step, int) and progress.step >= 0 and progress.seconds >= 0


class ReadersTarget(Target):
    name = "readers"

    def prepare(self) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
        from test_readers import MAKERS

        self._splits: dict[str, str] = {}
        self._files: dict[str, Files] = {}
        for name, make in MAKERS.items():
            root = self.sources.scratch / "readers" / name
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            self._splits[name] = make(root)
            found = {f"{name}/{path.relative_to(root)}": path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
            self._files[name] = found

    def valid(self) -> Files:
        return {name: data for files in self._files.values() for name, data in files.items()}

    def make(self, rng: random.Random) -> Files:
        files = dict(self._files[rng.choice(list(self._files))])
        name = rng.choice(sorted(files, key=lambda n: n.endswith((".jpg", ".png")))[: rng.choice((1, 2, len(files)))])
        data = files.pop(name)
        if rng.random() < 0.1:
            renamed = rng.choice((name + "x", str(Path(name).with_suffix(".PNG")), name + "\udcff", name.upper(), f"{name}/x"))
            return files | {renamed: data}
        if name.endswith(".tar"):
            return files | {name: mutate_tar(rng, data, [b"{}", b"[]", b'{"label": 1}', mutate_json(rng, b'{"captions": ["a"]}')])}
        if name.endswith(".json"):
            return files | {name: mutate_json(rng, data)}
        lines = data.split(b"\n")
        if name.endswith((".jsonl", ".csv")) and rng.random() < 0.7:
            index = rng.randrange(len(lines))
            lines[index] = mutate_json(rng, lines[index]) if lines[index].startswith(b"{") else damage(rng, lines[index])
            return files | {name: b"\n".join(lines)}
        return files | {name: damage(rng, data)}

    def run(self, folder: Path) -> None:
        from simmim_export.training.data.readers import read

        def records(name: str) -> None:
            for record in read(name, folder / name, self._splits[name]):
                texts = (record.key, *record.captions, *(q.text for q in record.questions), *(s.text for s in record.statements))
                assert all(isinstance(text, str) for text in texts) and record.images

        attempt(*(lambda name=path.name: records(name) for path in sorted(folder.iterdir())))


# -- pictures ----------------------------------------------------------------------------------------------------------


class ImagesTarget(Target):
    name = "images"

    def prepare(self) -> None:
        self.seeds = pictures()

    def make(self, rng: random.Random) -> Files:
        return {"input": mutate_picture(rng, rng.choice(self.seeds), self.seeds)}

    def run(self, folder: Path) -> None:
        from simmim_export.runtime.images import ImagePreprocessing, load_pixels

        pixels = load_pixels([(folder / "input").read_bytes()], ImagePreprocessing(64, 48))
        assert pixels.shape == (1, 64, 48, 3) and pixels.dtype == np.uint8


class ClipsTarget(Target):
    name = "clips"

    def prepare(self) -> None:
        self.seeds = animations()
        self._pictures = pictures()

    def make(self, rng: random.Random) -> Files:
        if rng.random() < 0.8:
            return {"input": mutate_picture(rng, rng.choice(self.seeds), self.seeds)}
        names = ("frame1.png", "frame2.png", "frame².png", "frame10.jpg", "a\u0661.png", ".png", "x.PNG", "\udcff.png", "sub.png/x")
        chosen = rng.sample(names, rng.randrange(1, 6))
        return {f"input/{name}": mutate_picture(rng, rng.choice(self._pictures)) for name in chosen}

    def run(self, folder: Path) -> None:
        from simmim_export.runtime.clips import choose_frames, is_animation, read_clip
        from simmim_export.runtime.images import ImagePreprocessing, load_pixels

        def frames() -> None:
            clip = read_clip(folder / "input")
            chosen = choose_frames(clip, 2, 4)
            pixels = load_pixels(chosen, ImagePreprocessing(64, 48))
            assert pixels.shape[1:] == (64, 48, 3) and 2 <= len(pixels) <= 4

        attempt(lambda: is_animation(folder / "input"), frames)


# -- smaller files -----------------------------------------------------------------------------------------------------


class PlanTarget(Target):
    name = "plan"

    def prepare(self) -> None:
        from simmim_export.engines.trt import plan

        path = self.sources.scratch / "plans" / "engines" / "trt" / "head.vqa.fp16.plan"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._plan = b"a plan"
        path.write_bytes(self._plan)
        recipe = {"workspace": None, "level": 3, "compatibility": "none", "profile": {"batch": [1, 1, 8]}}
        target = plan.Target("NVIDIA H200", "9.0", 13000, "11.0.0")
        sha256 = hashlib.sha256(self._plan).hexdigest()
        made = plan.Sidecar(
            graph="head.vqa",
            graph_sha256=NO_DIGEST,
            precision="fp16",
            sha256=sha256,
            bytes=len(self._plan),
            target=target,
            recipe=recipe,
            executed={"Half": 3},
            parity={"passed": True, "scaled_error": 0.001, "cosine": 1.0},
        )
        plan.write(path, made)
        self._name, self._path = plan.sidecar_path(path).name, "engines/trt/"
        self.seeds = [plan.sidecar_path(path).read_bytes()]

    def valid(self) -> Files:
        return {self._path + "head.vqa.fp16.plan": self._plan, self._path + self._name: self.seeds[0]}

    def make(self, rng: random.Random) -> Files:
        return self.valid() | {self._path + self._name: mutate_json(rng, self.seeds[0])}

    def run(self, folder: Path) -> None:
        from simmim_export.engines.trt import plan
        from simmim_export.engines.trt.request import Profile
        from simmim_export.spec import TensorSpec

        path = plan.plan_path(folder, "head.vqa", "fp16")
        sidecar = plan.read(path)
        profile = Profile.from_json(sidecar.recipe["profile"])
        attempt(
            lambda: plan.require_graph(path, sidecar, "head.vqa", "fp16"),
            lambda: plan.require_source(path, sidecar, NO_DIGEST),
            lambda: plan.require_target(path, sidecar, plan.Target("NVIDIA H200", "9.0", 13000, "11.0.0")),
            lambda: plan.require_whole(path, sidecar),
            lambda: profile.require({"batch": 1}),
            lambda: str(profile) and profile.shapes(TensorSpec("fused", "float32", ("batch", 96))),
        )


class TrafficTarget(Target):
    name = "traffic"

    def prepare(self) -> None:
        self.seeds = [b'{"batch": 1, "sequence": 12}\n{"batch": 4, "sequence": 16}\n\n{"batch": 4}\n']

    def make(self, rng: random.Random) -> Files:
        lines = self.seeds[0].split(b"\n")
        index = rng.randrange(2)
        lines[index] = mutate_json(rng, lines[index])
        data = b"\n".join(lines)
        return {"input": data if rng.random() < 0.6 else damage(rng, data)}

    def run(self, folder: Path) -> None:
        from simmim_export.engines.trt.request import Request, read_traffic
        from simmim_export.spec import Axis, GraphSpec, TensorSpec

        spec = GraphSpec("text", (TensorSpec("ids", "int64", ("batch", "sequence")),), (), (Axis("batch", 1, 8), Axis("sequence", 3, 20)))
        request = Request(traffic=read_traffic(folder / "input"))
        attempt(lambda: request.check([spec]), lambda: request.profile(spec), lambda: request.recipe(spec))


class CompareTarget(Target):
    name = "compare"

    def prepare(self) -> None:
        row = {"target": "pipeline:answer", "engine": "ort", "precision": "fp32", "batch": 1, "inputs": "x"}
        row |= {"rounds": [[0.001, 0.002], [0.0011, 0.0019]] * 4, "parity": {"passed": True}, "gpu_rounds": []}
        results = [row, row | {"target": "graph:fusion"}, row | {"engine": "openvino", "precision": "int8"}]
        host = {"cpu": "a processor", "gpu": None, "packages": {"numpy": "2"}}
        document = {"schema": 1, "host": host, "bundle": {"preset": "tiny"}, "load_average": 0.1, "results": results}
        self.seeds = [json.dumps(document).encode()]

    def valid(self) -> Files:
        return {"first.json": self.seeds[0], "second.json": self.seeds[0]}

    def make(self, rng: random.Random) -> Files:
        return self.valid() | {rng.choice(("first.json", "second.json")): mutate_json(rng, self.seeds[0])}

    def run(self, folder: Path) -> None:
        from simmim_export.benchmarks.compare import compare

        json.dumps(compare(folder / "first.json", folder / "second.json"), allow_nan=False)


TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (
        ManifestTarget,
        TokenizerTarget,
        GoldenTarget,
        EvidenceTarget,
        CertificateTarget,
        CheckpointTarget,
        ImagesTarget,
        ClipsTarget,
        GraphTarget,
        OpenVinoTarget,
        BundleTarget,
        TextTarget,
        PlanTarget,
        TrafficTarget,
        CompareTarget,
        TrainerTarget,
        ReadersTarget,
    )
}


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
