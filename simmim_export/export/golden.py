"""Real samples through PyTorch: golden tensors at every shape that a deployment is probed at, and the inputs of every graph to
calibrate INT8 on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from simmim_export.bundle.vocabulary import read
from simmim_export.engines.pipeline import run_graphs
from simmim_export.engines.torch import TorchSession
from simmim_export.models.family import Graph, SourceModel
from simmim_export.precision.calibration import Calibration
from simmim_export.proof.parity import Golden
from simmim_export.runtime.text import Tokenizer
from simmim_export.spec import Axis, GraphSpec, Kind, TensorSpec

Feeds = dict[str, np.ndarray]
# So many first words of the calibration texts are samples of their own.
FIRST_WORDS = 16
# The odd length of a text, in tokens, and the odd number of frames that are probed between the shortest and the longest.
ODD, ODD_FRAMES = 7, 5


class Inputs:
    """Makes the tensors that the host feeds to ``graphs``, by their kinds.

    ``stacked`` names the output of the image's graphs that is stacked over the frames of a clip; it is None for a model without
    clips.
    """

    def __init__(self, graphs: Mapping[str, Graph], *, stacked: str | None) -> None:
        self._graphs, self._stacked = graphs, stacked
        self._sessions = {name: TorchSession(graph.module, graph.spec) for name, graph in graphs.items()}
        self._tensors: dict[Kind, TensorSpec] = {}
        self._axes: dict[Kind, Axis] = {}
        for graph in graphs.values():
            for tensor in graph.spec.inputs:
                self._tensors.setdefault(tensor.kind, tensor)
                if len(tensor.shape) > 1 and isinstance(tensor.shape[1], str):
                    self._axes.setdefault(tensor.kind, graph.spec.axis(tensor.shape[1]))

    def lengths(self, kind: Kind) -> tuple[int, int] | None:
        """The least and the greatest size of the second axis of the tensor of ``kind``; None if no graph takes one."""
        tensor = self._tensors.get(kind)
        if tensor is None:
            return None
        if kind in self._axes:
            return self._axes[kind].minimum, self._axes[kind].maximum
        fixed = tensor.shape[1]
        assert isinstance(fixed, int)
        return fixed, fixed

    def name(self, feeds: Mapping[Kind, np.ndarray]) -> dict[str, np.ndarray]:
        """``feeds`` by the names under which graphs take them; what no graph takes is left out."""
        return {self._tensors[kind].name: array for kind, array in feeds.items() if kind in self._tensors}

    def clips(self, images: np.ndarray, *, batch: int, frames: int) -> dict[str, np.ndarray]:
        """What graphs of clips take: ``batch`` clips of ``frames`` consecutive ``images`` uint8 [n, H, W, 3] each. Odd clips lack
        their last frame. Nothing for a model without clips."""
        if self._stacked is None or Kind.FRAMES not in self._tensors:
            return {}
        rows = (np.arange(batch)[:, None] * frames + np.arange(frames)) % len(images)
        needed = self._graphs_to(self._stacked)
        outputs = run_graphs(needed, self.name({Kind.IMAGE: images[rows.ravel()]}), self._sessions.__getitem__)
        tokens = outputs[self._stacked]
        mask = np.ones((batch, frames), np.int64)
        mask[1::2, -1] = 0
        return self.name({Kind.FRAMES: tokens.reshape(batch, frames, *tokens.shape[1:]), Kind.FRAME_MASK: mask})

    def _graphs_to(self, output: str) -> list[GraphSpec]:
        """The graphs up to the first that gives ``output``."""
        specs = self.specs()
        last = next(i for i, spec in enumerate(specs) if any(tensor.name == output for tensor in spec.outputs))
        known, needed = {output}, list[GraphSpec]()
        for spec in reversed(specs[: last + 1]):
            if known & {tensor.name for tensor in spec.outputs}:
                known |= {tensor.name for tensor in spec.inputs}
                needed.insert(0, spec)
        return needed

    def specs(self) -> list[GraphSpec]:
        """The specs of every graph, in order."""
        return [graph.spec for graph in self._graphs.values()]

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every graph's outputs as ``GRAPH:TENSOR``; a graph takes what the first before it gave, as Golden.feeds does."""
        flowing, outputs = dict(tensors), dict[str, np.ndarray]()
        for name, session in self._sessions.items():
            for tensor, array in session.run(flowing).items():
                flowing.setdefault(tensor, array)
                outputs[f"{name}:{tensor}"] = array
        return outputs


