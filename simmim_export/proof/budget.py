"""Budgets: how much a lower precision may cost, and whether the figures of an examination keep each limit.

Each limit gives a line for every task and every kind of embedding that a model promises (:func:`promised`). A figure that cannot
be computed gives a line that is not kept. A limit that could not be judged from the start is listed (:class:`NotJudged`); it is
never left out silently.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import ceil, isfinite, nan
from typing import Any

from simmim_export.bundle import Manifest
from simmim_export.errors import UsageError
from simmim_export.proof.asked import IMAGES, TEXTS, pipeline_of
from simmim_export.proof.evidence import FOLDER, RETRIEVAL, SAMPLES, ZERO_SHOT
from simmim_export.proof.records import Line, Unjudged, shown

# What a key bounds, for messages and help.
KEYS: Mapping[str, str] = {
    "answers": "points of accuracy that each head may lose, with 95 % confidence: answers=0.5pt",
    "retrieval": "points of recall at 1 that may be lost, with 95 % confidence: retrieval=0.5pt",
    "cosine": "the least mean cosine of embeddings to FP32: cosine=0.998",
    "agreement": "the least share of answers that equal those of FP32: agreement=99%",
}
_UNITS = {"answers": "pt", "retrieval": "pt", "cosine": "", "agreement": "%"}
# These limits are lower bounds.
_AT_LEAST = ("cosine", "agreement")
DEFAULT = "answers=0.5pt,retrieval=0.5pt,cosine=0.998"


class NotJudged(Unjudged, frozen=True):
    """A limit that is not applied to one task or kind of embedding, why, and what would change that."""

    fix: str

    def record(self) -> Unjudged:
        """What a certificate keeps of it."""
        return Unjudged(name=self.name, limit=self.limit, why=self.why)

    def __str__(self) -> str:
        of = self.name.partition(" ")[2]
        return f"{self.limit} of {of}: {self.why}" if of else f"{self.limit}: {self.why}"


# key -> the names of the tasks or kinds of embedding that it bounds.
Promised = Mapping[str, tuple[str, ...]]


def promised(manifest: Manifest) -> Promised:
    """What each key of a budget bounds in a bundle: its tasks, its embeddings, and retrieval if it embeds images and texts. The
    agreement of such a model without tasks is that of zero-shot choices."""
    embeddings = tuple(kind for kind in (IMAGES, TEXTS) if pipeline_of(manifest, kind) is not None)
    tasks = tuple(dict.fromkeys(pipeline.labels for pipeline in manifest.pipelines if pipeline.labels))
    both = len(embeddings) == 2
    return _bounded(tasks, embeddings, retrieval=both, zero_shot=both)


def _bounded(tasks: tuple[str, ...], embeddings: tuple[str, ...], *, retrieval: bool, zero_shot: bool) -> Promised:
    ranked = (RETRIEVAL,) if retrieval else ()
    chosen = tasks or ((ZERO_SHOT,) if zero_shot else ())
    return {"answers": tasks, "agreement": chosen, "cosine": embeddings, "retrieval": ranked}


def _of_figures(figures: Mapping[str, Any]) -> Promised:
    """As :func:`promised`, of what ``figures`` hold."""
    measured, embeddings = figures["tasks"], tuple(figures["embeddings"])
    tasks = tuple(name for name in measured if name not in (RETRIEVAL, ZERO_SHOT))
    return _bounded(tasks, embeddings, retrieval=RETRIEVAL in measured, zero_shot=ZERO_SHOT in measured)


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
            if not least <= amount <= most or (key in _AT_LEAST and amount == 0):
                raise UsageError(f"{part.strip()!r} is not a limit of a budget: {KEYS[key]}", fix=fix)
            limits[key] = amount
        return cls(tuple(limits.items()))

    def lines(
        self, figures: Mapping[str, Any], *, of: Promised | None = None, without: Collection[str] = ()
    ) -> list[Line]:
        """Compare every limit with ``figures`` (:meth:`Examiner.figures`): one line for each task or kind of embedding in ``of``,
        by default those that ``figures`` name, except for the lines named in ``without``.

        A line in ``without`` is there all the same if even the smallest loss that the figures allow, with 95 % confidence,
        exceeds its limit: too few images cannot prove that a limit is kept, but they can prove that it is not.

        Where ``figures`` lack a number, the line is not kept, and ``reason`` says why.
        """
        names, lines = of or _of_figures(figures), list[Line | None]()
        for key, limit in self.limits:
            if not names[key] and key not in without:
                lines.append(_made(key, key, limit=limit, reason=_NOTHING[key]))
            for name in names[key]:
                judge = _lost if _named(key, name) in without else _line
                lines.append(judge(key, name, limit=limit, figures=figures))
        return [line for line in lines if line is not None]

    def excess(self, lines: Iterable[Line]) -> float:
        """How far the worst of ``lines`` exceeds its limit, in limits: 0 within the budget, infinite if a line could not be
        computed or its outputs are not finite."""
        limits, worst = dict(self.limits), 0.0
        for line in lines:
            if line.kept:
                continue
            if line.reason or line.measured is None:
                return float("inf")
            key = line.name.partition(" ")[0]
            limit = limits[key]
            if key in _AT_LEAST:
                far = (limit - line.measured) / max((100.0 if _UNITS[key] else 1.0) - limit, 1e-6)
            else:
                far = (line.measured - limit) / max(limit, 1e-6)
            worst = max(worst, far)
        return worst

    def not_judged(self, figures: Mapping[str, Any], *, of: Promised | None = None) -> list[NotJudged]:
        """The limits that ``figures``, PyTorch's own, are not enough to judge, and why.

        If none of n images changed, all that is known with 95 % confidence is that the loss is below 3 / n (the rule of three:
        Hanley and Lippman-Hand, 1983).
        """
        limits, missing = dict(self.limits), []
        for line in self.lines(figures, of=of):
            key, _, name = line.name.partition(" ")
            limit = limits[key]
            if line.reason:
                why, fix = line.reason, _fix(key, name, figures=figures)
            elif _UNITS[key] == "pt" and (images := figures["tasks"][name or key]["images"]) * limit < 300:
                wanted = ceil(300 / limit) if limit else 0
                takes = f"takes {wanted}" if wanted else "cannot be proven on any number"
                why = f"{images} images of {name or key} are too few to know it with 95 % confidence; it {takes}"
                fix = f"give {key} above 0, or agreement=100%"
                fix = _fix(key, name, figures=figures, wanted=wanted) if wanted else fix
            else:
                continue
            missing.append(NotJudged(name=line.name, limit=f"{key}={_written(key, limit)}", why=why, fix=fix))
        return missing

    def judge(
        self, figures: Mapping[str, Any], *, of: Promised, left_out: Sequence[NotJudged]
    ) -> tuple[list[Line], list[NotJudged]]:
        """The :meth:`lines` of ``figures``, and those of ``left_out`` that they do not judge."""
        lines = self.lines(figures, of=of, without=[one.name for one in left_out])
        judged = {line.name for line in lines}
        return lines, [one for one in left_out if one.name not in judged]

    def require_measurable(self, figures: Mapping[str, Any], *, of: Promised | None = None) -> None:
        """Raise :class:`UsageError` naming the first of :meth:`not_judged`."""
        for one in self.not_judged(figures, of=of):
            raise UsageError(str(one), fix=one.fix)

    def __str__(self) -> str:
        return ",".join(f"{key}={_written(key, limit)}" for key, limit in self.limits)


def _written(key: str, limit: float) -> str:
    """``limit`` with its unit, in the fewest digits that give the same number when they are read."""
    return f"{Decimal(repr(float(limit))):f}".removesuffix(".0") + _UNITS[key]


def _fix(key: str, name: str, *, figures: Mapping[str, Any], wanted: int = 0) -> str:
    """How to get the ``wanted`` images (0: any) that the limit ``key`` of ``name`` needs. It depends on what the evidence is."""
    leave, source = f"take {key} out of --budget", figures.get("source", {}).get("name")
    if source == FOLDER and wanted:
        return f"put {wanted} different pictures with captions into the folder of --evidence, or {leave}"
    if source in (SAMPLES, FOLDER):
        file = {"retrieval": "captions.jsonl", "agreement": "texts.txt"}.get(key)
        if file and name in ("", ZERO_SHOT) and {IMAGES, TEXTS} <= set(figures["embeddings"]):
            return f"export with --evidence DIR, a folder of {wanted or 'your'} pictures and {file}, or {leave}"
        return f"{leave}, or export a checkpoint that carries labeled examples"
    option = f"--eval-scenes {wanted or 'above 0'}"
    return f"export a checkpoint that carries {wanted or 'such'} examples (simmim-train: {option}), or {leave}"


_NOTHING = {
    "answers": "the model has no head that was judged",
    "agreement": "the model has no head that was judged, and no texts to choose among",
    "cosine": "the model has no embedding that was judged",
    "retrieval": "no captions travel with the model, or it does not embed both images and texts",
}

# Why figures lack what a model can give.
_LACKING = {
    RETRIEVAL: "no captions travel with the model",
    ZERO_SHOT: "no images, or fewer than two texts to choose among, travel with the model",
}


def _named(key: str, of: str) -> str:
    return key if key == of else f"{key} {of}"


def _made(key: str, of: str, *, limit: float, measured: float = nan, kept: bool = False, reason: str = "") -> Line:
    unit = {"pt": " pt"}.get(_UNITS[key], _UNITS[key])
    allowed = f"{'at least' if key in _AT_LEAST else 'at most'} {shown(limit)}{unit}"
    known = measured if isfinite(measured) else None
    return Line(name=_named(key, of), measured=known, allowed=allowed, kept=kept, reason=reason)


def _line(key: str, name: str, *, limit: float, figures: Mapping[str, Any]) -> Line:
    """One limit beside the figures of one task or kind of embedding."""
    row = figures["embeddings" if key == "cosine" else "tasks"].get(name)
    if row is None:
        return _made(key, name, limit=limit, reason=_LACKING.get(name, "the bundle has no held-out examples for it"))
    if key == "cosine":
        measured = row["cosine_mean"]
    else:
        measured = 100 * row["top1"] if key == "agreement" else row["interval"][1]
    reason = ""
    if broken := row.get("not_finite", 0):
        reason = f"{broken} outputs are not finite"
    elif not isfinite(measured):
        reason = "it is not a number"
    within = measured >= limit if key in _AT_LEAST else measured <= limit
    return _made(key, name, limit=limit, measured=measured, kept=within and not reason, reason=reason)


def _lost(key: str, name: str, *, limit: float, figures: Mapping[str, Any]) -> Line | None:
    """The line of a limit that cannot be proven, if ``figures`` show that it is exceeded or that outputs are not finite."""
    row = None if key == "cosine" else figures["tasks"].get(name)
    if row is None:
        return None
    if key == "agreement" or row.get("not_finite", 0):
        line = _line(key, name, limit=limit, figures=figures)
        return None if line.kept else line
    least, reason = row["interval"][0], "even the smallest loss that the figures allow exceeds it"
    return _made(key, name, limit=limit, measured=least, reason=reason) if least > limit else None
