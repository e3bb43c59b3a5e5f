"""The reader of plain tables, and everything that can be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_readers import made, picture

from simmim_export.errors import DataError
from simmim_export.training.data.readers import read
from simmim_export.training.data.records import Question


def test_table_of_questions(tmp_path: Path) -> None:
    first, second = made("table", tmp_path)
    assert first.key == "images/a.png" and first.images == (tmp_path / "images/a.png",)
    assert first.questions == (Question("What colour, and why?", {"red": 1.0}), Question("How many?", {"2": 1.0}))
    assert [question.answers for question in second.questions] == [{"3": 1.0}]


def said(root: Path, text: str | bytes, suffix: str = ".csv") -> list:
    """What a table with the content ``text`` says of a.png and b.png."""
    for name in ("a.png", "b.png"):
        picture(root / name)
    (root / f"train{suffix}").write_bytes(text.encode() if isinstance(text, str) else text)
    return read("table", root, "train")


def test_a_table_may_have_all_columns(tmp_path: Path) -> None:
    lines = [
        {"image": "a.png", "caption": "one \n thing", "question": "", "answer": None},
        {"image": "a.png", "question": "how many?", "answer": 2, "label": "cat"},
        {"image": "./b.png", "label": "dog"},
        {"image": "a.png", "question": "how many?", "answer": "two"},
    ]
    for suffix in (".csv", ".jsonl"):
        text = "\n\n".join(map(json.dumps, lines))
        if suffix == ".csv":
            text = "Image , label,caption,question,answer\n\na.png,,"
            text += '"one \n thing",,\na.png,cat,,how many?, 2\n,,,,\n./b.png,dog,,,\na.png,,,how many?,two'
        first, second = said(tmp_path / suffix, text, suffix)
        assert first.captions == ("one \n thing",) and first.label == "cat" and second.label == "dog"
        assert first.questions == (Question("how many?", {"2": 1.0, "two": 1.0}),) and second.key == "b.png"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_byte_order_mark_is_ignored(tmp_path: Path, suffix: str) -> None:
    text = {".csv": "image,label\na.png,x\n", ".jsonl": '{"image": "a.png", "label": "x"}\n'}[suffix]
    assert said(tmp_path, b"\xef\xbb\xbf" + text.encode(), suffix)[0].label == "x"


def test_repeated_rows_and_unknown_columns_are_counted_in_warnings(tmp_path: Path) -> None:
    text = "image,caption,source\na.png,x,web\na.png,x,web\na.png,y,\na.png,x,\n"
    with pytest.warns(UserWarning) as caught:
        (record,) = said(tmp_path, text)
    messages = [str(warning.message) for warning in caught]
    assert record.captions == ("x", "y")
    assert any("2 repeated rows" in message for message in messages) and any("'source'" in m for m in messages)


BAD_CSV = [
    ("image;question;answer\na.png;x;y\n", 1),
    ("image,question\na.png,x\n", 1),
    ("question,answer\nx,y\n", 1),
    ("image,label,Label\na.png,x,y\n", 1),
    ("", None),
    ("image,label\n", None),
    ("image,label\na.png\n", 2),
    ("image,label\na.png,x,y\n", 2),
    ("image,label\na.png,x\n,y\n", 3),
    ("image,label\na.png,x\nb.png,\n", 3),
    ("image,question,answer\na.png,how?,\n", 2),
    ("image,question,answer\na.png,,so\n", 2),
    ("image,label\na.png,x\na.png,y\n", 3),
    ("image,label\n../a.png,x\n", 2),
    ("image,label\ndeep/../../a.png,x\n", 2),
    ("image,label\n/etc/passwd,x\n", 2),
    ('image,label\na.png,"x\nb.png,y\n', 2),
    ('image,label\na.png,"x"y\n', 2),
    ('image,caption\na.png,"two\nlines"\nb.png,"x"y\n', 4),
    ("image,label\na.png," + "x" * 200_000 + "\n", 2),
    (b"image,label\na.png,x\nb.png,caf\xe9\n", 3),
    ("image,label\na.png,x\n".encode("utf-16"), None),
    ("image,label\nnone.png,x\n", None),
    ("image,label\n\0,x\n", None),
]


@pytest.mark.parametrize(("text", "line"), BAD_CSV)
def test_a_broken_table_names_file_and_line(tmp_path: Path, text: str | bytes, line: int | None) -> None:
    with pytest.raises(DataError) as caught:
        said(tmp_path, text)
    assert caught.value.fix and str(tmp_path) in caught.value.where
    assert line is None or caught.value.where == f"{tmp_path / 'train.csv'}, line {line}"


@pytest.mark.parametrize(
    "row", ['{"image": "a.png"', "[1]", '{"image": "a.png"}', '{"image": 3, "label": ""}', '{"label": "x"}',
            '{"image": "a.png", "label": true}', '{"image": "a.png", "label": 1.5}', '{"image": "../x", "label": "x"}',
            '{"image": "a.png", "label": "' + "x" * 200_000 + '"}']
)  # fmt: skip
def test_a_broken_line_of_json_names_file_and_line(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError) as caught:
        said(tmp_path, '{"image": "b.png", "label": "y"}\n' + row, ".jsonl")
    assert caught.value.fix and caught.value.where.startswith(f"{tmp_path / 'train.jsonl'}, line 2")


def test_a_table_in_two_forms_is_ambiguous(tmp_path: Path) -> None:
    said(tmp_path, "image,label\na.png,x\n")
    with pytest.raises(DataError, match=r"train\.csv and train\.jsonl"):
        said(tmp_path, '{"image": "a.png", "label": "x"}', ".jsonl")
