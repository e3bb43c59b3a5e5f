"""certificate.json: what is written is read, and damage, other bundles and other schemas are noticed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from certificates import HOST, put, row, typed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simmim_export.bundle import Bundle
from simmim_export.errors import BundleError, CertificatesLost, UsageError
from simmim_export.proof.certificate import FILE, MOST, SCHEMA, read, require_room, write
from simmim_export.proof.records import Certificate

Made = Callable[..., Certificate]
CERTIFY = "simmim-export certify"


def altered(bundle: Bundle, certificate: Made) -> Path:
    """The file of a certificate that was turned into another machine's."""
    path = write(bundle, [certificate()])
    path.write_text(path.read_text().replace('"threads": 4', '"threads": 8'))
    return path


def test_certificates_are_read_as_written(bundle: Bundle, certificate: Made) -> None:
    assert read(bundle) == []
    first, second = certificate(), certificate("openvino", precision="bf16")
    write(bundle, [first])
    write(bundle, [second])
    assert [c.name for c in read(bundle)] == ["ort:int8", "openvino:bf16"]
    assert read(bundle)[0].as_json() == json.loads(json.dumps(first.as_json()))
    Bundle.open(bundle.root).check()


def test_a_certificate_replaces_only_one_of_the_same_engine_precision_and_host(
    bundle: Bundle, certificate: Made
) -> None:
    write(bundle, [certificate(), certificate("openvino", precision="bf16")])
    write(bundle, [certificate(seconds=5.0), certificate(host=HOST | {"threads": 8})])
    assert [(c.name, c.host["threads"]) for c in read(bundle)] == [
        ("openvino:bf16", 4),
        ("ort:int8", 4),
        ("ort:int8", 8),
    ]
    assert read(bundle)[1].latency["embed_image"] == 5.0


def test_a_certificate_of_another_bundle_is_refused_and_replaced(
    bundle: Bundle, every_bundle: Path, tmp_path: Path, certificate: Made
) -> None:
    write(bundle, [certificate()])
    no_lock = shutil.ignore_patterns(".certificate*")
    other = Bundle.open(shutil.copytree(every_bundle, tmp_path / "other", copy_function=os.link, ignore=no_lock))
    path = Path(shutil.copyfile(bundle.root / FILE, other.root / FILE))
    with pytest.raises(BundleError) as caught:
        read(other)
    assert caught.value.exit_code == 5 and caught.value.where == str(path) and CERTIFY in str(caught.value.fix)
    write(other, [typed(row(other, "openvino", precision="fp32"))])
    assert [c.name for c in read(other)] == ["openvino:fp32"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "3",
        "null",
        '{"schema": 3}',
        '{"schema": 4, "bundle": "x", "certificates": []}',
        "\x00",
        "[" * 10**5,
    ],
)
def test_a_damaged_file_is_an_error(bundle: Bundle, content: str) -> None:
    (bundle.root / FILE).write_text(content)
    with pytest.raises(BundleError) as caught:
        read(bundle)
    assert caught.value.exit_code == 5 and CERTIFY in str(caught.value.fix)


def test_an_altered_file_is_an_error(bundle: Bundle, certificate: Made) -> None:
    path = altered(bundle, certificate)
    with pytest.raises(BundleError) as caught:
        read(bundle)
    assert caught.value.where == str(path) and CERTIFY in str(caught.value.fix)


def test_a_damaged_file_is_replaced_with_a_warning(bundle: Bundle, certificate: Made) -> None:
    altered(bundle, certificate)
    with pytest.warns(CertificatesLost):
        write(bundle, [certificate("openvino")])
    assert [c.name for c in read(bundle)] == ["openvino:int8"]


def test_certificates_of_an_older_schema_are_refused_and_replaced_with_a_warning(
    bundle: Bundle, certificate: Made
) -> None:
    for schema in range(1, SCHEMA):
        put(bundle, [{"engine": "ort"}], schema=schema)
        with pytest.raises(BundleError) as caught:
            read(bundle)
        assert CERTIFY in str(caught.value.fix)
        with pytest.warns(CertificatesLost, match=f"schema {schema}"):
            write(bundle, [certificate()])
        assert [one.name for one in read(bundle)] == ["ort:int8"]


def test_certificates_of_a_newer_schema_are_kept(bundle: Bundle, certificate: Made) -> None:
    path = write(bundle, [certificate()])
    newer = path.read_text().replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}')
    path.write_text(newer)
    for change in (require_room, lambda bundle: write(bundle, [certificate()])):
        with pytest.raises(BundleError, match=f"schema {SCHEMA + 1}") as caught:
            change(bundle)
        assert caught.value.exit_code == 5 and caught.value.fix
    assert path.read_text() == newer


def test_a_pipe_is_not_a_certificate(bundle: Bundle) -> None:
    os.mkfifo(bundle.root / FILE)
    with pytest.raises(BundleError) as caught:
        read(bundle)
    assert caught.value.exit_code == 5
    with pytest.raises(UsageError) as refused:
        require_room(bundle)
    assert refused.value.exit_code == 2 and (bundle.root / FILE).is_fifo()


