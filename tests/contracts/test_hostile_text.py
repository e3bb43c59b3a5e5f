"""No text of a stranger moves the cursor, hides a line or changes the title of a terminal, whatever the command."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from command_reference import PROGRAMS
from support import make_checkpoint

from simmim_export.system.children import child_environment, python_command

# A window title, a bell, clear-screen in 7 and 8 bits, a carriage return, changes of reading direction, and DEL.
EVIL = "E\x1b]0;own\x07\x1b[2J\x9b31mV\r\u202e\u2066\x7fL"
# What rich itself sends to a terminal: colors, a hidden cursor, a line that is drawn again.
STYLE = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A|\r(?=\n|\x1b\[2K|\x1b\[1A|\x1b\[\?25)")
KEPT = "\n\t\u200c\u200d"


def obeyed(text: str) -> set[str]:
    """The characters of ``text`` that a terminal obeys."""
    return {c for c in text if c not in KEPT and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


def run(program: str, *words: object) -> int:
    """Run a command, once with pipes and once on a terminal; return its exit code. Fail if an unsafe character reaches either."""
    command, environment = python_command(PROGRAMS[program], *words), child_environment({"TERM": "xterm-256color"})
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment)
    for output in (done.stdout, done.stderr):
        assert obeyed(output.decode("utf-8", "surrogateescape")) == set(), output
    assert b"Traceback" not in done.stderr, done.stderr
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # a terminal whose last program ended
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(timeout=120) == done.returncode
    left = STYLE.sub("", shown.decode("utf-8", "surrogateescape"))
    assert obeyed(left) == set(), left
    return done.returncode


def rewrite(bundle: Path, change: dict[str, Any]) -> Path:
    """Apply ``change`` to the manifest of ``bundle`` and give it a digest that fits."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in change.items():
        content[key] = value(content[key])
    plain = {key: value for key, value in content.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    path.write_text(json.dumps(plain | {"digest": digest}, ensure_ascii=False), encoding="utf-8")
    return bundle


ACCURACY = {"accuracy": 0.5, "n": 4, "interval": [0.2, 0.8]}
CHANGES: dict[str, dict[str, Any]] = {
    "labels": {"labels": lambda labels: {head: [f"{word}{EVIL}" for word in words] for head, words in labels.items()}},
    "metrics": {
        "metrics": lambda _: {
            f"vqa{EVIL}": ACCURACY | {"controls": {EVIL: {"accuracy": 0.4}}, "by_family": {EVIL: ACCURACY}},
            f"match{EVIL}": {"not_measured": EVIL},
        }
    },
    "preset": {"model": lambda model: model | {"preset": f"tiny{EVIL}"}},
    "provenance": {
        "provenance": lambda known: known | {"checkpoint_sha256": EVIL, "simmim_export": EVIL, "training": EVIL}
    },
    "preprocessing": {"preprocessing": lambda known: known | {"image": known["image"] | {"interpolation": EVIL}}},
    "embedding": {"embedding": lambda known: known | {"digest": EVIL}},
    "pipelines": {"pipelines": lambda known: [row | {"name": f"{row['name']}{EVIL}"} for row in known]},
    "graphs": {"graphs": lambda known: [row | {"name": f"{row['name']}{EVIL}"} for row in known]},
    "artifacts": {"artifacts": lambda known: [row | {"path": f"{row['path']}{EVIL}"} for row in known]},
    "schema": {"schema": lambda _: EVIL},
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_manifest_is_shown_escaped_or_refused(field: str, every_bundle: Path, tmp_path: Path) -> None:
    bundle = rewrite(Path(shutil.copytree(every_bundle, tmp_path / "b")), CHANGES[field])
    assert run("simmim-export", "inspect", bundle) in (0, 5)
    assert run("simmim-export", "inspect", bundle, "--json") in (0, 5)


def test_answers_are_shown_escaped_or_refused(every_bundle: Path, picture: Path, tmp_path: Path) -> None:
    bundle = rewrite(Path(shutil.copytree(every_bundle, tmp_path / f"b{EVIL}")), CHANGES["labels"])
    image = picture.rename(tmp_path / f"{EVIL}.png")
    for words in (
        ("ask", bundle, image, f"what shape {EVIL} ?"),
        ("classify", bundle, image),
        ("classify", bundle, image, f"a red circle {EVIL}"),
        ("match", bundle, image, f"a red circle {EVIL}"),
        ("verify", bundle),
        ("embed", bundle, "--text", f"a red circle {EVIL}"),
        ("embed", bundle, image),
    ):
        assert run("simmim-export", *words) in (0, 5)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_wrong_word_is_shown_escaped(program: str, tmp_path: Path) -> None:
    assert run(program, f"--x{EVIL}") == 2
    assert run(program, EVIL) == 2


def test_a_missing_file_is_shown_escaped(every_bundle: Path, tmp_path: Path) -> None:
    assert run("simmim-export", "verify", tmp_path / EVIL) == 5
    assert run("simmim-export", "verify", every_bundle, "--engine", EVIL) == 2
    assert run("simmim-export", "ask", every_bundle, tmp_path / f"{EVIL}.png", "a red circle") == 5
    assert run("simmim-export", "doctor") == 0


def test_a_checkpoint_is_shown_escaped_or_refused(tmp_path: Path) -> None:
    from simmim_export.models.simmim import checkpoint

    path = make_checkpoint(tmp_path / "a.pt")
    loaded = checkpoint.load(path)
    loaded.labels["vqa"] = [f"{label}{EVIL}" for label in loaded.labels["vqa"]]
    loaded.provenance["training"] = {"stage": EVIL}
    checkpoint.save(loaded, tmp_path / f"{EVIL}.pt")
    assert run("simmim-train", "evaluate", tmp_path / f"{EVIL}.pt", "--eval-scenes", 4) in (0, 5)


def test_benchmark_files_are_shown_escaped_or_refused(tmp_path: Path) -> None:
    row = {"target": f"graph:{EVIL}", "engine": EVIL, "precision": EVIL, "batch": 1, "inputs": EVIL, "gpu_rounds": []}
    row |= {"rounds": [[0.1, 0.2]] * 6, "parity": {"passed": True}}
    for name, host in (("a", EVIL), ("b", "other")):
        document = {"schema": 2, "command": [EVIL], "suites": ["latency"], "host": {"cpu": host}, "load_average": 0.0}
        document |= {"warnings": [EVIL], "bundle": {"preset": EVIL}, "method": {}, "finished_rounds": 6, "peaks": None}
        document |= {"engines": {}, "results": [row]}
        (tmp_path / f"{name}{EVIL}.json").write_text(json.dumps(document))
    first, second = (tmp_path / f"{name}{EVIL}.json" for name in "ab")
    assert run("simmim-bench", "compare", first, second) == 5
    assert run("simmim-bench", "compare", first, second, "--accept", "host", "--accept", "runs") == 0
    assert run("simmim-bench", "compare", first, second, "--accept", EVIL) == 2
    page = ("-o", tmp_path / f"{EVIL}.html", "--svg", tmp_path / EVIL, "--overwrite")
    assert run("simmim-bench", "report", first, *page) == 0
    assert run("simmim-bench", "report", first, second, "-o", tmp_path / "both.html") == 5
    first.write_text(EVIL)
    assert run("simmim-bench", "compare", first, second) == 5
