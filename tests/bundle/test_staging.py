"""A bundle is replaced in one step or not at all, whatever ends the export."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from simmim_export.bundle import Bundle, Staging, staging
from simmim_export.errors import BundleError, BundleRestored, UsageError


def staged(target: Path, copy: Path) -> None:
    """Publish a copy of the bundle ``copy`` at ``target``."""
    manifest = Bundle.open(copy).manifest
    with Staging(target, overwrite=True) as staging:
        for path in (path for path in copy.rglob("*") if path.is_file()):
            staging.add(str(path.relative_to(copy)), path.read_bytes())
        staging.publish(manifest, tuple(manifest.files))


def ended_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


# -- what may be replaced ----------------------------------------------------------------------------------------------


def test_an_existing_output_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Staging(tiny_bundle, overwrite=False)
    assert caught.value.exit_code == 2 and "--overwrite" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("thesis.txt", "years of work"),
        ("manifest.json", '{"name": "extension", "manifest_version": 3}'),
        ("manifest.json", "[]"),
        ("manifest.json", "{"),
        ("manifest.json", '{"schema": 1}'),
        ("manifest.json", "\xff"),
    ],
)
def test_a_folder_that_is_not_a_bundle_is_not_replaced(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text(content, encoding="latin-1")
    with pytest.raises(UsageError) as caught:
        Staging(tmp_path / "mine", overwrite=True)
    assert caught.value.where == str(tmp_path / "mine") and caught.value.fix
    assert (tmp_path / "mine" / name).read_text(encoding="latin-1") == content and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", [lambda text: text[:500], lambda text: text.replace('"', '"x', 1), lambda text: ""])
def test_a_damaged_bundle_may_be_replaced(bundle: Path, damage) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(damage(text))
    with pytest.raises(BundleError):
        Bundle.open(bundle)
    with Staging(bundle, overwrite=True) as staging:
        assert staging.root.exists()


def test_a_damaged_bundle_with_other_files_is_not_replaced(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")
    (bundle / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError):
        Staging(bundle, overwrite=True)
    assert (bundle / "thesis.tex").exists()


def test_a_folder_whose_manifest_is_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    os.mkfifo(tmp_path / "mine" / "manifest.json")
    with pytest.raises(UsageError):
        Staging(tmp_path / "mine", overwrite=True)


# -- replacing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_points_to_is_replaced(tiny_bundle: Path, tmp_path: Path, there: bool) -> None:
    (tmp_path / "models").mkdir()
    target, link = tmp_path / "models" / "v1", tmp_path / "current"
    if there:
        shutil.copytree(tiny_bundle, target)
        (target / "old").touch()
    link.symlink_to("models/v1")
    # What a killed export could make of a link.
    (tmp_path / f".current.{ended_process()}.x.partial").symlink_to("models/v1")
    staged(link, tiny_bundle)
    assert link.is_symlink() and not target.is_symlink() and not (target / "old").exists()
    Bundle.open(link).check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "models"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["v1"]


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f".out.{ended_process()}.x.partial"
    left.mkdir()
    with Staging(tmp_path / "out", overwrite=False) as staging:
        assert not left.exists() and staging.root.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "renameat2"), reason="this system cannot exchange two folders")
def test_a_bundle_is_replaced_in_one_step(
    tiny_bundle: Path, every_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(tiny_bundle, tmp_path / "out"))
    # Moving a folder by its name would be one of two steps.
    monkeypatch.setattr(Path, "rename", None)
    staged(target, every_bundle)
    assert Bundle.open(target).digest == Bundle.open(every_bundle).digest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_rename_that_fails_puts_the_old_bundle_back(
    tiny_bundle: Path, every_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = Path(shutil.copytree(tiny_bundle, tmp_path / "out")), Path.rename

    def refuse_the_new_one(path: Path, to: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError("the disk is gone")
        return rename(path, to)

    monkeypatch.setattr(staging, "_exchange", lambda left, right: False)
    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(OSError):
        staged(target, every_bundle)
    assert Bundle.open(target).digest == Bundle.open(tiny_bundle).digest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_bundle_that_would_not_open_replaces_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(tiny_bundle, tmp_path / "out"))
    manifest = replace(Bundle.open(target).manifest, metrics={"vqa": {"accuracy": "half"}})
    with pytest.raises(BundleError), Staging(target, overwrite=True) as staging:
        for path in (path for path in tiny_bundle.rglob("*") if path.is_file()):
            staging.add(str(path.relative_to(tiny_bundle)), path.read_bytes())
        staging.publish(manifest, tuple(manifest.files))
    Bundle.open(target).check()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_checkpoint_whose_bundle_would_not_open_is_refused_before_it_is_traced(
    run_cli, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from simmim_export.models.simmim.checkpoint import load, save

    checkpoint = load(tiny_checkpoint)
    checkpoint.metrics = {"vqa": {"accuracy": "half"}}
    save(checkpoint, tmp_path / "odd.pt")
    done = run_cli("export", "onnx", tmp_path / "odd.pt", "-o", tmp_path / "out")
    assert done.returncode == 5 and "$.metrics.vqa.accuracy" in done.stderr, done.stderr
    assert str(tmp_path / "odd.pt") in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["odd.pt"]


def test_a_link_is_not_a_bundle_that_was_moved_aside(tiny_bundle: Path, tmp_path: Path) -> None:
    """A link lies where a killed export leaves the old bundle, but what it points to is not ours to move."""
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    (tmp_path / f".bundle.{ended_process()}.replaced").symlink_to(other)
    staged(tmp_path / "bundle", tiny_bundle)
    assert not (tmp_path / "bundle").is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "other"]
    Bundle.open(other).check()


# -- killed ------------------------------------------------------------------------------------------------------------

# Writes half of a bundle, says so, and waits.
HALF = """
import pathlib, sys, time
from simmim_export.bundle import Staging
with Staging(pathlib.Path(sys.argv[1]), overwrite=True) as staging:
    staging.add("graphs/a.fp32.onnx", b"x")
    time.sleep(100)
