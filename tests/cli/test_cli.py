"""The commands from end to end, in processes of their own: results, messages and exit codes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import spoil

from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine


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


def test_inspect_shows_the_metrics_beside_their_controls(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    metrics = {
        "vqa": {"accuracy": 0.8, "n": 50, "interval": [0.7, 0.9], "controls": {"question_only": {"accuracy": 0.4}}}
    }
    manifest = replace(Bundle.open(copy).manifest, metrics=metrics | {"match": {"untrained": True}})
    (copy / "manifest.json").write_text(manifest.dumps())
    done = run_cli("export", "inspect", copy)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("│")}
    assert "80.0%" in rows["vqa"] and "question only 40.0%" in rows["vqa"] and "untrained" in rows["match"]


def test_onnx_prints_parity_and_refuses_to_overwrite(run_cli, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    done = run_cli("export", "onnx", tiny_checkpoint, "-o", tiny_bundle)
    assert done.returncode == 2 and "already exists" in done.stderr and "--overwrite" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("onnx", "{tmp}/none.pt", "-o", "{tmp}/out"), 5, "no such checkpoint"),
        (("onnx", "{ckpt}", "-o", "{tmp}/out", "--opset", "9"), 2, "opset 9"),
        (("onnx", "{ckpt}", "-o", "{tmp}/out", "--max-batch", "1"), 2, "--max-batch 1 is too small"),
        (("onnx", "{ckpt}", "-o", "{tmp}/out", "--max-batch", "257"), 2, "--max-batch 257 is too large"),
        (("onnx", "{ckpt}", "--precision", "int8", "--calibration", "{tmp}/none"), 5, "no such folder of calibration"),
        (("verify", "{tmp}/none"), 5, "no such bundle"),
        (("verify", "{bundle}", "--engine", "tpu"), 2, "unknown engine 'tpu'"),
        (("verify", "{bundle}", "--precision", "fp8"), 2, "unknown precision 'fp8'"),
        (("verify", "{bundle}", "--precision", "fp16"), 3, "has no fp16 (it has: fp32, int8)"),
        (("verify", "{bundle}", "--engine", "trt"), 3, "{trt}"),
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
    reason = get_engine("trt").why_unavailable()
    if "trt" in arguments and reason is None:
        pytest.skip("TensorRT runs here")
    names = {"tmp": tmp_path, "ckpt": tiny_checkpoint, "bundle": tiny_bundle, "picture": picture, "trt": reason}
    done = run_cli("export", *(a.format(**names) for a in arguments))
    assert done.returncode == code, done.stderr
    assert "error: " in done.stderr and expected.format(**names) in done.stderr
    assert "next:" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_another_checkpoint_is_refused(run_cli, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from simmim_export.models.simmim import checkpoint

    loaded = checkpoint.load(tiny_checkpoint)
    loaded.state["logit_scale"] += 1
    checkpoint.save(loaded, tmp_path / "other.pt")
    done = run_cli("export", "verify", tiny_bundle, "--engine", "torch", "--checkpoint", tmp_path / "other.pt")
    assert done.returncode == 5 and "another checkpoint" in done.stderr


def test_over_long_text_is_cut_and_said(run_cli, tiny_bundle: Path) -> None:
    done = run_cli("export", "embed", tiny_bundle, "--text", "red circle " * 50)
    assert done.returncode == 0 and "warning:" in done.stderr and "20" in done.stderr


def test_text_that_is_not_utf8(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "simmim_export.cli", "embed", str(tiny_bundle), "--text", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 5 and b"UTF-8" in done.stderr


def test_a_file_whose_name_is_not_utf8(tiny_bundle: Path, picture: Path) -> None:
    image = picture.rename(os.fsdecode(os.fsencode(picture.parent) + b"/\xff.png"))
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-m", "simmim_export.cli", "embed", tiny_bundle, image]
    done = subprocess.run(command, capture_output=True, text=True, env=strict, timeout=60)
    assert done.returncode == 0 and "\\udcff.png: float32 [64]" in done.stdout, done.stderr
    done = subprocess.run([*command, "--json"], capture_output=True, env=strict, timeout=60)
    assert done.stdout.isascii() and json.loads(done.stdout)["sources"] == [str(image)]


def test_names_are_shown_as_they_are(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "b[/x]" / ":smile:[red]")
    done = run_cli("export", "inspect", copy)
    assert done.returncode == 0 and f"{copy}: preset tiny" in done.stdout, done.stderr


def test_a_wrong_request_does_not_wait_for_pytorch(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").touch()
    ckpt, none = str(tmp_path / "ckpt.pt"), str(tmp_path / "none")
    requests = (
        [none],
        *([ckpt, "--opset", "99"], [ckpt, "--max-batch", "1"], [ckpt, "--precision", "bf16"]),
        *([ckpt, "--precision", "int8", "--calibration", none], [ckpt, "-o", ckpt]),
    )
    code = (
        f"import sys\nfrom simmim_export.cli import main\nfor words in {requests!r}:\n"
        " sys.argv = ['simmim-export', 'onnx', *words]\n"
        " try: main()\n"
        " except SystemExit as ended: print(ended.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == [*("5", "False"), *("2", "False") * 3, *("5", "False"), *("2", "False")], done.stderr


def test_a_budget_that_cannot_be_measured_is_refused_before_anything_is_asked(run_cli, tiny_bundle: Path) -> None:
    done = run_cli("export", "verify", tiny_bundle, "--evidence", "--budget", "answers=1pt")
    assert done.returncode == 2 and "answers=1pt" in done.stderr
    assert "ask image_encoder" not in done.stderr


def ended_by(raised: str) -> subprocess.CompletedProcess[str]:
    """What a command gives of which a line raises ``raised``."""
    code = f"from simmim_export.console import run_app\ndef command(): raise {raised}\nrun_app(command)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_bug_keeps_its_traceback() -> None:
    code = (
        "from simmim_export.console import new_app, run_app\napp = new_app('x')\n"
        "@app.command()\ndef a(): raise ZeroDivisionError\n"
        "@app.command()\ndef b(): pass\nrun_app(app)"
    )
    done = subprocess.run([sys.executable, "-c", code, "a"], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr
    done = ended_by(f"PermissionError({errno.EPERM}, 'a priority of a thread')")
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("number", "shown", "fix"),
    [(errno.ENOSPC, "No space left", "free some space"), (errno.EACCES, "Permission denied", "allow it")],
)
def test_what_the_system_refuses_is_a_message(number: int, shown: str, fix: str) -> None:
    done = ended_by(f"OSError({number}, {os.strerror(number)!r}, 'out.onnx')")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert shown in done.stderr and "out.onnx" in done.stderr and fix in done.stderr


def test_ctrl_c_is_no_bug() -> None:
    done = ended_by("KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "")
