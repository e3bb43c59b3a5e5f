"""Budgets: how much a lower precision may cost, and whether the figures of an examination keep each limit.

Each limit gives a line for every task and every kind of embedding that a model promises (:func:`promised`). A figure that cannot
be computed gives a line that is not kept. A limit that could not be judged from the start is listed (:class:`NotJudged`); it is
never left out silently.
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
from simmim_export.proof.asked import IMAGES, TEXTS, pipeline_of
from simmim_export.proof.evidence import RETRIEVAL

# What a key bounds, for messages and help.
KEYS: Mapping[str, str] = {
    "answers": "points of accuracy that each head may lose, with 95 % confidence: answers=0.5pt",
    "retrieval": "points of recall at 1 that may be lost, with 95 % confidence: retrieval=0.5pt",
    "cosine": "the least mean cosine of embeddings to FP32: cosine=0.998",
    "agreement": "the least share of answers that equal those of FP32: agreement=99%",
}
_UNITS = {"answers": "pt", "retrieval": "pt", "cosine": "", "agreement": "%"}
DEFAULT = "answers=0.5pt,retrieval=0.5pt,cosine=0.998"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One limit of a budget for one task or kind of embedding, and what was measured, both in the unit of ``key``.

    ``measured`` is NaN if it could not be computed; ``reason`` says why a line is not kept where the two numbers do not.
    """

    key: str
    of: str
    measured: float
    limit: float
    kept: bool
    reason: str = ""

    @property
    def name(self) -> str:
        """The key, and the task or kind of embedding, for example ``answers vqa``."""
        return _named(self.key, self.of)

    @property
    def allowed(self) -> str:
        """The limit in words: ``at most 0.5 pt``."""
        gap = " " if _UNITS[self.key] == "pt" else ""
        word = "at most" if self.key in ("answers", "retrieval") else "at least"
        return f"{word} {shown(self.limit)}{gap}{_UNITS[self.key]}"

    def as_row(self) -> dict[str, Any]:
        """As JSON. ``measured`` is NaN if it could not be computed, ``allowed`` is the limit in words, and ``reason`` says why
        the line is not kept, if that is not because of the limit."""
        return {
            "name": self.name,
            "measured": self.measured,
            "allowed": self.allowed,
            "kept": self.kept,
            "reason": self.reason,
        }

    def __str__(self) -> str:
        return in_words(self.as_row())


def in_words(row: Mapping[str, Any]) -> str:
    """A row of :meth:`Line.as_row` as a phrase: ``cosine texts 0.99796, at least 0.998``."""
    measured = row["measured"]
    figure = "not computed" if measured is None or not isfinite(measured) else shown(measured)
    return f"{row['name']} {figure}, {row['allowed']}" + (f" ({row['reason']})" if row["reason"] else "")


@dataclass(frozen=True, kw_only=True)
class NotJudged:
    """A limit that is not applied to one task or kind of embedding, why, and what would change that."""

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


# key -> the names of the tasks or kinds of embedding that it bounds.
Promised = Mapping[str, tuple[str, ...]]


def promised(manifest: Manifest) -> Promised:
    """What each key of a budget bounds in a bundle: its tasks, its embeddings, and retrieval if it embeds images and texts."""
    embeddings = tuple(kind for kind in (IMAGES, TEXTS) if pipeline_of(manifest, kind) is not None)
    tasks = tuple(dict.fromkeys(pipeline.labels for pipeline in manifest.pipelines if pipeline.labels))
    return _bounded(tasks, embeddings, retrieval=len(embeddings) == 2)


def _bounded(tasks: tuple[str, ...], embeddings: tuple[str, ...], *, retrieval: bool) -> Promised:
    ranked = (RETRIEVAL,) if retrieval else ()
    return {"answers": tasks, "agreement": tasks, "cosine": embeddings, "retrieval": ranked}


def _of_figures(figures: Mapping[str, Any]) -> Promised:
    """As :func:`promised`, of what ``figures`` hold."""
    tasks = tuple(name for name in figures["tasks"] if name != RETRIEVAL)
    return _bounded(tasks, tuple(figures["embeddings"]), retrieval=RETRIEVAL in figures["tasks"])


