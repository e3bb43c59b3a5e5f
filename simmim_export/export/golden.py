"""Runs real samples through the reference: the golden tensors of a bundle, and the inputs of every graph that INT8 is calibrated
on. The reference is PyTorch, or ONNX Runtime for a model that came as ONNX files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from simmim_export.bundle.golden import Golden
from simmim_export.bundle.vocabulary import Vocabulary, read
from simmim_export.engines.pipeline import run_graphs
from simmim_export.export.origin import AnyGraph, AnyModel, reference_session
from simmim_export.precision.calibration import Calibration
from simmim_export.runtime.inputs import second_axis
from simmim_export.runtime.text import Tokenizer
from simmim_export.spec import GraphSpec, Kind, fed_tensors, graphs_of_frames

Tensors = dict[str, np.ndarray]
# The first words of so many calibration texts are samples of their own.
FIRST_WORDS = 16
# Between the shortest and the longest, texts of so many tokens and clips of so many frames are probed, too.
ODD, ODD_FRAMES = 7, 5
# In PyTorch, base takes half as long for 8 samples at a time as for each alone.
BATCH = 16


class Inputs:
    """Makes what the host feeds to ``graphs``, and runs them in the reference.

    ``stacked`` names the tensor that the graphs of an image give and that the host stacks over the frames of a clip; empty for a
    model without clips.
    """

    def __init__(self, graphs: Mapping[str, AnyGraph], *, stacked: str) -> None:
        self.specs = [graph.spec for graph in graphs.values()]
        self._sessions = {name: reference_session(graph) for name, graph in graphs.items()}
        self._stacked, self._fed = stacked, fed_tensors(self.specs)
        # So many rows run at a time, where it does not matter.
        self.batch = min(BATCH, *(_most_rows(spec) for spec in self.specs))

    @classmethod
    def of(cls, model: AnyModel) -> Inputs:
        """The inputs of ``model``."""
        return cls(model.graphs, stacked=model.preprocessing.get("clip", {}).get("stacked", ""))

    def named(self, arrays: Mapping[Kind, np.ndarray]) -> Tensors:
        """``arrays`` by the names under which graphs take them. Arrays that no graph takes are left out."""
        return {self._fed[kind].name: array for kind, array in arrays.items() if kind in self._fed}

    def clips(self, images: np.ndarray, frames: np.ndarray, *, mask: np.ndarray | None = None) -> Tensors:
        """What graphs take of clips. ``frames`` int [batch, frames] says of which of ``images`` uint8 [n, H, W, 3] each clip
        consists, and ``mask`` of the same shape which of them are there; by default all. Empty for a model without clips.
        """
        if not self._stacked or Kind.FRAMES not in self._fed:
            return {}
        # Each image once: clips share most of their frames.
        used, position = np.unique(frames, return_inverse=True)
        through, parts = graphs_of_frames(self.specs, self._stacked), []
        for start in range(0, len(used), self.batch):
            feeds = self.named({Kind.IMAGE: images[used[start : start + self.batch]]})
            parts.append(run_graphs(through, feeds, self._sessions.__getitem__)[self._stacked])
        stacked = np.concatenate(parts)[position.reshape(frames.shape)]
        mask = np.ones(frames.shape, np.int64) if mask is None else mask
        return self.named({Kind.FRAMES: stacked, Kind.FRAME_MASK: mask})

    def run(self, feeds: Mapping[str, np.ndarray]) -> Tensors:
        """The outputs of every graph as ``GRAPH:TENSOR``. If several graphs give one tensor, later graphs take the first graph's,
        as :meth:`simmim_export.bundle.golden.Golden.feeds` does."""
        flowing, outputs = dict(feeds), Tensors()
        for name, session in self._sessions.items():
            for tensor, array in session.run(flowing).items():
                flowing.setdefault(tensor, array)
                outputs[f"{name}:{tensor}"] = array
        return outputs


def probes(max_batch: int, *, shortest: int, longest: int) -> list[tuple[int, int]]:
    """(batch, tokens) pairs: batches of 1, 2, 5 and ``max_batch``; texts of the shortest, an odd and the longest length."""
    odd = max(shortest, min(longest, ODD))
    batches = {1, min(2, max_batch), min(5, max_batch), max_batch}
    pairs = {(batch, longest) for batch in batches}
    pairs |= {(1, shortest), (1, odd), (min(2, max_batch), shortest), (min(5, max_batch), odd), (max_batch, odd)}
    return sorted(pairs)


def sample_texts(
    vocabulary: Vocabulary, texts: Sequence[str], *, count: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, int64 [count, length] each, of ``texts``, cut or padded.

    Even rows are filled with further texts, to probe every position. Odd rows keep their padding, to probe the mask.
    """
    tokenizer = vocabulary.tokenizer
    tokenizer.enable_truncation(length)
    ids = np.full((count, length), vocabulary.pad, np.int64)
    mask = np.zeros((count, length), np.int64)
    for row in range(count):
        text = texts[row % len(texts)]
        if row % 2 == 0:
            text = " ".join(texts[(row + k) % len(texts)] for k in range(length))
        tokens = tokenizer.encode(text).ids
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask


