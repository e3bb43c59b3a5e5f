"""Texts to token ids and a mask, int64 [batch, sequence] each, as the text graphs take them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Encoding

from simmim_export.bundle.vocabulary import MAX_TEXT, read
from simmim_export.errors import EXPORT_AGAIN, BundleError, TextError, TruncatedText, UnknownWords
from simmim_export.runtime.inputs import second_axis
from simmim_export.spec import GraphSpec, Kind, fed_tensors

# A warning names this many unknown words of a text.
NAMED = 5


class Tokenizer:
    """A tokenizer.json with the model's limit of ``max_length`` tokens, special tokens included.

    Threads may share one: nothing changes it after it is built.
    """

    def __init__(self, tokenizer_json: str, max_length: int, *, graphs: Iterable[GraphSpec] = ()) -> None:
        """``graphs`` are those that take the ids and the mask. If their sequence axis has a fixed size, each row is padded to it.

        The padding and truncation of the file itself are ignored, except for the id that it pads with. Raise
        :class:`BundleError` if ``tokenizer_json`` is not a tokenizer or exceeds a limit of
        :mod:`simmim_export.bundle.vocabulary`, and if ``max_length`` leaves no room for a word or is more than ``graphs``
        take.
        """
        try:
            vocabulary = read(tokenizer_json)
        except ValueError as error:
            fix = "use a bundle from a source you trust, whose tokenizer is that of a public model; or export it again"
            raise BundleError(f"tokenizer.json cannot be used: {error}", fix=fix) from error
        self._tokenizer, self._pad = vocabulary.tokenizer, vocabulary.pad
        self.longest_text = vocabulary.longest_text
        self._specials = self._tokenizer.num_special_tokens_to_add(False)
        if not isinstance(max_length, int) or max_length <= self._specials:
            what = f"max_length is {max_length!r}, and the special tokens alone are {self._specials}"
            raise BundleError(what, fix="export the bundle again with a larger max_length")
        self.max_length = max_length
        specs = list(graphs)
        self._shortest, longest = second_axis(specs, Kind.TOKEN_IDS)
        if 0 < longest < max_length:
            what = f"texts have up to {max_length} tokens, and the graphs take {longest} at most"
            raise BundleError(what, fix=EXPORT_AGAIN)
        self._names = {kind: tensor.name for kind, tensor in fed_tensors(specs).items()}

    def feeds(self, texts: Sequence[str | bytes], *, first: int = 0, warn: bool = False) -> dict[str, np.ndarray]:
        """:meth:`encode` by the names under which the graphs take ids and mask; a tensor that no graph takes is left out."""
        ids, mask = self.encode(texts, first=first, warn=warn)
        arrays = {Kind.TOKEN_IDS: ids, Kind.TEXT_MASK: mask}
        return {self._names[kind]: array for kind, array in arrays.items() if kind in self._names}

    def encode(
        self, texts: Sequence[str | bytes], *, first: int = 0, warn: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask, int64 [n, s] each; in the mask 1 is a token and 0 is padding.

        All rows are as long as the longest text of this call, or as the shortest row that the graphs take: s <=
        ``max_length``, unless the graphs have a fixed length. A text of more than ``max_length`` tokens is cut, with a
        :class:`TruncatedText` warning; it keeps the special tokens at both ends. With ``warn``, words outside the vocabulary
        give an :class:`UnknownWords` warning.

        Raise :class:`TextError`, which names the text's index counted from ``first``, for a text that is empty, not UTF-8, or
        not a text at all, has more than ``longest_text`` characters, or holds no token.
        """
        if isinstance(texts, str | bytes):
            raise TextError("one text instead of a list", fix="write encode([text])")
        rows = []
        for index, text in enumerate(texts, start=first):
            where = f"texts[{index}]"
            text = check_text(text, where, longest=self.longest_text)
            encoding = self._encode(text, where)
            if warn:
                self._warn_of_unknown_words(encoding, text, where=where)
            rows.append(self._tokenizer.post_process(encoding).ids)
        length = max((len(row) for row in rows), default=0)
        length = max(length, self._shortest) if rows else 0
        ids = np.full((len(rows), length), self._pad, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return ids, mask

    def _encode(self, text: str, where: str) -> Encoding:
        """The tokens of ``text`` that the model reads, without special tokens."""
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        # The Rust library raises plain Exception for everything: here, for an unknown word if the vocabulary has no [UNK].
        except Exception as error:
            what = f"the text cannot be tokenized: {error}: {_shown(text)}"
            raise TextError(what, where=where, fix="use words that the model knows") from error
        if len(encoding) == 0:
            what = f"the text holds no word: {_shown(text)}"
            raise TextError(what, where=where, fix="give a text of one word or more")
        length = len(encoding) + self._specials
        if length > self.max_length:
            lost = text[encoding.offsets[self.max_length - self._specials][0] :]
            # Python shows equal messages once; what was lost makes the message of each text different.
            what = f"{where}, of {length} tokens, was cut to the model's limit of {self.max_length}"
            warnings.warn(f"{what}: {_shown(text)} lost {_both_ends(lost)}", TruncatedText, stacklevel=4)
            encoding.truncate(self.max_length - self._specials)
        return encoding

    def _warn_of_unknown_words(self, encoding: Encoding, text: str, *, where: str) -> None:
        """Warn :class:`UnknownWords` if a token of ``encoding`` is not in the vocabulary.

        An unknown word becomes the token for unknown words. A Unigram model does not name that token; there the word stays as it
        is, but has the id of another token. A mark that only begins a word counts as neither known nor unknown.
        """
        stand_in = getattr(self._tokenizer.model, "unk_token", None)
        known, unknown = 0, dict[str, None]()
        for token, index, (start, end) in zip(encoding.tokens, encoding.ids, encoding.offsets, strict=True):
            if token == stand_in or self._tokenizer.id_to_token(index) != token:
                unknown[text[start:end].strip() or token] = None
            elif token.strip("\u2581"):
                known += 1
        if not unknown:
            return
        # All in one pair of quotes: console/notices.py counts warnings that differ only in quotations as the same.
        more = ["..."] if len(unknown) > NAMED else []
        names = repr(", ".join([*(_cut(word) for word in list(unknown)[:NAMED]), *more]))
        alone = "" if known else "; it has no other words, so what the model says about it means nothing"
        message = f"{where} has words that the model does not know: {names}{alone}"
        warnings.warn(message, UnknownWords, stacklevel=4)


def check_text(text: str | bytes, where: str | None = None, *, longest: int = MAX_TEXT) -> str:
    """``text`` as a str.

    Raise :class:`TextError`, saying ``where``, if it is empty, not UTF-8, not a text, or has more than ``longest`` characters.
    """
    if isinstance(text, bytes):
        # Check this first, because decoding a long text takes long. A character has at most four bytes.
        if len(text) > 4 * longest:
            raise _too_long(f"{len(text):,} bytes", where, longest=longest)
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"the text is not UTF-8: byte {error.start} is 0x{text[error.start]:02x}"
            raise TextError(what, where=where, fix="encode it as UTF-8") from error
    if not isinstance(text, str):
        raise TextError(f"not a text: {type(text).__name__}", where=where, fix="give a str")
    if len(text) > longest:
        raise _too_long(f"{len(text):,} characters", where, longest=longest)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # Bytes of a command line that cannot be decoded arrive as lone surrogates.
        what = f"the text is not UTF-8 at character {error.start}"
        raise TextError(what, where=where, fix="encode it as UTF-8") from error
    if not text.strip():
        raise TextError("the text is empty", where=where, fix="give a text of one word or more")
    return text


def _too_long(size: str, where: str | None, *, longest: int) -> TextError:
    fix = f"give its first {longest:,} characters or fewer: the model reads only the beginning of a long text"
    return TextError(f"the text has {size}; the limit is {longest:,} characters", where=where, fix=fix)


def _both_ends(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:30]} ... {text[-30:]}")


def _shown(text: str) -> str:
    return repr(_cut(text))


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."
