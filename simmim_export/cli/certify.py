"""The command ``certify``: which engines and precisions may answer on this machine, and how fast they are."""

from __future__ import annotations

from typing import Annotated

import msgspec

from simmim_export.cli.tables import print_certificates
from simmim_export.cli.verify import how_to_stay_within
from simmim_export.console import print_json, progress_bar, say
from simmim_export.console.options import AsJson, Budget, BundlePath, Rounds, contestants
from simmim_export.errors import GateFailed

EXAMPLES = (
    "simmim-export certify bundle",
    "simmim-export certify bundle --engine ort:int8 --engine openvino",
    "simmim-export certify bundle --budget answers=0.5pt,cosine=0.998",
)


def certify(
    bundle: BundlePath,
    engine: Annotated[list[str] | None, contestants("every engine and precision that runs here")] = None,
    budget: Budget = None,
    rounds: Rounds = 5,
    as_json: AsJson = False,
) -> None:
    """Certify engines and precisions on this machine.

    Measures their latency, compares them with PyTorch, judges their losses by the budget, and writes certificate.json into the
    bundle. --engine auto then takes the fastest that passed. Exit code 4 if an engine named here does not pass, or none does.
    """
    from simmim_export.benchmarks import certify as suite
    from simmim_export.benchmarks.driver import Contestant
    from simmim_export.bundle import Bundle
    from simmim_export.proof.budget import DEFAULT
    from simmim_export.proof.budget import Budget as Limits
    from simmim_export.proof.certificate import require_room, write

    limits = Limits.parse(DEFAULT if budget is None else budget)
    opened = Bundle.open(bundle)
    engines = list(dict.fromkeys(Contestant.parse(name) for name in engine or []))
    for contestant in engines:
        contestant.require()
    skipped: list[str] = []
    require_room(opened)
    if not engines:
        engines, skipped = suite.candidates(opened)
    with progress_bar("certify") as watch:
        certificates = suite.certify(
            bundle, engines, budget=limits, strict=budget is not None, rounds=rounds, watch=watch
        )
    path = write(opened, certificates)
    unjudged = list(dict.fromkeys(one for certificate in certificates for one in certificate.not_judged))
    if as_json:
        documents = [certificate.as_json() for certificate in certificates]
        not_judged = msgspec.to_builtins(unjudged)
        print_json({"file": str(path), "certificates": documents, "skipped": skipped, "not_judged": not_judged})
    else:
        print_certificates(certificates, f"{bundle} on {certificates[0].host_name()}")
        for reason in skipped:
            say(f"not measured: {reason}")
        for certificate in certificates:
            for remark in certificate.suspicious:
                say(f"{certificate.name}: {remark}")
        for one in unjudged:
            say(f"not judged: {one.name} ({one.limit}): {one.why}")
        say(f"wrote {path}")
    failed = [certificate for certificate in certificates if not certificate.passed]
    if failed and (engine or len(failed) == len(certificates)):
        what = "; ".join(f"{certificate.name}: {', '.join(certificate.failures())}" for certificate in failed)
        exceeded = [line for certificate in failed for line in certificate.lines if not line.kept]
        raise GateFailed(f"not certified: {what}", where=bundle, fix=how_to_stay_within(exceeded, "--engine"))
