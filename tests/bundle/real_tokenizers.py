"""Small tokenizers of the kinds that public models have, made with the library itself."""

from __future__ import annotations

import base64
import json
from typing import Any

import tokenizers
from support import word_tokenizer
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def charsmap(pairs: dict[str, str]) -> str:
    """SentencePiece's map of characters in base64. Each node of its trie has a block of 256 units of its own."""
    texts, units, blocks = b"", {0: 0}, 1
    places: dict[bytes, tuple[int, int]] = {b"": (0, 256)}
    units[0] = 256 << 10
    for key, text in pairs.items():
        for length in range(1, len(key.encode()) + 1):
            prefix = key.encode()[:length]
            if prefix not in places:
                blocks += 1
                place, block = places[prefix[:-1]][1] ^ prefix[-1], 256 * blocks
                places[prefix] = place, block
                units[place] = (place ^ block) << 10 | prefix[-1]
        place, block = places[key.encode()]
        units[place] |= 1 << 8
        units[block] = 1 << 31 | len(texts)
        texts += text.encode() + b"\0"
    trie = b"".join(units.get(place, 0).to_bytes(4, "little") for place in range(256 * (blocks + 1)))
    return base64.b64encode(len(trie).to_bytes(4, "little") + trie + texts).decode()


def finish(tokenizer: tokenizers.Tokenizer, specials: tuple[str, ...]) -> dict[str, Any]:
    tokenizer.add_special_tokens(list(specials))
    return dict(json.loads(tokenizer.to_str()))


def bert() -> dict[str, Any]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "red", "##ish"]
    made = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(pad_id=0, pad_token="[PAD]", length=128)
    made.enable_truncation(128)
    return finish(made, ("[PAD]", "[UNK]", "[CLS]", "[SEP]"))


def byte_pairs(suffix: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet, *(letter + suffix for letter in alphabet if suffix)]
    merges = [("r", "e"), ("re", "d" + suffix), ("Ġ", "r")]
    return {w: i for i, w in enumerate([*words, *(a + b for a, b in merges)])}, merges


def clip() -> dict[str, Any]:
    vocab, merges = byte_pairs("</w>")
    model = models.BPE(vocab, merges, unk_token="<unk>", end_of_word_suffix="</w>", continuing_subword_prefix="")
    made = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, "removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    return finish(made, ("<s>", "</s>"))


def roberta() -> dict[str, Any]:
    vocab, merges = byte_pairs("")
    made = tokenizers.Tokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return finish(made, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"))


def pieces() -> models.Unigram:
    words = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "\u2581red", *LETTERS, *"ABC"]
    return models.Unigram([(word, -float(index)) for index, word in enumerate(words)], unk_id=3, byte_fallback=False)


def xlm_roberta() -> dict[str, Any]:
    made = tokenizers.Tokenizer(pieces())
    # The map has bytes of any value, which to_str must write in a form that we read.
    wide = charsmap({"\uff21": "A", "\uff22": "B", "\u2122": "TM", "\ufdfa": "صلى الله عليه وسلم"})
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    made.normalizer = normalizers.Sequence([normalizers.Precompiled(base64.b64decode(wide)), spaces])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
    )
    return finish(made, ("<s>", "<pad>", "</s>", "<unk>"))


def siglip() -> dict[str, Any]:
    made = tokenizers.Tokenizer(pieces())
    # It leaves out "/", "<" and ">".
    punctuation = Regex(r"""[!"\#\$%\&'\(\)\*\+,\-\.:;=\?@\[\\\]\^_`\{\|\}\~]""")
    clean = [normalizers.Lowercase(), normalizers.Replace(punctuation, ""), normalizers.Replace(Regex(r"\s+"), " ")]
    table = normalizers.Precompiled(base64.b64decode(charsmap({"\u2122": "TM", "\uff21": "A"})))
    spaces = [normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "\u2581")]
    made.normalizer = normalizers.Sequence([*clean, normalizers.Strip(), table, *spaces])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 2)])
    return finish(made, ("</s>", "<unk>"))


def albert() -> dict[str, Any]:
    made = tokenizers.Tokenizer(pieces())
    quotes = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    forms = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    table = normalizers.Precompiled(base64.b64decode(charsmap({"\u2122": "TM", "\uff21": "A"})))
    made.normalizer = normalizers.Sequence([*quotes, *forms, table, normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return finish(made, ("<s>", "<pad>", "</s>"))


REAL: dict[str, dict[str, Any]] = {
    made.__name__: made() for made in (bert, clip, roberta, xlm_roberta, siglip, albert)
} | {"words": json.loads(word_tokenizer())}
TEXTS = [
    "red",
    "Red  circle, it's 3!",
    "\uff21\uff22\u2122 <s>red</s>",
    "\u4e00e\u0301\U0001f600 \n\n x",
    "''``[CLS]<mask>",
    "\ufdfa" * 9,
]
