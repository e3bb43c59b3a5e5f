"""Texts to token ids: ``input_ids`` and ``attention_mask``, int64 [batch, sequence].

Knows tokenizers; must not know graphs, engines or bundles. Importing tokenizers takes 4 ms, so it is not put off.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer as _Tokenizer

from simmim_export.errors import BundleError, TextError, TruncatedText


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

    def feeds(self, texts: Sequence[str | bytes]) -> dict[str, np.ndarray]:
        """:meth:`encode` by the names under which graphs take it."""
        ids, mask = self.encode(texts)
        return {"input_ids": ids, "attention_mask": mask}

    def encode(self, texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attention_mask, int64 [n, s] each, padded to the longest text of this call: s <= max_length.

        A text over the limit is cut, keeping the special tokens at both ends, with a :class:`TruncatedText` warning.
        Raise :class:`TextError`, naming the text's index, for one that is empty, not UTF-8, no text, or holds no token.
        """
        if isinstance(texts, str | bytes):
            raise TextError("one text instead of a list", fix="write encode([text])")
        rows = [self._encode(check_text(text, f"texts[{index}]"), index) for index, text in enumerate(texts)]
        longest = max((len(row) for row in rows), default=0)
        ids = np.full((len(rows), longest), self._pad, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return ids, mask

    def _encode(self, text: str, index: int) -> list[int]:
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        # The Rust library raises plain Exception for everything: here, an unknown word where there is no [UNK].
        except Exception as error:
            what = f"the text cannot be tokenised: {error}: {_shown(text)}"
            raise TextError(what, where=f"texts[{index}]", fix="use words that the model knows") from error
        if len(encoding) == 0:
            what = f"the text holds no word: {_shown(text)}"
            raise TextError(what, where=f"texts[{index}]", fix="give a text of one word or more")
        length = len(encoding) + self._specials
        if length > self.max_length:
            warnings.warn(
                f"a text of {length} tokens was cut to the model's limit of {self.max_length}: {_shown(text)}",
                TruncatedText,
                stacklevel=4,
            )
            encoding.truncate(self.max_length - self._specials)
        return self._tokenizer.post_process(encoding).ids


def _parse(tokenizer_json: str) -> _Tokenizer:
    try:
        tokenizer = _Tokenizer.from_str(tokenizer_json)
        # A template that names a token it does not list shows only when it is first applied.
        tokenizer.encode("")
    except BaseException as error:
        # The Rust library raises plain Exception for everything, and a panic of its own is no Exception and has no
        # importable class.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise BundleError(f"tokenizer.json cannot be read: {error}", fix="export the bundle again") from error
        raise
    return tokenizer


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


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
