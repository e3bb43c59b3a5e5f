"""A hostile tokenizer.json is either refused or safe: no panic, no backtrace, bounded time and memory."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_tokenizers import REAL, TEXTS, charsmap
from support import word_tokenizer
from tokenizers import normalizers

from simmim_export.bundle import Bundle
from simmim_export.bundle.vocabulary import CANONICAL, COMPATIBLE, MAX_FILE, MAX_GROWN, MAX_TEXT, read
from simmim_export.errors import BundleError, CheckpointError, TextError, TruncatedText
from simmim_export.models.tokenizer import check_tokenizer
from simmim_export.runtime.text import Tokenizer
from simmim_export.system.files import digest


def changed(name: str, edit: Callable[[dict[str, Any]], object]) -> str:
    content = copy.deepcopy(REAL[name])
    edit(content)
    return json.dumps(content)


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_give_the_ids_of_the_library(name: str) -> None:
    library = tokenizers.Tokenizer.from_str(json.dumps(REAL[name]))
    library.no_padding()
    library.no_truncation()
    mine = Tokenizer(json.dumps(REAL[name]), 100)
    assert mine.longest_text >= 1000
    for text in TEXTS:
        try:
            ids = mine.encode([text])[0][0].tolist()
        except TextError:
            assert len(library.encode(text, add_special_tokens=False)) == 0
        else:
            assert ids == library.encode(text).ids


def test_no_character_has_a_longer_form_than_the_bound() -> None:
    kinds = {CANONICAL: ["NFC", "NFD", "Lowercase"], COMPATIBLE: ["NFKC", "NFKD"]}
    every = "\n".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    for most, names in kinds.items():
        for name in names:
            lines = getattr(normalizers, name)().normalize_str(every).split("\n")
            assert len(lines) > 1_000_000 and max(map(len, lines)) <= most


def update(content: dict[str, Any], **edits: Any) -> None:
    content.update(edits)


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def chain(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def nested(depth: int) -> dict[str, Any]:
    return chain(nested(depth - 1)) if depth else {"type": "NFC"}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def template(*names: str) -> dict[str, Any]:
    kinds = {"A": "Sequence", "B": "Sequence"}
    single = [{kinds.get(name, "SpecialToken"): {"id": name, "type_id": 0}} for name in names]
    specials = {name: {"id": name, "ids": [2], "tokens": [name]} for name in names if name not in kinds}
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": specials}


def added(**edits: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": 1, "content": "[UNK]"} | flags | edits


def table(edit: Callable[[bytearray], object]) -> dict[str, Any]:
    data = bytearray(base64.b64decode(charsmap({"a": "A", "\uff21": "\u00e9"})))
    edit(data)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def unit(place: int, value: int) -> Callable[[bytearray], object]:
    return lambda data: data.__setitem__(slice(4 + 4 * place, 8 + 4 * place), value.to_bytes(4, "little"))


BACK = {"SpecialToken": {"id": "[NONE]", "type_id": 0}}
HOSTILE: dict[str, str] = {
    "a chain of replacements": changed(
        "words", lambda c: update(c, normalizer=chain(*[replace({"String": "a"}, "aaaa")] * 6))
    ),
    "a long replacement": changed("words", lambda c: update(c, normalizer=replace({"String": "a"}, "a" * 10_000))),
    "an empty pattern": changed("words", lambda c: update(c, normalizer=replace({"String": ""}, "aa"))),
    "forms of a replacement": changed(
        "words", lambda c: update(c, normalizer=chain(replace({"String": "a"}, "\ufdfa" * 60), {"type": "NFKD"}))
    ),
    "many prefixes": changed(
        "words", lambda c: update(c, normalizer=chain(*[{"type": "Prepend", "prepend": "a" * 100}] * 2))
    ),
    "many steps": changed("words", lambda c: update(c, normalizer=chain(*[{"type": "NFC"}] * 100))),
    "many cuts": changed(
        "words",
        lambda c: update(c, pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 100}),
    ),
    "deep": changed("words", lambda c: update(c, normalizer=nested(30))),
    "deeper than Python": word_tokenizer().replace('"decoder":null', '"decoder":' + "[" * 20_000 + "]" * 20_000),
    "exponential": changed("words", lambda c: update(c, pre_tokenizer=split("(a+)+$"))),
    "exponential in a replacement": changed(
        "words", lambda c: update(c, normalizer=replace({"Regex": "(a|aa)+$"}, ""))
    ),
    "a pattern that is none": changed("words", lambda c: update(c, pre_tokenizer=split("("))),
    "a step of no type": changed("words", lambda c: update(c, normalizer={"strip_left": True, "strip_right": True})),
    "a step of unknown type": changed("words", lambda c: update(c, normalizer={"type": "Python"})),
    "a field of no meaning": changed("words", lambda c: update(c, surprise=1)),
    "a text twice": changed("words", lambda c: update(c, post_processor=template("A", "A"))),
    "no text": changed("words", lambda c: update(c, post_processor=template("[CLS]"))),
    "the text of a pair": changed("words", lambda c: update(c, post_processor=template("A", "B"))),
    "a thousand specials": changed("words", lambda c: update(c, post_processor=template(*["[CLS]"] * 1000, "A"))),
    "two templates": changed(
        "words", lambda c: update(c, post_processor={"type": "Sequence", "processors": [c["post_processor"]] * 2})
    ),
    "a special that is not listed": changed("words", lambda c: c["post_processor"]["single"].insert(0, BACK)),
    "a special of another id": changed(
        "words", lambda c: c["post_processor"]["special_tokens"]["[CLS]"].update(ids=[999])
    ),
    "specials of two lengths": changed(
        "words", lambda c: c["post_processor"]["special_tokens"]["[CLS]"].update(ids=[2, 2])
    ),
    "a negative id": changed("words", lambda c: c["model"]["vocab"].update(red=-1)),
    "a huge id": changed("words", lambda c: c["model"]["vocab"].update(red=2**31)),
    "two tokens of one id": changed("words", lambda c: c["model"]["vocab"].update(red=5, circle=5)),
    "padding with a huge id": changed("words", lambda c: c["padding"].update(pad_id=2**31)),
    "padding with an id that is none": changed("words", lambda c: c["padding"].update(pad_id=999)),
    "padding with a negative id": changed("words", lambda c: c["padding"].update(pad_id=-1)),
    "an added token of another id": changed("words", lambda c: update(c, added_tokens=[added(id=3)])),
    "an added token twice": changed("words", lambda c: update(c, added_tokens=[added(), added()])),
    "an empty added token": changed("words", lambda c: update(c, added_tokens=[added(content="")])),
    "too many added tokens": changed(
        "words", lambda c: update(c, added_tokens=[added(content=f"<{i}>", id=i) for i in range(20_001)])
    ),
    "long words": changed("bert", lambda c: c["model"].update(max_input_chars_per_word=10**9)),
    "long pieces": changed("xlm_roberta", lambda c: c["model"]["vocab"].append(["a" * 10_000, -1.0])),
    "an unknown piece that is none": changed("xlm_roberta", lambda c: c["model"].update(unk_id=999)),
    "an empty piece": changed("xlm_roberta", lambda c: c["model"]["vocab"].append(["", -1.0])),
    "an infinite score": changed("xlm_roberta", lambda c: c["model"]["vocab"].append(["z9", float("inf")])),
    "chance": changed("clip", lambda c: c["model"].update(dropout=0.5)),
    "a merge of no tokens": changed("clip", lambda c: c["model"]["merges"].append(["qq", "zz"])),
    "a merge that gives no token": changed("clip", lambda c: c["model"]["merges"].append(["a", "b"])),
    "a merge without the prefix": changed("clip", lambda c: c["model"].update(continuing_subword_prefix="###########")),
    "a trie that leaves itself": changed("words", lambda c: update(c, normalizer=table(unit(0, 1 << 30)))),
    "a trie that is too short": changed(
        "words", lambda c: update(c, normalizer=table(lambda d: d.__setitem__(slice(0, 4), b"\4\0\0\0")))
    ),
    "a trie of another size": changed(
        "words", lambda c: update(c, normalizer=table(lambda d: d.__setitem__(slice(0, 4), b"\xff\xff\xff\xff")))
    ),
    "a leaf outside the texts": changed("words", lambda c: update(c, normalizer=table(unit(512, 1 << 31 | 99)))),
    "a leaf within a character": changed("words", lambda c: update(c, normalizer=table(unit(512, 1 << 31 | 3)))),
    "texts that are not UTF-8": changed(
        "words", lambda c: update(c, normalizer=table(lambda d: d.__setitem__(-2, 255)))
    ),
    "no map": changed("words", lambda c: update(c, normalizer={"type": "Precompiled", "precompiled_charsmap": ""})),
    "a map that is not base64": changed(
        "words", lambda c: update(c, normalizer={"type": "Precompiled", "precompiled_charsmap": "=*="})
    ),
    "nothing": "null",
    "lone surrogates": word_tokenizer().replace('"red"', '"\\ud800"'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tokenizer_is_refused_at_once(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = time.process_time()
    with pytest.raises(BundleError) as caught:
        Tokenizer(HOSTILE[name], 20)
    assert caught.value.exit_code == 5 and caught.value.fix and len(str(caught.value)) < 1000
    with pytest.raises(CheckpointError):
        check_tokenizer(HOSTILE[name], 30_000, where="ckpt.pt")
    assert capfd.readouterr() == ("", "") and time.process_time() - before < 2


@pytest.mark.parametrize("name", ["exponential", "a trie that leaves itself", "the text of a pair"])
def test_a_command_prints_one_error_for_a_hostile_tokenizer(
    tiny_bundle: Path, tmp_path: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]], name: str
) -> None:
    """The digests of the bundle match. Without our checks, the library would print a backtrace of 60 lines."""
    root = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, root)
    (root / "tokenizer.json").write_text(HOSTILE[name], encoding="utf-8")
    manifest = Bundle.open(tiny_bundle).manifest
    files = dict(manifest.files) | {"tokenizer.json": digest(root / "tokenizer.json")}
    (root / "manifest.json").write_text(dataclasses.replace(manifest, files=files).dumps(), encoding="utf-8")
    done = run_cli("export", "embed", root, "--text", "a" * 40 + "b")
    assert done.returncode == 5 and "tokenizer.json" in done.stderr
    assert "panicked" not in done.stderr and len(done.stderr.splitlines()) < 6


def test_a_tokenizer_json_that_is_too_long_is_an_error() -> None:
    with pytest.raises(BundleError):
        Tokenizer(word_tokenizer() + " " * MAX_FILE, 20)


def test_padding_and_truncation_in_the_file_are_ignored() -> None:
    padding = {"strategy": {"Fixed": 10**9}, "pad_to_multiple_of": 10**9}
    truncation = {"max_length": 0, "strategy": "LongestFirst", "stride": 7, "direction": "Left"}
    text = changed(
        "words", lambda c: (c["padding"].update(padding), c.update(truncation=truncation, decoder={"type": "Python"}))
    )
    assert (
        Tokenizer(text, 20).encode(["red circle"])[0].tolist()
        == Tokenizer(word_tokenizer(), 20).encode(["red circle"])[0].tolist()
    )
    assert read(text).tokenizer.padding is None and read(text).tokenizer.truncation is None
    assert check_tokenizer(text, 100, where="ckpt.pt").encode("").ids == [2, 3]


def test_a_text_that_is_too_long_is_refused_before_it_is_read() -> None:
    tokenizer = Tokenizer(word_tokenizer(), 20)
    assert tokenizer.longest_text == MAX_TEXT
    before = time.process_time()
    for text in ("red " * 25_000_000, b"red " * 25_000_000, "\ud800" * (MAX_TEXT + 1)):
        with pytest.raises(TextError) as caught:
            tokenizer.encode(["red", text])
        assert caught.value.where == "texts[1]" and caught.value.exit_code == 5 and len(str(caught.value)) < 500
    assert time.process_time() - before < 2
    with pytest.warns(TruncatedText):
        assert tokenizer.encode([("red " * MAX_TEXT)[:MAX_TEXT]])[0].shape == (1, 20)


@pytest.mark.parametrize("name", REAL)
def test_no_text_grows_beyond_the_bound(name: str) -> None:
    """Measured after the pre-tokenizer: the library never makes a text longer than we computed."""
    held = read(json.dumps(REAL[name]))
    for unit_ in ("\ufdfa", "\u1f82", "\u0130", "\u4e00", "\U0001f600", "<s>a", " a", "\u2122"):
        text = (unit_ * 300)[:300]
        normal = held.tokenizer.normalizer.normalize_str(text) if held.tokenizer.normalizer else text
        cut = held.tokenizer.pre_tokenizer.pre_tokenize_str(normal)
        assert sum(len(word) for word, _ in cut) * held.longest_text <= 300 * MAX_GROWN


# The slowest accepted tokenizers that we know: 12 replacements of everything, and a word that is read piece by piece.
SLOW = {
    "unigram": (
        changed(
            "xlm_roberta",
            lambda c: (
                update(
                    c,
                    pre_tokenizer=None,
                    normalizer=chain(replace({"String": "b"}, "a" * 6), *[replace({"String": "a"}, "a")] * 11),
                ),
                c["model"].update(vocab=[["<unk>", 0.0], *(["a" * n, -1.0] for n in range(1, 65))], unk_id=0),
                c.update(added_tokens=[], post_processor=None),
            ),
        ),
        "b",
    ),
    "wordpiece": (changed("bert", lambda c: update(c, normalizer=replace({"String": "B"}, "a" * 99 + " "))), "B"),
    "splits": (
        changed(
            "words",
            lambda c: update(
                c,
                pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}] * 8},
                normalizer=replace({"String": "b"}, "." * 6),
            ),
        ),
        "b",
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces RLIMIT_AS")
@pytest.mark.parametrize("name", SLOW)
def test_the_slowest_tokenizer_and_longest_text_stay_within_time_and_memory(name: str) -> None:
    """20 seconds of one processor and 512 MB beside the imports, which is three times what was measured."""
    text, char = SLOW[name]
    program = """
