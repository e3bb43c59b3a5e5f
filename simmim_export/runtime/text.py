"""Texts to token ids: ``input_ids`` and ``attention_mask``, int64 [batch, sequence].

Knows tokenizers; must not know graphs, engines or bundles. Importing tokenizers takes 4 ms, so it is not put off.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as _Tokenizer

from simmim_export.errors import BundleError, TextError, TruncatedText
from simmim_export.vocabulary import parse


class Tokenizer:
    """The bundle's tokenizer.json with the model's limit of ``max_length`` tokens, special tokens included.

    Never changed after it is built, so threads may share one.
    """

    def __init__(self, tokenizer_json: str, max_length: int) -> None:
        """Raise :class:`BundleError` if ``tokenizer_json`` is not a tokenizer, or ``max_length`` leaves no room for a word.

        Rows are padded with the id of tokenizer.json's padding section, else of ``[PAD]`` or ``<pad>``, else with 0; the
        mask hides it whatever it is.
        """
        self._tokenizer = _parse(tokenizer_json)
        padding = self._tokenizer.padding
        named = (self._tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        self._pad = padding["pad_id"] if padding else next((index for index in named if index is not None), 0)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._specials = self._tokenizer.num_special_tokens_to_add(False)
        if not isinstance(max_length, int) or max_length <= self._specials:
            raise BundleError(
                f"max_length is {max_length!r}, and the special tokens alone are {self._specials}",
                fix="export the bundle again with a larger max_length",
            )
        self.max_length = max_length

    def feeds(self, texts: Sequence[str | bytes], first: int = 0, known: bool = False) -> dict[str, np.ndarray]:
        """:meth:`encode` by the names under which graphs take it."""
        ids, mask = self.encode(texts, first, known)
        return {"input_ids": ids, "attention_mask": mask}

    def encode(
        self, texts: Sequence[str | bytes], first: int = 0, known: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attention_mask, int64 [n, s] each, padded to the longest text of this call: s <= max_length.

        A text over the limit is cut, keeping the special tokens at both ends, with a :class:`TruncatedText` warning.
        Raise :class:`TextError`, naming the text's index counted from ``first``, for one that is empty, not UTF-8, no text, or
        holds no token; and, where every text has to be ``known``, for one of which the model reads nothing but unknown words: its
        answer would be the same for any other such text.
        """
        if isinstance(texts, str | bytes):
            raise TextError("one text instead of a list", fix="write encode([text])")
        rows = [
            self._encode(check_text(text, f"texts[{index}]"), f"texts[{index}]", known)
            for index, text in enumerate(texts, start=first)
        ]
        longest = max((len(row) for row in rows), default=0)
        ids = np.full((len(rows), longest), self._pad, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return ids, mask

    def _encode(self, text: str, where: str, known: bool) -> list[int]:
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        # The Rust library raises plain Exception for everything: here, an unknown word where there is no [UNK].
        except Exception as error:
            what = f"the text cannot be tokenised: {error}: {_shown(text)}"
            raise TextError(what, where=where, fix="use words that the model knows") from error
        if len(encoding) == 0:
            what = f"the text holds no word: {_shown(text)}"
            raise TextError(what, where=where, fix="give a text of one word or more")
        length = len(encoding) + self._specials
        if length > self.max_length:
            lost = text[encoding.offsets[self.max_length - self._specials][0] :]
            # Python shows equal messages once: what was lost tells one text from the next.
            what = f"{where}, of {length} tokens, was cut to the model's limit of {self.max_length}"
            warnings.warn(f"{what}: {_shown(text)} lost {_both_ends(lost)}", TruncatedText, stacklevel=4)
            encoding.truncate(self.max_length - self._specials)
        if known and not self._knows(encoding):
            what = f"the model knows no word of the text: {_shown(text)}"
            raise TextError(what, where=where, fix="use words that the model knows")
        return self._tokenizer.post_process(encoding).ids

    def _knows(self, encoding: Encoding) -> bool:
        """Whether any token is in the vocabulary. An unknown word is the token that stands for it, or, where the model has none
        by name (Unigram), itself with the id of another; the mark that begins a word says nothing alone."""
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        return any(
            token != unknown and token.strip("\u2581") and self._tokenizer.id_to_token(index) == token
            for index, token in zip(encoding.ids, encoding.tokens, strict=True)
        )


def _parse(tokenizer_json: str) -> _Tokenizer:
    try:
        return parse(tokenizer_json)
    except ValueError as error:
        raise BundleError(f"tokenizer.json cannot be read: {error}", fix="export the bundle again") from error


def check_text(text: str | bytes, where: str | None = None) -> str:
    """``text`` as a str; raise :class:`TextError`, saying ``where``, if it is empty, not UTF-8 or no text."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"the text is not UTF-8: byte {error.start} is 0x{text[error.start]:02x}"
            raise TextError(what, where=where, fix="encode it as UTF-8") from error
    if not isinstance(text, str):
        raise TextError(f"not a text: {type(text).__name__}", where=where, fix="give a str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # A command line's undecodable bytes arrive as lone surrogates.
        what = f"the text is not UTF-8 at character {error.start}"
        raise TextError(what, where=where, fix="encode it as UTF-8") from error
    if not text.strip():
        raise TextError("the text is empty", where=where, fix="give a text of one word or more")
    return text


def _both_ends(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:30]} ... {text[-30:]}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