@dataclass(frozen=True)
class Budget:
    """Limits by key: points in [0, 100] for answers and retrieval, a cosine in (0, 1], percent in (0, 100] for agreement."""

    limits: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``answers=0.5pt,retrieval=0.5pt,cosine=0.998``; raise :class:`UsageError` saying what does not parse."""
        limits: dict[str, float] = {}
        fix = "write for example --budget answers=0.5pt,retrieval=0.5pt,cosine=0.998"
        for part in text.split(","):
            key, _, value = (word.strip() for word in part.partition("="))
            if key not in KEYS:
                raise UsageError(f"the budget has no {key or part!r} (it has: {', '.join(KEYS)})", fix=fix)
            if key in limits:
                raise UsageError(f"the budget names {key} twice", fix="name it once")
            number = re.fullmatch(rf"(\d+(?:\.\d*)?|\.\d+)\s*(?:{_UNITS[key]})?", value)
            amount = float(number[1]) if number else -1.0
            least, most = (0.0, 100.0) if _UNITS[key] else (0.0, 1.0)
            if not least <= amount <= most or (key in ("cosine", "agreement") and amount == 0):
                raise UsageError(f"{part.strip()!r} is not a limit of a budget: {KEYS[key]}", fix=fix)
            limits[key] = amount
        return cls(tuple(limits.items()))

    def lines(
        self,
        figures: Mapping[str, Any],
        *,
        of: Promised | None = None,
        without: Sequence[NotJudged] = (),
    ) -> list[Line]:
        """Compare every limit with ``figures`` (:meth:`Examiner.figures`): one line for each task or kind of embedding in ``of``,
        by default those that ``figures`` name, except for what ``without`` lists.

        A limit that ``without`` lists has a line all the same if even the smallest loss that the figures allow, with 95 %
        confidence, exceeds it: too few images cannot prove that a limit is kept, but they can prove that it is not.

        Where ``figures`` lack a number, the line is not kept; ``measured`` is NaN, and ``reason`` says why.
        """
        names, left_out = of or _of_figures(figures), {(one.key, one.of) for one in without}
        lines = []
        for key, limit in self.limits:
            if not names[key] and (key, key) not in left_out:
                lines.append(_not_computed(key, key, limit=limit, reason=_NOTHING[key]))
            for name in names[key]:
                judge = _lost if (key, name) in left_out else _line
                line = judge(key, name, limit=limit, figures=figures)
                lines += [] if line is None else [line]
        return lines

    def not_judged(self, figures: Mapping[str, Any], *, of: Promised | None = None) -> list[NotJudged]:
        """The limits that ``figures``, PyTorch's own, are not enough to judge, and why.

        If none of n images changed, all that is known with 95 % confidence is that the loss is below 3 / n (the rule of three:
        Hanley and Lippman-Hand, 1983).
        """
        missing = []
        for line in self.lines(figures, of=of):
            limit = f"{line.key}={written(line.limit)}{_UNITS[line.key]}"
            if line.reason:
                why, fix = line.reason, f"train with --eval-scenes above 0, or take {line.key} out of --budget"
            elif _UNITS[line.key] == "pt" and (images := figures["tasks"][line.of]["images"]) * line.limit < 300:
                wanted = ceil(300 / line.limit) if line.limit else 0
                takes = f"takes {wanted}" if wanted else "cannot be proven on any number"
                why = f"{images} images of {line.of} are too few to know it with 95 % confidence; it {takes}"
                fix = f"train with --eval-scenes {wanted}" if wanted else f"give {line.key} above 0, or agreement=100%"
            else:
                continue
            missing.append(NotJudged(key=line.key, of=line.of, limit=limit, why=why, fix=fix))
        return missing

    def judge(
        self, figures: Mapping[str, Any], *, of: Promised, left_out: Sequence[NotJudged]
    ) -> tuple[list[Line], list[NotJudged]]:
        """The :meth:`lines` of ``figures``, and those of ``left_out`` that they do not judge."""
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
    """``limit`` in the fewest digits that give the same number when they are read."""
    return f"{Decimal(repr(float(limit))):f}".removesuffix(".0")


_NOTHING = {
    "answers": "the model has no head that was judged",
    "agreement": "the model has no head that was judged",
    "cosine": "the model has no embedding that was judged",
    "retrieval": "no captions travel with the model, or it does not embed both images and texts",
}


def _not_computed(key: str, name: str, *, limit: float, reason: str) -> Line:
    return Line(key=key, of=name, measured=float("nan"), limit=limit, kept=False, reason=reason)


def _line(key: str, name: str, *, limit: float, figures: Mapping[str, Any]) -> Line:
    """One limit beside the figures of one task or kind of embedding."""
    row = figures["embeddings" if key == "cosine" else "tasks"].get(name)
    if row is None:
        reason = "nothing held out travels with the model to measure it on"
        return _not_computed(key, name, limit=limit, reason=reason)
    if key == "cosine":
        measured = row["cosine_mean"]
    else:
        measured = 100 * row["top1"] if key == "agreement" else row["interval"][1]
    broken = row.get("not_finite", 0)
    if not isfinite(measured) and not broken:
        return _not_computed(key, name, limit=limit, reason="it is not a number")
    kept = not broken and (measured >= limit if key in ("cosine", "agreement") else measured <= limit)
    reason = f"{broken} outputs are not finite" if broken else ""
    return Line(key=key, of=name, measured=measured, limit=limit, kept=kept, reason=reason)


def _lost(key: str, name: str, *, limit: float, figures: Mapping[str, Any]) -> Line | None:
    """The line of a limit that cannot be proven, if ``figures`` show that it is exceeded or that outputs are not finite."""
    row = None if key == "cosine" else figures["tasks"].get(name)
    if row is None:
        return None
    line = _line(key, name, limit=limit, figures=figures)
    if key == "agreement" or row.get("not_finite", 0):
        return None if line.kept else line
    least, reason = row["interval"][0], "even the smallest loss that the figures allow exceeds it"
    exceeded = Line(key=key, of=name, measured=least, limit=limit, kept=False, reason=reason)
    return exceeded if least > limit else None


def shown(value: float) -> str:
    """``value`` as text with 4 digits, or 6 if it is just below 1, as a cosine is: its distance from 1 is what matters."""
    return f"{value:.6g}" if 0.9 < value < 1 else f"{value:.4g}"
