"""The runtime: a bundle, an engine, and the verbs a user calls.

A pipeline is a list of graph names over one dict of named tensors. A head is a graph like any other, and its labels come from
the manifest.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from simmim_export.bundle import Bundle
from simmim_export.bundle.onnx_file import read_graph
from simmim_export.bundle.opened import MOST_BYTES
from simmim_export.engines import get_engine, on_device, require_engine, versions
from simmim_export.engines.base import CompilingEngine, Engine, KeepsOnDevice, Session
from simmim_export.engines.checks import require_host
from simmim_export.engines.options import LATENCY, require_count, require_hint, threads_for
from simmim_export.errors import EXPORT_AGAIN, BundleError, CheckpointError, EngineUnavailable, UsageError
from simmim_export.proof.certificate import Certificate, choose, read
from simmim_export.proof.parity import Golden, ParityReport, compare
from simmim_export.runtime.clips import choose_frames
from simmim_export.runtime.images import ImagePreprocessing, ImageSource, load_pixels
from simmim_export.runtime.inputs import EncodedImage, Tensors, a_name, is_picture, is_text, listed
from simmim_export.runtime.text import Tokenizer
from simmim_export.spec import Precision, PrecisionPlan
from simmim_export.system.files import as_path, digest, read_file, reading
from simmim_export.system.host import available_threads, fingerprint

# The pipelines that have one for clips beside that for images.
_OF_CLIPS = {"classify_image": "classify_video", "answer": "answer_video"}
# The precision that means the planner's choice, and the engine that means the certificates'.
PLANNED, AUTO = "planned", "auto"


class Answer(NamedTuple):
    """One class of a head and its probability in [0, 1]; the probabilities of all classes add up to 1."""

    label: str
    score: float


class Explanation(NamedTuple):
    """Answers, and where the model looked for them: float32 [rows, columns] in [0, 1] over the image, in sum 1."""

    answers: list[Answer]
    attention: np.ndarray


def load(
    bundle: str | os.PathLike[str],
    engine: str = "ort",
    precision: str | None = None,
    *,
    device: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    hint: str = LATENCY,
) -> Runtime:
    """Open a bundle for one engine and precision.

    ``precision`` is one for all graphs (``int8``; FP32 by default), one for each (``image_encoder=int8,text_encoder=bf16``;
    what is not named runs at FP32), or ``planned``: what the exporter's planner chose for this engine. ``engine="auto"`` is
    the fastest engine and precision that ``simmim-export certify`` passed on this kind of machine; :attr:`Runtime.why` says
    why it was chosen.
    ``device="cuda"`` is the engine on an NVIDIA GPU, short for a name like ``ort@cuda``.
    ``checkpoint`` is for ``engine="torch"`` alone, and must be the very one that the bundle was exported from.
    ``threads`` defaults to what this process may use. ``hint="throughput"`` is for several threads of yours that call at
    once, where the engine has it (openvino); ``latency`` answers each call as soon as it can. Raises :class:`BundleError`,
    :class:`EngineUnavailable`, :class:`CheckpointError` or :class:`UsageError`; never falls back to another engine or precision.
    """
    path = None if checkpoint is None else as_path("checkpoint", checkpoint)
    a_name("engine", engine, "ort")
    a_name("hint", hint, LATENCY)
    if precision is not None:
        a_name("precision", precision, "int8")
    if device is not None:
        a_name("device", device, "cuda")
    # Checked now, before anything is read.
    threads_for(threads)
    opened, why = Bundle.open(bundle), None
    if engine == AUTO:
        if device is not None:
            raise UsageError(f"engine auto chooses the device itself, not {device!r}", fix="drop the device")
        if precision is not None:
            raise UsageError(f"engine auto chooses the precision itself, not {precision!r}", fix="drop the precision")
        if threads_for(threads) != available_threads():
            what = f"engine auto goes by what was certified on {available_threads()} threads, not on {threads}"
            raise UsageError(what, fix="drop the threads, or name an engine")
        if hint != LATENCY:
            raise UsageError(f"engine auto goes by latency, not by {hint}", fix="drop the hint, or name an engine")
        chosen, why = choose(
            read(opened), fingerprint(), versions, where=opened.root, stands=lambda found: _stands(opened, found)
        )
        engine, precision = chosen.engine, chosen.precision
    engine = on_device(engine, device)
    plan = plan_of(opened, engine, precision or str(Precision.FP32))
    return Runtime(opened, engine, plan, checkpoint=path, threads=threads, hint=hint, why=why)


def compiled(bundle: Bundle, engine: Engine, graph: str, plan: PrecisionPlan) -> Path | None:
    """What ``engine`` opens in place of ``graph`` at the precision that ``plan`` has for it, as
    :meth:`CompilingEngine.compiled` says; None for an engine that opens graphs themselves."""
    if not isinstance(engine, CompilingEngine):
        return None
    precision = plan.of(graph)
    artifact = bundle.artifact(graph, engine.variant(precision))
    return engine.compiled(bundle.root, bundle.manifest.graph(graph), precision=precision, sha256=artifact.sha256)


def _stands(bundle: Bundle, certificate: Certificate) -> bool:
    """Whether what was compiled for ``certificate`` is still what there is."""
    engine, plan = get_engine(certificate.engine), PrecisionPlan.parse(certificate.plan)
    try:
        now = {graph: compiled(bundle, engine, graph, plan) for graph in certificate.graphs}
    except (EngineUnavailable, BundleError):
        return False
    return all(path is None or digest(path) == certificate.graphs[graph].compiled for graph, path in now.items())


def plan_of(bundle: Bundle, engine: str, precision: str) -> PrecisionPlan:
    """The plan that ``precision`` means; raise :class:`UsageError` for one that does not parse or names another graph."""
    if precision == PLANNED:
        if engine not in bundle.manifest.plans:
            have = ", ".join(bundle.manifest.plans) or "no engine"
            raise EngineUnavailable(
                f"the bundle has a plan for {have}, not for {engine}",
                where=bundle.root,
                fix="where the engine is installed, simmim-export onnx ckpt.pt -o BUNDLE --overwrite --precision int8 "
                "--budget cosine=0.998",
            )
        precision = bundle.manifest.plans[engine]
    plan = PrecisionPlan.parse(precision)
    plan.check(graph.name for graph in bundle.manifest.graphs)
    return plan


class Runtime:
    """The verbs. A graph is opened, and its file's digest checked, when a verb first needs it. Threads may share a model."""

    def __init__(
        self,
        bundle: Bundle,
        engine: str,
        plan: PrecisionPlan,
        *,
        checkpoint: Path | None = None,
        threads: int | None = None,
        hint: str = LATENCY,
        why: str | None = None,
    ) -> None:
        self.bundle = bundle
        # Why this engine and plan, where nobody named them.
        self.why = why
        self.plan = plan
        self.engine = require_engine(engine)
        # Asked for now and not when a graph is first needed, so that a precision which is not to be had is an error here.
        self._variants = {g.name: self.engine.variant(plan.of(g.name)) for g in bundle.manifest.graphs}
        require_hint(engine, hint, has=self.engine.hints)
        threads_for(threads)
        self._threads, self._hint = threads, hint
        # Held while a graph or the tokenizer is opened: threads that need it wait, and none opens a second.
        self._opening, self._closed = Lock(), False
        self._sessions: dict[str, Session] = {}
        # For each open graph, the inputs that pick rows of a table, and its rows.
        self._tables: dict[str, Mapping[str, int]] = {}
        self._tokenizer: Tokenizer | None = None
        self._images = ImagePreprocessing.from_json(bundle.manifest.preprocessing["image"])
        self._checkpoint = self._own_checkpoint(checkpoint)

    def _own_checkpoint(self, path: Path | None) -> Path | None:
        if not self.engine.reads_checkpoint:
            if path is not None:
                raise UsageError(f"engine {self.engine.name!r} reads the bundle's graphs", fix="drop the checkpoint")
            return None
        if path is None:
            raise UsageError(f"engine {self.engine.name!r} runs from a checkpoint", fix="give --checkpoint ckpt.pt")
        with reading(path, CheckpointError):
            if not path.exists():
                fix = "give the ckpt.pt that the bundle was made from"
                raise CheckpointError("no such checkpoint", where=path, fix=fix)
            found = digest(path)
        if found != self.bundle.manifest.provenance["checkpoint_sha256"]:
            raise CheckpointError(
                "this bundle was exported from another checkpoint", where=path, fix="give its own, or export this one"
            )
        return path

    # -- graphs --------------------------------------------------------------------------------------------------------

    def session(self, graph: str) -> Session:
        """The open session of ``graph``, opening it on first use. Raise :class:`UsageError` once the model is closed."""
        opened = self._sessions.get(a_name("graph", graph, "image_encoder"))
        if opened is not None:
            return opened
        names = [spec.name for spec in self.bundle.manifest.graphs]
        if graph not in names:
            raise UsageError(f"unknown graph {graph!r}", fix=f"choose one of {', '.join(names)}")
        with self._opening:
            if self._closed:
                raise UsageError("this model was closed", where=self.bundle.root, fix="load the bundle again")
            if graph not in self._sessions:
                self._sessions[graph] = self._open(graph)
            return self._sessions[graph]

    def _open(self, graph: str) -> Session:
        spec, path = self.bundle.manifest.graph(graph), self._checkpoint
        if path is None:
            artifact = self.bundle.artifact(graph, self._variants[graph])
            require_host(self.engine, artifact.built_for, where=self.bundle.root / artifact.path)
            path = compiled(self.bundle, self.engine, graph, self.plan) or self.bundle.file(artifact.path)
            self._tables[graph] = read_graph(self.bundle.root / artifact.path).tables
        return self.engine.open(path, spec, precision=self.plan.of(graph), threads=self._threads, hint=self._hint)

    def run(self, pipeline: str, feeds: Mapping[str, np.ndarray]) -> Tensors:
        """Run the graphs of ``pipeline`` in order over one dict of tensors, and return that dict.

        A graph whose outputs are all in ``feeds`` is skipped: leaving ``image_tokens`` and ``image_embed`` there is how
        an image is encoded once. Only the promised outputs count for ``logits``-like names given twice, and only they are
        arrays for sure: the rest may have stayed on a GPU, and becomes one by ``numpy.asarray``.

        Raise :class:`BundleError` for a promised output that is not finite: what follows from it is no answer.
        """
        wanted = self.bundle.manifest.pipeline(a_name("pipeline", pipeline, "embed_image"))
        if not isinstance(feeds, Mapping):
            raise UsageError(f"feeds is {type(feeds).__name__}, not a dict of arrays", fix="write {'pixels': array}")
        tensors = dict(feeds)
        for name in wanted.graphs:
            if not all(output in feeds for output in self._outputs(name)):
                session = self.session(name)
                self._check_ids(name, tensors)
                if isinstance(session, KeepsOnDevice) and name != wanted.graphs[-1]:
                    tensors |= session.run_on_device(tensors)
                else:
                    tensors |= session.run(tensors)
        promised = {name: np.asarray(tensors[name]) for name in wanted.outputs}
        for name, array in promised.items():
            if not np.isfinite(array).all():
                graph = next(g for g in reversed(wanted.graphs) if name in self._outputs(g))
                what = (
                    f"{graph} gave a {name} that is not finite, in engine {self.engine.name!r} at {self.plan.of(graph)}"
                )
                how = f"--engine {self.engine.name} --precision {self.plan}"
                root = shlex.quote(str(self.bundle.root))
                fix = f"simmim-export verify {root} {how}, to see which graph begins it; or another --precision"
                raise BundleError(what, where=self.bundle.root, fix=fix)
        return tensors | promised

    def _check_ids(self, graph: str, tensors: Tensors) -> None:
        """Raise :class:`BundleError` for an id that is not a row of its table: OpenVINO would answer with whatever lies there."""
        for name, rows in self._tables.get(graph, {}).items():
            ids = tensors.get(name)
            if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
                continue  # refused with the other inputs
            if ids.size and (ids.min() < 0 or ids.max() >= rows):
                span = f"{ids.min()} to {ids.max()}"
                what = f"{name} of {graph} holds ids from {span}, and the graph knows 0 to {rows - 1}"
                fix = "use the tokenizer.json that was exported with the graph, or export the bundle again"
                raise BundleError(what, where=self.bundle.root, fix=fix)

    def _outputs(self, graph: str) -> list[str]:
        return [tensor.name for tensor in self.bundle.manifest.graph(graph).outputs]

    def close(self) -> None:
        """Close every session. Calling it twice is fine; any verb that needs a graph afterwards is a :class:`UsageError`."""
        with self._opening:
            self._closed = True
            for session in self._sessions.values():
                session.close()
            self._sessions.clear()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inputs --------------------------------------------------------------------------------------------------------

    def pixels(self, images: Sequence[ImageSource]) -> np.ndarray:
        """uint8 [n, H, W, 3], as the image graph takes it."""
        return load_pixels(listed("pixels", "image", images, is_picture(images)), self._images)

    def tokens(self, texts: Sequence[str], first: int = 0) -> Tensors:
        """``input_ids`` and ``attention_mask``, int64 [n, s] each; warns :class:`TruncatedText` for one that is cut. Raise
        :class:`TextError` for one of which the model can read nothing.

        ``first`` is the index of the first text among all that the caller has, for what is said of one.
        """
        items = listed("tokens", "text", texts, is_text(texts))
        first = require_count("first", first, least=0)
        tokenizer = self._tokenizer or self._open_tokenizer()
        return tokenizer.feeds(items, first, known=True)

    def _open_tokenizer(self) -> Tokenizer:
        with self._opening:
            if self._tokenizer is None:
                path = self.bundle.file("tokenizer.json")
                try:
                    with reading(path, BundleError):
                        source = read_file(path, most=MOST_BYTES["tokenizer.json"]).decode("utf-8")
                except ValueError as error:
                    what = f"tokenizer.json cannot be read: {error}"
                    raise BundleError(what, where=path, fix="export the bundle again") from error
                self._tokenizer = Tokenizer(source, self.bundle.manifest.preprocessing["text"]["max_length"])
            return self._tokenizer

    def _max_batch(self, pipeline: str) -> int:
        graphs = self.bundle.manifest.pipeline(pipeline).graphs
        return min(self.bundle.manifest.graph(name).axis("batch").maximum for name in graphs)

    def _pixel_batches(self, pipeline: str, images: Sequence[ImageSource]) -> Iterator[Tensors]:
        step = self._max_batch(pipeline)
        return ({"pixels": self.pixels(images[start : start + step])} for start in range(0, len(images), step))

    def _token_batches(self, pipeline: str, texts: Sequence[str]) -> list[Tensors]:
        """Of all texts before the first of them runs, so that one which cannot be read costs no work."""
        step = self._max_batch(pipeline)
        return [self.tokens(texts[start : start + step], start) for start in range(0, len(texts), step)]

    # -- verbs ---------------------------------------------------------------------------------------------------------

    def embed_image(self, images: Sequence[ImageSource]) -> np.ndarray:
        """float32 [n, E], each row of unit length."""
        found = listed("embed_image", "image", images, is_picture(images))
        batches = self._pixel_batches("embed_image", found)
        return np.concatenate([self.run("embed_image", feeds)["image_embed"] for feeds in batches])

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, E], each row of unit length."""
        found = listed("embed_text", "text", texts, is_text(texts))
        batches = self._token_batches("embed_text", found)
        return np.concatenate([self.run("embed_text", feeds)["text_embed"] for feeds in batches])

    def encode_image(self, image: ImageSource) -> EncodedImage:
        """Run the image tower once; hand the result to any verb in place of the image."""
        tensors = self.run("embed_image", {"pixels": self.pixels([image])})
        return EncodedImage({name: tensors[name] for name in ("image_tokens", "image_embed")}, space=self._space)

    def encode_clip(self, frames: Sequence[ImageSource]) -> EncodedImage:
        """Run the image tower over the frames and the video encoder over their tokens, once for all questions.

        Raise :class:`ImageError` for fewer than two frames; of more than the model takes, some are chosen at even
        distances, with a :class:`SampledFrames` warning.
        """
        if "video_encoder" not in (graph.name for graph in self.bundle.manifest.graphs):
            raise UsageError("this bundle was made for images, not for clips", fix="export one with a video_encoder")
        found = listed("encode_clip", "frame", frames, is_picture(frames), least=0)
        axis = self.bundle.manifest.graph("video_encoder").axis("frames")
        chosen = choose_frames(found, axis.minimum, axis.maximum)
        batches = self._pixel_batches("embed_image", chosen)
        parts = [self.run("embed_image", feeds)["image_tokens"] for feeds in batches]
        feeds = {"frame_tokens": np.concatenate(parts)[None], "frame_mask": np.ones((1, len(chosen)), np.int64)}
        return EncodedImage(self.session("video_encoder").run(feeds), space=self._space, clip=True)

    def match(self, image: ImageSource | EncodedImage, texts: Sequence[str]) -> np.ndarray:
        """float32 [n]: for each text the probability in [0, 1] that it describes the image."""
        encoded = self._encoded(image)
        scores = self._scores(self._pipeline("match", encoded), encoded, texts)
        if scores.shape[1] != 2:
            what = f"match needs a head of two classes, and the bundle's has {scores.shape[1]}"
            raise BundleError(what, where=self.bundle.root, fix=EXPORT_AGAIN)
        return scores[:, 1]

    def answer(self, image: ImageSource | EncodedImage, question: str, top_k: int = 3) -> list[Answer]:
        """The ``top_k`` most probable answers, best first."""
        return self.answers(image, [question], top_k)[0]

    def answers(
        self, image: ImageSource | EncodedImage, questions: Sequence[str], top_k: int = 3
    ) -> list[list[Answer]]:
        """:meth:`answer` for each of several questions about one image (or clip), which is encoded once."""
        return self._best("answer", image, questions, top_k)

    def classify(self, image: ImageSource | EncodedImage, top_k: int = 3) -> list[Answer]:
        """The ``top_k`` most probable classes of an image (or clip), best first."""
        return self._best("classify_image", image, None, top_k)[0]

    def classify_text(
        self, image: ImageSource | EncodedImage, texts: Sequence[str], top_k: int = 3
    ) -> list[list[Answer]]:
        """For each text what holds of it in the image (entailment, contradiction, ...), most probable first."""
        return self._best("classify_text", image, texts, top_k)

    def explain(self, image: ImageSource | EncodedImage, question: str, top_k: int = 3) -> Explanation:
        """The answers, and where the words of ``question`` looked, the mean over words, layers and heads.

        Raise :class:`UsageError` for a bundle that was exported without ``--attention``, and :class:`BundleError` for attention
        that is negative or not finite, or zero everywhere: it shows no place.
        """
        if "attention" not in self._outputs("fusion"):
            raise UsageError("this bundle has no attention maps", fix="export it again with --attention")
        encoded = self._encoded(image)
        answers = self._best("answer", encoded, [question], top_k)[0]
        tensors = self.run(self._pipeline("answer", encoded), encoded.tensors | self.tokens([question]))
        attention = np.asarray(tensors["attention"])[0]
        if not np.isfinite(attention).all() or attention.min() < 0 or not 0 < attention.sum(dtype=np.float64) < np.inf:
            what = f"fusion gave an attention that shows no place, in engine {self.engine.name!r}"
            fix = f"simmim-export verify {self.bundle.root} --engine {self.engine.name} --precision {self.plan}"
            raise BundleError(what, where=self.bundle.root, fix=fix)
        tokens = attention.mean(axis=0, dtype=np.float64)
        side = round(len(tokens) ** 0.5)
        return Explanation(answers, (tokens / tokens.sum()).astype(np.float32).reshape(side, side))

    @property
    def _space(self) -> str:
        """Names the weights that give image tokens and the preprocessing before them. The embedding's digest covers the towers,
        the checkpoint's also a video encoder and what reads the tokens. A precision is none of it: every precision plan of one
        checkpoint shares a space."""
        manifest = self.bundle.manifest
        return f"{manifest.embedding['digest']} {manifest.provenance['checkpoint_sha256']}"

    def _encoded(self, image: ImageSource | EncodedImage) -> EncodedImage:
        if not isinstance(image, EncodedImage):
            return self.encode_image(image)
        if image.space != self._space:
            what = "this image was encoded by a bundle of another checkpoint, whose tokens mean something else here"
            raise UsageError(what, where=self.bundle.root, fix="encode it with this model: model.encode_image(image)")
        return image

    def _pipeline(self, name: str, encoded: EncodedImage) -> str:
        """The pipeline ``name``, or what stands for it where ``encoded`` is a clip."""
        if encoded.clip and name not in _OF_CLIPS:
            fix = "give one of its frames, or use answer or classify, which take clips"
            raise UsageError(f"{name} is for images, and this is a clip", fix=fix)
        return _OF_CLIPS[name] if encoded.clip else name

    def _best(
        self, pipeline: str, image: ImageSource | EncodedImage, texts: Sequence[str] | None, top_k: int
    ) -> list[list[Answer]]:
        top_k = require_count("top_k", top_k)
        encoded = self._encoded(image)
        pipeline = self._pipeline(pipeline, encoded)
        labels = self.bundle.manifest.labels[self._head(pipeline)]
        found = []
        for row in self._scores(pipeline, encoded, texts):
            best = np.argsort(-row, kind="stable")[:top_k]
            found.append([Answer(labels[index], float(row[index])) for index in best])
        return found

    def _head(self, pipeline: str) -> str:
        return self.bundle.manifest.pipeline(pipeline).graphs[-1].removeprefix("head.")

    def _scores(self, pipeline: str, encoded: EncodedImage, texts: Sequence[str] | None) -> np.ndarray:
        """float32 [n, classes]: the softmax of a head's logits for one image with each of n texts, or for it alone."""
        if texts is None:
            return softmax(self.run(pipeline, encoded.tensors)["logits"])
        found = listed(pipeline, "text", texts, is_text(texts))
        rows = []
        for tokens in self._token_batches(pipeline, found):
            count = len(tokens["input_ids"])
            image = {name: np.repeat(array, count, axis=0) for name, array in encoded.tensors.items()}
            rows.append(softmax(self.run(pipeline, tokens | image)["logits"]))
        return np.concatenate(rows)

    # -- proof ---------------------------------------------------------------------------------------------------------

    def verify(self) -> list[ParityReport]:
        """Compare every graph, on this device, with PyTorch's outputs stored in the bundle."""
        golden = Golden.load(self.bundle.file("golden.npz"), graphs=self.bundle.manifest.graphs)
        return [compare(self.session(g.name), g, golden, self.plan.of(g.name)) for g in self.bundle.manifest.graphs]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float32."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
