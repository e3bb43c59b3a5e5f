"""Material for tests: a small real tokenizer, checkpoints with random weights, and bundles with a changed graph."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import onnx

    from simmim_export.bundle.golden import Golden

_TEXT = "a is the there what colour shape size red green blue circle square triangle left right of many how"
WORDS = (*_TEXT.split(), "?", ",", ".")
# The classes of each head in the checkpoints of :func:`make_checkpoint`.
LABELS = {
    "match": ["no", "yes"],
    "vqa": ["red", "green", "blue", "none"],
    "text_class": ["contradiction", "entailment"],
    "image_class": ["one", "two", "three"],
    "video_class": ["left", "right"],
    "video_qa": ["left", "right", "red"],
}


class Once(Protocol):
    """``once(name, make)`` gives the path that ``make(path)`` wrote when a worker of this run first asked for ``name``."""

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path: ...


def word_tokenizer() -> str:
    """The text of a real tokenizer.json over a few words, like those that training writes for a small vocabulary."""
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


def unigram_tokenizer(pieces: Iterable[str]) -> str:
    """The text of a tokenizer.json with the parts of T5's and SigLIP's, over ``pieces``: a word begins with U+2581."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", "\u2581", *pieces]
    # A longer piece is a better one.
    vocabulary = [(word, float(len(word)) - 100 - index / 1000) for index, word in enumerate(words)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "\u2581")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    return tokenizer.to_str()


def make_checkpoint(
    path: Path, preset: str = "tiny", *, heads: Sequence[str] = ("match", "vqa"), **changes: Any
) -> Path:
    """Write a SimMIM checkpoint of a ``preset`` with ``heads``, and return ``path``; ``changes`` are other fields of its
    configuration.

    The weights are random, as when a training starts, and the sample images are noise.
    """
    import torch

    from simmim_export.models.simmim.checkpoint import Checkpoint, save
    from simmim_export.models.simmim.model import SimMIM
    from simmim_export.models.simmim.presets import PRESETS

    config = dataclasses.replace(PRESETS[preset], heads={head: len(LABELS[head]) for head in heads}, **changes)
    torch.manual_seed(0)
    model = SimMIM(config)
    size = config.image_size
    images = torch.randint(0, 256, (16, size, size, 3), dtype=torch.uint8)
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
        samples={"pixels": images, "texts": texts},
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
    """A copy of ``bundle`` whose text encoder has half of one weight times ``factor``. All digests fit: only parity can see
    it."""
    import numpy as np

    def scale(model: onnx.ModelProto, _: Path) -> None:
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = np.frombuffer(weight.raw_data, np.float32).copy()
        values[: len(values) // 2] *= np.float32(factor)
        weight.raw_data = values.tobytes()

    return change_graph(bundle, copy, "text_encoder", scale)


def change_graph(bundle: Path, copy: Path, graph: str, change: Callable[[onnx.ModelProto, Path], None]) -> Path:
    """A copy of ``bundle`` whose FP32 file of ``graph`` went through ``change(model, path)``, which may save it itself. All
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
