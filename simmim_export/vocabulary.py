"""What a tokenizer.json is, to whoever reads one. Knows tokenizers; must not know models, bundles or what a user did."""

from __future__ import annotations

from tokenizers import Tokenizer


def parse(text: str) -> Tokenizer:
    """The tokenizer whose tokenizer.json is ``text``. Raise :class:`ValueError` where it is none, or cannot be applied."""
    try:
        tokenizer = Tokenizer.from_str(text)
        # A template that names a token it does not list shows only when it is first applied.
        tokenizer.encode("")
    except BaseException as error:
        # The Rust library raises plain Exception for everything, and a panic of its own is no Exception and has no
        # importable class.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(str(error)) from error
        raise
    return tokenizer


def rows_needed(tokenizer: Tokenizer) -> int:
    """How many embeddings its ids ask for: the highest id and one, whatever ids are left out; 0 for one without a token."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
