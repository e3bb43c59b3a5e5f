"""A bundle opens whole or not at all, and is replaced in one step or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from simmim_export.bundle import SCHEMA, Bundle, Staging, digest_of, parse_manifest
from simmim_export.bundle.staging import _exchange, _replace_in_two_steps
from simmim_export.errors import BundleError, BundleRestored, EngineUnavailable, UsageError
from simmim_export.proof import certificate


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def rewrite(bundle: Path, edit) -> None:
    """Edit the manifest and give it a digest that fits, as an attacker would."""
    content = json.loads((bundle / "manifest.json").read_text())
    edit(content)
    (bundle / "manifest.json").write_text(json.dumps(content | {"digest": digest_of(content)}))


def refused(bundle: Path, *expected: str) -> None:
    """Opening and checking ``bundle`` raises a BundleError that says all of ``expected``."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle).check()
    assert caught.value.exit_code == 5 and caught.value.where and caught.value.fix
    for text in expected:
        assert text in str(caught.value)


def test_opens_and_round_trips(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    assert opened.check() == len(opened.manifest.artifacts) + 3
    text = (tiny_bundle / "manifest.json").read_text()
    assert parse_manifest(text, "here").dumps() == text


def test_missing_bundle(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such bundle", "simmim-export onnx")
    refused(tmp_path, "no manifest.json")


def test_missing_file(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    refused(bundle, "lacks tokenizer.json")


def test_one_flipped_byte_in_any_file(bundle: Path) -> None:
    for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        spoiled = bytearray(whole)
        spoiled[len(spoiled) // 2] ^= 1
        path.write_bytes(spoiled)
        refused(bundle, "manifest" if path.name == "manifest.json" else "was altered")
        path.write_bytes(whole)
    Bundle.open(bundle).check()


@contextmanager
def as_nobody(tiny_bundle: Path) -> Iterator[Path]:
    """A bundle of another user's, who may close it. Root reads everything, and is nobody meanwhile."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.getuid() == 0
    try:
        bundle = Path(shutil.copytree(tiny_bundle, folder / "bundle"))
        # What is imported late is imported now: nobody may not read root's packages either.
        certificate.write(Bundle.open(bundle), [])
        for path in bundle.glob("*certificate*"):
            path.unlink()
        yield bundle
    finally:
        if root:
            os.setresuid(0, 0, 0)
        for path in folder.rglob("*"):
            path.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", [".", "manifest.json", "graphs", "graphs/fusion.fp32.onnx", "tokenizer.json"])
def test_what_may_not_be_read(tiny_bundle: Path, name: str) -> None:
    with as_nobody(tiny_bundle) as bundle:
        (bundle / name).chmod(0)
        if os.getuid() == 0:
            os.setresuid(65534, 65534, 0)
        refused(bundle, "it cannot be read: Permission denied", str(bundle / name), "ls -l")


def test_certificates_that_may_not_be_read_are_not_replaced(tiny_bundle: Path) -> None:
    with as_nobody(tiny_bundle) as bundle:
        path = bundle / "certificate.json"
        path.write_text("[]")
        path.chmod(0)
        bundle.chmod(0o777)
        if os.getuid() == 0:
            os.setresuid(65534, 65534, 0)
        opened = Bundle.open(bundle)
        for call in (lambda: certificate.read(opened), lambda: certificate.write(opened, [])):
            with pytest.raises(BundleError, match="cannot be read: Permission denied"):
                call()
        assert path.stat().st_size == 2


def test_links_that_go_in_a_circle(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    (bundle / "tokenizer.json").symlink_to("tokenizer.json")
    refused(bundle, "lacks tokenizer.json")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 127))
def test_a_flipped_byte_in_the_manifest_is_always_seen(tiny_bundle: Path, position: float, value: int) -> None:
    data = bytearray((tiny_bundle / "manifest.json").read_bytes())
    data[int(position * len(data))] ^= value
    try:
        changed = parse_manifest(data.decode(), "here").dumps()
    except (BundleError, UnicodeDecodeError):
        return
    # White space outside strings carries nothing: what was parsed must be what was written.
    assert changed == (tiny_bundle / "manifest.json").read_text()


def test_manifest_not_utf8(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"\xff\xfe")
    refused(bundle, "not UTF-8")


@settings(max_examples=100, deadline=None)
@given(st.text())
@example("[" * 1_000_000)
@example('{"a":' * 1_000_000)
def test_any_text_as_manifest(text: str) -> None:
    with pytest.raises(BundleError):
        parse_manifest(text, "here")


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "graphs/../../secret", "a\\b", "link/secret"])
def test_a_path_that_leaves_the_bundle(bundle: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("x")
    (bundle / "link").symlink_to(tmp_path)
    rewrite(bundle, lambda c: c["artifacts"][0].update(path=path))
    refused(bundle, "outside the bundle")


def test_future_schema(bundle: Path) -> None:
    rewrite(bundle, lambda c: c.update(schema=SCHEMA + 1))
    refused(bundle, f"schema {SCHEMA + 1}", "pip install -U")


def test_wrong_size_is_seen_before_the_digest(bundle: Path) -> None:
    path = bundle / Bundle.open(bundle).manifest.artifacts[0].path
    path.write_bytes(path.read_bytes() + b"x")
    refused(bundle, "bytes, the manifest says")


def test_a_graph_that_is_not_described(bundle: Path) -> None:
    rewrite(bundle, lambda c: c["pipelines"][0]["graphs"].append("head.other"))
    refused(bundle, "head.other")


def test_unknown_variant_names_what_there_is(tiny_bundle: Path) -> None:
    with pytest.raises(
        EngineUnavailable, match=r"no fp8 variant of image_encoder \(it has: fp16, fp32, int8-s8, int8-u8\)"
    ) as caught:
        Bundle.open(tiny_bundle).artifact("image_encoder", "fp8")
    assert caught.value.exit_code == 3


def test_an_existing_output_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already exists") as caught:
        Staging(tiny_bundle, overwrite=False)
    assert caught.value.exit_code == 2 and "--overwrite" in str(caught.value)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a bundle"):
        Staging(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "content", ['{"name": "extension", "manifest_version": 3}', "[]", "{", '{"schema": 1}', "\xff"]
)
def test_another_projects_manifest_is_no_bundle(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match="not a bundle") as caught:
        Staging(tmp_path / "mine", overwrite=True)
    assert "yourself" in str(caught.value) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", [lambda text: text[:500], lambda text: text.replace('"', '"x', 1), lambda text: ""])
def test_a_damaged_bundle_is_ours_all_the_same(bundle: Path, damage) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(damage(text))
    with pytest.raises(BundleError):
        Bundle.open(bundle)
    with Staging(bundle, overwrite=True) as staging:
        assert staging.root.exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_goes_on_pointing_to_what_was_replaced(tiny_bundle: Path, tmp_path: Path, there: bool) -> None:
    (tmp_path / "models").mkdir()
    target, link = tmp_path / "models" / "v1", tmp_path / "current"
    if there:
        shutil.copytree(tiny_bundle, target)
        (target / "old").touch()
    link.symlink_to("models/v1")
    # What an export that was killed had made of a link.
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".current.{dead.pid}.x.partial").symlink_to("models/v1")
    staged(link, tiny_bundle)
    assert link.is_symlink() and not target.is_symlink() and not (target / "old").exists()
    Bundle.open(link).check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "models"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["v1"]


def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f".out.{dead.pid}.x.partial"
    left.mkdir()
    with Staging(tmp_path / "out", overwrite=False) as staging:
        assert not left.exists() and staging.root.exists()
    assert list(tmp_path.iterdir()) == []


def test_exchange_swaps_two_folders(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    if not _exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system has no renameat2")
    assert (tmp_path / "a" / "who").read_text() == "b" and (tmp_path / "b" / "who").read_text() == "a"


COMMAND = (sys.executable, "-P", "-m", "simmim_export.cli", "onnx")


@contextmanager
def exporting(checkpoint: Path, target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real export to ``target``, in a process of its own, that has written a graph."""
    command = [*COMMAND, str(checkpoint), "-o", str(target), "--overwrite"]
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
def test_a_killed_export_leaves_no_half_bundle(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, existing: bool
) -> None:
    target = tmp_path / "out"
    if existing:
        shutil.copytree(tiny_bundle, target)
    with exporting(tiny_checkpoint, target) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if existing:
        Bundle.open(target).check()
    else:
        assert not target.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_export_that_is_asked_to_end_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path, number: int) -> None:
    with exporting(tiny_checkpoint, tmp_path / "out") as process:
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    assert list(tmp_path.iterdir()) == []


def staged(target: Path, copy: Path) -> None:
    """Publish a copy of the bundle ``copy`` at ``target``."""
    manifest = Bundle.open(copy).manifest
    with Staging(target, overwrite=True) as staging:
        for path in (path for path in copy.rglob("*") if path.is_file()):
            staging.add(str(path.relative_to(copy)), path.read_bytes())
        staging.publish(manifest, tuple(manifest.files))


# Publishes a bundle where folders cannot be exchanged, and kills itself before the second of two renames, or after it.
IN_TWO_STEPS = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[4])
import test_bundle
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
test_bundle.staged(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


def killed_between(target: Path, copy: Path, renames: int) -> None:
    command = [sys.executable, "-P", "-c", IN_TWO_STEPS, target, copy, str(renames), Path(__file__).parents[1]]
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
    # What to type puts it back.
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


def test_a_rename_that_fails_puts_the_old_bundle_back(tiny_bundle: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(tiny_bundle, tmp_path / "out"))
    with pytest.raises(FileNotFoundError):
        _replace_in_two_steps(tmp_path / "none", target)
    Bundle.open(target).check()
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


@pytest.mark.parametrize("name", ["manifest.json", "certificate.json"])
def test_a_link_that_leaves_the_bundle_is_not_followed(bundle: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    if (bundle / name).exists():
        (bundle / name).rename(secret)
    else:
        secret.write_text('{"schema": "a secret"}')
    (bundle / name).symlink_to(secret)
    with pytest.raises(BundleError) as caught:
        certificate.read(Bundle.open(bundle))
    assert caught.value.exit_code == 5 and "a secret" not in str(caught.value)


def test_a_large_tokenizer_is_refused_before_it_is_read(bundle: Path) -> None:
    os.truncate(bundle / "tokenizer.json", 5 << 30)  # sparse: it takes no room
    started = time.monotonic()
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Bundle.open(bundle)
    assert time.monotonic() - started < 5


def test_a_manifest_that_is_a_pipe_ends_an_export(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    os.mkfifo(tmp_path / "mine" / "manifest.json")
    with pytest.raises(UsageError):
        Staging(tmp_path / "mine", overwrite=True)


def test_a_damaged_bundle_with_other_files_is_not_replaced(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")
    (bundle / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError):
        Staging(bundle, overwrite=True)
    assert (bundle / "thesis.tex").exists()


def test_a_link_is_not_a_bundle_that_was_moved_aside(tiny_bundle: Path, tmp_path: Path) -> None:
    """Links lie where a killed export leaves the old bundle; what they point to is not ours to replace."""
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".bundle.{dead.pid}.replaced").symlink_to(other)
    staged(tmp_path / "bundle", tiny_bundle)
    assert not (tmp_path / "bundle").is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "other"]
    Bundle.open(other).check()
