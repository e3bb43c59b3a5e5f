"""Every text becomes ids and a mask that fit, or one clear TextError."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import WORDS, word_tokenizer

from simmim_export.errors import BundleError, TextError, TruncatedText
from simmim_export.runtime.text import Tokenizer

TOKENIZER = Tokenizer(word_tokenizer(), 10)
PAD, UNK, CLS, SEP = range(4)


def test_ids_mask_and_padding() -> None:
    ids, mask = TOKENIZER.encode(["red circle", "What colour is the circle?"])
    index = {word: number for number, word in enumerate(WORDS, start=4)}
    assert ids.dtype == mask.dtype == np.int64
    assert ids[0].tolist() == [CLS, index["red"], index["circle"], SEP, PAD, PAD, PAD, PAD]
    assert ids[1].tolist() == [CLS, *(index[w] for w in ("what", "colour", "is", "the", "circle", "?")), SEP]
    assert mask.sum(axis=1).tolist() == [4, 8]


def test_a_text_alone_has_no_padding() -> None:
    assert TOKENIZER.encode(["red"])[1].tolist() == [[1, 1, 1]]


def test_over_long_is_cut_and_said_and_keeps_its_ends() -> None:
    with pytest.warns(TruncatedText, match="102 tokens was cut to the model's limit of 10: 'red red"):
        ids, mask = TOKENIZER.encode(["red " * 100])
    assert ids.shape == (1, 10) and mask.all() and ids[0, 0] == CLS and ids[0, -1] == SEP
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TOKENIZER.encode(["red " * 8])


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_empty(text: str) -> None:
    with pytest.raises(TextError, match="empty") as caught:
        TOKENIZER.encode([text])
    assert caught.value.exit_code == 5 and caught.value.fix


def test_not_utf8() -> None:
    assert TOKENIZER.encode([b"red"])[0].shape == (1, 3)
    with pytest.raises(TextError, match="byte 3 is 0xe9"):
        TOKENIZER.encode([b"caf\xe9"])
    with pytest.raises(TextError, match="not UTF-8 at character 3"):
        TOKENIZER.encode(["caf\udce9"])


def test_no_text() -> None:
    with pytest.raises(TextError, match="not a text: int"):
        TOKENIZER.encode([3])  # type: ignore[list-item]


def test_a_text_of_nothing_but_control_characters() -> None:
    """BERT's own normaliser removes them all."""
    content = json.loads(word_tokenizer())
    kind = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    content["normalizer"] = {"type": "BertNormalizer", **kind}
    with pytest.raises(TextError, match="no word"):
        Tokenizer(json.dumps(content), 10).encode(["\u200b\u0000"])


def test_unknown_words_are_read_as_unknown() -> None:
    assert TOKENIZER.encode(["red zebra"])[0][0].tolist()[2] == UNK


def test_a_damaged_tokenizer() -> None:
    for text in ("", "{}", "[1, 2]", word_tokenizer()[:100]):
        with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
            Tokenizer(text, 10)


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text(texts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedText)
        try:
            ids, mask = TOKENIZER.encode(texts)
        except TextError as error:
            assert error.fix
            return
    assert ids.shape == mask.shape and len(ids) == len(texts) and 3 <= ids.shape[1] <= 10
    assert (np.diff(mask, axis=1) <= 0).all() and mask.sum(axis=1).min() >= 3
    assert (ids[mask == 0] == PAD).all() and ((ids >= 0) & (ids < 4 + len(WORDS))).all()
