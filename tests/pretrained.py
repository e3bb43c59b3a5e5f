"""Small models of transformers with random weights, in folders as save_pretrained writes them, with a WordPiece vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TEXT = "a is the there what color of on in two dog cat ##s red green blue round square small large yes no ? , ."
# The ids of the vocabulary: [PAD] is 0, [CLS] 2 and [SEP] 3.
WORDPIECES = {word: index for index, word in enumerate((*_SPECIAL, *_TEXT.split()))}


def wordpiece_tokenizer() -> str:
    """The text of a tokenizer.json like BERT's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(WORDPIECES, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", WORDPIECES["[CLS]"]), ("[SEP]", WORDPIECES["[SEP]"])]
    )
    return str(tokenizer.to_str())


def save_random(model: Any, folder: Path, *, processor: Mapping[str, Any]) -> None:
    """Write ``model`` to ``folder`` with random weights, biases and positions, and the given preprocessor_config.json.

    Transformers begins with zeros for some of them, which would hide that one is not used.
    """
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(wordpiece_tokenizer())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def linked(folder: Path, copy: Path) -> Path:
    """A folder ``copy`` with links to the files of ``folder``. Replace or remove a link; a write would go through it."""
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    return copy


def changed(folder: Path, copy: Path, file: str = "config.json", **fields: Any) -> Path:
    """A folder like ``folder`` in which ``fields`` of a JSON file have other values; a field of a part is named ``part__field``.

    A file that is not there is made."""
    path = linked(folder, copy) / file
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, value in fields.items():
        *parts, last = name.split("__")
        place = content
        for part in parts:
            place = place[part]
        place[last] = value
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return copy
