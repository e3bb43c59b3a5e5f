"""What a bundle was proven to do, on which machine: certificate.json.

Knows JSON, the bundle's digest and the description of a host. Must not know engines, or how anything was measured. A
certificate holds for the very graphs, engine version and kind of machine that it names; for any other it says nothing. The file
has a digest of its own: a flipped bit could make it another machine's, or faster.

``SCHEMA`` is its version: bump it when an older reader would misunderstand it, and teach :func:`read` both.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

from simmim_export.bundle import Bundle
from simmim_export.errors import BundleError, CertificatesLost, EngineUnavailable
from simmim_export.files import parse_json, reading, replacing, require_writable
from simmim_export.spec import as_json, shown

SCHEMA = 1
FILE = "certificate.json"


@dataclass(frozen=True)
class Certificate:
    """One engine at one plan of precisions on one host. ``precision`` is what was asked for, ``plan`` what that means.

    ``graphs``: for each its artifact's SHA-256, precision, parity, invariance, executed precision, and the SHA-256 of what it was
    compiled to, for an engine that compiles ahead of time. ``figures``: what the evidence says (:meth:`Examiner.figures`).
    ``latency``: median seconds at batch 1 by pipeline, in rounds beside the others of the same ``run``, which is the time it
    began. ``budget`` as text, and each of its ``lines`` with what was found (:meth:`Line.as_row`). ``passed`` is true when parity
    and every line of the budget hold, and the precision was really run.
    """

    engine: str
    precision: str
    plan: str
    host: Mapping[str, Any]
    versions: Mapping[str, str]
    graphs: Mapping[str, Mapping[str, Any]]
    figures: Mapping[str, Any]
    latency: Mapping[str, float]
    budget: str
    lines: Sequence[Mapping[str, Any]]
    passed: bool
    command: str
    run: str

    @property
    def name(self) -> str:
        """As on the command line: ``ort:int8``."""
        return f"{self.engine}:{self.precision}"

    def host_name(self) -> str:
        """The machine in a few words."""
        return f"{self.host.get('cpu')}, {self.host.get('threads')} threads"

    def failures(self) -> list[str]:
        """The lines of the budget that it exceeds, in words."""
        return [f"{line['name']} {shown(line['found'])}, {line['allowed']}" for line in self.lines if not line["kept"]]

    def as_json(self) -> Any:
        """As plain JSON values."""
        return as_json(self)

    def speed(self) -> float:
        """Geometric mean of the latencies in seconds: one figure to order certificates by that no pipeline dominates."""
        return exp(sum(log(value) for value in self.latency.values()) / len(self.latency))


def require_room(bundle: Bundle) -> None:
    """Raise what :func:`write` would, before minutes of measuring: :class:`UsageError` for a bundle that cannot be written to,
    :class:`BundleError` for certificates of another version."""
    require_writable(bundle.root / FILE)
    _require_schema(bundle.root / FILE)


def write(bundle: Bundle, certificates: Sequence[Certificate]) -> Path:
    """Put ``certificates`` into the bundle, in place of those for the same host, engine and precision.

    Certificates of other graphs than these go; a damaged file is replaced, with a :class:`CertificatesLost` warning. Raise as
    :func:`require_room`.
    """
    from filelock import FileLock

    require_room(bundle)
    new = {(_kind(c.host), c.name) for c in certificates}
    # Two machines may certify one folder at once, and neither must lose what the other found.
    with FileLock(bundle.root / f".{FILE}.lock"):
        kept = [old for old in _known(bundle) if (_kind(old.host), old.name) not in new]
        content = {"schema": SCHEMA, "bundle": bundle.digest, "certificates": as_json((*kept, *certificates))}
        content["digest"] = _digest_of(content)
        with replacing(bundle.root / FILE) as path:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return bundle.root / FILE


def read(bundle: Bundle) -> list[Certificate]:
    """Every certificate of these very graphs; none where there is no file. Raise :class:`BundleError` for a damaged one, or
    one of other graphs."""
    path = bundle.root / FILE
    again = f"make it again: simmim-export certify {bundle.root}"
    try:
        with reading(path, BundleError):
            if not path.is_file():
                return []
            text = path.read_text(encoding="utf-8")
        content = parse_json(text)
        schema, owner, rows = content["schema"], content["bundle"], content["certificates"]
        if schema != SCHEMA:
            raise ValueError(f"it has schema {schema!r}; this version reads {SCHEMA}")
        if content.pop("digest") != _digest_of(content):
            raise ValueError("it was altered, its digest does not match")
        found = [Certificate(**row) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{FILE} cannot be read: {error}", where=path, fix=again) from error
    if owner != bundle.digest:
        raise OfAnother(f"{FILE} is of another bundle than this", where=path, fix=again)
    return found


class OfAnother(BundleError):
    """The certificates in a bundle are of other graphs than its own."""


def _known(bundle: Bundle) -> list[Certificate]:
    """As :func:`read`; certificates of other graphs than these are worth nothing, and are dropped."""
    try:
        return read(bundle)
    except OfAnother:
        return []
    except BundleError as error:
        if isinstance(error.__cause__, OSError):  # what may not be read may be whole
            raise
        warnings.warn(f"{error.what}: what it held is replaced", CertificatesLost, stacklevel=3)
        return []


def _require_schema(path: Path) -> None:
    """Raise :class:`BundleError` where ``path`` holds certificates that another version wrote, and may read."""
    try:
        schema = parse_json(path.read_text(encoding="utf-8"))["schema"]
    except (OSError, ValueError, TypeError, KeyError):
        return
    if schema != SCHEMA:
        what = f"{FILE} has schema {schema!r}; this version writes {SCHEMA}, and would lose what is in it"
        raise BundleError(what, where=path, fix="certify with the version that wrote it, or remove the file")


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _kind(host: Mapping[str, Any]) -> str:
    return json.dumps(host, sort_keys=True)


def choose(
    certificates: Sequence[Certificate],
    host: Mapping[str, Any],
    versions: Callable[[str], Mapping[str, str]],
    engine: str | None = None,
    where: object = None,
    stands: Callable[[Certificate], bool] = lambda certificate: True,
) -> tuple[Certificate, str]:
    """The fastest that passed on this kind of ``host`` with just the packages that are installed, and why it was chosen.

    ``versions`` of an engine are of all its packages here; ``engine`` is the only one to look at, if named. ``stands`` says
    whether what a certificate was measured with is still there. Raise :class:`EngineUnavailable` if there is none, saying
    what there is instead.
    """
    mine = [c for c in certificates if engine in (None, c.engine)]
    here = [c for c in mine if _kind(c.host) == _kind(host)]
    known = [c for c in here if dict(c.versions) == dict(versions(c.engine))]
    current = [c for c in known if stands(c)]
    passed = sorted((c for c in current if c.passed and c.latency), key=lambda c: (c.speed(), c.name))
    if not passed:
        reasons = [
            f"{len(certificates)} certificates in the bundle",
            f"{len(here)} of them for this kind of machine" + ("" if engine is None else f" and {engine}"),
            f"{len(known)} with the versions that are installed here",
            *([] if current == known else [f"{len(current)} of what is built here now"]),
            "0 that passed",
        ]
        raise EngineUnavailable(
            "nothing is certified on this machine: " + ", ".join(reasons),
            where=where,
            fix=f"simmim-export certify {where if where is not None else 'BUNDLE'}",
        )
    best = passed[0]
    elsewhen = " (measured in another run: certify them together to be sure)"
    others = [
        f"{c.name} takes {c.speed() / best.speed():.2f}x as long" + ("" if c.run == best.run else elsewhen)
        for c in passed[1:3]
    ]
    failed = [f"{c.name} failed its budget" for c in current if not c.passed]
    why = f"the fastest of {len(passed)} certified here" + "".join(f"; {text}" for text in (*others, *failed))
    return best, why
