"""What reaches a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simmim_export.console import printable, say


@given(st.text())
def test_printable_text_holds_nothing_a_terminal_obeys(text: str) -> None:
    shown = printable(text)
    obeyed = [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert set(obeyed) <= set("\n\t\u200c\u200d")
    shown.encode("utf-8")


@pytest.mark.parametrize("text", ["plain", "two\nlines\tand a tab", "中文 é", "👩\u200d🚀", "می\u200cخواهم"])
def test_ordinary_text_is_printed_unchanged(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("text", ["\x1b[31mred", "\x9b2J", "\x07", "a\rb", "\u202eabc", "\x00", "\u2028", "\x7f"])
def test_what_a_terminal_obeys_is_escaped(text: str) -> None:
    assert printable(text) != text
    assert printable(text).isascii()


def test_say_escapes_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[1mb", 3)
    say("c\x1b", error=True)
    assert capsys.readouterr() == ("a\\x1b[1mb 3\n", "c\\x1b\n")
