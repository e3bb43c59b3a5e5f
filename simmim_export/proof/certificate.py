"""What a bundle was proven to do, on which machine: certificate.json.

A certificate holds for the very graphs, engine version and kind of machine that it names; for any other it says nothing. The file
has a digest of its own: a flipped bit could make it another machine's, or faster. The digest is not a signature: whoever may
write the file may also write a false certificate. What is read is parsed into typed values and must agree with itself and
with the bundle.

``SCHEMA`` is its version: bump it when an older reader would misunderstand it. Certificates of an older schema are not read:
schema 1 did not say what was not judged, nor whether FP32 gave the references.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from simmim_export.bundle import Bundle
from simmim_export.engines import ENGINES, get_engine
from simmim_export.errors import BundleError, CertificatesLost, EngineUnavailable, UsageError
from simmim_export.proof.budget import Budget, NotJudged, promised
from simmim_export.proof.examine import REFERENCES
from simmim_export.proof.records import Certificate, verdict
from simmim_export.spec import PrecisionPlan
from simmim_export.system.files import locked, parse_json, read_file, reading
from simmim_export.system.outputs import replacing, require_replaceable

SCHEMA = 2
FILE = "certificate.json"
# A certificate takes some 10 kB: enough for a hundred machines with ten engines and precisions each.
MOST_BYTES, MOST = 16 << 20, 1000
# The precision that means the bundle's own plan for an engine.
PLANNED = "planned"


def require_room(bundle: Bundle) -> None:
    """Raise what :func:`write` would, before minutes of measuring: :class:`UsageError` for a bundle that cannot be written to or
    locked, :class:`BundleError` for certificates of another version."""
    require_replaceable(bundle.inside(FILE))
    with _alone(bundle):
        pass
    _require_schema(bundle.root / FILE)


def write(bundle: Bundle, certificates: Sequence[Certificate]) -> Path:
    """Put ``certificates`` into the bundle, in place of those for the same host, engine and precision.

    Certificates of other graphs than these go; a damaged file is replaced, with a :class:`CertificatesLost` warning. Raise as
    :func:`require_room`.
    """
    require_room(bundle)  # which takes the lock by itself
    new = {(_kind(c.host), c.name) for c in certificates}
    # Two machines may certify one folder at once, and neither must lose what the other found.
    with _alone(bundle):
        kept = [old for old in _known(bundle) if (_kind(old.host), old.name) not in new]
        if len(kept) + len(certificates) > MOST:
            what = f"{FILE} has {len(kept)} certificates of other machines; with more than {MOST} it could not be read"
            raise BundleError(
                what, where=bundle.root / FILE, fix="remove the file, and certify again where it is needed"
            )
        content = {
            "schema": SCHEMA,
            "bundle": bundle.digest,
            "certificates": [one.as_json() for one in (*kept, *certificates)],
        }
        content["digest"] = _digest_of(content)
        with replacing(bundle.root / FILE) as path:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return bundle.root / FILE


def read(bundle: Bundle) -> list[Certificate]:
    """Every certificate of these very graphs; none where there is no file.

    Raise :class:`BundleError` for a file that is damaged, too large, of another schema or of other graphs, and for certificates
    with unknown or missing fields, numbers out of range, or a verdict that does not follow from what they say.
    """
    path = bundle.inside(FILE)
    again = f"make it again: simmim-export certify {bundle.root}"
    try:
        with reading(path, BundleError):
            try:
                text = _text_of(path)
            except FileNotFoundError:
                return []
        content = parse_json(text, finite=True)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        schema = content["schema"]
        if schema != SCHEMA:
            raise ValueError(f"it has schema {schema!r}; this version reads {SCHEMA}")
        if content.pop("digest") != _digest_of(content):
            raise ValueError("it was altered, its digest does not match")
        if unknown := set(content) - {"schema", "bundle", "certificates"}:
            raise ValueError(f"it has unknown fields: {', '.join(sorted(unknown))}")
        if content["bundle"] != bundle.digest:
            raise OfAnother(f"{FILE} is of another bundle than this", where=path, fix=again)
        certificates = msgspec.convert(content["certificates"], type=list[Certificate])
        _check(certificates, bundle)
    except (ValueError, TypeError, KeyError, RecursionError, UsageError) as error:
        raise BundleError(f"{FILE} cannot be read: {error}", where=path, fix=again) from error
    return certificates


@contextmanager
def _alone(bundle: Bundle) -> Iterator[None]:
    """Hold the lock of the certificates of ``bundle``; raise :class:`UsageError` where there cannot be one."""
    path = bundle.root / f".{FILE}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
        except OSError as error:
            what = f"certificates cannot be locked: {error.strerror or error}"
            raise UsageError(what, where=path, fix=f"remove {path}, or certify a copy of the bundle") from error
        yield


def _text_of(path: Path) -> str:
    return read_file(path, most=MOST_BYTES).decode("utf-8")


def _check(certificates: Sequence[Certificate], bundle: Bundle) -> None:
    """Raise ValueError or :class:`UsageError` for a certificate that contradicts itself, another one or ``bundle``."""
    if len(certificates) > MOST:
        raise ValueError(f"it has {len(certificates)} certificates, at most {MOST} are read")
    if len({(_kind(c.host), c.name) for c in certificates}) < len(certificates):
        raise ValueError("two certificates are of the same engine, precision and host")
    for certificate in certificates:
        try:
            _check_one(certificate, bundle)
        except (ValueError, UsageError) as error:
            raise ValueError(f"{certificate.name}: {error}") from error


def _check_one(certificate: Certificate, bundle: Bundle) -> None:
    manifest = bundle.manifest
    datetime.fromisoformat(certificate.run)
    if certificate.engine in ENGINES and get_engine(certificate.engine).reads_checkpoint:
        raise ValueError("it is about the engine that the others are compared with")
    names = [graph.name for graph in manifest.graphs]
    if set(certificate.graphs) != set(names):
        raise ValueError(f"it is about {', '.join(certificate.graphs)}, the bundle has {', '.join(names)}")
    if set(certificate.latency) != {pipeline.name for pipeline in manifest.pipelines}:
        raise ValueError("its latencies are not those of the bundle's pipelines")
    plan, asked = PrecisionPlan.parse(certificate.plan), certificate.precision
    plan.check(names)
    if PrecisionPlan.parse(manifest.plans.get(certificate.engine, "") if asked == PLANNED else asked) != plan:
        raise ValueError(f"precision {asked} is not the plan {certificate.plan}")
    for name, graph in certificate.graphs.items():
        if graph.precision != plan.of(name):
            raise ValueError(f"{name} is at {graph.precision}, the plan {certificate.plan} has it at {plan.of(name)}")
        if graph.artifact not in {a.sha256 for a in manifest.artifacts if a.graph == name}:
            raise ValueError(f"it is about another file of {name} than the bundle's")
    lines = {line.name: line for line in certificate.lines}
    left_out = {one.name for one in certificate.not_judged}
    if len(lines) < len(certificate.lines) or lines.keys() & left_out:
        raise ValueError("a line of its budget occurs twice")
    limits, figures = Budget.parse(certificate.budget), msgspec.to_builtins(certificate.figures)
    wanted = {line.name: line for line in limits.lines(figures, of=promised(manifest))}
    unproven = [NotJudged(line.key, line.of, "", "", "") for line in wanted.values() if line.name in left_out]
    for line in limits.lines(figures, of=promised(manifest), without=unproven):
        if line.name in left_out:
            raise ValueError(f"its figures show that {line.name} is exceeded, and it says that nobody could judge it")
    for name, line in wanted.items():
        if name not in left_out and (name not in lines or lines[name].kept != line.kept):
            raise ValueError(f"its line {name} does not follow from its figures")
    if not wanted.keys() & lines.keys() or REFERENCES not in lines:
        raise ValueError("no line of its budget was judged, or not whether FP32 gives the references")
    if certificate.passed != verdict(certificate.lines, certificate.graphs):
        raise ValueError(f"it says passed: {certificate.passed}, its lines and its parity say otherwise")


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
    """Raise :class:`BundleError` where ``path`` holds certificates that a newer version wrote, and may read."""
    try:
        schema = parse_json(_text_of(path), finite=True)["schema"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return
    if isinstance(schema, int) and schema > SCHEMA:
        what = f"{FILE} has schema {schema}; this version writes {SCHEMA}, and would lose what is in it"
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
    whether what a certificate was measured with is still there. An engine that this version does not have is not installed.
    Raise :class:`EngineUnavailable` if there is none, saying what there is instead.
    """
    mine = [c for c in certificates if engine in (None, c.engine)]
    here = [c for c in mine if _kind(c.host) == _kind(host)]
    known = [c for c in here if c.engine in ENGINES and c.versions == dict(versions(c.engine))]
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