def make_golden(model: AnyModel, max_batch: int) -> Golden:
    """The samples of ``model`` with the reference's FP32 outputs of every graph, at each of :func:`probes`."""
    inputs, vocabulary = Inputs.of(model), read(model.tokenizer)
    # 1 for a model without texts.
    shortest, longest = (max(1, size) for size in second_axis(inputs.specs, Kind.TOKEN_IDS))
    fewest, most = second_axis(inputs.specs, Kind.FRAMES)
    cases = {}
    for batch, length in probes(max_batch, shortest=shortest, longest=longest):
        ids, mask = sample_texts(vocabulary, model.texts, count=batch, length=length)
        images = model.images[np.arange(batch) % len(model.images)]
        case = inputs.named({Kind.IMAGE: images, Kind.TOKEN_IDS: ids, Kind.TEXT_MASK: mask})
        # The longest texts go with the most frames, even where the longest length is also the odd or the shortest one.
        frames = most if length == longest else fewest if length == shortest else min(ODD_FRAMES, most)
        consecutive = np.arange(batch * frames).reshape(batch, frames) % len(model.images)
        mask = np.ones(consecutive.shape, np.int64)
        mask[1::2, -1:] = 0  # every second clip lacks its last frame
        case |= inputs.clips(model.images, consecutive, mask=mask)
        cases[f"batch {batch}, sequence {length}"] = case | inputs.run(case)
    return Golden(cases)


def make_feeds(model: AnyModel, calibration: Calibration) -> dict[str, list[Tensors]]:
    """The inputs of every graph for each calibration sample, at batch 1: image i with text i, all texts padded to one length.

    One length, because quantizers stack the values of all samples. The first words of some texts are samples too: users search by
    single words, and with real weights the ranges of whole captions cut those off (cosine 0.973).
    """
    inputs = Inputs.of(model)
    tokenizer = Tokenizer(model.tokenizer, model.preprocessing["text"]["max_length"], graphs=inputs.specs)
    words = dict.fromkeys(text.split()[0] for text in calibration.texts if text.split())
    ids, mask = tokenizer.encode([*calibration.texts, *list(words)[:FIRST_WORDS]])
    return feeds_of(inputs, images=calibration.images, ids=ids, mask=mask)


def feeds_of(inputs: Inputs, *, images: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> dict[str, list[Tensors]]:
    """The inputs of every graph for each sample, at batch 1: ``images`` uint8 [n, H, W, 3] with texts ``ids`` and ``mask`` int64
    [m, sequence]. If n and m differ, the fewer are repeated."""
    feeds: dict[str, list[Tensors]] = {graph.name: [] for graph in inputs.specs}
    _, frames = second_axis(inputs.specs, Kind.FRAMES)
    rows = np.arange(max(len(images), len(ids)))
    image, text = rows % len(images), rows % len(ids)
    samples = inputs.named({Kind.IMAGE: images[image], Kind.TOKEN_IDS: ids[text], Kind.TEXT_MASK: mask[text]})
    # Every image is also the first frame of a clip of those that follow it.
    samples |= inputs.clips(images, (image[:, None] + np.arange(frames)) % len(images))
    for start in range(0, len(rows), inputs.batch):
        case = {name: array[start : start + inputs.batch] for name, array in samples.items()}
        golden = Golden({"": case | inputs.run(case)})
        for graph in inputs.specs:
            batch = golden.feeds("", graph)
            for row in range(len(rows[start : start + inputs.batch])):
                feeds[graph.name].append({name: array[row : row + 1] for name, array in batch.items()})
    return feeds


def _most_rows(graph: GraphSpec) -> int:
    """The largest batch that ``graph`` takes."""
    rows = graph.inputs[0].shape[0]
    return rows if isinstance(rows, int) else graph.axis(rows).maximum
