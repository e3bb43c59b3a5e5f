"""Every text becomes ids and a mask that fit, or a TextError."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from support import WORDS, word_tokenizer

from simmim_export.errors import BundleError, TextError, TruncatedText, UnknownWords
from simmim_export.runtime.text import NAMED, Tokenizer
from simmim_export.spec import Axis, GraphSpec, Kind, TensorSpec

TOKENIZER = Tokenizer(word_tokenizer(), 10)
PAD, UNK, CLS, SEP = range(4)


def test_ids_and_mask_are_padded_to_the_longest_text() -> None:
    ids, mask = TOKENIZER.encode(["red circle", "What colour is the circle?"])
    index = {word: number for number, word in enumerate(WORDS, start=4)}
    assert ids.dtype == mask.dtype == np.int64
    assert ids[0].tolist() == [CLS, index["red"], index["circle"], SEP, PAD, PAD, PAD, PAD]
    assert ids[1].tolist() == [CLS, *(index[w] for w in ("what", "colour", "is", "the", "circle", "?")), SEP]
    assert mask.sum(axis=1).tolist() == [4, 8]


def test_a_text_alone_has_no_padding() -> None:
    assert TOKENIZER.encode(["red"])[1].tolist() == [[1, 1, 1]]


def test_a_long_text_is_cut_with_a_warning_and_keeps_its_ends() -> None:
    with pytest.warns(TruncatedText, match=r"texts\[0\].* 102 .* 10"):
        ids, mask = TOKENIZER.encode(["red " * 100])
    assert ids.shape == (1, 10) and mask.all() and ids[0, 0] == CLS and ids[0, -1] == SEP
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TOKENIZER.encode(["red " * 8])


def test_each_cut_text_gives_one_warning() -> None:
    with pytest.warns(TruncatedText) as caught:
        TOKENIZER.encode(["red " * 20, "circle", "blue " * 30])
    assert ["red" in str(w.message) for w in caught] == [True, False]


def test_warnings_of_similar_texts_are_different() -> None:
    """Python shows equal messages only once. These texts begin alike and have one length."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for last in ("circle", "square"):
            TOKENIZER.encode(["red " * 20 + last])
        TOKENIZER.encode(["blue " * 20] * 2, first=8)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(set(messages)) == 4
    assert messages[0].endswith("circle'") and messages[2].startswith("texts[8]")


@pytest.mark.parametrize("max_length", [-1, 0, 2, 2.5, None])
def test_a_limit_without_room_for_a_word_is_an_error(max_length: object) -> None:
    with pytest.raises(BundleError, match="max_length"):
        Tokenizer(word_tokenizer(), max_length)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, "zebra"]), min_size=1, max_size=30), st.integers(3, 20))
def test_a_text_is_cut_as_the_library_cuts_it(words: list[str], limit: int) -> None:
    library = tokenizers.Tokenizer.from_str(word_tokenizer())
    library.enable_truncation(limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedText)
        ids, _ = Tokenizer(word_tokenizer(), limit).encode([" ".join(words)])
    assert ids[0].tolist() == library.encode(" ".join(words)).ids


@pytest.mark.parametrize("text", ["", " ", "\n\t", b"", "\u00a0"])
def test_an_empty_text_is_an_error(text: str | bytes) -> None:
    with pytest.raises(TextError) as caught:
        TOKENIZER.encode(["red", text])
    assert caught.value.exit_code == 5 and caught.value.fix and caught.value.where == "texts[1]"


def test_no_texts_give_an_empty_batch() -> None:
    assert [array.shape for array in TOKENIZER.encode([])] == [(0, 0), (0, 0)]


def test_a_text_that_is_not_utf8_is_an_error() -> None:
    assert TOKENIZER.encode([b"red"])[0].shape == (1, 3)
    with pytest.raises(TextError, match=r"byte 3 .*0xe9"):
        TOKENIZER.encode([b"caf\xe9"])
    with pytest.raises(TextError, match="character 3"):
        TOKENIZER.encode(["caf\udce9"])


def test_what_is_not_a_list_of_texts_is_an_error() -> None:
    with pytest.raises(TextError, match="int") as caught:
        TOKENIZER.encode([3])  # type: ignore[list-item]
    assert caught.value.where == "texts[0]"
    for text in ("red", b"red"):
        with pytest.raises(TextError):
            TOKENIZER.encode(text)  # type: ignore[arg-type]


def test_a_text_of_control_characters_alone_is_an_error() -> None:
    """BERT's own normalizer removes them all."""
    content = json.loads(word_tokenizer())
    kind = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    content["normalizer"] = {"type": "BertNormalizer", **kind}
    with pytest.raises(TextError) as caught:
        Tokenizer(json.dumps(content), 10).encode(["\u200b\u0000"])
    assert caught.value.where == "texts[0]" and caught.value.fix


def test_unknown_words_are_read_as_unknown() -> None:
    assert TOKENIZER.encode(["red zebra"])[0][0].tolist()[2] == UNK
    assert TOKENIZER.encode(["zebra"])[0].tolist() == [[CLS, UNK, SEP]]


EMOJI = "\U0001f600"


def unigram() -> str:
    """A model whose unknown token has no name: an unknown word is given as itself."""
    model = tokenizers.models.Unigram([("<unk>", 0.0), ("\u2581red", -1.0), ("\u2581", -2.0)], unk_id=0)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return str(tokenizer.to_str())


