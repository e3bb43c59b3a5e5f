"""Reader of CLEVR (Johnson et al., 2017)."""

from __future__ import annotations

from pathlib import Path

from simmim_export.training.data.readers.files import checked, field, finished, load_json, rows, split_file, unique
from simmim_export.training.data.records import Question, Record


def read(root: Path, split: str) -> list[Record]:
    """The split ``train``, ``val`` or ``test`` (without answers): questions/CLEVR_{split}_questions.json, images/{split}/.

    A question's family is the last function of its program.
    """
    path = split_file(root, "questions/CLEVR_*_questions.json", split)
    asked: dict[str, list[Question]] = {}
    seen: dict[int, str] = {}
    for where, row in rows(load_json(path), "questions", path):
        text, name = field(row, "question", str, where), field(row, "image_filename", str, where)
        if "question_index" in row:
            number = field(row, "question_index", int, where)
            unique(seen, number, where, "the question_index")
            seen[number] = where
        answers = {}
        if split != "test" or "answer" in row:
            answers = {field(row, "answer", str, where): 1.0}
        program = checked(row.get("program", []), list, where, "'program'")
        last = checked(program[-1], dict, where, "a step of 'program'") if program else {}
        family = str(last.get("function") or last.get("type") or "all")
        asked.setdefault(name, []).append(Question(text, answers, family=family))
    images = root / "images" / split
    return finished([Record(name, (images / name,), questions=tuple(qs)) for name, qs in asked.items()], path)
