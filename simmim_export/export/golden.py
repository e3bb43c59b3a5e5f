"""Golden tensors: the checkpoint's own samples through PyTorch, at every shape that a deployment is probed at.

Knows the checkpoint's samples and the graph wrappers. Must not know ONNX or engines.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from tokenizers import Tokenizer

from simmim_export.models.checkpoint import Checkpoint
from simmim_export.models.graphs import Graph
from simmim_export.parity import Golden


def probes(max_batch: int, max_length: int) -> list[tuple[int, int]]:
    """(batch, sequence) pairs: batch 1, 2, 5 and the largest; sequence short, odd and full."""
    odd = min(max_length, 7)
    batches = sorted({1, min(2, max_batch), min(5, max_batch), max_batch})
    found = {(batch, max_length) for batch in batches}
    found |= {(1, 3), (1, odd), (min(2, max_batch), 3), (min(5, max_batch), odd), (max_batch, odd)}
    return sorted(found)


def sample_texts(checkpoint: Checkpoint, count: int, sequence: int) -> tuple[np.ndarray, np.ndarray]:
    """input_ids and attention_mask int64 [count, sequence] of the checkpoint's texts, cut or padded.

    Even rows are filled to the last position with further texts, so that every position is probed; odd rows keep their
    padding, so that the mask is.
    """
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer)
    tokenizer.no_padding()
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
    count = {3: axis.minimum, 7: min(5, axis.maximum)}.get(sequence, axis.maximum)
    rows = (np.arange(batch)[:, None] * count + np.arange(count)) % len(pixels)
    with torch.inference_mode():
        tokens = image_encoder.module(torch.from_numpy(pixels[rows.ravel()]))[0]
    mask = np.ones((batch, count), np.int64)
    mask[1::2, -1] = 0
    return {"frame_tokens": tokens.unflatten(0, (batch, count)).numpy(), "frame_mask": mask}


def make_golden(checkpoint: Checkpoint, graphs: Mapping[str, Graph], max_batch: int) -> Golden:
    """Run every graph in FP32 on real samples at each of :func:`probes`."""
    pixels = checkpoint.samples["pixels"].numpy()
    cases = {}
    for batch, sequence in probes(max_batch, checkpoint.config.max_length):
        ids, mask = sample_texts(checkpoint, batch, sequence)
        chosen = pixels[np.arange(batch) % len(pixels)]
        case: dict[str, np.ndarray] = {"pixels": chosen, "input_ids": ids, "attention_mask": mask}
        if "video_encoder" in graphs:
            case |= sample_clips(graphs["image_encoder"], graphs["video_encoder"], pixels, batch, sequence)
        flowing = {name: torch.from_numpy(array) for name, array in case.items()}
        for name, graph in graphs.items():
            with torch.inference_mode():
                found = graph.module(*(flowing[t.name] for t in graph.spec.inputs))
            for tensor, value in zip(graph.spec.outputs, found if isinstance(found, tuple) else (found,), strict=True):
                # The first graph that gives a tensor feeds the later ones, as Golden.feeds reads it.
                flowing.setdefault(tensor.name, value)
                case[f"{name}:{tensor.name}"] = value.numpy()
        cases[f"batch {batch}, sequence {sequence}"] = case
    return Golden(cases)
