"""Help screens: options in named groups, then examples that can be typed as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from simmim_export.system.printing import say

# How Typer shows a default that is given in words.
_DEFAULT_IN_WORDS = re.compile(r"\[default: \((.*)\)(;|\])")


class _Readable:
    """How commands and groups of commands write their help."""

    # Command lines, shown at the end. They must fit 80 columns behind an indentation of two.
    examples: Sequence[str] = ()

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The arguments in the line "Usage:", without the braces that Typer puts around them."""
        pieces = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [piece.replace("{", "").replace("}", "") for piece in pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the options that belong to no group, each group of options, and the commands."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):  # type: ignore[attr-defined]
            record = help_record(parameter, ctx)
            if record is not None:
                own = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or own, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if isinstance(self, TyperGroup):
            self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples without wrapping them."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class Command(_Readable, TyperCommand):
    """A command with readable help."""


class Group(_Readable, TyperGroup):
    """A program with commands, with readable help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Without any words, print the help on stderr and end with 2 (if the program needs a command)."""
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            say(ctx.get_help(), error=True, lines=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)


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
