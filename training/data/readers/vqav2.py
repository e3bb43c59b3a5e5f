"""Reader of VQAv2 (Goyal et al., 2017), with its scoring of answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from simmim_export.errors import DataError
from simmim_export.training.data.readers.files import field, finished, load_json, rows, split_file, unique
from simmim_export.training.data.records import Question, Record

_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
# The contractions in the official table, which spells each with one apostrophe left out.
_APOSTROPHES = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's
where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
you'd you'd've you'll you're you've"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _APOSTROPHES.split()
    for place, mark in enumerate(word)
    if mark == "'"
} | {"somebody'd": "somebodyd"}  # the table has this one the wrong way round
_MARKS = """;/[]"{}()=+\\_-><@`,?!"""


def normalize_answer(text: str) -> str:
    """Lower case, digits for number words, no articles, contractions with their apostrophe, no punctuation.

    Source: processPunctuation and processDigitArticle of the official evaluation, github.com/GT-Vision-Lab/VQA,
    PythonEvaluationTools/vqaEvaluation/vqaEval.py at c4e6a0e. A mark is removed if the answer has it next to a space or
    contains a number like 1,000; otherwise it becomes a space.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    thousands = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in _MARKS:
        goes = thousands or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if goes else " ")
    words = [_NUMBERS.get(word, word) for word in re.sub(r"\.(?!\d)", "", cleaned).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """The score of each answer that was given: min(1, matches / 3) among the other annotators, averaged over all
    choices of the one left out.

    For ten annotators: 0.3, 0.6, 0.9 and 1 if one, two, three or more agree.
    """
    counts, n = Counter(answers), len(answers)
    if n == 1:
        return dict.fromkeys(counts, 1.0)
    return {
        answer: (count * min((count - 1) / 3, 1.0) + (n - count) * min(count / 3, 1.0)) / n
        for answer, count in counts.items()
    }


def read(root: Path, split: str) -> list[Record]:
    """The split ``train2014``, ``val2014``, ``test2015`` or ``test-dev2015``; the test splits have no answers."""
    path = split_file(root, "v2_OpenEnded_mscoco_*_questions.json", split)
    annotated = root / f"v2_mscoco_{split}_annotations.json"
    scores: dict[int, dict[str, float]] = {}
    families: dict[int, str] = {}
    if not split.startswith("test"):
        for where, row in rows(load_json(annotated), "annotations", annotated):
            number = field(row, "question_id", int, where)
            unique(scores, number, where, "the question_id")
            given = [normalize_answer(field(a, "answer", str, where)) for a in field(row, "answers", list, where)]
            if not given:
                raise DataError("the annotation has no answers", where=where, fix="correct the record")
            scores[number] = soft_scores(given)
            families[number] = str(row.get("answer_type") or row.get("question_type") or "all")
    questions: dict[int, list[Question]] = {}
    seen: dict[int, str] = {}
    for where, row in rows(load_json(path), "questions", path):
        number, text = field(row, "question_id", int, where), field(row, "question", str, where)
        unique(seen, number, where, "the question_id")
        seen[number] = where
        if not split.startswith("test") and number not in scores:
            raise DataError(
                f"question {number} has no annotation in {annotated.name}", where=where, fix="use one release"
            )
        asked = Question(text, scores.get(number, {}), family=families.get(number, "all"))
        questions.setdefault(field(row, "image_id", int, where), []).append(asked)
    orphans = sorted(set(scores) - set(seen))
    if orphans:
        what = f"there is an annotation of question {orphans[0]}, but not the question"
        raise DataError(what, where=annotated, fix="use one release")
    folder = "test2015" if split.startswith("test") else split
    return finished(
        [
            Record(str(image), (root / folder / f"COCO_{folder}_{image:012d}.jpg",), questions=tuple(asked))
            for image, asked in questions.items()
        ],
        path,
    )
