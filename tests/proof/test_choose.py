"""``--engine auto``: the fastest certificate that passed on this kind of machine, and none that was made elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from certificates import FAILED, HOST

from simmim_export.errors import EngineUnavailable
from simmim_export.proof.certificate import choose
from simmim_export.proof.records import Certificate

Made = Callable[..., Certificate]


def installed(engine: str) -> dict[str, str]:
    return {"openvino": {"openvino": "2.0"}}.get(engine, {"onnxruntime": "1.0"})


def test_the_fastest_that_passed_is_chosen(certificate: Made) -> None:
    slow, fast = certificate("ort", precision="fp32", seconds=0.02), certificate("ort", precision="int8")
    failed = certificate("ort", precision="fp16", seconds=0.001, lines=list(FAILED), passed=False)
    best, why = choose([slow, fast, failed], HOST, versions=installed)
    assert best is fast and "ort:fp32 takes 2.00x as long" in why and "ort:fp16" in why and "another run" not in why
    openvino = certificate("openvino", seconds=0.005, versions={"openvino": "2.0"})
    assert choose([slow, fast, openvino], HOST, versions=installed)[0] is openvino
    assert choose([slow, fast, openvino], HOST, versions=installed, engine="ort")[0] is fast


def test_a_latency_of_another_run_is_marked(certificate: Made) -> None:
    slow = certificate("ort", precision="fp32", seconds=0.02, run="2026-01-02T00:00:00+00:00")
    _, why = choose([slow, certificate()], HOST, versions=installed)
    assert "ort:fp32 takes 2.00x as long (measured in another run" in why


def test_a_rebuilt_engine_is_not_chosen(certificate: Made) -> None:
    built = certificate("trt", precision="fp16", seconds=0.001)
    best, _ = choose([certificate(), built], HOST, versions=installed, stands=lambda certificate: certificate != built)
    assert best.engine == "ort"
    with pytest.raises(EngineUnavailable, match="0 of what is built here now, 0 that passed"):
        choose([built], HOST, versions=installed, stands=lambda certificate: False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"host": HOST | {"threads": 2}}, "0 of them for this kind of machine"),
        ({"host": HOST | {"features": []}}, "0 of them for this kind of machine"),
        ({"versions": {"onnxruntime": "1.1"}}, "0 with the versions"),
        ({"versions": {"tensorrt": "11"}}, "0 with the versions"),
        # Another package of the same engine has come since, over the one that was measured.
        ({"versions": {}}, "0 with the versions"),
        ({"passed": False, "lines": list(FAILED)}, "0 that passed"),
        ({"engine": "abacus"}, "0 with the versions"),
    ],
)
def test_a_certificate_from_elsewhere_is_not_chosen(changes: dict[str, Any], reason: str, certificate: Made) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        choose([msgspec.structs.replace(certificate(**changes))], HOST, versions=installed, where="b")
    assert caught.value.exit_code == 3 and caught.value.fix == "simmim-export certify b"
    # The message counts what is left after each condition; the first 0 says which one failed.
    assert reason in caught.value.what and caught.value.what.index(reason) == caught.value.what.index("0 ")