"""
EXPORT = ("-m", "simmim_export.cli", "onnx")


@contextmanager
def exporting(target: Path, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process ``python WORDS`` that writes a bundle for ``target``, as soon as it has written a graph."""
    command = [sys.executable, "-P", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not list(target.parent.glob(f".{target.name}.*/graphs/*.onnx")):
            assert process.poll() is None, "the export ended before it could be killed"
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_export_leaves_no_half_bundle(tiny_bundle: Path, tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "out"
    if existing:
        shutil.copytree(tiny_bundle, target)
    with exporting(target, "-c", HALF, target) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if existing:
        Bundle.open(target).check()
    else:
        assert not target.exists()


def test_an_export_that_is_hung_up_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with exporting(target, "-c", HALF, target) as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert list(tmp_path.iterdir()) == []


def test_a_real_export_that_is_asked_to_end_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with exporting(target, *EXPORT, tiny_checkpoint, "-o", target) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


# Publishes a bundle on a system that cannot exchange folders, and kills itself after so many renames.
IN_TWO_STEPS = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[4])
import test_staging
from simmim_export.bundle import staging
staging._exchange = lambda left, right: False
rename, done = pathlib.Path.rename, []
def counted(self, target):
    if len(done) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(target)
    return rename(self, target)
pathlib.Path.rename = counted
staging.shutil.rmtree = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
test_staging.staged(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


def killed_between(target: Path, copy: Path, renames: int) -> None:
    command = [sys.executable, "-P", "-c", IN_TWO_STEPS, target, copy, str(renames), Path(__file__).parent]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("linked", [False, True])
def test_a_kill_between_two_renames_loses_no_bundle(
    tiny_bundle: Path, every_bundle: Path, tmp_path: Path, linked: bool
) -> None:
    target, asked = tmp_path / "out [1]", tmp_path / ("link" if linked else "out [1]")
    shutil.copytree(tiny_bundle, target)
    if linked:
        asked.symlink_to(target.name)
    killed_between(asked, every_bundle, 1)
    assert not target.exists()
    with pytest.raises(BundleError) as caught:
        Bundle.open(asked)
    # The command in the error puts it back.
    command = (caught.value.fix or "").partition(": ")[2]
    old = Path(shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-mended", symlinks=True))
    subprocess.run(command.replace(str(tmp_path), str(old)), shell=True, check=True)
    assert Bundle.open(old / asked.name).digest == Bundle.open(tiny_bundle).digest
    # So does the next export, whether or not it may overwrite.
    with pytest.warns(BundleRestored), pytest.raises(UsageError):
        Staging(asked, overwrite=False)
    assert Bundle.open(asked).digest == Bundle.open(tiny_bundle).digest
    assert {path.name for path in tmp_path.iterdir()} == {target.name, asked.name}


def test_a_kill_after_two_renames_leaves_the_new_bundle(tiny_bundle: Path, every_bundle: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(tiny_bundle, tmp_path / "out"))
    killed_between(target, every_bundle, 2)
    assert Bundle.open(target).digest == Bundle.open(every_bundle).digest and len(list(tmp_path.iterdir())) > 1
    staged(target, tiny_bundle)
    assert Bundle.open(target).digest == Bundle.open(tiny_bundle).digest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
