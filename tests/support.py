"""Material for tests: a small real tokenizer, checkpoints of random weights, and bundles that compute something else."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from simmim_export.bundle.golden import Golden

_TEXT = "a is the there what colour shape size red green blue circle square triangle left right of many how"
WORDS = (*_TEXT.split(), "?", ",", ".")


LABELS = {"match": ["no", "yes"], "vqa": ["red", "green", "blue", "none"]}
LABELS |= {"text_class": ["contradiction", "entailment"], "image_class": ["one", "two", "three"]}
LABELS |= {"video_class": ["left", "right"], "video_qa": ["left", "right", "red"]}


def word_tokenizer() -> str:
    """The text of a real tokenizer.json over a few words, as training writes it for a small vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer.to_str()


def make_checkpoint(path: Path, preset: str = "tiny", **changes: object) -> Path:
    """Write a checkpoint of random but real weights: every statistic is as after initialisation, the samples are noise."""
    import torch

    from simmim_export.models.simmim.checkpoint import Checkpoint, save
    from simmim_export.models.simmim.model import SimMIM
    from simmim_export.models.simmim.presets import PRESETS

    heads = {head: len(LABELS[head]) for head in changes.pop("heads", ("match", "vqa"))}  # type: ignore[attr-defined]
    config = dataclasses.replace(PRESETS[preset], heads=heads, **changes)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = SimMIM(config)
    size = config.image_size
    pixels = torch.randint(0, 256, (16, size, size, 3), dtype=torch.uint8)
    texts = [f"what colour is the {' '.join(WORDS[i % 5 : i % 5 + 1 + i % 4])} circle ?" for i in range(16)]
    checkpoint = Checkpoint(
        config=config,
        state=model.state_dict(),
        tokenizer=word_tokenizer(),
        labels={head: LABELS[head] for head in heads},
        preprocessing={
            "image": {"height": size, "width": size, "resize": "squash", "interpolation": "bilinear"},
            "text": {"max_length": config.max_length},
        },
        samples={"pixels": pixels, "texts": texts},
        provenance={"seed": 0},
    )
    save(checkpoint, path)
    return path


def golden_of(bundle: Path) -> Golden:
    """The golden tensors of a bundle."""
    from simmim_export.bundle import Bundle
    from simmim_export.bundle.golden import Golden

    return Golden.load(bundle / "golden.npz", Bundle.open(bundle).manifest.graphs)


def spoil(bundle: Path, copy: Path, factor: float) -> Path:
    """A copy whose text graph has half of one weight times ``factor``, with digests that fit: only parity can see it."""
    import numpy as np
    import onnx

    from simmim_export.bundle import Bundle
    from simmim_export.system.files import digest

    spoiled = Path(shutil.copytree(bundle, copy))
    manifest = Bundle.open(spoiled).manifest
    path = spoiled / "graphs/text_encoder.fp32.onnx"
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(weight.raw_data, np.float32).copy()
    values[: len(values) // 2] *= np.float32(factor)
    weight.raw_data = values.tobytes()
    onnx.save(model, path)
    artifacts = tuple(
        dataclasses.replace(a, sha256=digest(path), bytes=path.stat().st_size) if path.samefile(spoiled / a.path) else a
        for a in manifest.artifacts
    )
    (spoiled / "manifest.json").write_text(dataclasses.replace(manifest, artifacts=artifacts).dumps())
    return spoiled


def change_graph(bundle: Path, copy: Path, graph: str, change: Callable[[onnx.ModelProto, Path], None]) -> Path:
    """A copy of ``bundle`` whose FP32 file of ``graph`` was changed by ``change(model, path)``, which may save it itself; the
    digests fit."""
    import onnx

    from simmim_export.bundle import Bundle
    from simmim_export.system.files import digest

    changed = Path(shutil.copytree(bundle, copy))
    manifest = Bundle.open(changed).manifest
    path = changed / f"graphs/{graph}.fp32.onnx"
    model, before = onnx.load(path), digest(path)
    change(model, path)
    if digest(path) == before:
        onnx.save(model, path)
    artifacts = tuple(
        dataclasses.replace(a, sha256=digest(path), bytes=path.stat().st_size) if path.samefile(changed / a.path) else a
        for a in manifest.artifacts
    )
    (changed / "manifest.json").write_text(dataclasses.replace(manifest, artifacts=artifacts).dumps())
    return changed
