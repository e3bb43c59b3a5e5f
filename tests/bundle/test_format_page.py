"""docs/format.md names the fields, kinds, verbs and example that the code has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from format_example import lines, shortened

from simmim_export.bundle import SCHEMA, schema
from simmim_export.spec import Kind, Verb

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
ROWS = {
    name: row
    for name, row in vars(schema).items()
    if isinstance(row, type) and issubclass(row, msgspec.Struct) and row.__struct_fields__
}


def first_column(start: str) -> list[str]:
    """The names in the first column of the table after ``start``."""
    table = PAGE.partition(start)[2].lstrip("\n").partition("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_field_is_in_its_table(name: str) -> None:
    row = ROWS[name]
    inherited = {field for base in row.__bases__ for field in getattr(base, "__struct_fields__", ())}
    own = [field for field in row.__struct_fields__ if field not in inherited]
    assert first_column(f"<!-- fields of {name} -->") == own


def test_every_table_is_about_a_row() -> None:
    assert set(re.findall(r"<!-- fields of (\w+) -->", PAGE)) == set(ROWS)


def test_every_kind_and_verb_is_in_its_table() -> None:
    assert first_column("### Kinds") == [*map(str, Kind)]
    assert first_column("### Verbs") == [*map(str, Verb)]


def test_the_example_is_a_manifest_of_this_schema(every_bundle: Path) -> None:
    example = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
    assert msgspec.convert(example, schema.ManifestRow).schema == SCHEMA
    now = shortened(json.loads((every_bundle / "manifest.json").read_text(encoding="utf-8")))
    assert json.loads(lines(now)) == now and list(example) == list(now)
