"""Texts to token ids. Knows tokenizers; must not know graphs or engines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer as _Tokenizer

from simmim_export.errors import BundleError, TextError, TruncatedText


class Tokenizer:
    """The bundle's tokenizer.json with the model's limit of ``max_length`` tokens, special tokens included."""

    def __init__(self, tokenizer_json: str, max_length: int) -> None:
        """Raise :class:`BundleError` if ``tokenizer_json`` is not a tokenizer."""
        try:
            self._tokenizer = _Tokenizer.from_str(tokenizer_json)
        # The Rust parser raises plain Exception for everything.
        except Exception as error:
            raise BundleError(f"tokenizer.json cannot be read: {error}", fix="export the bundle again") from error
        padding = self._tokenizer.padding
        self._pad = padding["pad_id"] if padding else self._tokenizer.token_to_id("[PAD]") or 0
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._specials = self._tokenizer.num_special_tokens_to_add(False)
        self.max_length = max_length

    def encode(self, texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attention_mask, int64 [n, s] each, padded to the longest text of this call.

        A text over the limit is cut, keeping the special tokens at both ends, with a :class:`TruncatedText` warning.
        Raise :class:`TextError` for a text that is empty or not UTF-8.
        """
        rows = [self._encode(check_text(text)) for text in texts]
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), self._pad, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return ids, mask

    def _encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text).ids
        if len(ids) <= self._specials:
            raise TextError(f"the text holds no word: {_shown(text)}", fix="give a text of one word or more")
        if len(ids) > self.max_length:
            warnings.warn(
                f"a text of {len(ids)} tokens was cut to the model's limit of {self.max_length}: {_shown(text)}",
                TruncatedText,
                stacklevel=4,
            )
            self._tokenizer.enable_truncation(self.max_length)
            ids = self._tokenizer.encode(text).ids
            self._tokenizer.no_truncation()
        return ids


def check_text(text: str | bytes) -> str:
    """``text`` as a str; raise :class:`TextError` if it is empty, not UTF-8 or no text."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"the text is not UTF-8: byte {error.start} is 0x{text[error.start]:02x}"
            raise TextError(what, fix="encode it as UTF-8") from error
    if not isinstance(text, str):
        raise TextError(f"not a text: {type(text).__name__}", fix="give a str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # A command line's undecodable bytes arrive as lone surrogates.
        raise TextError(f"the text is not UTF-8 at character {error.start}", fix="encode it as UTF-8") from error
    if not text.strip():
        raise TextError("the text is empty", fix="give a text of one word or more")
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