def probes(max_batch: int, shortest: int, longest: int) -> list[tuple[int, int]]:
    """(batch, tokens) pairs: batch 1, 2, 5 and the largest; texts of the shortest, an odd and the longest length."""
    odd = max(shortest, min(longest, ODD))
    batches = {1, min(2, max_batch), min(5, max_batch), max_batch}
    pairs = {(batch, longest) for batch in batches}
    pairs |= {(1, shortest), (1, odd), (min(2, max_batch), shortest), (min(5, max_batch), odd), (max_batch, odd)}
    return sorted(pairs)


def sample_texts(
    tokenizer_json: str, texts: Sequence[str], *, count: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, int64 [count, length] each, of ``texts``, cut or padded.

    Even rows are filled to the last position with further texts, so that every position is probed. Odd rows keep their padding, so
    that the mask is probed.
    """
    vocabulary = read(tokenizer_json)
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


def make_golden(model: SourceModel, max_batch: int) -> Golden:
    """Run every graph of ``model`` in FP32 on its samples at each of :func:`probes`."""
    inputs = Inputs(model.graphs, stacked=model.preprocessing.get("clip", {}).get("stacked"))
    shortest, longest = inputs.lengths(Kind.TOKEN_IDS) or (1, 1)
    frames = inputs.lengths(Kind.FRAMES) or (1, 1)
    cases = {}
    for batch, length in probes(max_batch, shortest, longest):
        ids, mask = sample_texts(model.tokenizer, model.texts, count=batch, length=length)
        images = model.images[np.arange(batch) % len(model.images)]
        case = inputs.name({Kind.IMAGE: images, Kind.TOKEN_IDS: ids, Kind.TEXT_MASK: mask})
        # The longest texts go with the most frames, also where the longest text is as short as an odd one.
        count = frames[1] if length == longest else {shortest: frames[0]}.get(length, min(ODD_FRAMES, frames[1]))
        case |= inputs.clips(model.images, batch=batch, frames=count)
        case |= inputs.run(case)
        cases[f"batch {batch}, sequence {length}"] = case
    return Golden(cases)


def make_feeds(model: SourceModel, calibration: Calibration) -> dict[str, list[Feeds]]:
    """For every graph its inputs for each calibration sample, at batch 1: image i with text i, texts padded to one length.

    One length, because quantizers stack the values of all samples. Some texts are also given by their first word: users search by
    single words, and on a text encoder with real weights the ranges of captions alone cut those off (cosine 0.973).
    """
    graphs = [graph.spec for graph in model.graphs.values()]
    tokenizer = Tokenizer(model.tokenizer, model.preprocessing["text"]["max_length"], graphs=graphs)
    words = dict.fromkeys(text.split()[0] for text in calibration.texts if text.split())
    ids, mask = tokenizer.encode([*calibration.texts, *list(words)[:FIRST_WORDS]])
    stacked = model.preprocessing.get("clip", {}).get("stacked")
    return feeds_of(Inputs(model.graphs, stacked=stacked), images=calibration.pixels, ids=ids, mask=mask)


def feeds_of(inputs: Inputs, *, images: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> dict[str, list[Feeds]]:
    """For every graph its inputs for each sample: ``images`` uint8 [n, H, W, 3] with texts ``ids`` and ``mask`` int64 [m, s]; the
    shorter of the two is repeated."""
    feeds: dict[str, list[Feeds]] = {graph.name: [] for graph in inputs.specs()}
    for case in _samples(inputs, images, ids, mask):
        golden = Golden({"": case | inputs.run(case)})
        for graph in inputs.specs():
            feeds[graph.name].append(golden.feeds("", graph))
    return feeds


def _samples(inputs: Inputs, images: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    frames = (inputs.lengths(Kind.FRAMES) or (1, 1))[1]
    for row in range(max(len(images), len(ids))):
        image, text = row % len(images), row % len(ids)
        case = inputs.name(
            {
                Kind.IMAGE: images[image : image + 1],
                Kind.TOKEN_IDS: ids[text : text + 1],
                Kind.TEXT_MASK: mask[text : text + 1],
            }
        )
        # Every sample is the first frame of a clip of those that follow it.
        yield case | inputs.clips(np.roll(images, -image, axis=0), batch=1, frames=frames)
