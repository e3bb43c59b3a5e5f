"""The work of an export's steps."""

from __future__ import annotations

from simmim_export.export.work import INPUTS_STEP, SEARCH_STEP, file_step, work_of
from simmim_export.spec import Variant

PARAMETERS = {"text_encoder": 100_000_000, "head": 1000}


def test_a_larger_graph_is_more_work() -> None:
    files = [(graph, variant) for graph in PARAMETERS for variant in Variant]
    work = work_of(PARAMETERS, files)
    assert all(
        work[file_step("text_encoder", variant)] > 5 * work[file_step("head", variant)] > 0 for variant in Variant
    )


def test_steps_that_are_left_out_are_no_work() -> None:
    files = [(graph, Variant.FP32) for graph in PARAMETERS]
    assert not {INPUTS_STEP, SEARCH_STEP} & work_of(PARAMETERS, files).keys()
    lowered = work_of(PARAMETERS, [*files, ("head", Variant.INT8_U8)], searches=True)
    assert {INPUTS_STEP, SEARCH_STEP} <= lowered.keys()
