"""Reads and writes certificate.json: what a bundle was proven to do, and on which machine.

A certificate holds only for the graphs, the versions of an engine and the kind of machine that it names. The file has a digest of
its own, because a flipped bit could turn it into the certificate of another machine. The digest is not a signature: anyone who
can write the file can also write a false certificate. What is read is parsed into typed values, and must agree with itself and
with the bundle.

``SCHEMA`` is the version of the file: raise it when an older reader would misunderstand a newer file. Certificates of an older
schema are not read: schema 1 did not say what was not judged, schema 2 named embeddings after the tensors of one model, and
schema 3 did not say which variant ran.
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

from simmim_export.bundle import Bundle, Manifest
from simmim_export.engines import ENGINES, get_engine
from simmim_export.errors import BundleError, CertificatesLost, EngineUnavailable, UsageError
from simmim_export.proof.budget import Budget, promised
from simmim_export.proof.examine import REFERENCES
from simmim_export.proof.records import Certificate, verdict
from simmim_export.spec import Precision, PrecisionPlan, Variant
from simmim_export.system.files import locked, parse_json, read_file, reading
from simmim_export.system.outputs import replacing, require_replaceable

SCHEMA = 4
FILE = "certificate.json"
# A certificate takes about 10 kB: this is enough for a hundred machines with ten engines and precisions each.
MOST_BYTES, MOST = 16 << 20, 1000
# Engines can run the FP32 file at these precisions, too.
_LOWERED = [(Variant.FP32, Precision.FP16), (Variant.FP32, Precision.BF16)]
# The precision that means the bundle's own plan for an engine.
PLANNED = "planned"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of certificate.json. The certificates are converted once the rest is known to fit."""

    schema: int
    bundle: str
    certificates: list[Any]
    digest: str


def require_room(bundle: Bundle) -> None:
    """Raise what :func:`write` would raise, before minutes of measuring: :class:`UsageError` for a bundle that cannot be written
    to or locked, :class:`BundleError` for certificates of a newer version."""
    require_replaceable(bundle.inside(FILE))
    with _alone(bundle):
        pass
    _require_schema(bundle.root / FILE)


def write(bundle: Bundle, certificates: Sequence[Certificate]) -> Path:
    """Put ``certificates`` into the bundle, in place of those for the same host, engine and precision.

    Certificates of other graphs are dropped. A damaged file is replaced, with a :class:`CertificatesLost` warning. Raise as
    :func:`require_room`, and :class:`BundleError` for more than :data:`MOST` certificates.
    """
    require_room(bundle)  # takes the lock by itself
    new = {(_kind(c.host), c.name) for c in certificates}
    # Two machines may certify one folder at once, and neither must lose what the other wrote.
    with _alone(bundle):
        kept = [old for old in _known(bundle) if (_kind(old.host), old.name) not in new]
        if len(kept) + len(certificates) > MOST:
            what = f"{FILE} has {len(kept)} certificates of other machines, and may hold {MOST} in all"
            fix = "remove the file, and certify again on each machine that needs it"
            raise BundleError(what, where=bundle.root / FILE, fix=fix)
        rows = [certificate.as_json() for certificate in (*kept, *certificates)]
        content = {"schema": SCHEMA, "bundle": bundle.digest, "certificates": rows}
        content["digest"] = digest_of(content)
        with replacing(bundle.root / FILE) as path:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return bundle.root / FILE


