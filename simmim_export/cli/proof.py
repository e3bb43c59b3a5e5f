"""Commands that prove on this machine what a bundle does: verify, certify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
from simmim_export.console import print_json, progress_bar, stdout_console
from simmim_export.errors import GateFailed, UsageError

if TYPE_CHECKING:
    from simmim_export.certificate import Certificate


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

    With --evidence also that the model answers as PyTorch did, within --budget, or that of a certificate for the same engine
    and precision, whose figures are shown beside those found here.
    """
    from simmim_export.certificate import read
    from simmim_export.proof.budget import DEFAULT, Budget
    from simmim_export.proof.examine import Examiner, require_evidence
    from simmim_export.spec import as_json as plain

    if budget is not None and not evidence:
        raise UsageError("--budget is for what --evidence asks", fix="add --evidence")
    given = None if budget is None else Budget.parse(budget)
    with opened(bundle, engine, device, precision, checkpoint, threads) as model, progress_bar("verify") as watch:
        name, plan = model.engine.name, str(model.plan)
        examiner: Examiner | None = None
        before: list[Certificate] = []
        if evidence:
            # What cannot be measured, or read, shows in PyTorch's own figures: before the engine is asked for minutes.
            held_out = require_evidence(model.bundle)
            examiner = Examiner(model.bundle.manifest, held_out, model.tokens, watch)
            before = [c for c in read(model.bundle) if (c.engine, c.plan) == (name, plan)]
            known = examiner.figures(held_out.reference)
            limits = given or Budget.parse((before[0].budget if before else "") or DEFAULT).measurable(known)
            limits.require_measurable(known)
        files = model.bundle.check()
        reports = model.verify()
        proof = {report.graph: dict(model.session(report.graph).precision_proof().executed) for report in reports}
        figures = None if examiner is None else examiner.figures(examiner.outputs(model.session))
        lines = [] if figures is None else limits.lines(figures)
    if as_json:
        parity = {r.graph: r.summary() | {"executed": proof[r.graph]} for r in reports}
        found = {"bundle": str(bundle), "engine": name, "precision": plan, "files": files, "parity": parity}
        more = {} if figures is None else {"evidence": figures, "budget": [str(line) for line in lines]}
        print_json(plain(found | more | {"certificates": [{"host": c.host, "figures": c.figures} for c in before]}))
    else:
        print_parity(reports, f"{bundle}: {name} {plan} against PyTorch; {files} files unaltered", proof)
        if figures is not None:
            print_figures(figures, f"{bundle}: {name} {plan}, what it still knows")
        for certificate in before:
            print_figures(certificate.figures, f"certified on {certificate.host_name()}")
    for report in reports:
        report.require(bundle, "export it again on this machine, or choose another --engine or --precision")
    exceeded = [line for line in lines if not line.kept]
    if exceeded:
        what = "the budget is exceeded: " + "; ".join(map(str, exceeded))
        raise GateFailed(what, where=bundle, fix="choose another --precision, or a wider --budget")


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
    from simmim_export.certificate import require_room, write
    from simmim_export.proof.budget import DEFAULT, Budget

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
        found = suite.certify(bundle, contestants, limits, budget is not None, rounds, watch)
    path = write(opened_bundle, found)
    # Without --budget, what this evidence is too little for is left out of the default one.
    unjudged = [part for part in str(limits).split(",") if part not in found[0].budget.split(",")]
    if as_json:
        certificates = [one.as_json() for one in found]
        print_json({"file": str(path), "certificates": certificates, "skipped": skipped, "not_judged": unjudged})
    else:
        print_certificates(found, f"{bundle} on {found[0].host_name()}")
        console = stdout_console()
        for reason in skipped:
            console.print(f"not measured: {reason}")
        if unjudged:
            console.print(
                f"not judged, too little travels with the bundle: {', '.join(unjudged)}; train with more --eval-scenes"
            )
        console.print(f"wrote {path}")
    failed = [one for one in found if not one.passed]
    if failed and (engine or len(failed) == len(found)):
        what = "; ".join(f"{one.name}: {', '.join(one.failures()) or 'parity'}" for one in failed)
        raise GateFailed(f"not certified: {what}", where=bundle, fix="choose another --engine, or a wider --budget")
