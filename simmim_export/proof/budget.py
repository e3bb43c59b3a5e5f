"""What a lower precision may cost: limits, and each of them beside the figures of an examination.

Every limit gives a line for every task or tower that a model promises (:func:`promised`). What cannot be computed is a line
that is not kept; what could not be judged from the start is listed (:class:`NotJudged`), and never left out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import ceil, isfinite
from typing import Any

from simmim_export.bundle import Manifest
from simmim_export.errors import UsageError
from simmim_export.proof.evidence import RETRIEVAL
from simmim_export.spec import shown

# What a key bounds, for messages and help.
KEYS: Mapping[str, str] = {
    "answers": "points of accuracy that any head may lose, with 95 % confidence: answers=0.5pt",
    "retrieval": "points of recall at 1 that may be lost, with 95 % confidence: retrieval=0.5pt",
    "cosine": "the least mean cosine of embeddings to FP32: cosine=0.998",
    "agreement": "the least share of answers that are those of FP32: agreement=99%",
}
_UNITS = {"answers": "pt", "retrieval": "pt", "cosine": "", "agreement": "%"}
DEFAULT = "answers=0.5pt,retrieval=0.5pt,cosine=0.998"


@dataclass(frozen=True)
class Line:
    """One line of a budget beside what was found: ``found`` and ``limit`` in the unit of ``key``. ``found`` is NaN for what
    could not be computed; ``reason`` says why a line is not kept where the two numbers do not."""

    key: str
    of: str
    found: float
    limit: float
    kept: bool
    reason: str = ""

    @property
    def name(self) -> str:
        """What is bounded, of what: ``answers vqa``."""
        return _named(self.key, self.of)

    @property
    def allowed(self) -> str:
        """The limit in words: ``at most 0.5 pt``."""
        gap = " " if _UNITS[self.key] == "pt" else ""
        word = "at most" if self.key in ("answers", "retrieval") else "at least"
        return f"{word} {shown(self.limit)}{gap}{_UNITS[self.key]}"

    def as_row(self) -> dict[str, Any]:
        """As JSON: what is bounded, what was found (NaN if it could not be computed), the limit in words, and whether it is
        kept, with the reason if that is another than the limit."""
        return {
            "name": self.name,
            "found": self.found,
            "allowed": self.allowed,
            "kept": self.kept,
            "reason": self.reason,
        }

    def __str__(self) -> str:
        return in_words(self.as_row())


def in_words(row: Mapping[str, Any]) -> str:
    """A row of :meth:`Line.as_row` as a phrase: ``cosine text_embed 0.99796, at least 0.998``."""
    found = row["found"]
    said = "not computed" if found is None or not isfinite(found) else shown(found)
    return f"{row['name']} {said}, {row['allowed']}" + (f" ({row['reason']})" if row["reason"] else "")


@dataclass(frozen=True)
class NotJudged:
    """A limit that is not applied to one task or tower, why, and what would change that."""

    key: str
    of: str
    limit: str
    why: str
    fix: str

    @property
    def name(self) -> str:
        """As :attr:`Line.name`."""
        return _named(self.key, self.of)

    def as_row(self) -> dict[str, str]:
        """As JSON."""
        return {"name": self.name, "limit": self.limit, "why": self.why}

    def __str__(self) -> str:
        return f"{self.limit}: {self.why}" if self.key == self.of else f"{self.limit} of {self.of}: {self.why}"


def _named(key: str, of: str) -> str:
    return key if key == of else f"{key} {of}"


# key -> the names of the tasks or towers that it bounds.
Promised = Mapping[str, tuple[str, ...]]


def promised(manifest: Manifest) -> Promised:
    """What each key of a budget bounds in a bundle: its heads, its towers, and retrieval where it has both towers."""
    outputs = {output for pipeline in manifest.pipelines for output in pipeline.outputs}
    towers = tuple(name for name in ("image_embed", "text_embed") if name in outputs)
    last = (pipeline.graphs[-1] for pipeline in manifest.pipelines if pipeline.graphs)
    heads = tuple(dict.fromkeys(graph.removeprefix("head.") for graph in last if graph.startswith("head.")))
    retrieval = (RETRIEVAL,) if len(towers) == 2 else ()
    return {"answers": heads, "agreement": heads, "cosine": towers, "retrieval": retrieval}


def _of_figures(figures: Mapping[str, Any]) -> Promised:
    """As :func:`promised`, of what ``figures`` hold."""
    heads = tuple(name for name in figures["tasks"] if name != RETRIEVAL)
    retrieval = (RETRIEVAL,) if RETRIEVAL in figures["tasks"] else ()
    return {"answers": heads, "agreement": heads, "cosine": tuple(figures["embeddings"]), "retrieval": retrieval}


@dataclass(frozen=True)
class Budget:
    """Limits by key: points in [0, 100] for answers and retrieval, a cosine in (0, 1], per cent in (0, 100] for agreement."""

    limits: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``answers=0.5pt,retrieval=0.5pt,cosine=0.998``; raise :class:`UsageError` saying what does not parse."""
        found: dict[str, float] = {}
        fix = "write for example --budget answers=0.5pt,retrieval=0.5pt,cosine=0.998"
        for part in text.split(","):
            key, _, value = (word.strip() for word in part.partition("="))
            if key not in KEYS:
                raise UsageError(f"the budget has no {key or part!r} (it has: {', '.join(KEYS)})", fix=fix)
            if key in found:
                raise UsageError(f"the budget names {key} twice", fix="name it once")
            number = re.fullmatch(rf"(\d+(?:\.\d*)?|\.\d+)\s*(?:{_UNITS[key]})?", value)
            amount = float(number[1]) if number else -1.0
            least, most = (0.0, 100.0) if _UNITS[key] else (0.0, 1.0)
            if not least <= amount <= most or (key in ("cosine", "agreement") and amount == 0):
                what = f"{part.strip()!r} is no part of a budget: {KEYS[key]}"
                raise UsageError(what, fix=fix)
            found[key] = amount
        return cls(tuple(found.items()))

    def lines(
        self,
        figures: Mapping[str, Any],
        *,
        of: Promised | None = None,
        without: Sequence[NotJudged] = (),
    ) -> list[Line]:
        """Every limit beside what ``figures`` (:meth:`Examiner.figures`) say: one line for each task or tower in ``of``, by
        default those that ``figures`` name, except for what is listed in ``without``.

        What is listed there has a line all the same if even the least loss that the figures allow, with 95 % confidence, exceeds
        the limit: too few images cannot prove that a limit is kept, but they can show that it is not.

        What ``figures`` lack, or hold no number for, is a line that is not kept, with NaN found and the reason.
        """
        names, left_out = of or _of_figures(figures), {(one.key, one.of) for one in without}
        lines = []
        for key, limit in self.limits:
            if not names[key] and (key, key) not in left_out:
                lines.append(Line(key, key, float("nan"), limit, False, _NOTHING[key]))
            for name in names[key]:
                line = (
                    _line(key, name, limit, figures)
                    if (key, name) not in left_out
                    else _lost(key, name, limit, figures)
                )
                lines += [] if line is None else [line]
        return lines

    def not_judged(self, figures: Mapping[str, Any], *, of: Promised | None = None) -> list[NotJudged]:
        """What of this budget ``figures``, PyTorch's own, are not enough to judge, and why.

        If none of n images changed, the loss is below 3 / n with 95 % confidence and not known any better (the rule of three:
        Hanley and Lippman-Hand, 1983).
        """
        missing = []
        for line in self.lines(figures, of=of):
            limit = f"{line.key}={written(line.limit)}{_UNITS[line.key]}"
            if line.reason:
                fix = f"train with --eval-scenes above 0, or take {line.key} out of --budget"
                missing.append(NotJudged(line.key, line.of, limit, line.reason, fix))
            elif _UNITS[line.key] == "pt" and (images := figures["tasks"][line.of]["images"]) * line.limit < 300:
                wanted = ceil(300 / line.limit) if line.limit else 0
                takes = f"takes {wanted}" if wanted else "cannot be proven on any number"
                why = f"{images} images of {line.of} are too few to know it with 95 % confidence; it {takes}"
                fix = f"train with --eval-scenes {wanted}" if wanted else f"give {line.key} above 0, or agreement=100%"
                missing.append(NotJudged(line.key, line.of, limit, why, fix))
        return missing

    def judge(
        self, figures: Mapping[str, Any], *, of: Promised, left_out: Sequence[NotJudged]
    ) -> tuple[list[Line], list[NotJudged]]:
        """The :meth:`lines` of ``figures``, and what of ``left_out`` they do not judge."""
        lines = self.lines(figures, of=of, without=left_out)
        judged = {line.name for line in lines}
        return lines, [one for one in left_out if one.name not in judged]

    def require_measurable(self, figures: Mapping[str, Any], *, of: Promised | None = None) -> None:
        """Raise :class:`UsageError` naming the first of :meth:`not_judged`."""
        for one in self.not_judged(figures, of=of):
            raise UsageError(str(one), fix=one.fix)

    def __str__(self) -> str:
        return ",".join(f"{key}={written(limit)}{_UNITS[key]}" for key, limit in self.limits)