@pytest.mark.parametrize("tokenizer", [TOKENIZER, Tokenizer(unigram(), 10)], ids=["WordLevel", "Unigram"])
def test_unknown_words_are_named_in_a_warning(tokenizer: Tokenizer) -> None:
    with pytest.warns(UnknownWords) as caught:
        ids, _ = tokenizer.encode(["red", f"red {EMOJI}", EMOJI], first=8, warn=True)
    assert len(ids) == 3
    partly, wholly = (str(warning.message) for warning in caught)
    assert partly.startswith("texts[9] ") and wholly.startswith("texts[10] ")
    assert EMOJI in partly and EMOJI in wholly and len(wholly) > len(partly) + 20


def test_known_words_and_evidence_give_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TOKENIZER.encode(["Red circle ?", "blue"], warn=True)
        TOKENIZER.encode(["zebra"])


def test_a_warning_names_each_unknown_word_once_and_only_a_few() -> None:
    words = [f"zebra{number}" for number in range(NAMED + 1)]
    with pytest.warns(UnknownWords) as caught:
        Tokenizer(word_tokenizer(), 20).encode([" ".join(["red", *words, *words])], warn=True)
    message = str(caught[0].message)
    assert [message.count(word) for word in words] == [1] * NAMED + [0] and "..." in message


def text_graph(*length: int | str, least: int = 1, most: int = 10) -> GraphSpec:
    """A graph of another family that reads ids, called ``words``, and no mask."""
    words = TensorSpec("words", "int64", ("batch", *length), Kind.TOKEN_IDS)
    axes = (Axis("batch", 1, 4), *(Axis(size, least, most) for size in length if isinstance(size, str)))
    return GraphSpec("ear", (words,), (TensorSpec("sense", "float32", ("batch", 3), Kind.EMBEDDING),), axes)


def test_rows_are_padded_to_a_fixed_length_and_named_as_the_graph_takes_them() -> None:
    feeds = Tokenizer(word_tokenizer(), 10, graphs=[text_graph(12)]).feeds(["red", "blue circle"])
    assert list(feeds) == ["words"] and feeds["words"].shape == (2, 12)
    assert (feeds["words"][0, 3:] == PAD).all()


def test_rows_are_as_long_as_the_graph_takes_at_least() -> None:
    tokenizer = Tokenizer(word_tokenizer(), 10, graphs=[text_graph("length", least=5)])
    assert tokenizer.encode(["red"])[0].shape == (1, 5)
    assert tokenizer.encode(["red green blue circle"])[0].shape == (1, 6)


@pytest.mark.parametrize("graph", [text_graph(8), text_graph("length", most=8)], ids=["fixed", "dynamic"])
def test_texts_longer_than_the_graph_takes_are_an_error(graph: GraphSpec) -> None:
    with pytest.raises(BundleError, match="8"):
        Tokenizer(word_tokenizer(), 10, graphs=[graph])


def test_unknown_words_without_an_unknown_token_are_an_error() -> None:
    content = json.loads(word_tokenizer())
    content["model"]["unk_token"] = "[NONE]"
    tokenizer = Tokenizer(json.dumps(content), 10)
    assert tokenizer.encode(["red"])[0].shape == (1, 3)
    with pytest.raises(TextError, match="zebra") as caught:
        tokenizer.encode(["zebra"])
    assert caught.value.where == "texts[0]"


@pytest.mark.parametrize(("name", "section", "expected"), [("[PAD]", 7, 7), ("[PAD]", None, 0), ("<pad>", None, 0)])
def test_rows_are_padded_with_the_tokenizers_own_token(name: str, section: int | None, expected: int) -> None:
    content = json.loads(word_tokenizer())
    content["model"]["vocab"] = {name if w == "[PAD]" else w: i for w, i in content["model"]["vocab"].items()}
    content["padding"] = None if section is None else content["padding"] | {"pad_id": section}
    assert Tokenizer(json.dumps(content), 10).encode(["red", "red circle"])[0][0, -1] == expected


def test_a_word_may_be_read_as_its_pieces() -> None:
    """With WordPiece, the model that BERT uses."""
    vocabulary = {"[PAD]": 9, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "circle": 4, "##s": 5, "red": 6}
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.normalizer = tokenizers.normalizers.BertNormalizer()
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    ids, mask = Tokenizer(pieces.to_str(), 8).encode(["Red circles", "red"])
    assert ids.tolist() == [[2, 6, 4, 5, 3], [2, 6, 3, 9, 9]] and mask.sum(axis=1).tolist() == [5, 3]


def test_a_damaged_tokenizer_is_an_error() -> None:
    for text in ("", "{}", "[1, 2]", word_tokenizer()[:100]):
        with pytest.raises(BundleError, match=r"tokenizer\.json"):
            Tokenizer(text, 10)


def test_a_template_of_missing_tokens_is_an_error() -> None:
    """The library panics on it, and a panic is not an Exception."""
    content = json.loads(word_tokenizer())
    content["post_processor"]["single"][0]["SpecialToken"]["id"] = "[NONE]"
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer(json.dumps(content), 10)


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_gives_ids_and_mask_or_an_error(texts: list[str]) -> None:
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
