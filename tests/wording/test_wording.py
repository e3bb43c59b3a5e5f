"""The messages that users see are those of messages.txt, which people read."""

from __future__ import annotations

import difflib
import os
import subprocess
from pathlib import Path

import messages
import pytest
from places import make_places
from zygote import Zygote


def test_messages_are_as_reviewed(
    tiny_bundle: Path,
    tiny_checkpoint: Path,
    every_bundle: Path,
    asked_bundle: Path,
    picture: Path,
    tmp_path: Path,
    zygote: Zygote,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    # Copies, because a path in a message must not depend on where a fixture lies.
    make_places(here, bundle=tiny_bundle, checkpoint=tiny_checkpoint)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    paths = {
        "here": here,
        "bundle": tiny_bundle,
        "checkpoint": tiny_checkpoint,
        "every": every_bundle,
        "every_checkpoint": every_bundle.with_name("every.pt"),
        "asked": asked_bundle,
        "picture": picture,
    }

    def run(module: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        return zygote.run(module, arguments, timeout=120)

    text = messages.document(run, paths)
    assert "Traceback" not in text and "\nexit 1\n" not in text
    if os.environ.get(messages.WRITE):
        messages.MESSAGES.write_text(text, encoding="utf-8")
    expected = messages.MESSAGES.read_text(encoding="utf-8")
    changes = difflib.unified_diff(expected.splitlines(), text.splitlines(), "messages.txt", "now", lineterm="", n=3)
    assert text == expected, "read the change, then: make wording\n" + "\n".join(changes)


def test_every_error_class_and_command_has_a_message() -> None:
    text = messages.MESSAGES.read_text(encoding="utf-8")
    assert {f"exit {code}" for code in (2, 3, 4, 5)} <= set(text.splitlines())
    assert len(list(messages.lines())) >= 60
