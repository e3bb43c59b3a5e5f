"""Texts to token ids: ``input_ids`` and ``attention_mask``, int64 [batch, sequence].

Importing tokenizers takes 4 ms, so it is not put off.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from tokenizers import Encoding

from simmim_export.bundle.vocabulary import MAX_TEXT, Vocabulary, read
from simmim_export.errors import BundleError, TextError, TruncatedText


class Tokenizer:
    """The bundle's tokenizer.json with the model's limit of ``max_length`` tokens, special tokens included.

    Threads may share one: nothing changes it after it is built.
    """

    def __init__(self, tokenizer_json: str, max_length: int) -> None:
        """Raise :class:`BundleError` if ``tokenizer_json`` is not a tokenizer, exceeds a limit of
        :mod:`simmim_export.bundle.vocabulary`, or ``max_length`` leaves no room for a word.

        The file's own padding and truncation are ignored, except for the id that it pads with.
        """
        vocabulary = _read(tokenizer_json)
        self._tokenizer, self._pad = vocabulary.tokenizer, vocabulary.pad
        self.longest_text = vocabulary.longest_text
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

        A text of more than ``max_length`` tokens is cut, keeping the special tokens at both ends, with a
        :class:`TruncatedText` warning. Raise :class:`TextError`, naming the text's index counted from ``first``, for one that
        is empty, not UTF-8, not a text, has more than ``longest_text`` characters, or holds no token. With ``known``, also
        raise it for a text that consists of unknown words: the answer would be the same for every such text.
        """
        if isinstance(texts, str | bytes):
            raise TextError("one text instead of a list", fix="write encode([text])")
        rows = []
        for index, text in enumerate(texts, start=first):
            where = f"texts[{index}]"
            rows.append(self._encode(check_text(text, where, longest=self.longest_text), where, known))
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
        # The Rust library raises plain Exception for everything: here, for an unknown word when there is no [UNK].
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


def _read(tokenizer_json: str) -> Vocabulary:
    try:
        return read(tokenizer_json)
    except ValueError as error:
        fix = "use a bundle whose tokenizer is one of a public model, and whose source you trust; or export it again"
        raise BundleError(f"tokenizer.json cannot be used: {error}", fix=fix) from error


def check_text(text: str | bytes, where: str | None = None, *, longest: int = MAX_TEXT) -> str:
    """``text`` as a str. Raise :class:`TextError`, saying ``where``, if it is empty, not UTF-8, not a text, or has more than
    ``longest`` characters."""
    # First, because everything below takes time with the length. A character has at most four bytes.
    if isinstance(text, bytes) and len(text) > 4 * longest:
        raise _too_long(f"{len(text):,} bytes", where, longest)
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"the text is not UTF-8: byte {error.start} is 0x{text[error.start]:02x}"
            raise TextError(what, where=where, fix="encode it as UTF-8") from error
    if not isinstance(text, str):
        raise TextError(f"not a text: {type(text).__name__}", where=where, fix="give a str")
    if len(text) > longest:
        raise _too_long(f"{len(text):,} characters", where, longest)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # A command line's undecodable bytes arrive as lone surrogates.
        what = f"the text is not UTF-8 at character {error.start}"
        raise TextError(what, where=where, fix="encode it as UTF-8") from error
    if not text.strip():
        raise TextError("the text is empty", where=where, fix="give a text of one word or more")
    return text


def _too_long(size: str, where: str | None, longest: int) -> TextError:
    fix = f"give its first {longest:,} characters or fewer: the model reads only the beginning of a long text"
    return TextError(f"the text has {size}; the limit is {longest:,} characters", where=where, fix=fix)


def _both_ends(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:30]} ... {text[-30:]}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
