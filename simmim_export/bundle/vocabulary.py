"""Reads a tokenizer.json that may be hostile, before the Rust library sees it.

The library trusts its input: it panics (with a backtrace on stderr) on a damaged character map, pads a text to any length
that the file asks for, and lets a chain of replacements grow a text without limit. So the file is first parsed into the types
of :mod:`simmim_export.bundle.tokenizer_json`, which list what is allowed, and only the parsed parts are handed to the library.
This project does not use the sections for padding, truncation, decoding and pairs of texts, so they are removed, except for the
id to pad with.
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
# The most characters of a text, before and after the normalizer and the pre-tokenizer.
MAX_TEXT, MAX_GROWN = 50_000, 300_000
# The most times that they may make a text longer. The longest accepted text then still has 300 characters.
MAX_GROWTH = 1000
# The most parts of each step, which all take time for every text. ALBERT's normalizer has 7 parts.
MAX_NORMALIZERS, MAX_PRE_TOKENIZERS, MAX_PROCESSORS, MAX_DEPTH = 12, 8, 4, 4
# The most characters that one character has in Unicode's canonical and compatible forms, in upper and lower case.
CANONICAL, COMPATIBLE = 4, 18

_PAIR = Raw(b'[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}]')


class _Padding(Struct):
    pad_id: parts.Id = 0


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer that is safe to apply to texts of up to ``longest_text`` characters.

    Rows are padded with the id ``pad``: the one in the file's padding section, or that of ``[PAD]`` or ``<pad>``, or 0.
    """

    tokenizer: Tokenizer
    pad: int
    longest_text: int


def read(text: str) -> Vocabulary:
    """The tokenizer in ``text``, the content of a tokenizer.json. It does not pad or truncate, and cannot decode.

    Raise :class:`ValueError` saying what is wrong, or which limit is exceeded, and where.
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
            f"its added tokens have {characters:,} characters, which its normalizer may make {growth:.0f} times longer"
        )
    _check_processors(file.post_processor, rows)
    tokenizer = _build(file)
    for token in file.added_tokens:
        if tokenizer.token_to_id(token.content) != token.id:
            raise ValueError(
                f"the added token {token.content[:60]!r} has id {token.id}, and the model gives it another one"
            )
    named = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
    pad = next((index for index in named if index is not None), 0) if padding is None else padding.pad_id
    if rows and pad >= rows:
        raise ValueError(f"it pads with the id {pad}, and its highest id is {rows - 1}")
    return Vocabulary(tokenizer, pad, min(MAX_TEXT, int(MAX_GROWN / growth)))


def rows_needed(tokenizer: Tokenizer) -> int:
    """The number of embeddings that its ids need: the highest id plus one, even if lower ids are unused; 0 without tokens."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _build(file: parts.TokenizerFile) -> Tokenizer:
    file.padding = file.truncation = file.decoder = parts.NULL
    try:
        return Tokenizer.from_str(msgspec.json.encode(file).decode())
    except BaseException as error:
        # The library raises plain Exception for everything. A panic, which the checks above prevent, is not an Exception, and its
        # class cannot be imported.
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
        # The library cuts the prefix off without checking that it is there.
        if not pair[1].startswith(prefix) or pair[0] + pair[1][len(prefix) :] not in model.vocab:
            raise ValueError(f"the merge {str(merge)[:60]!r} does not give a token")


def _growth(file: parts.TokenizerFile) -> float:
    """The most characters that the pre-tokenizer can hand to the model for one character of a text.

    Sizes are those of :func:`_unfolded`, so Unicode's forms and lower case, in any number and order, count once. All other steps
    multiply. Raise ValueError for too many steps or for growth above MAX_GROWTH.
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
            # Added tokens cut a text into pieces of one character or more, and each piece gets its own prefix.
            growth *= 1 + _unfolded(step.prepend)
        elif isinstance(step, parts.Precompiled):
            growth *= max(1, _longest_replacement(step.precompiled_charsmap))
    for step in pre_tokenizers:
        if isinstance(step, parts.ByteLevel):
            growth *= 8 if step.add_prefix_space else 4
        elif isinstance(step, parts.Metaspace):
            growth *= 1 if step.prepend_scheme == "never" or step.add_prefix_space is False else 2
    if forms * growth > MAX_GROWTH:
        what = f"its normalizer may make a text {forms * growth:.4g} times longer; the limit is {MAX_GROWTH} times"
        raise ValueError(what)
    return forms * growth


def _unfolded(text: str) -> int:
    """The most characters that Unicode's forms and lower case can turn ``text`` into."""

    def longest(char: str) -> int:
        decomposed = unicodedata.normalize("NFKD", char)
        return max(1, len(decomposed), len(decomposed.lower()), len(unicodedata.normalize("NFKD", char.lower())))

    return sum(longest(char) for char in text)


def _flat(part: Struct | None, name: str, most: int) -> list[Struct]:
    """The components of ``part``; a sequence keeps its own in the field ``name``. Raise ValueError for more than ``most``."""
    level, depth = [part] if part is not None else [], 0
    while any(hasattr(step, name) for step in level):
        level = [child for step in level for child in getattr(step, name, [step])]
        depth += 1
        if len(level) > most or depth > MAX_DEPTH:
            raise ValueError(f"it has more than {most} {name}, or they are nested more than {MAX_DEPTH} deep")
    return level


def _check_processors(processor: parts.PostProcessor | None, rows: int) -> None:
    """Raise ValueError unless a text stays in one piece between at most MAX_SPECIALS tokens with ids below ``rows``."""
    added = []
    for step in _flat(processor, "processors", MAX_PROCESSORS):
        if isinstance(step, parts.BertProcessing | parts.RobertaProcessing):
            added.append([step.sep[1], step.cls[1]])
        elif isinstance(step, parts.TemplateProcessing):
            added.append(_check_template(step))
    for ids in added:
        if max(ids, default=0) >= max(rows, 1):
            raise ValueError(f"a special token has id {max(ids)}, and the highest id is {rows - 1}")
    if len(added) > 1:
        raise ValueError(f"{len(added)} post-processors add special tokens; the limit is 1")


def _check_template(template: parts.TemplateProcessing) -> list[int]:
    """The ids that ``template`` adds. Raise ValueError unless it is for one text. Its form for pairs is replaced."""
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
            raise ValueError(f"the template's token {name[:60]!r} has another id, or another number of ids than tokens")
    return ids


def _longest_replacement(charsmap: str) -> int:
    """The characters of the longest replacement of a SentencePiece character map, as :func:`_unfolded` counts them.

    The map is three parts in base64: the number of bytes of a double-array trie (uint32), the trie (uint32 each), and the
    replacements, each of which ends with a NUL. Raise ValueError unless every step that the trie allows stays within it and ends
    at the start of a character: the library does not check that.
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
    inner[0] = True  # the root is inner whatever its bit 31 says
    children = np.arange(len(units)) ^ offsets
    leaves = children[inner & (units & 256 != 0)]
    if ((children | 255)[inner] >= len(units)).any():
        raise ValueError("the character map points outside itself")
    values = units[leaves] & 0x7FFFFFFF
    starts = np.frombuffer(texts + b"\0", np.uint8)
    if (values > len(texts)).any() or (starts[values] & 0xC0 == 0x80).any():
        raise ValueError("the character map points outside its replacements")
    return max(_unfolded(text) for text in replacements)
