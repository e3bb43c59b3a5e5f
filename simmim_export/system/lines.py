"""Reads a file that lists one item per line."""

from __future__ import annotations

from pathlib import Path

from simmim_export.errors import DataError
from simmim_export.system.files import read_file, reading

MOST_LINES = 100_000
# A bundle's manifest, which may hold the lines as labels, has 4 MiB at most, and a label 1,024 characters.
MOST_BYTES = 3 << 20
MOST_LETTERS = 1024


def read_lines(path: Path, *, noun: str) -> tuple[str, ...]:
    """The lines of a UTF-8 text file, without spaces around them; ``noun`` says what a line holds.

    Raise :class:`DataError` for a file that cannot be read, and for one with no line or more than :data:`MOST_LINES`; and for a
    line that is not UTF-8, is empty or too long, or was there before, with its number.
    """
    with reading(path, DataError):
        try:
            content = read_file(path, most=MOST_BYTES)
        except ValueError as error:
            raise DataError(f"it cannot be read: {error}", where=path, fix="give a text file") from error
    # Some editors mark a file as UTF-8 with these three bytes.
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"the file holds no {noun}", where=path, fix=f"write one {noun} per line")
    if len(lines) > MOST_LINES:
        what = f"the file has {len(lines):,} lines, and at most {MOST_LINES:,} are allowed"
        raise DataError(what, where=path, fix="leave some out")
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            what = f"the line is not UTF-8: byte {error.start} is 0x{line[error.start]:02x}"
            raise DataError(what, where=where, fix="save the file as UTF-8") from error
        if not text:
            raise DataError("the line is empty", where=where, fix="remove it")
        if len(text) > MOST_LETTERS:
            what = f"the line has {len(text):,} characters, and at most {MOST_LETTERS:,} are allowed"
            raise DataError(what, where=where, fix="shorten it")
        if first.setdefault(text, number) != number:
            what = f"{text[:100]!r} is also in line {first[text]}"
            raise DataError(what, where=where, fix="remove one of the two")
    return tuple(first)
