"""Real samples through PyTorch: golden tensors at every shape that a deployment is probed at, and the inputs of every graph
that ranges are measured on.

Knows samples and the graph wrappers. Must not know ONNX or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from simmim_export.bundle.vocabulary import parse
from simmim_export.models.simmim.checkpoint import Checkpoint
from simmim_export.models.simmim.graphs import Graph
from simmim_export.precision.calibration import Calibration
from simmim_export.proof.parity import Golden

Feeds = dict[str, np.ndarray]
# Texts to input_ids and attention_mask, int64 [n, s], all of one length.
Tokens = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
# So many first words are samples of their own.
FIRST_WORDS = 16
# Sequences that are probed beside the longest; as a number of frames anything else means the largest.
SHORT, ODD, FULL = 3, 7, 0


def probes(max_batch: int, max_length: int) -> list[tuple[int, int]]:
    """(batch, sequence) pairs: batch 1, 2, 5 and the largest; sequence short, odd and full."""
    odd = min(max_length, ODD)
    batches = sorted({1, min(2, max_batch), min(5, max_batch), max_batch})
    found = {(batch, max_length) for batch in batches}
    found |= {(1, SHORT), (1, odd), (min(2, max_batch), SHORT), (min(5, max_batch), odd), (max_batch, odd)}
    return sorted(found)


def sample_texts(checkpoint: Checkpoint, count: int, sequence: int) -> tuple[np.ndarray, np.ndarray]:
    """input_ids and attention_mask int64 [count, sequence] of the checkpoint's texts, cut or padded.

    Even rows are filled to the last position with further texts, so that every position is probed; odd rows keep their
    padding, so that the mask is.
    """
    tokenizer = parse(checkpoint.tokenizer)
    texts = checkpoint.samples["texts"]
    pad = tokenizer.token_to_id("[PAD]") or 0
    ids = np.full((count, sequence), pad, np.int64)
    mask = np.zeros((count, sequence), np.int64)
    tokenizer.enable_truncation(sequence)
    for row in range(count):
        text = texts[row % len(texts)]
        if row % 2 == 0:
            text = " ".join(texts[(row + k) % len(texts)] for k in range(sequence))
        found = tokenizer.encode(text).ids
        ids[row, : len(found)] = found
        mask[row, : len(found)] = 1
    return ids, mask


def sample_clips(
    image_encoder: Graph, video_encoder: Graph, pixels: np.ndarray, batch: int, sequence: int
) -> dict[str, np.ndarray]:
    """frame_tokens [batch, frames, n, D] of consecutive samples, and frame_mask, whose odd rows lack the last frame.

    ``sequence`` chooses the number of frames, so that the shortest, an odd and the largest are probed.
    """
    axis = video_encoder.spec.axis("frames")
    count = {SHORT: axis.minimum, ODD: min(5, axis.maximum)}.get(sequence, axis.maximum)
    rows = (np.arange(batch)[:, None] * count + np.arange(count)) % len(pixels)
    with torch.inference_mode():
        tokens = image_encoder.module(torch.from_numpy(pixels[rows.ravel()]))[0]
    mask = np.ones((batch, count), np.int64)
    mask[1::2, -1] = 0
    return {"frame_tokens": tokens.unflatten(0, (batch, count)).numpy(), "frame_mask": mask}


def flow(graphs: Mapping[str, Graph], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every graph's outputs as ``GRAPH:TENSOR``; a graph takes what the first before it gave, as Golden.feeds reads it."""
    flowing = {name: torch.from_numpy(array) for name, array in inputs.items()}
    case = {}
    for name, graph in graphs.items():
        with torch.inference_mode():
            found = graph.module(*(flowing[t.name] for t in graph.spec.inputs))
        for tensor, value in zip(graph.spec.outputs, found if isinstance(found, tuple) else (found,), strict=True):
            flowing.setdefault(tensor.name, value)
            case[f"{name}:{tensor.name}"] = value.numpy()
    return case


def make_feeds(graphs: Mapping[str, Graph], calibration: Calibration, tokens: Tokens) -> dict[str, list[Feeds]]:
    """For every graph its inputs for each calibration sample, at batch 1: image i with text i, texts padded to one length.

    One length, because quantisers stack the values of all samples. Some texts are given by their first word as well: users
    search by single words, and on a text encoder with real weights ranges of captions alone cut those off (cosine 0.973).
    """
    words = dict.fromkeys(text.split()[0] for text in calibration.texts if text.split())
    pixels, texts = calibration.pixels, [*calibration.texts, *list(words)[:FIRST_WORDS]]
    count = max(len(pixels), len(texts))
    ids, mask = tokens(texts)
    rows, places = np.arange(count) % len(pixels), np.arange(count) % len(texts)
    inputs: dict[str, np.ndarray] = {"pixels": pixels[rows], "input_ids": ids[places], "attention_mask": mask[places]}
    found: dict[str, list[Feeds]] = {name: [] for name in graphs}
    for row in range(count):
        case = {name: array[row : row + 1] for name, array in inputs.items()}
        if "video_encoder" in graphs:
            # Every sample is the first frame of a clip of those that follow it.
            turned = np.roll(inputs["pixels"], -row, axis=0)
            case |= sample_clips(graphs["image_encoder"], graphs["video_encoder"], turned, 1, FULL)
        golden = Golden({"": case | flow(graphs, case)})
        for name, graph in graphs.items():
            found[name].append(golden.feeds("", graph.spec))
    return found


def make_golden(checkpoint: Checkpoint, graphs: Mapping[str, Graph], max_batch: int) -> Golden:
    """Run every graph in FP32 on real samples at each of :func:`probes`."""
    pixels = checkpoint.samples["pixels"].numpy()
    cases = {}
    for batch, sequence in probes(max_batch, checkpoint.config.max_length):
        ids, mask = sample_texts(checkpoint, batch, sequence)
        chosen = pixels[np.arange(batch) % len(pixels)]
        case: dict[str, np.ndarray] = {"pixels": chosen, "input_ids": ids, "attention_mask": mask}
        if "video_encoder" in graphs:
            # Also where the longest text is as short as an odd one: some case has the largest number of frames.
            length = FULL if sequence == checkpoint.config.max_length else sequence
            case |= sample_clips(graphs["image_encoder"], graphs["video_encoder"], pixels, batch, length)
        case |= flow(graphs, case)
        cases[f"batch {batch}, sequence {sequence}"] = case
    return Golden(cases)