@pytest.mark.parametrize("name", [FILE, f".{FILE}.lock"])
def test_a_folder_in_the_way_is_an_error_before_measuring(bundle: Bundle, name: str) -> None:
    (bundle.root / name).mkdir()
    with pytest.raises(UsageError) as caught:
        require_room(bundle)
    assert caught.value.exit_code == 2 and caught.value.fix


def test_a_lock_that_is_a_link_empties_no_other_file(bundle: Bundle, tmp_path: Path, certificate: Made) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (bundle.root / f".{FILE}.lock").symlink_to(victim)
    for change in (require_room, lambda bundle: write(bundle, [certificate()])):
        with pytest.raises(UsageError):
            change(bundle)
    assert victim.read_text() == "precious"


def test_machines_that_certify_at_once_lose_nothing(bundle: Bundle, certificate: Made) -> None:
    hosts = [HOST | {"threads": count} for count in range(1, 9)]
    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(lambda host: write(bundle, [certificate(host=host)]), hosts))
    assert sorted(c.host["threads"] for c in read(bundle)) == list(range(1, 9))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
def test_any_damage_is_refused_or_harmless(
    bundle: Bundle, place: float, byte: int, cut: bool, certificate: Made
) -> None:
    (bundle.root / FILE).unlink(missing_ok=True)
    made = certificate()
    content = write(bundle, [made]).read_bytes()
    index = int(place * len(content))
    (bundle.root / FILE).write_bytes(content[:index] + (b"" if cut else bytes([byte]) + content[index + 1 :]))
    try:
        assert [one.as_json() for one in read(bundle)] == [made.as_json()]
    except BundleError as error:
        assert error.fix


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        ([{}, {}], {}),
        ({}, {}),
        (None, {}),
        ([3], {}),
        ([], {"more": 1}),
        ([], {"bundle": None}),
        ([], {"schema": True}),
        ([], {"schema": None}),
    ],
)
def test_a_file_of_another_form_is_refused(bundle: Bundle, rows: Any, changes: dict[str, Any]) -> None:
    put(bundle, rows, **changes)
    with pytest.raises(BundleError):
        read(bundle)


def test_two_certificates_of_the_same_kind_are_refused(bundle: Bundle) -> None:
    put(bundle, [row(bundle), row(bundle, host=HOST | {"threads": 8})])
    assert len(read(bundle)) == 2
    put(bundle, [row(bundle), row(bundle, seconds=0.001)])
    with pytest.raises(BundleError):
        read(bundle)


def test_a_name_that_occurs_twice_is_refused(bundle: Bundle) -> None:
    """JSON parsers take the last of the two, which a digest of the parsed values does not show."""
    path = put(bundle, [row(bundle)])
    path.write_text(path.read_text().replace('"passed": true, "command"', '"passed": false, "passed": true, "command"'))
    with pytest.raises(BundleError):
        read(bundle)


def test_a_text_that_is_not_unicode_is_refused(bundle: Bundle) -> None:
    path = put(bundle, [row(bundle)])
    for name in ('"command"', '"Some CPU"'):
        path.write_text(path.read_text().replace(name, name[:-1] + '\\ud800"'))
        with pytest.raises(BundleError):
            read(bundle)


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [400, 3000, 100_000])
def test_deep_nesting_is_refused(bundle: Bundle, depth: int) -> None:
    text = put(bundle, [row(bundle)]).read_text()
    for place in ('"cpu": "Some CPU"', '"name": "samples"'):
        key = place.partition(":")[0]
        (bundle.root / FILE).write_text(text.replace(place, f"{key}: {'[' * depth}{']' * depth}"))
        with pytest.raises(BundleError):
            read(bundle)


def test_nesting_is_read_only_where_any_value_may_be(bundle: Bundle) -> None:
    content = row(bundle)
    content["figures"]["source"] = {"name": deep(400)}
    put(bundle, [content])
    assert len(read(bundle)) == 1
    put(bundle, [row(bundle, host=HOST | {"cpu": deep(400)})])
    with pytest.raises(BundleError):
        read(bundle)


def test_more_certificates_than_the_limit_are_refused(bundle: Bundle) -> None:
    content = row(bundle)
    put(bundle, [content | {"host": HOST | {"threads": n}} for n in range(MOST + 1)])
    with pytest.raises(BundleError):
        read(bundle)
    put(bundle, [content | {"host": HOST | {"threads": n}} for n in range(MOST)])
    with pytest.raises(BundleError) as caught:
        write(bundle, [typed(content | {"host": HOST | {"threads": MOST}})])
    assert caught.value.fix and len(read(bundle)) == MOST


def test_a_file_above_the_limit_is_refused(bundle: Bundle) -> None:
    (bundle.root / FILE).write_bytes(b" " * (17 << 20))
    with pytest.raises(BundleError, match="16 MiB"):
        read(bundle)
