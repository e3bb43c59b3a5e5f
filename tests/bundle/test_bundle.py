"""A bundle opens whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from simmim_export.bundle import SCHEMA, Bundle, digest_of, parse_manifest
from simmim_export.errors import BundleError, EngineUnavailable
from simmim_export.proof import certificate


def rewrite(bundle: Path, edit) -> None:
    """Edit the manifest and give it a digest that matches, as an attacker would."""
    content = json.loads((bundle / "manifest.json").read_text())
    edit(content)
    (bundle / "manifest.json").write_text(json.dumps(content | {"digest": digest_of(content)}))


def refusal(bundle: Path, where: Path) -> BundleError:
    """The error of opening and checking ``bundle``, which must name the place ``where``."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle).check()
    assert caught.value.exit_code == 5 and caught.value.fix
    assert caught.value.where == str(where)
    return caught.value


def test_a_bundle_opens_and_comes_back_as_it_was(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    assert opened.check() == len(opened.manifest.artifacts) + 3
    text = (tiny_bundle / "manifest.json").read_text()
    assert parse_manifest(text, "here").dumps() == text


def test_a_missing_bundle_is_an_error(tmp_path: Path) -> None:
    assert "simmim-export onnx" in str(refusal(tmp_path / "none", tmp_path / "none").fix)
    assert "manifest.json" in refusal(tmp_path, tmp_path).what


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(bundle, bundle).what


def test_a_flipped_byte_in_any_file_is_an_error(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    named = [*manifest.files, *(artifact.path for artifact in manifest.artifacts)]
    for path in (bundle / name for name in ("manifest.json", *named)):
        intact = path.read_bytes()
        spoiled = bytearray(intact)
        spoiled[len(spoiled) // 2] ^= 1
        path.write_bytes(spoiled)
        refusal(bundle, path)
        path.write_bytes(intact)
    Bundle.open(bundle).check()


@contextmanager
def as_nobody(tiny_bundle: Path) -> Iterator[Path]:
    """A bundle of another user, who may close it. Root may read everything, so root becomes nobody for the block."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.getuid() == 0
    try:
        bundle = Path(shutil.copytree(tiny_bundle, folder / "bundle"))
        # Import now what is imported late: nobody may not read root's packages either.
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
def test_a_file_that_may_not_be_read_is_an_error(tiny_bundle: Path, name: str) -> None:
    with as_nobody(tiny_bundle) as bundle:
        (bundle / name).chmod(0)
        if os.getuid() == 0:
            os.setresuid(65534, 65534, 0)
        with pytest.raises(BundleError) as caught:
            Bundle.open(bundle).check()
        # The first file in a closed folder is as good a place as the folder.
        assert str(caught.value.where).startswith(str(bundle / name)) and caught.value.fix


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
            with pytest.raises(BundleError) as caught:
                call()
            assert caught.value.where == str(path)
        assert path.stat().st_size == 2


def test_links_that_go_in_a_circle_are_an_error(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    (bundle / "tokenizer.json").symlink_to("tokenizer.json")
    assert "tokenizer.json" in refusal(bundle, bundle).what


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 127))
def test_a_flipped_byte_in_the_manifest_is_always_seen(tiny_bundle: Path, position: float, value: int) -> None:
    data = bytearray((tiny_bundle / "manifest.json").read_bytes())
    data[int(position * len(data))] ^= value
    try:
        changed = parse_manifest(data.decode(), "here").dumps()
    except (BundleError, UnicodeDecodeError):
        return
    # White space outside strings has no meaning: what was parsed must be what was written.
    assert changed == (tiny_bundle / "manifest.json").read_text()


def test_a_manifest_that_is_not_utf8_is_an_error(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"\xff\xfe")
    refusal(bundle, bundle / "manifest.json")


@settings(max_examples=100, deadline=None)
@given(st.text())
@example("[" * 1_000_000)
@example('{"a":' * 1_000_000)
def test_a_text_that_is_not_a_manifest_is_an_error(text: str) -> None:
    with pytest.raises(BundleError):
        parse_manifest(text, "here")


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "graphs/../../secret", "a\\b"])
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path, path: str) -> None:
    (bundle.parent / "secret").write_text("x")
    rewrite(bundle, lambda c: c["artifacts"][0].update(path=path))
    assert "$.artifacts[0].path" in refusal(bundle, bundle / "manifest.json").what


def test_a_path_that_leaves_the_bundle_by_a_link_is_refused(bundle: Path) -> None:
    (bundle.parent / "secret").write_text("x")
    (bundle / "link").symlink_to(bundle.parent)
    rewrite(bundle, lambda c: c["artifacts"][0].update(path="link/secret"))
    assert "link/secret" in refusal(bundle, bundle).what


def test_a_newer_schema_is_an_error(bundle: Path) -> None:
    rewrite(bundle, lambda c: c.update(schema=SCHEMA + 1))
    assert "pip install -U" in str(refusal(bundle, bundle / "manifest.json").fix)


def test_a_wrong_size_is_seen_before_the_digest(bundle: Path) -> None:
    name = Bundle.open(bundle).manifest.artifacts[0].path
    (bundle / name).write_bytes((bundle / name).read_bytes() + b"x")
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    assert caught.value.where == str(bundle) and name in caught.value.what


def test_an_unknown_variant_is_an_error_that_names_the_known_ones(tiny_bundle: Path) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        Bundle.open(tiny_bundle).artifact("image_encoder", "fp8")
    assert caught.value.exit_code == 3 and "fp16, fp32, int8-dot, int8-s8, int8-s8-fp16, int8-u8" in caught.value.what


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
    os.truncate(bundle / "tokenizer.json", 5 << 30)  # sparse: it takes no space
    started = time.monotonic()
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    assert "tokenizer.json" in caught.value.what and time.monotonic() - started < 5