def read(bundle: Bundle) -> list[Certificate]:
    """Every certificate of these graphs; none if there is no file.

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
        if content["schema"] != SCHEMA:
            raise ValueError(f"it has schema {content['schema']!r}; this version reads {SCHEMA}")
        file = msgspec.convert(content, type=_File)
        del content["digest"]
        if file.digest != digest_of(content):
            raise ValueError("it was altered: its digest does not match")
        if file.bundle != bundle.digest:
            raise OfAnother(f"{FILE} is about another bundle", where=path, fix=again)
        certificates = msgspec.convert(file.certificates, type=list[Certificate])
        _check(certificates, bundle)
    except (ValueError, TypeError, KeyError, RecursionError, UsageError) as error:
        raise BundleError(f"{FILE} cannot be read: {error}", where=path, fix=again) from error
    return certificates


@contextmanager
def _alone(bundle: Bundle) -> Iterator[None]:
    """Hold the lock of the certificates of ``bundle``; raise :class:`UsageError` if it cannot be locked."""
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
        raise ValueError(f"it has {len(certificates)} certificates; the limit is {MOST}")
    if len({(_kind(c.host), c.name) for c in certificates}) < len(certificates):
        raise ValueError("two certificates have the same engine, precision and host")
    for certificate in certificates:
        try:
            _check_one(certificate, bundle)
        except (ValueError, UsageError) as error:
            raise ValueError(f"{certificate.name}: {error}") from error


def _check_one(certificate: Certificate, bundle: Bundle) -> None:
    """Raise ValueError or :class:`UsageError` for a certificate that contradicts itself or ``bundle``."""
    datetime.fromisoformat(certificate.run)
    if certificate.engine in ENGINES and get_engine(certificate.engine).reads_checkpoint:
        raise ValueError("it is about the engine that the others are compared with")
    _check_graphs(certificate, bundle.manifest)
    _check_lines(certificate, bundle.manifest)
    if certificate.passed != verdict(certificate.lines, certificate.graphs):
        raise ValueError(f"it says passed: {certificate.passed}, but its lines and its parity say otherwise")


def _check_graphs(certificate: Certificate, manifest: Manifest) -> None:
    """Its graphs, pipelines and plan must be those of the bundle."""
    names = [graph.name for graph in manifest.graphs]
    if set(certificate.graphs) != set(names):
        raise ValueError(f"it is about {', '.join(certificate.graphs)}, the bundle has {', '.join(names)}")
    if set(certificate.latency) != {pipeline.name for pipeline in manifest.pipelines}:
        raise ValueError("its latencies are not those of the bundle's pipelines")
    plan, asked = PrecisionPlan.parse(certificate.plan), certificate.precision
    plan.check(names)
    # Processors that take different INT8 variants have plans of their own.
    own = manifest.plans.get(certificate.engine, {}).values() if asked == PLANNED else [asked]
    if plan not in map(PrecisionPlan.parse, own):
        raise ValueError(f"precision {asked} is not the plan {certificate.plan}")
    for name, graph in certificate.graphs.items():
        if graph.precision != plan.of(name):
            raise ValueError(f"{name} is at {graph.precision}, the plan {certificate.plan} has it at {plan.of(name)}")
        if (graph.artifact, graph.variant) not in {
            (a.sha256, a.variant) for a in manifest.artifacts if a.graph == name
        }:
            raise ValueError(f"it is about another file of {name} than the bundle's")
        if graph.variant.precision is not graph.precision and (graph.variant, graph.precision) not in _LOWERED:
            raise ValueError(f"{name} is at {graph.precision}, but its file is {graph.variant}")


def _check_lines(certificate: Certificate, manifest: Manifest) -> None:
    """Its lines must follow from its budget and its figures."""
    lines = {line.name: line for line in certificate.lines}
    left_out = {unjudged.name for unjudged in certificate.not_judged}
    if len(lines) < len(certificate.lines) or lines.keys() & left_out:
        raise ValueError("a line of its budget occurs twice")
    limits, figures, of = Budget.parse(certificate.budget), msgspec.to_builtins(certificate.figures), promised(manifest)
    wanted = {line.name: line for line in limits.lines(figures, of=of)}
    for line in limits.lines(figures, of=of, without=left_out):
        if line.name in left_out:
            raise ValueError(f"its figures show that {line.name} is exceeded, but it says that this was not judged")
    for name, line in wanted.items():
        if name not in left_out and (name not in lines or lines[name].kept != line.kept):
            raise ValueError(f"its line {name} does not follow from its figures")
    if not wanted.keys() & lines.keys() or REFERENCES not in lines:
        raise ValueError("it judged no limit of its budget, or not whether FP32 gives the references")


class OfAnother(BundleError):
    """The certificates in a bundle are about the graphs of another bundle."""


def _known(bundle: Bundle) -> list[Certificate]:
    """As :func:`read`, but nothing for certificates of other graphs and for damaged files: :func:`write` replaces them."""
    try:
        return read(bundle)
    except OfAnother:
        return []
    except BundleError as error:
        if isinstance(error.__cause__, OSError):  # a file that may not be read may be whole
            raise
        warnings.warn(f"{error.what}: its certificates are replaced", CertificatesLost, stacklevel=3)
        return []


def _require_schema(path: Path) -> None:
    """Raise :class:`BundleError` if ``path`` holds certificates of a newer version, which can still read them."""
    try:
        schema = parse_json(_text_of(path), finite=True)["schema"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return
    if isinstance(schema, int) and schema > SCHEMA:
        what = f"{FILE} has schema {schema}; this version writes {SCHEMA}, and would lose its certificates"
        raise BundleError(what, where=path, fix="certify with the version that wrote it, or remove the file")


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of certificate.json's content without ``digest``, as lower-case hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _kind(host: Mapping[str, Any]) -> str:
    return json.dumps(host, sort_keys=True)


def choose(
    certificates: Sequence[Certificate],
    host: Mapping[str, Any],
    *,
    versions: Callable[[str], Mapping[str, str]],
    engine: str | None = None,
    where: object = None,
    stands: Callable[[Certificate], bool] = lambda certificate: True,
) -> tuple[Certificate, str]:
    """The fastest certificate that passed on this kind of ``host`` with exactly the installed packages, and why it was chosen.

    ``versions(engine)`` has the versions of all packages of an engine that are installed here. ``engine`` is the only one to
    consider, if named. ``stands`` says whether the files that a certificate was measured with are still there. An engine that
    this version does not have counts as not installed. If no certificate qualifies, raise :class:`EngineUnavailable`, whose
    message counts those that meet each condition.
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
    caveat = " (measured in another run: certify them together to be sure)"
    others = [
        f"{c.name} takes {c.speed() / best.speed():.2f}x as long" + ("" if c.run == best.run else caveat)
        for c in passed[1:3]
    ]
    failed = [f"{c.name} failed its budget" for c in current if not c.passed]
    why = f"the fastest of {len(passed)} certified here" + "".join(f"; {text}" for text in (*others, *failed))
    return best, why
