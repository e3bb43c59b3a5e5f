"""Files that list one item per line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simmim_export.errors import DataError
from simmim_export.system.lines import MOST_BYTES, MOST_LETTERS, MOST_LINES, read_lines

LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1), min_size=1)


@settings(max_examples=60, deadline=None)
@given(lines=LINES, ending=st.sampled_from(["\n", "\r\n"]), last=st.booleans(), mark=st.booleans())
def test_lines_come_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], ending: str, last: bool, mark: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines"
    texts = list(dict.fromkeys(text for line in lines if (text := line.strip())))
    encoded = ending.join(texts) + ending * last
    path.write_bytes(b"\xef\xbb\xbf" * mark + encoded.encode())
    # The mark at the start of a file is no letter.
    if texts and not texts[0].startswith("\ufeff"):
        assert read_lines(path, noun="answer") == tuple(texts)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", None),
        (b"\n", 1),
        (b"\xef\xbb\xbf", None),
        (b"a\n\nb\n", 2),
        (b"\na\n", 1),
        (b"a\n \t\nb", 2),
        (b"a\nb\na\n", 3),
        (b"a\nb\n a \r\n", 3),
        (b"a\n\xff\n", 2),
        ("a\n".encode("utf-16"), 1),
        (b"a\n" + b"x" * (MOST_LETTERS + 1), 2),
        (b"\n".join(b"%d" % n for n in range(MOST_LINES + 1)), None),
        (b"x" * (MOST_BYTES + 1), None),
    ],
    ids=range(13),
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, line: int | None) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_lines(path, noun="answer")
    assert caught.value.where == (str(path) if line is None else f"{path}:{line}") and caught.value.fix


def test_the_most_lines_are_read(tmp_path: Path) -> None:
    lines = tuple(f"{n:05}" for n in range(MOST_LINES))
    (tmp_path / "lines").write_text("\n".join(lines))
    assert read_lines(tmp_path / "lines", noun="answer") == lines


def test_what_is_not_a_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe"):
        with pytest.raises(DataError) as caught:
            read_lines(path, noun="answer")
        assert caught.value.where == str(path)