import resource, sys, warnings
from pathlib import Path
from simmim_export.runtime.text import Tokenizer
warnings.simplefilter("ignore")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), used + (512 << 20)))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
tokenizer = Tokenizer(sys.stdin.read(), 64)
print(tokenizer.longest_text, tokenizer.encode([sys.argv[1] * tokenizer.longest_text])[0].shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, char], input=text, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "(1, 64)" in done.stdout, done.stderr[-500:]


WORDS = ["", "a", " ", "\u2581", "[PAD]", "##", "</w>", "\0", "\ufdfa", "x" * 70, "red", "always", "Isolated", "NFKD"]
PARTS = [[], {}, [[]], ["a", 1], {"type": "NFC"}, {"String": "a"}, {"String": ""}, {"Regex": r"\s+"}, {"Regex": "a*"}]
NUMBERS = [None, True, False, *range(-2, 70), 2**31, 2**32, 2**63, 1e30, -1.5]
ODD = st.sampled_from(WORDS) | st.sampled_from(PARTS) | st.sampled_from(NUMBERS)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value. Of a long list or dict, only the first and last items count."""
    inner: list[Any] = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    some = inner if len(inner) < 12 else [*inner[:4], *inner[-3:]]
    return [path, *(place for key in some for place in places(value[key], (*path, key)))]


def mutate(data: st.DataObject, content: dict[str, Any]) -> dict[str, Any]:
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from([place for place in places(content) if place]))
        holder: Any = content
        for key in path:
            holder = holder[key]
        kind = data.draw(st.sampled_from(["set", "set", "drop", "copy", "trie"]))
        if kind == "set":
            # A copy, because a later step may change it, and it must not contain itself.
            holder[last] = copy.deepcopy(data.draw(ODD))
        elif kind == "drop":
            del holder[last]
        elif kind == "copy":
            source: Any = content
            for key in data.draw(st.sampled_from([place for place in places(content) if place])):
                source = source[key]
            holder[last] = copy.deepcopy(source)
        elif isinstance(holder[last], str) and last == "precompiled_charsmap":
            bits = bytearray(base64.b64decode(holder[last]))
            place = data.draw(st.integers(0, len(bits) - 1) | st.integers(4, 7) | st.integers(1028, 2600))
            bits[min(place, len(bits) - 1)] = data.draw(st.integers(0, 255))
            holder[last] = base64.b64encode(bits).decode()
    return content


@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from(sorted(REAL)))
def test_any_change_of_a_real_tokenizer_is_refused_or_safe(
    capfd: pytest.CaptureFixture[str], data: st.DataObject, name: str
) -> None:
    text = json.dumps(mutate(data, copy.deepcopy(REAL[name])))
    try:
        tokenizer = Tokenizer(text, 40)
    except BundleError:
        assert capfd.readouterr().err == ""
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedText)
        for sample in TEXTS:
            try:
                ids = tokenizer.encode([sample])[0]
            except TextError:
                continue
            assert ids.shape[1] <= 40 and ids.min() >= 0
    assert capfd.readouterr().err == ""
