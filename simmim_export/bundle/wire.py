"""Reads the wire format of protocol buffers strictly, without the protobuf package and without trusting a length.

The format: https://protobuf.dev/programming-guides/encoding. Whatever a serializer does not write is an error here, even if a
parser would accept it: a field that is unknown, has another wire type, or appears twice although it may appear once.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping

# The wire types that are read. Our messages have neither groups nor 8-byte numbers.
VARINT, BYTES, FOUR_BYTES = 0, 2, 5
# A file of nothing but empty fields would take minutes. MiniLM's text encoder has 4,000 fields.
MAX_FIELDS = 2_000_000
MAX_NAME = 4096


class Malformed(ValueError):
    """The bytes are not a message of the expected form. The text says what is wrong, and at which byte."""


class Fields:
    """The fields of a message: ``one`` and ``many`` map their numbers to wire types. Those of ``one`` may appear once."""

    def __init__(self, one: Mapping[int, int], many: Mapping[int, int]) -> None:
        self.wires = {**one, **many}
        self.one = frozenset(one)


def of(wire: int, *numbers: int) -> dict[int, int]:
    """The fields ``numbers``, all of the same wire type."""
    return dict.fromkeys(numbers, wire)


class Wire:
    """The bytes of one file. A span is a pair of offsets, so that nothing is copied before it is needed."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._count = 0

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at ``at``, below 2**64, and the offset after it."""
        value = shift = 0
        while at < end and shift < 70:
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if value >= 2**64:
                    break
                return value, at
            shift += 7
        raise Malformed(f"a number that does not end, at byte {at}")

    def fields(self, start: int, end: int, known: Fields) -> Iterator[tuple[int, int, int]]:
        """Every field of the message from ``start`` to ``end``: its number, and its span, or for a varint its value and 0.

        A list of varints may be packed into one span.
        """
        at, seen = start, set[int]()
        while at < end:
            self._count += 1
            if self._count > MAX_FIELDS:
                raise Malformed(f"more than {MAX_FIELDS:,} fields")
            begin = at
            key, at = self.varint(at, end)
            number, wire = key >> 3, key & 7
            packed = wire == BYTES and number in known.wires and number not in known.one
            if known.wires.get(number) != wire and not packed:
                raise Malformed(f"field {number} of wire type {wire} at byte {begin}, which we do not write")
            if number in known.one:
                if number in seen:
                    raise Malformed(f"field {number} again at byte {begin}")
                seen.add(number)
            if wire == VARINT:
                value, at = self.varint(at, end)
                yield number, value, 0
                continue
            length = 4
            if wire == BYTES:
                length, at = self.varint(at, end)
            if length > end - at:
                raise Malformed(f"it is cut off, or a length is wrong, at byte {begin}")
            yield number, at, at + length
            at += length

    def text(self, start: int, end: int) -> str:
        """The UTF-8 text of a span, of at most :data:`MAX_NAME` bytes."""
        if end - start > MAX_NAME:
            raise Malformed(f"a name of {end - start:,} bytes at byte {start}")
        try:
            return self._data[start:end].decode("utf-8")
        except UnicodeDecodeError:
            raise Malformed(f"a name that is not UTF-8 at byte {start}") from None
