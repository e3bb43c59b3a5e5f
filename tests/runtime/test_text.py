"""Every text becomes ids and a mask that fit, or one clear TextError."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
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
    with pytest.warns(TruncatedText, match=r"texts\[0\], of 102 tokens, was cut to the model's limit of 10: 'red red"):
        ids, mask = TOKENIZER.encode(["red " * 100])
    assert ids.shape == (1, 10) and mask.all() and ids[0, 0] == CLS and ids[0, -1] == SEP
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TOKENIZER.encode(["red " * 8])


def test_each_cut_text_is_said_once() -> None:
    with pytest.warns(TruncatedText) as caught:
        TOKENIZER.encode(["red " * 20, "circle", "blue " * 30])
    assert ["red" in str(w.message) for w in caught] == [True, False]


def test_no_cut_is_swallowed_by_pythons_own_filter() -> None:
    """It shows equal messages once: these begin alike, have one length, and are asked one by one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for last in ("circle", "square"):
            TOKENIZER.encode(["red " * 20 + last])
        TOKENIZER.encode(["blue " * 20] * 2, first=8)
    said = [str(w.message) for w in caught]
    assert len(said) == len(set(said)) == 4
    assert said[0].endswith("circle'") and said[2].startswith("texts[8], of 22 tokens")


@pytest.mark.parametrize("max_length", [-1, 0, 2, 2.5, None])
def test_a_limit_without_room_for_a_word(max_length: object) -> None:
    with pytest.raises(BundleError, match="special tokens alone are 2"):
        Tokenizer(word_tokenizer(), max_length)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, "zebra"]), min_size=1, max_size=30), st.integers(3, 20))
def test_a_cut_is_the_one_that_the_library_makes(words: list[str], limit: int) -> None:
    library = tokenizers.Tokenizer.from_str(word_tokenizer())
    library.enable_truncation(limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedText)
        found = Tokenizer(word_tokenizer(), limit).encode([" ".join(words)])[0]
    assert found[0].tolist() == library.encode(" ".join(words)).ids


@pytest.mark.parametrize("text", ["", " ", "\n\t", b"", "\u00a0"])
def test_empty(text: str | bytes) -> None:
    with pytest.raises(TextError, match="empty") as caught:
        TOKENIZER.encode(["red", text])
    assert caught.value.exit_code == 5 and caught.value.fix and caught.value.where == "texts[1]"


def test_no_texts_are_an_empty_batch() -> None:
    assert [array.shape for array in TOKENIZER.encode([])] == [(0, 0), (0, 0)]


def test_not_utf8() -> None:
    assert TOKENIZER.encode([b"red"])[0].shape == (1, 3)
    with pytest.raises(TextError, match="byte 3 is 0xe9"):
        TOKENIZER.encode([b"caf\xe9"])
    with pytest.raises(TextError, match="not UTF-8 at character 3"):
        TOKENIZER.encode(["caf\udce9"])


def test_no_text() -> None:
    with pytest.raises(TextError, match="not a text: int"):
        TOKENIZER.encode([3])  # type: ignore[list-item]
    for text in ("red", b"red"):
        with pytest.raises(TextError, match="one text instead of a list"):
            TOKENIZER.encode(text)  # type: ignore[arg-type]


def test_a_text_of_nothing_but_control_characters() -> None:
    """BERT's own normaliser removes them all."""
    content = json.loads(word_tokenizer())
    kind = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    content["normalizer"] = {"type": "BertNormalizer", **kind}
    with pytest.raises(TextError, match="no word"):
        Tokenizer(json.dumps(content), 10).encode(["\u200b\u0000"])


def test_unknown_words_are_read_as_unknown() -> None:
    assert TOKENIZER.encode(["red zebra"])[0][0].tolist()[2] == UNK
    assert TOKENIZER.encode(["zebra"])[0].tolist() == [[CLS, UNK, SEP]]


EMOJI = "\U0001f600"


def unigram() -> str:
    """A model whose unknown token has no name: an unknown word is given as itself."""
    model = tokenizers.models.Unigram([("<unk>", 0.0), ("\u2581red", -1.0), ("\u2581", -2.0)], unk_id=0)
    found = tokenizers.Tokenizer(model)
    found.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return str(found.to_str())


@pytest.mark.parametrize("tokenizer", [TOKENIZER, Tokenizer(unigram(), 10)], ids=["WordLevel", "Unigram"])
def test_a_text_of_unknown_words_alone_is_refused_where_it_would_be_answered(tokenizer: Tokenizer) -> None:
    for text in ("red", f"red {EMOJI}"):
        assert tokenizer.feeds([text], known=True)["input_ids"].shape[0] == 1
    with pytest.raises(TextError, match="knows no word of the text") as caught:
        tokenizer.feeds(["red", EMOJI], first=8, known=True)
    assert caught.value.where == "texts[9]" and EMOJI in str(caught.value) and caught.value.fix
    # Evidence and calibration are what they are.
    assert tokenizer.encode([EMOJI])[0].shape[0] == 1


def test_unknown_words_without_an_unknown_token() -> None:
    content = json.loads(word_tokenizer())
    content["model"]["unk_token"] = "[NONE]"
    tokenizer = Tokenizer(json.dumps(content), 10)
    assert tokenizer.encode(["red"])[0].shape == (1, 3)
    with pytest.raises(TextError, match=r"cannot be tokenised.*zebra"):
        tokenizer.encode(["zebra"])


@pytest.mark.parametrize(("name", "section", "expected"), [("[PAD]", 7, 7), ("[PAD]", None, 0), ("<pad>", None, 0)])
def test_the_padding_token(name: str, section: int | None, expected: int) -> None:
    content = json.loads(word_tokenizer())
    content["model"]["vocab"] = {name if w == "[PAD]" else w: i for w, i in content["model"]["vocab"].items()}
    content["padding"] = None if section is None else content["padding"] | {"pad_id": section}
    assert Tokenizer(json.dumps(content), 10).encode(["red", "red circle"])[0][0, -1] == expected


def test_word_pieces() -> None:
    """The model that BERT uses: a word outside the vocabulary is read as its pieces."""
    vocabulary = {"[PAD]": 9, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "circle": 4, "##s": 5, "red": 6}
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.normalizer = tokenizers.normalizers.BertNormalizer()
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    ids, mask = Tokenizer(pieces.to_str(), 8).encode(["Red circles", "red"])
    assert ids.tolist() == [[2, 6, 4, 5, 3], [2, 6, 3, 9, 9]] and mask.sum(axis=1).tolist() == [5, 3]


def test_a_damaged_tokenizer() -> None:
    for text in ("", "{}", "[1, 2]", word_tokenizer()[:100]):
        with pytest.raises(BundleError, match=r"tokenizer\.json cannot be used"):
            Tokenizer(text, 10)


def test_a_template_of_tokens_that_are_not_there() -> None:
    """The library panics on it, which is no Exception."""
    content = json.loads(word_tokenizer())
    content["post_processor"]["single"][0]["SpecialToken"]["id"] = "[NONE]"
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be used"):
        Tokenizer(json.dumps(content), 10)


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
