"""Commands that prove on this machine what a bundle does: verify, certify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from simmim_export.cli.options import (
    AsJson,
    BudgetOption,
    BundlePath,
    CheckpointOption,
    DeviceName,
    EngineName,
    PrecisionName,
    Threads,
    opened,
)
from simmim_export.cli.tables import print_certificates, print_figures, print_parity
from simmim_export.console import print_json, progress_bar, say
from simmim_export.errors import GateFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from simmim_export.proof.certificate import Certificate


def register(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    for command in (verify, certify):
        app.command()(command)


def verify(
    bundle: BundlePath,
    engine: EngineName = "ort",
    device: DeviceName = None,
    precision: PrecisionName = None,
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    evidence: Annotated[
        bool,
        typer.Option("--evidence", help="Ask everything that travels with the bundle, too: what does it still know?"),
    ] = False,
    budget: BudgetOption = None,
    as_json: AsJson = False,
) -> None:
    """Prove on this machine that every graph computes what PyTorch computed; exit 4 if one does not.

    With --evidence also that the model answers as PyTorch did, within --budget. Without that, the budget is the one of a
    certificate for the same engine and precision on this kind of machine, or the default. Figures of certificates are shown
    beside those found here.
    """
    from simmim_export.proof.budget import DEFAULT, Budget, NotJudged, Promised, in_words, promised
    from simmim_export.proof.certificate import read
    from simmim_export.proof.examine import Examiner, reproduction, require_evidence, suspicions
    from simmim_export.spec import Precision
    from simmim_export.spec import as_json as plain
    from simmim_export.system.host import fingerprint

    if budget is not None and not evidence:
        raise UsageError("--budget is for what --evidence asks", fix="add --evidence")
    given = None if budget is None else Budget.parse(budget)
    with opened(bundle, engine, device, precision, checkpoint, threads) as model, progress_bar("verify") as watch:
        name, plan = model.engine.name, str(model.plan)
        manifest = model.bundle.manifest
        examiner: Examiner | None = None
        before: list[Certificate] = []
        left_out: list[NotJudged] = []
        of: Promised = promised(manifest)
        if evidence:
            # What cannot be measured, or read, shows in PyTorch's own figures: before the engine is asked for minutes.
            held_out = require_evidence(model.bundle)
            examiner = Examiner(manifest, held_out, tokens=model.tokens, watch=watch)
            before = [c for c in read(model.bundle) if (c.engine, c.plan) == (name, plan)]
            known = examiner.figures(held_out.reference)
            mine = [c for c in before if c.host == fingerprint()]
            limits = given or Budget.parse(mine[0].budget if mine else DEFAULT)
            if given is not None:
                limits.require_measurable(known, of=of)
            left_out = limits.not_judged(known, of=of)
        files = model.bundle.check()
        reports = model.verify()
        proof = {report.graph: dict(model.session(report.graph).precision_proof().executed) for report in reports}
        figures, lines = None, list[dict[str, Any]]()
        if examiner is not None:
            figures = examiner.figures(examiner.outputs(model.session))
            judged, left_out = limits.judge(figures, of=of, left_out=left_out)
            lines = [line.as_row() for line in judged]
    remarks: list[str] = []
    unproven = False
    if figures is not None:
        exact = [graph.name for graph in manifest.graphs if model.plan.of(graph.name) is Precision.FP32]
        line = reproduction(manifest, figures, exact)
        unproven = line is None
        lines += [] if line is None else [line]
        remarks = suspicions(figures)
    if as_json:
        parity = {r.graph: r.summary() | {"executed": proof[r.graph]} for r in reports}
        document = {"bundle": str(bundle), "engine": name, "precision": plan, "files": files, "parity": parity}
        if figures is not None:
            rows = [one.as_row() for one in left_out]
            document |= {"limits": str(limits)}
            document |= {"evidence": figures, "budget": lines, "not_judged": rows, "suspicious": remarks}
        document["certificates"] = [{"host": c.host, "figures": c.as_json()["figures"]} for c in before]
        print_json(plain(document))
    else:
        print_parity(reports, f"{bundle}: {name} {plan} against PyTorch; {files} files unaltered", proof)
        if figures is not None:
            print_figures(figures, f"{bundle}: {name} {plan}, what it still knows")
        for certificate in before:
            print_figures(certificate.as_json()["figures"], f"certified on {certificate.host_name()}")
        for remark in remarks:
            say(remark)
        if figures is not None and given is None:
            origin = "certificate.json, which can say anything in a bundle from others" if mine else "default"
            say(f"judged by {limits} ({origin}); --budget sets other limits")
        if unproven:
            say("no graph ran at FP32, so the references themselves were not checked: verify at fp32, or certify")
        _say_not_judged(map(str, left_out))
    for report in reports:
        report.require(bundle, "export it again on this machine, or choose another --engine or --precision")
    exceeded = [row for row in lines if not row["kept"]]
    if exceeded:
        what = "the budget is exceeded: " + "; ".join(map(in_words, exceeded))
        raise GateFailed(what, where=bundle, fix=_fix_for(exceeded, "--precision"))


def _fix_for(exceeded: Sequence[Mapping[str, Any]], option: str) -> str:
    """What to do about lines that are not kept: wrong references make every other figure meaningless."""
    from simmim_export.proof.examine import REFERENCES

    if any(row["name"] == REFERENCES for row in exceeded):
        return "export the bundle again from its checkpoint, and copy it whole"
    return f"choose another {option}, or a wider --budget"


def _say_not_judged(reasons: Iterable[str]) -> None:
    for reason in reasons:
        say(f"not judged: {reason}")


def certify(
    bundle: BundlePath,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", help="ENGINE or ENGINE:PRECISION; repeatable; by default all that there are here."),
    ] = None,
    budget: BudgetOption = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed rounds, engines alternating.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Measure engines and precisions on this machine, prove each by a budget, and write certificate.json into the bundle.

    --engine auto then takes the fastest that passed. Exit 4 if one that was named does not pass, or none does.
    """
    from simmim_export.benchmarks import certify as suite
    from simmim_export.benchmarks.driver import Contestant
    from simmim_export.bundle import Bundle
    from simmim_export.proof.budget import DEFAULT, Budget
    from simmim_export.proof.certificate import require_room, write

    limits = Budget.parse(DEFAULT if budget is None else budget)
    opened_bundle = Bundle.open(bundle)
    contestants = list(dict.fromkeys(Contestant.parse(name) for name in engine or []))
    for contestant in contestants:
        contestant.require()
    skipped: list[str] = []
    require_room(opened_bundle)
    if not contestants:
        contestants, skipped = suite.candidates(opened_bundle)
    with progress_bar("certify") as watch:
        found = suite.certify(bundle, contestants, budget=limits, strict=budget is not None, rounds=rounds, watch=watch)
    path = write(opened_bundle, found)
    unjudged = list(dict.fromkeys(one for certificate in found for one in certificate.not_judged))
    if as_json:
        certificates = [one.as_json() for one in found]
        rows = [{"name": one.name, "limit": one.limit, "why": one.why} for one in unjudged]
        print_json({"file": str(path), "certificates": certificates, "skipped": skipped, "not_judged": rows})
    else:
        print_certificates(found, f"{bundle} on {found[0].host_name()}")
        for reason in skipped:
            say(f"not measured: {reason}")
        for one in found:
            for remark in one.suspicious:
                say(f"{one.name}: {remark}")
        _say_not_judged(f"{one.name} ({one.limit}): {one.why}" for one in unjudged)
        say(f"wrote {path}")
    failed = [one for one in found if not one.passed]
    if failed and (engine or len(failed) == len(found)):
        what = "; ".join(f"{one.name}: {', '.join(one.failures())}" for one in failed)
        rows = [line.as_row() for one in failed for line in one.lines if not line.kept]
        raise GateFailed(f"not certified: {what}", where=bundle, fix=_fix_for(rows, "--engine"))
