"""Groups of options: a dataclass in the signature of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from simmim_export.console import new_app


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option("--width", min=1, help="Columns.", rich_help_panel="Size")] = 3
    height: Annotated[
        int | None, typer.Option("--height", help="Rows.", rich_help_panel="Size", show_default="all")
    ] = None


def sized():
    """An app whose command takes a group, and what its command was called with."""
    app, calls = new_app("A program."), []

    @app.command(examples=("program draw picture --width 4",))
    def draw(
        size: Size,
        name: Annotated[str, typer.Argument(metavar="NAME", help="A name.")],
        loud: Annotated[bool, typer.Option("--loud", help="Louder.")] = False,
    ) -> None:
        """Draw."""
        calls.append((size, name, loud))

    app.command("other")(lambda: None)
    return app, calls


def test_a_group_arrives_as_one_value() -> None:
    app, calls = sized()
    assert CliRunner().invoke(app, ["draw", "a", "--width", "4", "--loud"]).exit_code == 0
    assert CliRunner().invoke(app, ["draw", "a"]).exit_code == 0
    assert calls == [(Size(width=4), "a", True), (Size(), "a", False)]


def test_options_of_a_group_are_checked() -> None:
    app, calls = sized()
    assert CliRunner().invoke(app, ["draw", "a", "--width", "0"]).exit_code == 2
    assert CliRunner().invoke(app, ["draw", "a", "--size", "1"]).exit_code == 2
    assert calls == []


def test_help_shows_groups_defaults_and_examples() -> None:
    app, _ = sized()
    lines = CliRunner().invoke(app, ["draw", "--help"]).output.splitlines()
    sections = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert sections == ["Arguments:", "Options:", "Size:", "Examples:"]
    assert any("[default: 3; x>=1]" in line for line in lines) and any("[default: all]" in line for line in lines)
    assert lines[-1] == "  program draw picture --width 4"
