"""Reads a tokenizer.json that may come from a stranger, before the Rust library sees it.

The library trusts its input: it panics (with a backtrace on stderr) on a damaged character map, pads a text to any length
that the file asks for, and lets a chain of replacements grow a text without limit. So the file is first parsed into the types
of :mod:`simmim_export.bundle.tokenizer_json`, which list what is allowed, and only what was parsed is handed to the library. The
sections for padding, truncation, decoding and pairs of texts, which this project does not use, are left out; only the id to
pad with is kept.
"""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections import Counter
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import Raw, Struct
from tokenizers import Tokenizer

from simmim_export.bundle import tokenizer_json as parts

# Characters of a tokenizer.json; the largest public one, Gemma's, has 33 million.
MAX_FILE = 40 << 20
# Characters of a text, and what a normalizer and a pre-tokenizer may make of it.
MAX_TEXT, MAX_GROWN = 50_000, 300_000
# By how much a text may grow: the longest accepted text then still has 300 characters.
MAX_GROWTH = 1000
# Each takes time for every text. ALBERT's normalizer has 7 parts.
MAX_NORMALIZERS, MAX_PRE_TOKENIZERS, MAX_PROCESSORS, MAX_DEPTH = 12, 8, 4, 4
# The most characters that Unicode's canonical and compatible forms, in upper and lower case, have for one character.
CANONICAL, COMPATIBLE = 4, 18

_PAIR = Raw(b'[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}]')


class _Padding(Struct):
    pad_id: parts.Id = 0


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer that is safe to apply to texts of up to ``longest_text`` characters.

    ``pad`` is the id that rows are padded with: that of the file's padding section, else of ``[PAD]`` or ``<pad>``, else 0.
    """

    tokenizer: Tokenizer
    pad: int
    longest_text: int


def read(text: str) -> Vocabulary:
    """Read the content of a tokenizer.json. Raise :class:`ValueError` saying what is wrong, or above which limit, and where.

    The tokenizer neither pads nor truncates, and has no decoder.
    """
    if len(text) > MAX_FILE:
        raise ValueError(f"it has {len(text):,} characters; the limit is {MAX_FILE:,}")
    try:
        file = msgspec.json.decode(text, type=parts.TokenizerFile)
        padding = msgspec.json.decode(file.padding, type=_Padding | None)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    rows = _check_model(file.model, file.added_tokens)
    growth = _growth(file)
    characters = sum(len(token.content) for token in file.added_tokens)
    if characters * growth > 10 * MAX_GROWN:
        raise ValueError(
            f"its added tokens have {characters:,} characters, which its normalizer may grow {growth:.0f} times"
        )
    _check_processors(file.post_processor, rows)
    tokenizer = _build(file)
    for token in file.added_tokens:
        if tokenizer.token_to_id(token.content) != token.id:
            raise ValueError(
                f"the added token {token.content[:60]!r} has id {token.id}, and the model gives it another"
            )
    named = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
    pad = next((index for index in named if index is not None), 0) if padding is None else padding.pad_id
    if rows and pad >= rows:
        raise ValueError(f"it pads with the id {pad}, and its highest id is {rows - 1}")
    return Vocabulary(tokenizer, pad, min(MAX_TEXT, int(MAX_GROWN / growth)))


def parse(text: str) -> Tokenizer:
    """The tokenizer of :func:`read`; raises as it does."""
    return read(text).tokenizer


def rows_needed(tokenizer: Tokenizer) -> int:
    """How many embeddings its ids need: the highest id plus one, even if ids below it are unused; 0 without tokens."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _build(file: parts.TokenizerFile) -> Tokenizer:
    file.padding = file.truncation = file.decoder = parts.NULL
    try:
        return Tokenizer.from_str(msgspec.json.encode(file).decode())
    except BaseException as error:
        # The library raises plain Exception for everything. A panic, which the checks above are there to prevent, is not an
        # Exception, and its class cannot be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(str(error)) from error
        raise


