"""Checks the tokenizer.json that a checkpoint brings against its text encoder."""

from __future__ import annotations

from tokenizers import Tokenizer

from simmim_export.bundle.vocabulary import read, rows_needed
from simmim_export.errors import CheckpointError
from simmim_export.models.files import COPY_AGAIN


def check_tokenizer(text: str, rows: object, *, where: object, fix: str = COPY_AGAIN) -> Tokenizer:
    """The tokenizer whose tokenizer.json is ``text``, for a text encoder with ``rows`` embeddings.

    Raise :class:`CheckpointError` if ``text`` is not a tokenizer.json, has no tokens, or has a token without an embedding.
    """
    try:
        tokenizer = read(text).tokenizer
    except ValueError as error:
        raise CheckpointError(f"not a tokenizer.json: {error}", where=where, fix=fix) from error
    needed = rows_needed(tokenizer)
    if needed == 0:
        raise CheckpointError("the tokenizer.json has no tokens", where=where, fix=fix)
    if not isinstance(rows, int) or needed > rows:
        what = f"the tokenizer has {needed} tokens, the text encoder {rows!r} embeddings"
        raise CheckpointError(what, where=where, fix=fix)
    return tokenizer
