"""Measures a dual encoder on the emoji that training has not seen, for docs/results.md:

python -P -m simmim_export.training.emoji_results ckpt.pt data
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from simmim_export.console import run_app, say
from simmim_export.models.simmim.checkpoint import build, load
from simmim_export.models.simmim.model import SimMIM
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.system.outputs import replacing
from simmim_export.training.data.readers import read
from simmim_export.training.data.records import Record
from simmim_export.training.emoji_page import EMOJI
from simmim_export.training.evaluation.retrieval import CUTS, recall
from simmim_export.training.evaluation.statistics import accuracy
from simmim_export.training.results_page import REVISION
from simmim_export.training.tokenizer import encode, read_tokenizer

# What is searched: the style, whether training has seen the style and the emoji, and the split with the pictures.
SEARCHED = (
    ("OpenMoji", False, True, "style"),
    ("Noto", True, False, "noto"),
    ("Twemoji", True, False, "twemoji"),
    ("OpenMoji", False, False, "both"),
)
BATCH = 128


@torch.inference_mode()
def embed_images(model: SimMIM, records: Sequence[Record]) -> Tensor:
    """float32 [n, E] of unit length: the first image of each record."""
    size = model.config.image_size
    pixels = torch.from_numpy(load_pixels([record.images[0] for record in records], ImagePreprocessing(size, size)))
    return torch.cat([model.encode_image(part)[1] for part in pixels.split(BATCH)])


@torch.inference_mode()
def embed_texts(model: SimMIM, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """float32 [n, E] of unit length."""
    parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    encoded = (encode(tokenizer, part, max_length=model.config.max_length) for part in parts)
    return torch.cat([model.encode_text(**tokens)[1] for tokens in encoded])


def search(model: SimMIM, untrained: SimMIM, tokenizer: Tokenizer, *, records: Sequence[Record]) -> dict[str, Any]:
    """Recall at 1, 5 and 10 of the images by the emoji's names, among all ``records``, with controls.

    Controls: ``shuffled names`` asks for each image with the name of one half the list away (neighbors are alike);
    ``untrained image encoder`` has random weights; ``no image`` has the mean of all embeddings in place of each, so every
    answer is a guess.
    """
    names = embed_texts(model, tokenizer, [record.captions[0] for record in records])
    images = embed_images(model, records)
    own, others = torch.eye(len(records), dtype=torch.bool), torch.arange(len(records)).roll(len(records) // 2)
    blind = images.mean(dim=0, keepdim=True).expand_as(images).contiguous()
    controls = {
        "shuffled names": names[others] @ images.T,
        "untrained image encoder": names @ embed_images(untrained, records).T,
        "no image": (names @ blind[:1].T).expand(-1, len(records)),
    }
    return {
        "images": len(records),
        "chance": {f"recall_at_{cut}": min(1.0, cut / len(records)) for cut in CUTS},
        **_recalls(names @ images.T, own),
        "controls": {name: _recalls(scores, own) for name, scores in controls.items()},
    }


def _recalls(scores: Tensor, own: Tensor) -> dict[str, Any]:
    return {f"recall_at_{cut}": accuracy(recall(scores, own, cut=cut)) for cut in CUTS}


def measure(path: Path, root: Path) -> dict[str, Any]:
    """The figures of the checkpoint ``path`` on the emoji in ``root``, and how it was trained."""
    checkpoint = load(path)
    model, tokenizer = build(checkpoint, path).eval(), read_tokenizer(checkpoint.tokenizer)
    torch.manual_seed(0)
    untrained = SimMIM(model.config).eval()
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the emoji that not every style has
        for style, seen_style, seen_emoji, split in SEARCHED:
            figures = search(model, untrained, tokenizer, records=read("emoji", root, split))
            rows.append({"style": style, "seen_style": seen_style, "seen_emoji": seen_emoji, **figures})
    stages, record = [], checkpoint.provenance
    while record.get("stage") in ("pretrain", "finetune"):
        stages.append({name: record[name] for name in ("stage", "seconds", "samples", "image_size", "frozen")})
        record = record.get("parent", {}).get("provenance", {})
    return {"rows": rows, "stages": stages[::-1], "image_encoder": model.config.image_trunk}


def main() -> None:
    """Measure, store the figures in results.json, and say how to render the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("root", type=Path, help="folder with the packages, see docs/training.md")
    parser.add_argument("--store", type=Path, default=Path("docs/results.json"))
    options = parser.parse_args()
    started = time.monotonic()
    metrics = measure(options.checkpoint, options.root)
    results = json.loads(options.store.read_text(encoding="utf-8")) if options.store.is_file() else {}
    results[EMOJI] = {"metrics": metrics, "seconds": round(time.monotonic() - started), "revision": REVISION}
    with replacing(options.store) as temporary:
        temporary.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n", encoding="utf-8")
    say(f"wrote {options.store}; render the page with python -P -m simmim_export.training.results --render")


if __name__ == "__main__":
    run_app(main)
