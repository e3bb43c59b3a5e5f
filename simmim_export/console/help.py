"""Help screens: options in named groups, then examples as they are typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

# How Typer shows a default that is given in words.
_DEFAULT_IN_WORDS = re.compile(r"\[default: \((.*)\)(;|\])")


class Command(TyperCommand):
    """A command whose help shows each option in its group (``rich_help_panel``) and ends with ``examples``.

    ``examples`` are command lines, one or more each; a line break inside one continues it.
    """

    examples: Sequence[str] = ()

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the options group by group."""
        write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)


class Group(TyperGroup):
    """A program with commands; its help is written like that of :class:`Command`."""

    examples: Sequence[str] = ()

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options group by group, and a line for each command."""
        write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)


def write_options(command: Any, context: Any, formatter: Any) -> None:
    """Write the arguments, then the options that belong to no group, then each group of options."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(context):
        record = help_record(parameter, context)
        if record is not None:
            own = "Arguments" if parameter.param_type_name == "argument" else "Options"
            sections.setdefault(getattr(parameter, "rich_help_panel", None) or own, []).append(record)
    for title, records in sections.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def help_record(parameter: Any, context: Any) -> tuple[str, str] | None:
    """The name of a parameter and its help, as Typer gives them but easier to read; None for a hidden parameter."""
    record = parameter.get_help_record(context)
    if record is None:
        return None
    name, text = record
    if parameter.param_type_name == "argument":
        # Typer adds the Python type, such as <list[Path]>, to the name.
        name = name.partition(" ")[0]
    return name, _DEFAULT_IN_WORDS.sub(r"[default: \1\2", text)


def write_examples(examples: Sequence[str], formatter: Any) -> None:
    """Write ``examples`` without wrapping them."""
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                for line in example.splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
