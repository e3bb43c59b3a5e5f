"""The command ``verify``: does this machine compute what PyTorch computed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from simmim_export.cli.model import open_model
from simmim_export.cli.tables import print_figures, print_parity
from simmim_export.console import print_json, progress_bar, say
from simmim_export.console.options import AsJson, Budget, BundlePath, EngineOptions
from simmim_export.errors import GateFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simmim_export.proof.records import Certificate, Line

EXAMPLES = (
    "simmim-export verify bundle",
    "simmim-export verify bundle --engine openvino --precision int8 --evidence",
    "simmim-export verify bundle --engine torch --checkpoint ckpt.pt",
)


def verify(
    engine: EngineOptions,
    bundle: BundlePath,
    evidence: Annotated[
        bool,
        typer.Option(
            "--evidence", help="Also run the held-out questions and captions in the bundle, and compare the answers."
        ),
    ] = False,
    budget: Budget = None,
    as_json: AsJson = False,
) -> None:
    """Check that every graph computes what PyTorch computed. For an adopted model: what ONNX Runtime computed in FP32.

    With --evidence it also checks that the answers to held-out examples stay within --budget. Without --budget the limits are
    those of a certificate for the same engine and precision on this kind of machine, or else the default limits. Certified
    figures are shown beside those measured now. Exit code 4 if a graph differs or a limit is exceeded.
    """
    import msgspec

    from simmim_export.proof.budget import DEFAULT, NotJudged, Promised, promised
    from simmim_export.proof.budget import Budget as Limits
    from simmim_export.proof.certificate import read
    from simmim_export.proof.examine import Examiner, reproduction, require_evidence, suspicions
    from simmim_export.spec import Precision
    from simmim_export.system.host import fingerprint
    from simmim_export.system.plain import as_json as plain

    if budget is not None and not evidence:
        raise UsageError("--budget limits what --evidence measures", fix="add --evidence, or drop --budget")
    given = None if budget is None else Limits.parse(budget)
    with open_model(bundle, engine) as model, progress_bar("verify") as watch:
        name, plan = model.engine.name, str(model.plan)
        manifest = model.bundle.manifest
        examiner: Examiner | None = None
        certificates: list[Certificate] = []
        left_out: list[NotJudged] = []
        of: Promised = promised(manifest)
        if evidence:
            # PyTorch's own figures show what cannot be measured. Find out before the engine runs for minutes.
            held_out = require_evidence(model.bundle)
            examiner = Examiner(manifest, held_out, tokens=model.tokens, watch=watch)
            certificates = [c for c in read(model.bundle) if (c.engine, c.plan) == (name, plan)]
            reference = examiner.figures(held_out.reference)
            local = [c for c in certificates if c.host == fingerprint()]
            limits = given or Limits.parse(local[0].budget if local else DEFAULT)
            if given is not None:
                limits.require_measurable(reference, of=of)
            left_out = limits.not_judged(reference, of=of)
        files = model.bundle.check()
        reports = model.verify()
        executed = {report.graph: dict(model.session(report.graph).precision_proof().executed) for report in reports}
        figures = None
        lines: list[Line] = []
        if examiner is not None:
            figures = examiner.figures(examiner.outputs(model.session))
            lines, left_out = limits.judge(figures, of=of, left_out=left_out)
    remarks: list[str] = []
    references_checked = True
    if figures is not None:
        exact = [graph.name for graph in manifest.graphs if model.plan.of(graph.name) is Precision.FP32]
        line = reproduction(manifest, figures, exact=exact)
        references_checked = line is not None
        lines += [] if line is None else [line]
        remarks = suspicions(figures)
    if as_json:
        parity = {
            r.graph: r.summary() | {"variant": r.variant or r.precision, "executed": executed[r.graph]} for r in reports
        }
        document = {"bundle": str(bundle), "engine": name, "precision": plan, "files": files, "parity": parity}
        if figures is not None:
            rows = {"budget": lines, "not_judged": [one.record() for one in left_out]}
            document |= {"limits": str(limits), "evidence": figures, **msgspec.to_builtins(rows), "suspicious": remarks}
        document["certificates"] = [{"host": c.host, "figures": c.as_json()["figures"]} for c in certificates]
        print_json(plain(document))
    else:
        title = f"{bundle}: {name} {plan} compared with {manifest.reference.words}; {files} files unaltered"
        print_parity(reports, title, executed=executed)
        if figures is not None:
            print_figures(figures, f"{bundle}: {name} {plan} on the evidence")
        for certificate in certificates:
            print_figures(certificate.as_json()["figures"], f"certified on {certificate.host_name()}")
        for remark in remarks:
            say(remark)
        if figures is not None and given is None:
            origin = "from certificate.json; do not trust it if the bundle is not yours" if local else "the default"
            say(f"judged by {limits} ({origin}); --budget sets other limits")
        if not references_checked:
            say("no graph ran at FP32, so the references were not checked: verify at fp32 too, or certify")
        for one in left_out:
            say(f"not judged: {one}")
    for report in reports:
        report.require(bundle, "export it again on this machine, or choose another --engine or --precision")
    exceeded = [line for line in lines if not line.kept]
    if exceeded:
        what = "the budget is exceeded: " + "; ".join(map(str, exceeded))
        raise GateFailed(what, where=bundle, fix=how_to_stay_within(exceeded, "--precision"))


def how_to_stay_within(exceeded: Sequence[Line], option: str) -> str:
    """What the user can do about exceeded limits. If the references themselves are wrong, no other figure means anything."""
    from simmim_export.proof.examine import REFERENCES

    if any(line.name == REFERENCES for line in exceeded):
        return "export the bundle again from its checkpoint, and copy all of it"
    return f"choose another {option}, or a wider --budget"
