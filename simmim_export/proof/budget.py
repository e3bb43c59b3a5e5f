"""What a lower precision may cost. Knows the figures of an examination by name; must not know how they came about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import ceil
from typing import Any

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
    """One line of a budget beside what was found: ``found`` and ``limit`` in the unit of ``key``."""

    key: str
    of: str
    found: float
    limit: float
    kept: bool

    @property
    def name(self) -> str:
        """What is bounded, of what: ``answers vqa``."""
        return self.key if self.key == self.of else f"{self.key} {self.of}"

    @property
    def allowed(self) -> str:
        """The limit in words: ``at most 0.5 pt``."""
        gap = " " if _UNITS[self.key] == "pt" else ""
        word = "at most" if self.key in ("answers", "retrieval") else "at least"
        return f"{word} {shown(self.limit)}{gap}{_UNITS[self.key]}"

    def as_row(self) -> dict[str, Any]:
        """As JSON: what is bounded, what was found, the limit in words, and whether it is kept."""
        return {"name": self.name, "found": self.found, "allowed": self.allowed, "kept": self.kept}

    def __str__(self) -> str:
        return f"{self.name} {shown(self.found)}, {self.allowed}"


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

    def lines(self, figures: Mapping[str, Any]) -> list[Line]:
        """Every limit beside what ``figures`` (:meth:`Examiner.figures`) say: one line a task or tower."""
        found = []
        for key, limit in self.limits:
            if key == "cosine":
                rows = {name: row["cosine_mean"] for name, row in figures["embeddings"].items()}
            elif key == "agreement":
                rows = {name: 100 * row["top1"] for name, row in figures["tasks"].items() if name != RETRIEVAL}
            else:
                mine = (name for name in figures["tasks"] if (name == RETRIEVAL) == (key == "retrieval"))
                rows = {name: figures["tasks"][name]["interval"][1] for name in mine}
            more = key in ("cosine", "agreement")
            found += [Line(key, n, v, limit, v >= limit if more else v <= limit) for n, v in rows.items()]
        return found

    def measurable(self, figures: Mapping[str, Any]) -> Budget:
        """The limits for which ``figures`` hold enough to know that they are kept."""
        have = {line.key for line in self.lines(figures)}
        few = {key for key, *_ in self._too_few(figures)}
        return Budget(tuple((key, limit) for key, limit in self.limits if key in have - few))

    def _too_few(self, figures: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
        """Of limits in points: the key, the task, its images, and how many it takes. Where none of n images changed, the loss
        is below 3 / n with 95 % confidence and not known any better (the rule of three: Hanley and Lippman-Hand, 1983)."""
        limits = dict(self.limits)
        found = []
        for line in self.lines(figures):
            if _UNITS[line.key] != "pt":
                continue
            images, limit = figures["tasks"][line.of]["images"], limits[line.key]
            if images * limit < 300:
                found.append((line.key, line.of, images, ceil(300 / limit) if limit else 0))
        return found

    def require_measurable(self, figures: Mapping[str, Any]) -> None:
        """Raise :class:`UsageError` naming the limits for which there is no evidence, or too little."""
        have = {line.key for line in self.lines(figures)}
        lacking = [key for key, _ in self.limits if key not in have]
        fix = "train with --eval-scenes above 0, or take it out of --budget"
        if lacking:
            raise UsageError(f"nothing held out was stored with the model to measure {', '.join(lacking)} on", fix=fix)
        for key, task, images, wanted in self._too_few(figures):
            limit = dict(self.limits)[key]
            takes = f"takes {wanted}" if wanted else "cannot be proven on any number"
            raise UsageError(
                f"{key}={written(limit)}pt: {images} images of {task} are too few to know it with 95 % confidence; it {takes}",
                fix=f"train with --eval-scenes {wanted}" if wanted else f"give {key} above 0, or agreement=100%",
            )

    def __str__(self) -> str:
        return ",".join(f"{key}={written(limit)}{_UNITS[key]}" for key, limit in self.limits)


def written(limit: float) -> str:
    """``limit`` in the fewest digits that are read back as the same number."""
    return f"{Decimal(repr(float(limit))):f}".removesuffix(".0")