def written(limit: float) -> str:
    """``limit`` in the fewest digits that are read back as the same number."""
    return f"{Decimal(repr(float(limit))):f}".removesuffix(".0")


_NOTHING = {
    "answers": "the model has no head that was judged",
    "agreement": "the model has no head that was judged",
    "cosine": "the model has no embedding that was judged",
    "retrieval": "no captions travel with the model, or it lacks a tower",
}


def _line(key: str, name: str, limit: float, figures: Mapping[str, Any]) -> Line:
    """One limit beside the figures of one task or tower."""
    row = figures["embeddings" if key == "cosine" else "tasks"].get(name)
    if row is None:
        return Line(key, name, float("nan"), limit, False, "nothing held out travels with the model to measure it on")
    if key == "cosine":
        found = row["cosine_mean"]
    else:
        found = 100 * row["top1"] if key == "agreement" else row["interval"][1]
    if broken := row.get("not_finite", 0):
        return Line(key, name, found, limit, False, f"{broken} outputs are not finite")
    if not isfinite(found):
        return Line(key, name, float("nan"), limit, False, "it is not a number")
    return Line(key, name, found, limit, found >= limit if key in ("cosine", "agreement") else found <= limit)


def _lost(key: str, name: str, limit: float, figures: Mapping[str, Any]) -> Line | None:
    """The line of a limit that cannot be proven, if ``figures`` show that it is exceeded, or outputs that are not finite."""
    row = None if key == "cosine" else figures["tasks"].get(name)
    if row is None:
        return None
    line = _line(key, name, limit, figures)
    if key == "agreement" or row.get("not_finite", 0):
        return None if line.kept else line
    least = row["interval"][0]
    return Line(key, name, least, limit, False, "so much is lost at least") if least > limit else None
