"""The patterns that a tokenizer.json may search for.

A String is literal and always accepted. A regular expression must be one of :data:`REGEXES`, each of which was measured to take
linear time. Oniguruma backtracks: a pattern like (a+)+$ takes exponential time until the library panics after ten million steps,
and no option of the library limits that.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

# Regular expressions of public tokenizers, each with the smallest number of characters that it matches.
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# Each character of Python's string.punctuation.
PUNCTUATION = r"""[!"\#\$%\&'\(\)\*\+,\-\./:;<=>\?@\[\\\]\^_`\{\|\}\~]"""
REGEXES = {
    " {2,}": 2,
    r"\s+": 1,
    r"\n": 1,
    r"[\n\r\t]": 1,
    r"\s{2,}|[\n\r\t]": 1,
    r"^▁+$": 1,
    # SigLIP: the ASCII punctuation that its own tokenizer removes, and the part of it that its published tokenizer.json removes.
    # Each is a single class of characters, which cannot backtrack.
    PUNCTUATION: 1,
    r"""[!"\#\$%\&'\(\)\*\+,\-\.:;=\?@\[\\\]\^_`\{\|\}\~]""": 1,
    # CLIP
    rf"{_CONTRACTIONS}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+": 1,
    rf"<\|startoftext\|>|<\|endoftext\|>|{_CONTRACTIONS}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+": 1,
    # GPT-2, GPT-4 and Llama 3, Qwen
    rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+": 1,
    rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_ENDS}": 1,
    rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_ENDS}": 1,
}


class Pattern(Struct, forbid_unknown_fields=True):
    """A pattern of a Replace or Split: either a text or one of :data:`REGEXES`."""

    String: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET
    Regex: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if (self.String is UNSET) == (self.Regex is UNSET):
            raise ValueError("a pattern is either a String or a Regex")
        if self.Regex is not UNSET and self.Regex not in REGEXES:
            raise ValueError(
                f"the regular expression {self.Regex[:60]!r} is not one of those that are known to take linear time"
            )

    def shortest(self) -> int:
        """The smallest number of characters that it matches."""
        return REGEXES[self.Regex] if isinstance(self.Regex, str) else len(str(self.String))