def _check_model(model: parts.Model, added: list[parts.AddedToken]) -> int:
    """The highest id plus one. Raise ValueError for ids or tokens that contradict each other."""
    if isinstance(model, parts.Unigram):
        if len(model.vocab) > parts.MAX_ID:
            raise ValueError(f"it has {len(model.vocab):,} tokens; the limit is {parts.MAX_ID:,}")
        if model.unk_id is not None and model.unk_id >= len(model.vocab):
            raise ValueError(f"its unknown token has id {model.unk_id} of {len(model.vocab)}")
        rows = len(model.vocab)
    else:
        if len(set(model.vocab.values())) != len(model.vocab):
            index, count = Counter(model.vocab.values()).most_common(1)[0]
            raise ValueError(f"{count} tokens have the id {index}")
        rows = max(model.vocab.values(), default=-1) + 1
    if isinstance(model, parts.BPE):
        _check_merges(model)
    for name, values in (("content", [t.content for t in added]), ("id", [t.id for t in added])):
        value, count = Counter(values).most_common(1)[0] if values else ("", 1)
        if count > 1:
            raise ValueError(f"{count} added tokens have the {name} {str(value)[:60]!r}")
    return max(rows, *(token.id + 1 for token in added), 0)


def _check_merges(model: parts.BPE) -> None:
    prefix = model.continuing_subword_prefix or ""
    for merge in model.merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2 or not all(part in model.vocab for part in pair):
            raise ValueError(f"the merge {str(merge)[:60]!r} is not of two tokens")
        # The library cuts the prefix off without looking.
        if not pair[1].startswith(prefix) or pair[0] + pair[1][len(prefix) :] not in model.vocab:
            raise ValueError(f"the merge {str(merge)[:60]!r} does not give a token")


def _growth(file: parts.TokenizerFile) -> float:
    """How many characters the pre-tokenizer may hand to the model for each character of a text.

    Sizes are measured as :func:`_unfolded` does, so that Unicode's forms and lower case, in any number and order, count once. All
    other steps multiply. Raise ValueError for too many steps, or growth above MAX_GROWTH.
    """
    normalizers = _flat(file.normalizer, "normalizers", MAX_NORMALIZERS)
    pre_tokenizers = _flat(file.pre_tokenizer, "pretokenizers", MAX_PRE_TOKENIZERS)
    forms, growth = 1, 1.0
    for step in normalizers:
        if isinstance(step, parts.NFKC | parts.NFKD):
            forms = COMPATIBLE
        elif isinstance(step, parts.NFC | parts.NFD | parts.Lowercase | parts.StripAccents | parts.BertNormalizer):
            forms = max(forms, CANONICAL)
        if isinstance(step, parts.BertNormalizer):
            growth *= 3  # a space on both sides of a Chinese character
        elif isinstance(step, parts.ByteLevelNormalizer):
            growth *= 4  # a character for each byte
        elif isinstance(step, parts.Replace):
            growth *= max(1.0, _unfolded(step.content) / step.pattern.shortest())
        elif isinstance(step, parts.Prepend):
            # Added tokens cut a text into pieces of one character or more, and each piece gets its own.
            growth *= 1 + _unfolded(step.prepend)
        elif isinstance(step, parts.Precompiled):
            growth *= max(1, _longest_replacement(step.precompiled_charsmap))
    for cut in pre_tokenizers:
        if isinstance(cut, parts.ByteLevel):
            growth *= 8 if cut.add_prefix_space else 4
        elif isinstance(cut, parts.Metaspace):
            growth *= 1 if cut.prepend_scheme == "never" or cut.add_prefix_space is False else 2
    if forms * growth > MAX_GROWTH:
        raise ValueError(f"its normalizer may grow a text {forms * growth:.4g} times; the limit is {MAX_GROWTH}")
    return forms * growth


def _unfolded(text: str) -> int:
    """The most characters that Unicode's forms and lower case can make of ``text``."""

    def longest(char: str) -> int:
        whole = unicodedata.normalize("NFKD", char)
        return max(1, len(whole), len(whole.lower()), len(unicodedata.normalize("NFKD", char.lower())))

    return sum(longest(char) for char in text)


