"""What reaches a terminal: escaped text, tables, sections."""

from __future__ import annotations

import unicodedata
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simmim_export.console import print_section, print_table, printable, say, stacked, stdout_console
from simmim_export.errors import InputError
from simmim_export.system.printing import show_warnings_plainly


@given(st.text())
def test_printable_text_holds_nothing_a_terminal_obeys(text: str) -> None:
    shown = printable(text)
    obeyed = [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert set(obeyed) <= set("\u200c\u200d")
    shown.encode("utf-8")


@pytest.mark.parametrize("text", ["plain", "中文 é", "👩\u200d🚀", "می\u200cخواهم"])
def test_ordinary_text_is_printed_unchanged(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "\x9b2J", "\x07", "a\rb", "\u202eabc", "\x00", "\u2028", "\x7f", "a\nb", "a\tb"]
)
def test_control_characters_are_escaped(text: str) -> None:
    assert printable(text) != text
    assert printable(text).isascii()


def test_line_breaks_stay_in_text_of_several_lines() -> None:
    assert printable("two\nlines\tand a tab\x1b", lines=True) == "two\nlines\tand a tab\\x1b"


def test_a_name_cannot_forge_a_line_of_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    forged = "a\nwrote b.npz"
    say(f"{forged}: float32")
    error = InputError(f"cannot read {forged}", where=forged, fix=f"give another than {forged}")
    say(f"error: {error}", error=True, lines=True)
    with warnings.catch_warnings():
        show_warnings_plainly()
        warnings.warn(f"cannot read {forged}", stacklevel=1)
    stdout_console().print(f"{forged}: float32")
    print_table(forged, (forged, f"{forged}|of ours"), [(forged, stacked([forged]))])
    print_section(forged, [forged])
    shown, said = capsys.readouterr()
    assert shown.count("a\\nwrote b.npz") == 9
    # A line that is not ours is indented further than every line of ours.
    assert [line for line in said.splitlines() if line.lstrip().startswith("wrote")] == [
        "    wrote b.npz",
        "  wrote b.npz",
    ]


def test_say_escapes_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[1mb", 3)
    say("c\x1b", error=True)
    assert capsys.readouterr() == ("a\\x1b[1mb 3\n", "c\\x1b\n")


@pytest.mark.parametrize("width", [40, 80, 100])
def test_a_narrow_terminal_cuts_no_cell(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simmim_export.console.output.WIDEST", width)
    row = ("a_name_without_any_space_that_is_long" * 2, "1.234567", "words that may continue on the next line")
    print_table("title", ("name", ">figure|of it", "words"), [row, ("short",)])
    print_section("heading", [" ".join(["label"] * 60), "  indented"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    table, section = shown.split("\nheading\n")
    assert all(table.count(letter) >= "".join(row).count(letter) for letter in "abcdefgh1234567")
    assert section.count("label") == 60
