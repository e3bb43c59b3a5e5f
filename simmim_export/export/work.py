"""How much work each step of an export is, so that a progress bar can tell how much time is left.

Seconds differ between machines, but the steps keep about the same proportions. They were measured on the preset base, where one
core of a Zen 4 took about a second for a work of 100.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from simmim_export.spec import Variant

GOLDEN_STEP, EVIDENCE_STEP = "golden tensors", "the reference's answers to the evidence"
INPUTS_STEP, SEARCH_STEP, PROVE_STEP, WRITE_STEP = (
    "real inputs of every graph",
    "search for the fastest plan",
    "prove",
    "write the bundle",
)
# The work of a file for each million of parameters of its graph; the first INT8 file also measures the FP32 graph.
MILLION: Mapping[Variant, int] = {
    Variant.FP32: 14,
    Variant.FP16: 10,
    Variant.INT8_DOT: 25,
    Variant.INT8_U8: 12,
    Variant.INT8_S8: 14,
    Variant.INT8_S8_FP16: 20,
}
# The same for each step with all graphs.
OF_ALL: Mapping[str, int] = {GOLDEN_STEP: 3, EVIDENCE_STEP: 4, INPUTS_STEP: 8, WRITE_STEP: 1}
# The work of comparing ten files with the reference, for each million of parameters.
PROVE = 25
# A search is rarely shorter than this, and of no known length.
SEARCH = 100
# What even an empty graph takes, in the same unit.
LEAST = 100


def file_step(graph: str, variant: Variant) -> str:
    """The step that writes ``variant`` of ``graph``."""
    return f"{graph}.{variant}"


def work_of(
    parameters: Mapping[str, int], files: Iterable[tuple[str, Variant]], *, searches: bool = False
) -> dict[str, int]:
    """The work of each step by its name, in a unit of its own. ``parameters`` counts those of each graph, and ``files`` are the
    graphs and variants to write; ``searches`` says whether a plan is searched for."""
    lowered = False
    millions = sum(parameters.values()) / 1e6
    work = {PROVE_STEP: 0}
    for graph, variant in files:
        work[file_step(graph, variant)] = int(LEAST + MILLION[variant] * parameters[graph] / 1e6)
        work[PROVE_STEP] += int((LEAST + PROVE * parameters[graph] / 1e6) / 10)
        lowered |= variant is not Variant.FP32
    for step, each in OF_ALL.items():
        if lowered or step != INPUTS_STEP:
            work[step] = int(LEAST + each * millions)
    if searches:
        work[SEARCH_STEP] = int(LEAST + SEARCH * millions)
    return work
