"""The commands from end to end, in processes of their own: results, messages and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest


def test_embed_images_and_texts(run_cli, tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npz"
    done = run_cli("export", "embed", tiny_bundle, picture, picture, "-o", out)
    assert done.returncode == 0, done.stderr
    with np.load(out, allow_pickle=False) as found:
        assert found["embeddings"].dtype == np.float32 and found["embeddings"].shape == (2, 64)
        np.testing.assert_allclose(np.linalg.norm(found["embeddings"], axis=1), 1, atol=1e-6)
        assert list(found["sources"]) == [str(picture)] * 2
        space = str(found["space"])
    done = run_cli("export", "embed", tiny_bundle, "--text", "red circle", "--json")
    found = json.loads(done.stdout)
    assert found["space"] == space and len(found["embeddings"][0]) == 64


def test_embed_refuses_to_overwrite(run_cli, tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.npz"
    out.write_text("precious")
    done = run_cli("export", "embed", tiny_bundle, picture, "-o", out)
    assert done.returncode == 2 and "--overwrite" in done.stderr and out.read_text() == "precious"
    assert run_cli("export", "embed", tiny_bundle, picture, "-o", out, "--overwrite").returncode == 0


def test_embed_needs_exactly_one_kind(run_cli, tiny_bundle: Path, picture: Path) -> None:
    assert run_cli("export", "embed", tiny_bundle).returncode == 2
    assert run_cli("export", "embed", tiny_bundle, picture, "--text", "a").returncode == 2


def test_ask_and_match(run_cli, tiny_bundle: Path, picture: Path) -> None:
    done = run_cli("export", "ask", tiny_bundle, picture, "what colour is the circle?", "how many?", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["question"] for row in found] == ["what colour is the circle?", "how many?"]
    scores = [a["score"] for a in found[0]["answers"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1
    done = run_cli("export", "match", tiny_bundle, picture, "a red circle", "a square", "--json")
    assert all(0 <= row["score"] <= 1 for row in json.loads(done.stdout)) and len(json.loads(done.stdout)) == 2


def test_engines_agree_from_the_command_line(run_cli, tiny_bundle: Path, tiny_checkpoint: Path, picture: Path) -> None:
    rows = []
    for extra in ((), ("--engine", "torch", "--checkpoint", tiny_checkpoint)):
        done = run_cli("export", "embed", tiny_bundle, picture, "--json", *extra)
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(done.stdout)["embeddings"][0])
    np.testing.assert_allclose(*rows, atol=1e-5)


def spoil(bundle: Path, copy: Path, factor: float) -> Path:
    """A copy whose text graph has half of one weight times ``factor``, with digests that fit: only parity can see it."""
    from dataclasses import replace

    import onnx

    from simmim_export.bundle import Bundle
    from simmim_export.files import digest

    spoiled = Path(shutil.copytree(bundle, copy))
    manifest = Bundle.open(spoiled).manifest
    path = spoiled / "graphs/text_encoder.fp32.onnx"
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(weight.raw_data, np.float32).copy()
    values[: len(values) // 2] *= np.float32(factor)
    weight.raw_data = values.tobytes()
    onnx.save(model, path)
    artifacts = tuple(
        replace(a, sha256=digest(path), bytes=path.stat().st_size) if path.samefile(spoiled / a.path) else a
        for a in manifest.artifacts
    )
    (spoiled / "manifest.json").write_text(replace(manifest, artifacts=artifacts).dumps())
    return spoiled


def test_verify_passes_and_fails(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    done = run_cli("export", "verify", tiny_bundle, "--json")
    assert done.returncode == 0, done.stderr
    parity = json.loads(done.stdout)["parity"]
    assert set(parity) == {"image_encoder", "text_encoder", "fusion", "head.match", "head.vqa"}
    assert all(row["passed"] and row["executed"] for row in parity.values())
    done = run_cli("export", "verify", spoil(tiny_bundle, tmp_path / "spoiled", 1.01))
    assert done.returncode == 4 and "text_encoder at fp32 differs from PyTorch" in done.stderr and "NO" in done.stdout


def test_verify_of_what_gives_nan_is_a_failure_in_json_as_well(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    done = run_cli("export", "verify", spoil(tiny_bundle, tmp_path / "spoiled", float("nan")), "--json")
    assert done.returncode == 4 and "error inf" in done.stderr, done.stderr
    row = json.loads(done.stdout)["parity"]["text_encoder"]
    assert row["passed"] is False and row["scaled_error"] is None and row["cosine"] == -1.0


def test_inspect_and_doctor(run_cli, tiny_bundle: Path) -> None:
    done = run_cli("export", "inspect", tiny_bundle)
    assert done.returncode == 0 and "pipeline answer: image_encoder > text_encoder > fusion > head.vqa" in done.stdout
    assert json.loads(run_cli("export", "inspect", tiny_bundle, "--json").stdout)["schema"] == 1
    found = json.loads(run_cli("export", "doctor", "--json").stdout)
    assert found["engines"]["ort"]["available"] and found["threads_used"] >= 1
    assert run_cli("export", "doctor").returncode == 0


def test_onnx_prints_parity_and_refuses_to_overwrite(run_cli, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    done = run_cli("export", "onnx", tiny_checkpoint, "-o", tiny_bundle)
    assert done.returncode == 2 and "already exists" in done.stderr and "--overwrite" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("onnx", "{tmp}/none.pt", "-o", "{tmp}/out"), 5, "no such checkpoint"),
        (("onnx", "{ckpt}", "-o", "{tmp}/out", "--opset", "9"), 2, "opset 9"),
        (("onnx", "{ckpt}", "-o", "{tmp}/out", "--max-batch", "1"), 2, "--max-batch 1 is too small"),
        (("verify", "{tmp}/none"), 5, "no such bundle"),
        (("verify", "{bundle}", "--engine", "tpu"), 2, "unknown engine 'tpu'"),
        (("verify", "{bundle}", "--precision", "fp8"), 2, "unknown precision 'fp8'"),
        (("verify", "{bundle}", "--precision", "fp16"), 3, "has no fp16 (it has: fp32, int8)"),
        (("verify", "{bundle}", "--engine", "trt"), 3, "tensorrt is not installed"),
        (("verify", "{bundle}", "--engine", "torch"), 2, "--checkpoint"),
        (("verify", "{bundle}", "--engine", "torch", "--checkpoint", "{tmp}/none.pt"), 5, "no such checkpoint"),
        (("verify", "{bundle}", "--checkpoint", "{ckpt}"), 2, "drop the checkpoint"),
        (("onnx", "{ckpt}", "-o", "{picture}/out"), 2, "no folder"),
        (("embed", "{bundle}", "{picture}", "-o", "{picture}/v.npz"), 2, "no folder"),
        (("embed", "{bundle}", "{picture}", "-o", "{tmp}", "--overwrite"), 2, "is a folder"),
        (("embed", "{bundle}", "{tmp}/none.png"), 5, "none.png"),
        (("embed", "{bundle}", "--text", ""), 5, "empty"),
        (("ask", "{bundle}", "{picture}", ""), 5, "empty"),
        (("ask", "{bundle}", "{picture}", "how many?", "--explain", "{tmp}/out"), 2, "ends in .png"),
        (("ask", "{bundle}", "{picture}", "how many?", "--explain", "{tmp}/out.xyz"), 2, "ends in .png"),
        (("ask", "{bundle}", "{picture}", "how many?", "--explain", "{tmp}/out/x.png"), 2, "no such folder"),
        (("match", "{bundle}", "{tmp}", "a circle"), 5, "{tmp}"),
    ],
)
def test_bad_input(run_cli, tiny_bundle, tiny_checkpoint, picture, tmp_path, arguments, code, expected) -> None:
    if "trt" in arguments:
        from simmim_export.engines import get_engine

        if get_engine("trt").why_unavailable() != "the package tensorrt is not installed":
            pytest.skip("tensorrt is installed here")
    names = {"tmp": tmp_path, "ckpt": tiny_checkpoint, "bundle": tiny_bundle, "picture": picture}
    done = run_cli("export", *(a.format(**names) for a in arguments))
    assert done.returncode == code, done.stderr
    assert "error: " in done.stderr and expected.format(**names) in done.stderr
    assert "next:" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_another_checkpoint_is_refused(run_cli, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from simmim_export.models import checkpoint

    loaded = checkpoint.load(tiny_checkpoint)
    loaded.state["logit_scale"] += 1
    checkpoint.save(loaded, tmp_path / "other.pt")
    done = run_cli("export", "verify", tiny_bundle, "--engine", "torch", "--checkpoint", tmp_path / "other.pt")
    assert done.returncode == 5 and "another checkpoint" in done.stderr


def test_over_long_text_is_cut_and_said(run_cli, tiny_bundle: Path) -> None:
    done = run_cli("export", "embed", tiny_bundle, "--text", "red circle " * 50)
    assert done.returncode == 0 and "warning:" in done.stderr and "20" in done.stderr


def test_text_that_is_not_utf8(tiny_bundle: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "simmim_export.cli", "embed", str(tiny_bundle), "--text", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 5 and b"UTF-8" in done.stderr


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "from simmim_export.console import new_app, run_app\napp = new_app('x')\n"
        "@app.command()\ndef a(): raise ZeroDivisionError\n"
        "@app.command()\ndef b(): pass\nrun_app(app)"
    )
    done = subprocess.run([sys.executable, "-c", code, "a"], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_full_disk_is_a_message(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import errno, os\nfrom simmim_export.console import run_app\n"
        "def full(): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'out.onnx')\nrun_app(full)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "No space left" in done.stderr and "out.onnx" in done.stderr and "free some space" in done.stderr
