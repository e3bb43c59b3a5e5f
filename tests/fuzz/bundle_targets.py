"""Fuzz targets for the files of a bundle."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from arrays import mutate_npz, npy, read_npy, unzipped, zipped
from common import NO_DIGEST, TEXTS, Target, attempt, place, sealed, signed
from mutators import Files, damage, dumps, mutate_json, mutate_tree
from onnx_files import mutate_onnx, uses_external_data
from texts import mutate_tokenizer


class OfBundle(Target):
    """A target whose input is a file of a bundle."""

    def prepare(self) -> None:
        self.base = self.sources.small
        self.manifest = json.loads((self.base / "manifest.json").read_text(encoding="utf-8"))

    def valid(self) -> Files:
        return sealed({}, self.manifest | {"metrics": {"changed": {"n": 1}}})

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
    """Every verb that the bundle serves, on one picture and one text, and on a clip of two frames."""
    from simmim_export.spec import Kind, Verb

    image, manifest = np.zeros((9, 7, 3), np.uint8), model.bundle.manifest
    verbs: dict[Verb, Callable[[], object]] = {
        Verb.EMBED_IMAGE: lambda: model.embed_image([image]),
        Verb.EMBED_TEXT: lambda: model.embed_text([TEXTS[0]]),
        Verb.MATCH: lambda: model.match(image, [TEXTS[0]]),
        Verb.ANSWER: lambda: model.answer(image, TEXTS[0]),
        Verb.CLASSIFY: lambda: model.classify(image),
        Verb.CLASSIFY_TEXT: lambda: model.classify_text(image, [TEXTS[0]]),
    }
    steps = [step for verb, step in verbs.items() if manifest.pipeline_for(verb) is not None]
    if any(tensor.kind is Kind.ATTENTION for graph in manifest.graphs for tensor in graph.outputs):
        steps.append(lambda: model.explain(image, TEXTS[0]))
    if manifest.pipeline_for(Verb.ANSWER, clip=True) is not None:
        steps.append(lambda: model.answer(model.encode_clip([image, image]), TEXTS[0]))
    with model:
        attempt(*steps)


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
            assert not report.passed or (report.rows and finite), (
                f"a graph passed without a finite comparison: {report.graph}"
            )


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
            assert array.dtype == np.float32, f"a reference that is not float32 was accepted: {name}, {array.dtype}"
            assert np.isfinite(array).all(), f"a reference that is not finite was accepted: {name}"
        with load(folder) as model:
            examiner = Examiner(model.bundle.manifest, evidence, tokens=model.tokens)
            figures = examiner.figures(examiner.outputs(model.session))
        # How far FP32 is from a reference without any spread is infinite, which fails its line; all else is finite.
        text = json.dumps({part: figures[part] for part in ("tasks", "embeddings")})
        assert "NaN" not in text and "Infinity" not in text, "figures that are not finite"


class CertificateTarget(OfBundle):
    name = "certificate"

    def prepare(self) -> None:
        super().prepare()
        bundle = place(self.sources.scratch / "certified", self.base, {})
        words = ("certify", str(bundle), "--engine", "ort:fp32", "--rounds", "1")
        subprocess.run([sys.executable, "-P", "-m", "simmim_export.cli", *words], check=True, capture_output=True)
        self.seeds = [(bundle / "certificate.json").read_bytes()]

    def valid(self) -> Files:
        return {"certificate.json": self.seeds[0]}

    def make(self, rng: random.Random) -> Files:
        if rng.random() < 0.1:
            return {"certificate.json": damage(rng, self.seeds[0])}
        content = json.loads(self.seeds[0]) | {"digest": NO_DIGEST}
        return {"certificate.json": signed(dumps(mutate_tree(rng, content)))}

    def run(self, folder: Path) -> None:
        from simmim_export import Bundle, load
        from simmim_export.engines import versions
        from simmim_export.proof.certificate import choose, read
        from simmim_export.system.host import fingerprint

        certificates = read(Bundle.open(folder))

        def show() -> None:
            for certificate in certificates:
                _ = certificate.name, certificate.host_name(), certificate.failures(), certificate.as_json()
                json.dumps(certificate.as_json(), allow_nan=False)

        attempt(
            show,
            lambda: choose(certificates, fingerprint(), versions=versions, where=folder),
            lambda: load(folder, engine="auto").close(),
        )


class GraphTarget(OfBundle):
    name = "graph"
    engine = "ort"

    def make(self, rng: random.Random) -> Files:
        graph = rng.choice(self.manifest["graphs"])["name"]
        data = mutate_onnx(rng, self.read(f"graphs/{graph}.fp32.onnx"))
        weights = {"graphs/w.bin": bytes(2**18), "w.bin": bytes(2**18)} if rng.random() < 0.2 else {}
        return sealed({f"graphs/{graph}.fp32.onnx": data}, self.manifest) | weights

    def run(self, folder: Path) -> None:
        from simmim_export import load

        with load(folder, engine=self.engine, threads=1) as model:
            reports = model.verify()
        for artifact in model.bundle.manifest.artifacts:
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
        text = "".join(
            chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x110000)))) for _ in range(rng.randrange(60))
        )
        return {
            "text": damage(rng, text.encode("utf-8", "surrogatepass"))
            if rng.random() < 0.5
            else text.encode("utf-8", "replace")
        }

    def run(self, folder: Path) -> None:
        data = (folder / "text").read_bytes()
        ids = [self._tokenizer.encode([given])[0] for given in (data, data.decode("utf-8", "surrogateescape"))]
        assert ids[0].tolist() == ids[1].tolist()
