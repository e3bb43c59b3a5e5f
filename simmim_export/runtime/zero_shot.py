"""Labels to the embeddings of sentences about them, so that images can be classified by labels that nobody trained for.

Zero-shot classification and ensembles of templates: Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", 2021, section 3.1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from simmim_export.bundle import Bundle
from simmim_export.errors import EXPORT_AGAIN, UsageError
from simmim_export.runtime.inputs import text_list
from simmim_export.runtime.scores import Answer, best, scores_of
from simmim_export.runtime.text import check_text
from simmim_export.spec import Reference, Similarity, Verb

TEMPLATE = "a photo of a {}"
# Where the label goes in a template.
_PLACE = "{}"
# The embeddings of 1,000 labels have 2 to 4 MB.
KEPT_BYTES = 128 * 2**20


class ZeroShot:
    """Asks about labels. ``embed`` gives the embeddings of texts: float32 [n, channels], each row of unit length."""

    def __init__(self, bundle: Bundle, embed: Callable[[Sequence[str]], np.ndarray]) -> None:
        self._bundle, self._embeddings = bundle, LabelEmbeddings(embed)

    def question(self, labels: Iterable[str], template: str | Iterable[str]) -> Question:
        """Which of ``labels``? Nothing is computed yet.

        Raise :class:`UsageError` or :class:`TextError` as :meth:`simmim_export.runtime.model.Model.classify` says.
        """
        similarity = require_similarity(self._bundle)
        return Question(
            labels=checked_labels(labels),
            templates=checked_templates(template),
            similarity=similarity,
            embeddings=self._embeddings,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """Labels that were checked, and what their scores are made of."""

    labels: tuple[str, ...]
    templates: tuple[str, ...]
    similarity: Similarity
    embeddings: LabelEmbeddings

    def answers(self, images: np.ndarray, *, top_k: int) -> list[list[Answer]]:
        """For each row of ``images``, their embeddings float32 [n, channels] of unit length, the ``top_k`` best labels."""
        cosines = images @ self.embeddings.of(self.labels, self.templates).T
        return best(scores_of(cosines, self.similarity), self.labels, top_k=top_k)


class LabelEmbeddings:
    """The embeddings of labels, as ``embed`` gives them for texts: float32 [n, channels], each row of unit length.

    The last ones are kept, up to ``most`` bytes of embeddings and labels together. Threads may share it; two that ask for the
    same new labels at the same time may both compute them.
    """

    def __init__(self, embed: Callable[[Sequence[str]], np.ndarray], *, most: int = KEPT_BYTES) -> None:
        self._embed, self._most = embed, most
        self._lock = Lock()
        self._kept: OrderedDict[tuple[tuple[str, ...], tuple[str, ...]], np.ndarray] = OrderedDict()
        self._bytes = 0

    def of(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> np.ndarray:
        """float32 [labels, channels], each row of unit length: the mean over ``templates``, normalized again.

        Callers share the array, so it cannot be written to.
        """
        key = (labels, templates)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # One template at a time, so that a warning counts texts as the caller counts labels.
        total = sum(self._embed([each.replace(_PLACE, label) for label in labels]) for each in templates)
        embeddings = unit_length(np.asarray(total))
        embeddings.flags.writeable = False
        with self._lock:
            if key not in self._kept:
                self._kept[key] = embeddings
                self._bytes += _size(key, embeddings)
            while self._bytes > self._most:
                self._bytes -= _size(*self._kept.popitem(last=False))
        return embeddings


def unit_length(rows: np.ndarray) -> np.ndarray:
    """``rows`` [n, channels] divided by their lengths, as float32. A row of zeros stays one."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)


def _size(key: tuple[tuple[str, ...], tuple[str, ...]], embeddings: np.ndarray) -> int:
    return embeddings.nbytes + sum(len(text.encode()) for texts in key for text in texts)


def require_similarity(bundle: Bundle) -> Similarity:
    """How the cosine of an image and a text becomes a score.

    Raise :class:`UsageError` for a bundle that does not embed both, and for one that does not say it.
    """
    manifest = bundle.manifest
    lacking = [str(verb) for verb in (Verb.EMBED_IMAGE, Verb.EMBED_TEXT) if manifest.pipeline_for(verb) is None]
    if lacking:
        what = f"labels need a model that embeds images and texts, and this bundle cannot {' or '.join(lacking)}"
        fix = "leave out the labels, or use the bundle of a model with two towers, such as CLIP"
        raise UsageError(what, where=bundle.root, fix=fix)
    if manifest.similarity is None:
        what = "the bundle does not say how to turn a cosine into a score"
        adopted = manifest.reference is Reference.ONNXRUNTIME
        fix = "adopt it again with [similarity] in the spec" if adopted else EXPORT_AGAIN
        raise UsageError(what, where=bundle.root, fix=fix)
    return manifest.similarity


def checked_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """``labels`` as texts. Raise :class:`UsageError` for none, for a single text and for two that are the same, and
    :class:`TextError` for one that is not a text or is empty."""
    listed = text_list("classify", labels)
    texts = tuple(check_text(label, f"labels[{index}]") for index, label in enumerate(listed))
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        if first.setdefault(text, index) != index:
            what = f"the label {text[:100]!r} is there twice, at {first[text]} and {index}"
            raise UsageError(what, where=f"labels[{index}]", fix="name each label once")
    return texts


def checked_templates(template: str | Iterable[str]) -> tuple[str, ...]:
    """``template``, or several of them. Raise :class:`UsageError` unless each is a text with ``{}`` in exactly one place."""
    try:
        templates = (template,) if isinstance(template, str) else tuple(template)
    except TypeError:  # not iterable; an array without axes only seems to be
        templates = ()
    for each in templates:
        if not isinstance(each, str) or each.count(_PLACE) != 1:
            what = f"the template {each!r} does not have {_PLACE} in exactly one place"
            raise UsageError(what, fix=f"write {_PLACE} where the label belongs, as in {TEMPLATE!r}")
    if not templates:
        raise UsageError(f"no template in {template!r}", fix=f"give one such as {TEMPLATE!r}, or leave it out")
    return templates


def refuse_template(template: object) -> None:
    """Raise :class:`UsageError` for a ``template`` that was given without labels."""
    if not isinstance(template, str) or template != TEMPLATE:
        raise UsageError("a template needs labels", fix='give them too: classify(image, ["cat", "dog"], template=...)')
