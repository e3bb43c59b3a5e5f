"""A word-level tokenizer for a small closed vocabulary, and texts to tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from simmim_export.bundle.vocabulary import read
from simmim_export.errors import DataError

# Number of texts to tokenize at once; more would only use memory.
_TOGETHER = 10_000
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """Lower-cases, splits at white space and punctuation, adds [CLS] and [SEP]; ids are in the order of ``words``."""
    vocabulary = {word: index for index, word in enumerate([*SPECIALS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.enable_padding(pad_id=vocabulary["[PAD]"], pad_token="[PAD]")
    return tokenizer


def read_tokenizer(text: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json, set up for training: texts are never cut, and a batch is padded to its longest
    text.

    The files of pretrained encoders often pad every text to a fixed length and silently cut longer ones.
    """
    vocabulary = read(text)
    tokenizer, pad = vocabulary.tokenizer, vocabulary.pad
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad) or "[PAD]")
    return tokenizer


def check_lengths(tokenizer: Tokenizer, texts: Sequence[str], *, max_length: int) -> None:
    """Raise :class:`DataError`, as :func:`encode` would, for the longest of ``texts``."""
    unpadded = Tokenizer.from_str(tokenizer.to_str())
    unpadded.no_padding()
    texts, longest, where = list(dict.fromkeys(texts)), 0, 0
    for start in range(0, len(texts), _TOGETHER):
        for index, row in enumerate(unpadded.encode_batch_fast(texts[start : start + _TOGETHER]), start):
            longest, where = max((longest, where), (len(row), index), key=lambda pair: pair[0])
    if longest > max_length:
        raise _too_long(texts[where], longest, max_length)


def encode(tokenizer: Tokenizer, texts: Sequence[str], *, max_length: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, int64 [n, s], padded to the longest text.

    Raise :class:`DataError` for a text over ``max_length`` tokens: a cut question could have another answer.
    """
    rows = tokenizer.encode_batch(list(texts))
    longest = max(len(row.ids) for row in rows)
    if longest > max_length:
        text = texts[max(range(len(rows)), key=lambda i: sum(rows[i].attention_mask))]
        raise _too_long(text, longest, max_length)
    return {
        "input_ids": torch.tensor([row.ids for row in rows]),
        "attention_mask": torch.tensor([row.attention_mask for row in rows]),
    }


def _too_long(text: str, tokens: int, max_length: int) -> DataError:
    what = f"a text has {tokens} tokens, more than the model's limit of {max_length}: {text!r}"
    return DataError(what, fix=f"train with --max-length {tokens} or more, or shorten the data")
