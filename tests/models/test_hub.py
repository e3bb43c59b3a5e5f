"""Models that are named instead of given as a path. The client is the real one; the hub is a small one on this machine."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, serving
from hypothesis import given
from hypothesis import strategies as st

from simmim_export.models.huggingface.hub import is_hub_name
from simmim_export.system.children import child_environment, python_code

LLAVA = json.dumps({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}).encode()
SMALL = {"config.json": b'{"model_type": "small"}', "tokenizer.json": b"{}", "vocab.txt": b"a\n"}
OTHERS = {"README.md": b"#", "flax_model.msgpack": b"1", "onnx/config.json": b"{}", "onnx/model.safetensors": b"1"}
SHARDS = {f"model-0000{n}-of-00002.safetensors": b"w" * n for n in (1, 2)}
INDEX = {"model.safetensors.index.json": b"{}"}
MODELS = {
    "acme/llava": {"config.json": LLAVA, "model.safetensors": b"w" * 1000},
    "acme/both": SMALL | OTHERS | {"model.safetensors": b"w", "pytorch_model.bin": b"w", "other.safetensors": b"w"},
    "acme/shards": SMALL | OTHERS | SHARDS | INDEX | {"pytorch_model.bin": b"w"},
    "acme/old": SMALL | OTHERS | {"pytorch_model.bin": b"w", "training_args.bin": b"w"},
    "acme/open": {
        "open_clip_config.json": b"{}",
        "open_clip_model.safetensors": b"w",
        "open_clip_pytorch_model.bin": b"w",
    },
}
CHOSEN = {
    "acme/both": {*SMALL, "model.safetensors"},
    "acme/shards": {*SMALL, *SHARDS, *INDEX},
    "acme/old": {*SMALL, "pytorch_model.bin"},
    "acme/open": {"open_clip_config.json", "open_clip_model.safetensors"},
}
# What a process does for each of some names: it resolves the name, and tells the files that it then has, or the error.
RESOLVE = """
import json, sys
from pathlib import Path
from simmim_export.errors import SimmimError
from simmim_export.models.family import family_of
from simmim_export.models.huggingface.hub import model_path

def files(folder):
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.is_dir() else None

answers = []
for name in sys.argv[2:]:
    checked, steps = [], []

    def check(path):
        checked.append(files(path))
        if sys.argv[1] == "check":
            family_of(path)

    try:
        path = model_path(name, check=check, watch=lambda step, done, total: steps.append((done, total)))
        answers.append({"files": files(path), "checked": checked, "steps": steps})
    except SimmimError as error:
        answers.append({"code": error.exit_code, "where": error.where, "what": error.what, "fix": error.fix})
print(json.dumps(answers))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(MODELS) as opened:
        yield opened


def environment(cache: Path, address: str = "http://127.0.0.1:9", **others: str) -> dict[str, str]:
    """That of a process whose hub is at ``address``. Nobody answers at the default one."""
    return child_environment({"HF_HOME": str(cache), "HF_ENDPOINT": address} | others)


def resolve(*names: str, how: str = "check", **options: Any) -> list[dict[str, Any]]:
    done = subprocess.run(python_code(RESOLVE, how, *names), capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("setting", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_an_unreachable_hub_is_one_message(run_cli: Callable, tmp_path: Path, setting: dict[str, str]) -> None:
    start = time.monotonic()
    done = run_cli("export", "onnx", "acme/clip", "-o", tmp_path / "out", env=environment(tmp_path, **setting))
    assert done.returncode == 5 and not done.stdout and not (tmp_path / "out").exists(), done.stderr
    assert done.stderr.count("error: ") == 1 and "  where: acme/clip\n  next:  " in done.stderr
    assert time.monotonic() - start < 15


def test_a_hub_that_never_answers_is_left_soon(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        (answer,) = resolve("acme/clip", env=environment(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert answer["code"] == 5 and answer["where"] == "acme/clip" and time.monotonic() - start < 15


def test_a_model_that_cannot_be_exported_costs_no_download_of_weights(tmp_path: Path, hub: Hub) -> None:
    lacking, llava = resolve("acme/none", "acme/llava", env=environment(tmp_path, hub.address))
    assert lacking["code"] == 5 and lacking["where"] == "acme/none" and lacking["fix"]
    assert llava["code"] == 5 and "'llava'" in llava["what"] and "simmim" in llava["fix"]
    assert any("config.json" in path for path in hub.asked)
    assert not any("safetensors" in path for path in hub.asked)


def test_a_path_never_touches_the_network(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "acme/llava").mkdir(parents=True)
    (tmp_path / "acme/llava/config.json").write_bytes(LLAVA)
    paths = ("acme/llava", "acme/both", "./acme/old", "elsewhere/none.pt")
    answers = resolve(*paths, env=environment(tmp_path, hub.address), cwd=tmp_path)
    assert [(answer["code"], answer["where"]) for answer in answers] == [(5, str(Path(path))) for path in paths]
    assert "'llava'" in answers[0]["what"] and hub.asked == []


def test_what_is_read_of_a_model_is_downloaded_once(tmp_path: Path, hub: Hub) -> None:
    asked = []
    # The third time nobody answers.
    for address in (hub.address, hub.address, "http://127.0.0.1:9"):
        answers = resolve(*CHOSEN, how="trust", env=environment(tmp_path, address))
        for (name, wanted), answer in zip(CHOSEN.items(), answers, strict=True):
            assert answer["files"] == {file: MODELS[name][file].decode() for file in wanted}
            if not asked:
                assert all(file.endswith((".json", ".txt")) for file in answer["checked"][0])
                assert answer["steps"] and answer["steps"][-1][0] == answer["steps"][-1][1]
        asked.append([path for path in hub.asked if "/resolve/" in path])
        hub.asked.clear()
    assert asked[0] and not asked[1] and not asked[2]
    assert not any("onnx/" in path or "flax" in path for path in asked[0])


NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), max_size=30)


@given(NAMES, NAMES)
def test_odd_names_are_paths(owner: str, name: str) -> None:
    source = f"{owner}/{name}"
    plain = all(
        part.isascii() and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in (owner, name)
    )
    if not plain:
        assert not is_hub_name(source)


@pytest.mark.parametrize(
    "source",
    [
        "ckpt.pt",
        "model",
        "runs/ckpt.pt",
        "a/b/c",
        "/a/b",
        "./a",
        "../a",
        "~/a",
        "a/",
        "/b",
        "a//b",
        "a\\b",
        "",
        "a/b.safetensors",
    ],
)
def test_paths_are_no_names(source: str) -> None:
    assert not is_hub_name(source)


def test_names_are_names() -> None:
    for source in ("openai/clip-vit-base-patch32", "google/siglip2-base-patch16-224", "a/b.c_d", "1/2"):
        assert is_hub_name(source)