def _flat(part: Struct | None, name: str, most: int) -> list[Struct]:
    """The components of ``part``, whose sequences keep theirs in a field ``name``. Raise ValueError for more than ``most``."""
    level, depth = [part] if part is not None else [], 0
    while any(hasattr(step, name) for step in level):
        level = [child for step in level for child in getattr(step, name, [step])]
        depth += 1
        if len(level) > most or depth > MAX_DEPTH:
            raise ValueError(f"its {name} are more than {most}, or nested more than {MAX_DEPTH} deep")
    return level


def _check_processors(processor: parts.PostProcessor | None, rows: int) -> None:
    """Raise ValueError unless a text stays in one piece between at most MAX_SPECIALS tokens with ids below ``rows``."""
    adding = 0
    for step in _flat(processor, "processors", MAX_PROCESSORS):
        if isinstance(step, parts.BertProcessing | parts.RobertaProcessing):
            adding, ids = adding + 1, [step.sep[1], step.cls[1]]
        elif isinstance(step, parts.TemplateProcessing):
            adding, ids = adding + 1, _check_template(step)
        else:
            continue
        if max(ids, default=0) >= max(rows, 1):
            raise ValueError(f"a special token has id {max(ids)}, and the highest id is {rows - 1}")
    if adding > 1:
        raise ValueError(f"{adding} post-processors add special tokens; the limit is 1")


def _check_template(template: parts.TemplateProcessing) -> list[int]:
    """The ids that it adds. Raise ValueError unless it applies to one text. Its form for pairs is replaced."""
    template.pair = _PAIR
    names = [piece.Sequence.id for piece in template.single if isinstance(piece.Sequence, parts.TypedId)]
    if names != ["A"]:
        raise ValueError(f"the template has the texts {names}, not one A")
    ids = []
    for piece in template.single:
        if isinstance(piece.SpecialToken, parts.TypedId):
            special = template.special_tokens.get(piece.SpecialToken.id)
            if special is None:
                raise ValueError(f"the template does not list its token {piece.SpecialToken.id[:60]!r}")
            ids += special.ids
    if len(ids) > parts.MAX_SPECIALS:
        raise ValueError(f"the template adds {len(ids)} tokens; the limit is {parts.MAX_SPECIALS}")
    for name, special in template.special_tokens.items():
        if special.id != name or len(special.ids) != len(special.tokens):
            raise ValueError(f"the template's token {name[:60]!r} contradicts itself")
    return ids


def _longest_replacement(charsmap: str) -> int:
    """The characters of the longest replacement of a SentencePiece character map, as :func:`_unfolded` counts them.

    The map is base64 of: the number of bytes of a double-array trie (uint32), the trie (uint32 each), and the replacements, each
    ended by a NUL. Raise ValueError unless every step that the trie allows stays within it and ends at the start of a character:
    the library does not check.
    """
    try:
        data = base64.b64decode(charsmap, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the character map is not base64: {error}") from error
    if base64.b64encode(data).decode() != charsmap:
        raise ValueError("the character map is not canonical base64")
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or not 4 <= size <= len(data) - 4:
        raise ValueError("the character map is cut off")
    units, texts = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64), data[4 + size :]
    replacements = texts.decode("utf-8").split("\0")
    # Bit 31 marks a leaf, bit 8 a unit that has one; the offset to the children is in bits 10 to 30, in blocks of 256 with bit 9.
    offsets = (units >> 10) << ((units & 512) >> 6)
    inner = units >> 31 == 0
    inner[0] = True  # the root's own mark is not looked at
    children = np.arange(len(units)) ^ offsets
    leaves = children[inner & (units & 256 != 0)]
    if ((children | 255)[inner] >= len(units)).any():
        raise ValueError("the character map points outside itself")
    values = units[leaves] & 0x7FFFFFFF
    starts = np.frombuffer(texts + b"\0", np.uint8)
    if (values > len(texts)).any() or (starts[values] & 0xC0 == 0x80).any():
        raise ValueError("the character map points outside its replacements")
    return max(_unfolded(text) for text in replacements)
