"""The commands from end to end, in processes of their own: results, errors and exit codes."""

from __future__ import annotations

import json
import os
import pty
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
from simmim_export.system.children import child_environment, python_command


def test_embed_images_and_texts(run_cli, tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npz"
    done = run_cli("export", "embed", tiny_bundle, picture, picture, "-o", out)
    assert done.returncode == 0, done.stderr
    with np.load(out, allow_pickle=False) as file:
        assert file["embeddings"].dtype == np.float32 and file["embeddings"].shape == (2, 64)
        np.testing.assert_allclose(np.linalg.norm(file["embeddings"], axis=1), 1, atol=1e-6)
        assert list(file["sources"]) == [str(picture)] * 2
        space = str(file["space"])
    done = run_cli("export", "embed", tiny_bundle, "--text", "red circle", "--json")
    result = json.loads(done.stdout)
    assert result["space"] == space and len(result["embeddings"][0]) == 64


def test_embed_replaces_a_file_only_with_overwrite(run_cli, tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.npz"
    out.write_text("precious")
    done = run_cli("export", "embed", tiny_bundle, picture, "-o", out)
    assert done.returncode == 2 and "--overwrite" in done.stderr and out.read_text() == "precious"
    assert run_cli("export", "embed", tiny_bundle, picture, "-o", out, "--overwrite").returncode == 0


def test_embed_takes_either_images_or_texts(run_cli, tiny_bundle: Path, picture: Path) -> None:
    assert run_cli("export", "embed", tiny_bundle).returncode == 2
    assert run_cli("export", "embed", tiny_bundle, picture, "--text", "a").returncode == 2


def test_ask_and_match(run_cli, tiny_bundle: Path, picture: Path) -> None:
    done = run_cli("export", "ask", tiny_bundle, picture, "what colour is the circle?", "how many?", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["question"] for row in rows] == ["what colour is the circle?", "how many?"]
    scores = [answer["score"] for answer in rows[0]["answers"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1
    done = run_cli("export", "match", tiny_bundle, picture, "a red circle", "a square", "--json")
    assert all(0 <= row["score"] <= 1 for row in json.loads(done.stdout)) and len(json.loads(done.stdout)) == 2


def test_engines_agree(run_cli, tiny_bundle: Path, tiny_checkpoint: Path, picture: Path) -> None:
    rows = []
    for extra in ((), ("--engine", "torch", "--checkpoint", tiny_checkpoint)):
        done = run_cli("export", "embed", tiny_bundle, picture, "--json", *extra)
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(done.stdout)["embeddings"][0])
    np.testing.assert_allclose(*rows, atol=1e-5)


def test_verify_passes_a_faithful_bundle(run_cli, tiny_bundle: Path) -> None:
    done = run_cli("export", "verify", tiny_bundle, "--json")
    assert done.returncode == 0, done.stderr
    parity = json.loads(done.stdout)["parity"]
    assert set(parity) == {"image_encoder", "text_encoder", "fusion", "head.match", "head.vqa"}
    assert all(row["passed"] and row["executed"] for row in parity.values())


def test_verify_fails_a_changed_graph(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    done = run_cli("export", "verify", spoil(tiny_bundle, tmp_path / "spoiled", 1.01))
    assert done.returncode == 4 and "text_encoder" in done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if " fp32 " in line}
    assert "NO" in rows["text_encoder"] and "yes" in rows["image_encoder"]


def test_verify_reports_nan_as_a_failure_in_json_too(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    done = run_cli("export", "verify", spoil(tiny_bundle, tmp_path / "spoiled", float("nan")), "--json")
    assert done.returncode == 4 and "text_encoder" in done.stderr, done.stderr
    row = json.loads(done.stdout)["parity"]["text_encoder"]
    assert row["passed"] is False and row["scaled_error"] is None and row["cosine"] == -1.0


def test_inspect_shows_pipelines_and_the_schema(run_cli, tiny_bundle: Path) -> None:
    done = run_cli("export", "inspect", tiny_bundle)
    assert done.returncode == 0 and "answer: image_encoder > text_encoder > fusion > head.vqa" in done.stdout
    document = json.loads(run_cli("export", "inspect", tiny_bundle, "--json").stdout)
    assert document["schema"] == Bundle.open(tiny_bundle).manifest.schema


def test_inspect_shows_metrics_beside_their_controls(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    metrics = {
        "vqa": {"accuracy": 0.8, "n": 50, "interval": [0.7, 0.9], "controls": {"question_only": {"accuracy": 0.4}}}
    }
    manifest = replace(Bundle.open(copy).manifest, metrics=metrics | {"match": {"untrained": True}})
    (copy / "manifest.json").write_text(manifest.dumps())
    done = run_cli("export", "inspect", copy)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "80.0%" in rows["vqa"] and "question only 40.0%" in rows["vqa"] and "untrained" in rows["match"]


def test_doctor_starts_with_the_engines_that_are_ready(run_cli) -> None:
    state = json.loads(run_cli("export", "doctor", "--json").stdout)
    assert state["engines"]["ort"]["available"] and state["threads_used"] >= 1
    done = run_cli("export", "doctor")
    assert done.returncode == 0
    ready = {name for name, engine in state["engines"].items() if engine["available"]}
    assert set(done.stdout.splitlines()[0].partition(": ")[2].split(", ")) == ready


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("command", ["inspect", "verify", "doctor"])
def test_output_fits_the_terminal(command: str, width: int, every_bundle: Path) -> None:
    words = python_command("simmim_export.cli", command, *([] if command == "doctor" else [every_bundle]))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=child_environment({"COLUMNS": str(width)})
    ) as process:
        os.close(theirs)
        shown = b""
        while part := _read(ours):
            shown += part
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0 and "…" not in text
    # A path may be longer than a line.
    lines = [line for line in text.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines() if "/" not in line]
    assert len(lines) > 5 and max(map(len, lines)) <= width


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the last program on the terminal ended
        return b""


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("onnx", "{tmp}/none.pt", "-o", "{tmp}/out"), 5, "where: {tmp}/none.pt"),
        (("onnx", "{ckpt}", "-o", "{bundle}"), 2, "where: {bundle}"),
        (("onnx", "{ckpt}", "-o", "{tmp}/out", "--opset", "9"), 2, "opset 9"),
        (("onnx", "{ckpt}", "-o", "{tmp}/out", "--max-batch", "1"), 2, "--max-batch 1"),
        (("onnx", "{ckpt}", "-o", "{tmp}/out", "--max-batch", "257"), 2, "--max-batch 257"),
        (("onnx", "{ckpt}", "--precision", "int8", "--calibration", "{tmp}/none"), 5, "where: {tmp}/none"),
        (("verify", "{tmp}/none"), 5, "where: {tmp}/none"),
        (("verify", "{bundle}", "--engine", "tpu"), 2, "'tpu'"),
        (("verify", "{bundle}", "--precision", "fp8"), 2, "'fp8'"),
        (("verify", "{bundle}", "--precision", "fp16"), 3, "fp32, int8"),
        (("verify", "{bundle}", "--engine", "trt"), 3, "{trt}"),
        (("verify", "{bundle}", "--engine", "torch"), 2, "--checkpoint"),
        (("verify", "{bundle}", "--engine", "torch", "--checkpoint", "{tmp}/none.pt"), 5, "where: {tmp}/none.pt"),
        (("verify", "{bundle}", "--checkpoint", "{ckpt}"), 2, "checkpoint"),
        (("verify", "{bundle}", "--evidence", "--budget", "answers=1pt"), 2, "answers=1pt"),
        (("onnx", "{ckpt}", "-o", "{picture}/out"), 2, "where: {picture}"),
        (("embed", "{bundle}", "{picture}", "-o", "{picture}/v.npz"), 2, "where: {picture}"),
        (("embed", "{bundle}", "{picture}", "-o", "{tmp}", "--overwrite"), 2, "where: {tmp}"),
        (("embed", "{bundle}", "{tmp}/none.png"), 5, "where: {tmp}/none.png"),
        (("embed", "{bundle}", "--text", ""), 5, "where: text 1"),
        (("ask", "{bundle}", "{picture}", ""), 5, "where: question 1"),
        (("ask", "{bundle}", "{picture}", "how many?", "--explain", "{tmp}/out"), 2, "where: {tmp}/out"),
        (("ask", "{bundle}", "{picture}", "how many?", "--explain", "{tmp}/out.xyz"), 2, "where: {tmp}/out.xyz"),
        (("ask", "{bundle}", "{picture}", "how many?", "--explain", "{tmp}/out/x.png"), 2, "where: {tmp}/out"),
        (("match", "{bundle}", "{tmp}", "a circle"), 5, "where: {tmp}"),
    ],
)
def test_bad_input_is_a_message(
    run_cli, tiny_bundle, tiny_checkpoint, picture, tmp_path, arguments, code, named
) -> None:
    reason = get_engine("trt").why_unavailable()
    if "trt" in arguments and reason is None:
        pytest.skip("TensorRT runs here")
    names = {"tmp": tmp_path, "ckpt": tiny_checkpoint, "bundle": tiny_bundle, "picture": picture, "trt": reason}
    done = run_cli("export", *(a.format(**names) for a in arguments))
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ") and named.format(**names) in done.stderr
    assert "next:" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_another_checkpoint_is_an_error(run_cli, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from simmim_export.models.simmim import checkpoint

    loaded = checkpoint.load(tiny_checkpoint)
    loaded.state["logit_scale"] += 1
    checkpoint.save(loaded, tmp_path / "other.pt")
    done = run_cli("export", "verify", tiny_bundle, "--engine", "torch", "--checkpoint", tmp_path / "other.pt")
    assert done.returncode == 5 and f"where: {tmp_path / 'other.pt'}" in done.stderr


def test_a_text_that_is_cut_is_a_warning(run_cli, tiny_bundle: Path) -> None:
    done = run_cli("export", "embed", tiny_bundle, "--text", "red circle " * 50)
    assert done.returncode == 0 and "warning:" in done.stderr and "20" in done.stderr


def test_text_that_is_not_utf8_is_an_error(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "simmim_export.cli", "embed", str(tiny_bundle), "--text", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 5 and b"where: text 1" in done.stderr


def test_a_file_name_need_not_be_utf8(tiny_bundle: Path, picture: Path) -> None:
    image = picture.rename(os.fsdecode(os.fsencode(picture.parent) + b"/\xff.png"))
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-m", "simmim_export.cli", "embed", tiny_bundle, image]
    done = subprocess.run(command, capture_output=True, text=True, env=strict, timeout=60)
    assert done.returncode == 0 and "\\udcff.png: float32 [64]" in done.stdout, done.stderr
    done = subprocess.run([*command, "--json"], capture_output=True, env=strict, timeout=60)
    assert done.stdout.isascii() and json.loads(done.stdout)["sources"] == [str(image)]


def test_square_brackets_and_colons_are_shown_literally(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "b[/x]" / ":smile:[red]")
    done = run_cli("export", "inspect", copy)
    assert done.returncode == 0 and f"{copy}: " in done.stdout, done.stderr


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
