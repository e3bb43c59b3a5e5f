"""The verbs that a user calls on an open bundle. The names of tensors, the labels and the sizes come from its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from simmim_export.bundle.golden import Golden
from simmim_export.engines.base import Session
from simmim_export.engines.checks import check_feeds, require_count
from simmim_export.errors import EXPORT_AGAIN, BundleError, UsageError
from simmim_export.proof.parity import ParityReport, compare
from simmim_export.runtime.images import ImageSource
from simmim_export.runtime.inputs import EncodedImage, Tensors, picture_list, require_name, text_list
from simmim_export.runtime.preprocessor import Preprocessor
from simmim_export.runtime.scores import Answer as Answer
from simmim_export.runtime.scores import Explanation, best, softmax
from simmim_export.runtime.sessions import Sessions
from simmim_export.runtime.zero_shot import TEMPLATE, ZeroShot, refuse_template
from simmim_export.spec import Kind, Pipeline, Verb


class Model:
    """An open bundle; :func:`simmim_export.load` makes it. Threads may share a model.

    ``bundle``, ``engine`` and ``plan`` are what it runs. ``why`` says why the engine and plan were chosen, and is None if the
    caller named them.

    A verb that the bundle lacks is a :class:`UsageError` that names the verbs it has. Every verb raises :class:`BundleError`
    if a graph gives something that is not what the manifest says or is not finite.
    """

    def __init__(self, sessions: Sessions, *, why: str | None = None) -> None:
        self.bundle, self.engine, self.plan = sessions.bundle, sessions.engine, sessions.plan
        self.why = why
        self._sessions = sessions
        self._preprocessor = Preprocessor(self.bundle, threads=sessions.threads)
        self._zero_shot = ZeroShot(self.bundle, self.embed_text)

    # -- graphs and pipelines ------------------------------------------------------------------------------------------

    def session(self, graph: str) -> Session:
        """The session of ``graph``, opened on first use. Raise :class:`UsageError` for an unknown one and for a closed model."""
        return self._sessions.open(require_name("graph", graph, example=self.bundle.manifest.graphs[0].name))

    def run(self, pipeline: str, feeds: Mapping[str, np.ndarray]) -> Tensors:
        """Run the graphs of ``pipeline`` in order over named tensors; the result is ``feeds`` and all outputs.

        A graph whose outputs are all in ``feeds`` is skipped, so an image need not be encoded again. The outputs that the
        pipeline promises are arrays. Others may have stayed on a GPU; ``numpy.asarray`` makes them arrays.

        Raise :class:`UsageError` for an unknown pipeline and for a tensor that is missing or does not fit.
        """
        manifest = self.bundle.manifest
        chosen = manifest.pipeline(require_name("pipeline", pipeline, example=manifest.pipelines[0].name))
        if not isinstance(feeds, Mapping):
            names = ", ".join(tensor.name for tensor in manifest.takes(chosen).values())
            raise UsageError(f"feeds is {type(feeds).__name__}, not a dict of arrays", fix=f"give arrays for {names}")
        # A session checks its inputs. Only this check sees the outputs of graphs that are skipped.
        outputs = (tensor for graph in chosen.graphs for tensor in manifest.graph(graph).outputs)
        check_feeds(feeds, tuple(tensor for tensor in outputs if tensor.name in feeds))
        return self._run(chosen, feeds)

    def _run(self, pipeline: Pipeline, feeds: Mapping[str, Any]) -> Tensors:
        return self._sessions.run(pipeline.graphs, feeds, promised=pipeline.outputs)

    def pipeline(self, verb: Verb, *, clip: bool = False) -> Pipeline:
        """The pipeline that serves ``verb`` for images or texts, or with ``clip`` for clips.

        Raise :class:`UsageError`, which names the verbs that this bundle has, if there is none.
        """
        if verb not in tuple(Verb):
            raise UsageError(f"unknown verb {verb!r}", fix=f"choose one of {', '.join(Verb)}")
        manifest, verb = self.bundle.manifest, Verb(verb)
        pipeline = manifest.pipeline_for(verb, clip=clip)
        if pipeline is not None:
            return pipeline
        have = [str(other) for other in Verb if manifest.pipeline_for(other, clip=clip) is not None]
        verbs = ", ".join(have) or "none"
        if manifest.pipeline_for(verb, clip=not clip) is not None:
            here, there = ("a clip", "images") if clip else ("an image", "clips")
            what = f"{verb} of this bundle takes {there}, and this is {here}"
            fix = f"give one of its frames, or use a verb that takes clips: {verbs}" if clip else "use encode_clip"
        else:
            what, fix = f"this bundle cannot {verb}", f"use a verb that it has: {verbs}"
            if verb is Verb.CLASSIFY and manifest.similarity is not None:
                what, fix = f"{what} without labels", f'give it labels: classify(image, ["cat", "dog"]); or {fix}'
        raise UsageError(what, where=self.bundle.root, fix=fix)

    def largest_batch(self, pipeline: Pipeline) -> int:
        """The most rows that all graphs of ``pipeline`` take at once."""
        return self._sessions.largest_batch(pipeline.graphs)

    def close(self) -> None:
        """Close every session. Calling it twice is fine; a verb that needs a graph afterwards is a :class:`UsageError`."""
        self._sessions.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what the graphs take ------------------------------------------------------------------------------------------

    def pixels(self, images: Sequence[ImageSource]) -> np.ndarray:
        """``images`` as the image graphs take them: uint8 [n, height, width, 3]. Raise :class:`ImageError` for one that cannot be
        read."""
        return self._preprocessor.pixels(images)

    def decoded(
        self, images: Sequence[ImageSource], *, ahead: int
    ) -> AbstractContextManager[Iterator[Callable[[], np.ndarray]]]:
        """For each of ``images``, in order, a function that gives its pixels, uint8 [height, width, 3], or raises
        :class:`ImageError`: so one that cannot be read does not end the others. Use it in a with block.

        Files are decoded in as many threads as the engine has, and at most ``ahead`` of them before they are asked for.
        """
        return self._preprocessor.decoded(images, ahead=ahead)

    def tokens(self, texts: Sequence[str], *, first: int = 0, warn: bool = False) -> Tensors:
        """``texts`` as the text graphs take them, by name: token ids and mask, int64 [n, sequence] each.

        ``first`` is the index of the first text among all that the caller has; messages name a text by its index. A text that
        is cut gives a :class:`TruncatedText` warning. With ``warn``, as in all verbs, words outside the vocabulary give an
        :class:`UnknownWords` warning. Raise :class:`TextError` for a text that cannot be read.
        """
        return self._preprocessor.tokens(texts, first=require_count("first", first, least=0), warn=warn)

    # -- verbs ---------------------------------------------------------------------------------------------------------

    def embed_image(self, images: Sequence[ImageSource]) -> np.ndarray:
        """float32 [n, channels], each row of unit length."""
        pipeline = self.pipeline(Verb.EMBED_IMAGE)
        pictures, step = picture_list("embed_image", images), self.largest_batch(pipeline)
        with self._preprocessor.image_batches(pictures, step=step) as batches:
            return self._embed(pipeline, batches)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, channels], each row of unit length."""
        pipeline = self.pipeline(Verb.EMBED_TEXT)
        batches = self._preprocessor.text_batches(text_list("embed_text", texts), step=self.largest_batch(pipeline))
        return self._embed(pipeline, batches)

    def _embed(self, pipeline: Pipeline, batches: Iterable[Tensors]) -> np.ndarray:
        return np.concatenate([self._run(pipeline, feeds)[pipeline.outputs[0]] for feeds in batches])

    def encode_image(self, image: ImageSource) -> EncodedImage:
        """Run the graphs that read only an image, once; give the result to any verb in place of the image."""
        every = [graph.name for graph in self.bundle.manifest.graphs]
        return self._encode(self._preprocessor.image(image), graphs=every)

    def encode_clip(self, frames: Sequence[ImageSource]) -> EncodedImage:
        """Run the graphs that read only a clip, once; give the result to any verb in place of a clip.

        Of more frames than the model takes, some are chosen at even distances, with a :class:`SampledFrames` warning. Raise
        :class:`ImageError` for fewer frames than it takes, and :class:`UsageError` for a bundle without clips.
        """
        manifest, stacked = self.bundle.manifest, self._preprocessor.stacked
        chosen, graphs = self._preprocessor.frames(frames), [graph.name for graph in manifest.frame_graphs()]
        with self._preprocessor.image_batches(chosen, step=self._sessions.largest_batch(graphs)) as batches:
            outputs = [self._sessions.run(graphs, feeds, promised=[stacked])[stacked] for feeds in batches]
        feeds = self._preprocessor.clip(np.concatenate(outputs))
        return self._encode(feeds, graphs=[graph.name for graph in manifest.graphs], clip=True)

    def _encode(self, feeds: Tensors, *, graphs: Sequence[str], clip: bool = False) -> EncodedImage:
        """Run those of ``graphs`` that read only ``feeds``, an image or a clip. Keep their outputs, and those of ``feeds`` that
        the other graphs read together with a text."""
        manifest = self.bundle.manifest
        alone = [name for name in manifest.image_graphs(clip=clip) if name in graphs]
        outputs = [tensor.name for name in alone for tensor in manifest.graph(name).outputs]
        tensors = self._sessions.run(alone, feeds, promised=outputs)
        others = [manifest.graph(name) for name in graphs if name not in alone]
        read = {tensor.name for graph in others for tensor in graph.inputs}
        kept = [*outputs, *(name for name in feeds if name in read)]
        return EncodedImage(tensors={name: tensors[name] for name in kept}, space=self._space, clip=clip)

    def match(self, image: ImageSource | EncodedImage, texts: Sequence[str]) -> np.ndarray:
        """float32 [n]: for each text the probability in [0, 1] that it describes the image."""
        pipeline, encoded = self._prepare(Verb.MATCH, image)
        scores = self._scores(pipeline, encoded, texts=texts)
        if scores.shape[1] != 2:
            what = f"match needs logits of two classes, and {pipeline.name} of this bundle gives {scores.shape[1]}"
            raise BundleError(what, where=self.bundle.root, fix=EXPORT_AGAIN)
        return scores[:, 1]

    def answer(self, image: ImageSource | EncodedImage, question: str, *, top_k: int = 3) -> list[Answer]:
        """The ``top_k`` most probable answers, best first."""
        return self.answers(image, [question], top_k=top_k)[0]

    def answers(
        self, image: ImageSource | EncodedImage, questions: Sequence[str], *, top_k: int = 3
    ) -> list[list[Answer]]:
        """:meth:`answer` for each of several questions about one image or clip, which is encoded once."""
        return self._best(Verb.ANSWER, image, texts=questions, top_k=top_k)

    def classify(
        self,
        image: ImageSource | EncodedImage,
        labels: Sequence[str] | None = None,
        *,
        template: str | Sequence[str] = TEMPLATE,
        top_k: int = 3,
    ) -> list[Answer]:
        """The ``top_k`` most probable classes of an image or clip, best first.

        Without ``labels`` they are the classes that the model was trained for. With ``labels`` they are these texts (zero-shot),
        for every model that embeds images and texts: each label takes the place of ``{}`` in ``template``, and its score is made
        of the cosine of the image and that text. Of several templates the mean of the unit-length embeddings counts, normalized
        again (Radford et al., 2021). The embeddings of the last labels are kept, so a second image costs only its own encoding.

        The scores add up to 1 over all labels, or for a model that was trained with a sigmoid (``bundle.manifest.similarity``)
        rate each label by itself. A label that is cut gives a :class:`TruncatedText` warning when it is first used. Raise
        :class:`UsageError` for no labels, a label that is there twice, a template without exactly one ``{}``, and a bundle that
        cannot do this; and :class:`TextError` for a label that cannot be read.
        """
        top_k = require_count("top_k", top_k)
        if labels is None:
            refuse_template(template)
            return self._best(Verb.CLASSIFY, image, texts=(), top_k=top_k)[0]
        question = self._zero_shot.question(labels, template)
        pipeline, encoded = self._prepare(Verb.EMBED_IMAGE, image)
        return question.answers(self._run(pipeline, encoded.tensors)[pipeline.outputs[0]], top_k=top_k)[0]

    def classify_text(
        self, image: ImageSource | EncodedImage, texts: Sequence[str], *, top_k: int = 3
    ) -> list[list[Answer]]:
        """For each text how it relates to the image (entailment, contradiction, ...), most probable first."""
        return self._best(Verb.CLASSIFY_TEXT, image, texts=texts, top_k=top_k)

    def explain(self, image: ImageSource | EncodedImage, question: str, *, top_k: int = 3) -> Explanation:
        """The answers, and where the words of ``question`` looked: the mean over words, layers and heads.

        Raise :class:`UsageError` for a bundle that was exported without ``--attention``, and :class:`BundleError` for attention
        that is negative, not finite, or zero everywhere: it shows no place.
        """
        top_k = require_count("top_k", top_k)
        clip = isinstance(image, EncodedImage) and image.clip
        graphs = [self.bundle.manifest.graph(name) for name in self.pipeline(Verb.ANSWER, clip=clip).graphs]
        maps = [(g.name, t.name) for g in graphs for t in g.outputs if t.kind is Kind.ATTENTION]
        if not maps:
            raise UsageError("this bundle has no attention maps", fix="export it again with --attention")
        pipeline, encoded = self._prepare(Verb.ANSWER, image)
        tokens = self.tokens([question], warn=True)
        tensors = self._run(pipeline, encoded.tensors | tokens)
        graph, name = maps[0]
        attention = np.asarray(tensors[name])[0][self._preprocessor.words_of(tokens)]
        if not np.isfinite(attention).all() or attention.min() < 0 or not 0 < attention.sum(dtype=np.float64) < np.inf:
            what = f"the attention of {graph} shows no place, in engine {self.engine.name!r}"
            fix = f"simmim-export verify {self.bundle.root} --engine {self.engine.name} --precision {self.plan}"
            raise BundleError(what, where=self.bundle.root, fix=fix)
        heat = attention.mean(axis=0, dtype=np.float64)
        side = round(len(heat) ** 0.5)
        answers = best(softmax(tensors[pipeline.outputs[0]]), self._labels(pipeline), top_k=top_k)[0]
        return Explanation(answers, (heat / heat.sum()).astype(np.float32).reshape(side, side))

    @property
    def _space(self) -> str:
        """Names the weights and the preprocessing that encode an image or a clip. All precision plans of a checkpoint share it.

        The digest of the embedding covers the graphs that embed; that of the checkpoint covers the rest.
        """
        manifest = self.bundle.manifest
        return f"{manifest.embedding['digest']} {manifest.provenance['checkpoint_sha256']}"

    def _prepare(self, verb: Verb, image: ImageSource | EncodedImage) -> tuple[Pipeline, EncodedImage]:
        """The pipeline for ``verb``, and ``image`` encoded by those of its graphs that read only an image."""
        if not isinstance(image, EncodedImage):
            pipeline = self.pipeline(verb)
            return pipeline, self._encode(self._preprocessor.image(image), graphs=pipeline.graphs)
        if image.space != self._space:
            what = "this image was encoded by a bundle of another checkpoint, and means something else here"
            raise UsageError(what, where=self.bundle.root, fix="encode it with this model: model.encode_image(image)")
        return self.pipeline(verb, clip=image.clip), image

    def _best(
        self, verb: Verb, image: ImageSource | EncodedImage, *, texts: Sequence[str], top_k: int
    ) -> list[list[Answer]]:
        top_k = require_count("top_k", top_k)
        pipeline, encoded = self._prepare(verb, image)
        return best(self._scores(pipeline, encoded, texts=texts), self._labels(pipeline), top_k=top_k)

    def _labels(self, pipeline: Pipeline) -> tuple[str, ...]:
        return self.bundle.manifest.labels[pipeline.labels]

    def _scores(self, pipeline: Pipeline, encoded: EncodedImage, *, texts: Sequence[str]) -> np.ndarray:
        """The softmax of the logits of one image with each of n texts, or of the image alone: float32 [n, classes]."""
        logits = pipeline.outputs[0]
        if pipeline.verb is Verb.CLASSIFY:
            return softmax(self._run(pipeline, encoded.tensors)[logits])
        graphs = [self.bundle.manifest.graph(name) for name in pipeline.graphs]
        repeated = {tensor.name for graph in graphs for tensor in graph.inputs if not tensor.shared}
        rows = []
        for tokens in self._preprocessor.text_batches(
            text_list(pipeline.verb, texts), step=self.largest_batch(pipeline)
        ):
            count = len(next(iter(tokens.values())))
            image = {
                name: np.repeat(array, count, axis=0) if name in repeated else array
                for name, array in encoded.tensors.items()
            }
            rows.append(softmax(self._run(pipeline, tokens | image)[logits]))
        return np.concatenate(rows)

    # -- proof ---------------------------------------------------------------------------------------------------------

    def verify(self) -> list[ParityReport]:
        """Compare every graph, on this device, with the reference outputs that are stored in the bundle."""
        golden = self.bundle.golden()
        return [self.compare(graph.name, golden) for graph in self.bundle.manifest.graphs]

    def compare(self, graph: str, golden: Golden) -> ParityReport:
        """Compare one graph with the ``golden`` tensors of the bundle."""
        spec, precision = self.bundle.manifest.graph(graph), self.plan.of(graph)
        variant, exported = self._sessions.variant(graph), self._sessions.exported(graph)
        reference = self.bundle.manifest.reference
        report = compare(
            self.session(graph), spec, golden=golden, precision=precision, exported=exported, reference=reference
        )
        # An engine may run the FP32 file at another precision.
        return replace(report, variant=variant) if variant.precision is precision else report
