"""Mutators for tokenizer.json and for tar files of samples."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Sequence
from functools import partial

from mutators import damage, dumps, mutate_tree, nasty

_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
_PARTS: tuple[dict, ...] = (
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50},
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaa"}] * 12},
    {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 1000}] * 8},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    {**_SPLIT, "pattern": {"Regex": "(a|a)*b"}},
    {**_SPLIT, "pattern": {"Regex": "(((((a{1,1000}){1,1000}){1,1000}"}},
    {**_SPLIT, "pattern": {"Regex": "(?=" * 500}},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Sequence", "pretokenizers": []},
    {"type": "Whitespace"},
    {"type": "BertProcessing", "sep": ["[SEP]", 2**31], "cls": ["[CLS]", 4_000_000_000]},
    {"type": "RobertaProcessing", "sep": ["x", 0], "cls": ["y", 1], "trim_offsets": True, "add_prefix_space": True},
    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * 1000, "pair": []},
    {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
    {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0},
    {
        "strategy": "BatchLongest",
        "direction": "Left",
        "pad_to_multiple_of": 10**9,
        "pad_id": 2**32 - 1,
        "pad_type_id": 0,
    },
    {"max_length": 0, "strategy": "LongestFirst", "stride": 10**9, "direction": "Right"},
    {
        "type": "BPE",
        "vocab": {"a": 0, "b": 1, "ab": 2},
        "merges": [["a", "b"]],
        "unk_token": None,
        "byte_fallback": True,
    },
    {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0]], "unk_id": 5, "byte_fallback": False},
    {"type": "Unigram", "vocab": [["", 0.0]], "unk_id": None},
    {
        "type": "WordPiece",
        "vocab": {"a": 0},
        "unk_token": "no",
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 0,
    },
    {"type": "WordLevel", "vocab": {"a": 4294967295}, "unk_token": "a"},
    {"type": "WordLevel", "vocab": {}, "unk_token": ""},
    {
        "id": 0,
        "content": "a",
        "single_word": False,
        "lstrip": True,
        "rstrip": True,
        "normalized": True,
        "special": True,
    },
    {
        "id": 10**9,
        "content": "",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
    },
)
PADDING = {"strategy": "BatchLongest", "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}


def mutate_tokenizer(rng: random.Random, data: bytes) -> bytes:
    """A tokenizer.json with other parts, each known to its library, or with any JSON in their place."""
    if rng.random() < 0.1:
        return damage(rng, data)
    content = json.loads(data)
    if rng.random() < 0.5:
        for _ in range(rng.choice((1, 1, 2, 3))):
            part = rng.choice(_PARTS)
            place = rng.choice(
                ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "padding", "truncation")
            )
            if "special" in part:
                content["added_tokens"] = [dict(part)] * rng.choice((1, 2))
            else:
                own = (
                    "model"
                    if "vocab" in part
                    else "padding"
                    if "pad_id" in part
                    else "normalizer"
                    if "pattern" in part
                    else place
                )
                content[rng.choice((own, place))] = json.loads(json.dumps(part))
        if rng.random() < 0.5:
            return dumps(content).encode("utf-8", "surrogatepass")
    fresh = partial(
        lambda parts, rng: json.loads(json.dumps(rng.choice(parts))) if rng.random() < 0.3 else nasty(rng), _PARTS
    )
    return dumps(mutate_tree(rng, content, fresh)).encode("utf-8", "surrogatepass")


def mutate_tar(rng: random.Random, data: bytes, fresh: Sequence[bytes]) -> bytes:
    """A tar whose members have other names, kinds or content, or whose bytes are damaged."""
    if rng.random() < 0.4:
        return damage(rng, data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(info, data[info.offset_data : info.offset_data + info.size]) for info in archive]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as archive:
        for info, body in members:
            for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2))):
                content = rng.choice((body, body, damage(rng, body), rng.choice(fresh), b""))
                info.size = len(content)
                if rng.random() < 0.1:
                    info.name = rng.choice(
                        ("../" + info.name, "/" + info.name, info.name + "x", "a" * 200, "é", ".", "x/001.cls")
                    )
                if rng.random() < 0.05:
                    info.type = rng.choice(
                        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
                    )
                archive.addfile(info, io.BytesIO(content))
    return damage(rng, buffer.getvalue()) if rng.random() < 0.1 else buffer.getvalue()
