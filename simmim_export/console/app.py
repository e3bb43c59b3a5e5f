"""Typer apps as all programs here use them: option groups, examples in the help, --version."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from simmim_export.console.help import Command, Group
from simmim_export.system.printing import say
from simmim_export.version import __version__


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"simmim-export {__version__}")
        raise typer.Exit()


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
]


class App(typer.Typer):
    """A Typer app. A parameter of a command that is annotated with a dataclass stands for all options of that dataclass.

    ``program`` is the name that messages show; without it, the name under which the program was started.
    """

    program: str | None = None

    def command(self, name: str | None = None, *, examples: Sequence[str] = (), **options: Any) -> Callable[..., Any]:
        """Register a command, as in Typer. Its help ends with ``examples``, lines that a user could type."""
        register = super().command(name, cls=type("Command", (Command,), {"examples": examples}), **options)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            register(with_options_of_groups(function))
            return function

        return decorate


def new_app(
    help_text: str,
    *,
    program: str | None = None,
    main: Callable[..., Any] | None = None,
    examples: Sequence[str] = (),
) -> App:
    """An app with the options that all programs share: --help and --version.

    ``main`` is what the program does if it is called without a command; a parameter ``context: typer.Context`` tells it whether
    it was. Without ``main`` the program prints its help instead.
    """
    app = App(
        cls=type("Group", (Group,), {"examples": examples}),
        help=help_text,
        invoke_without_command=main is not None,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.program = program
    app.callback()(with_options_of_groups(_only_version if main is None else main))
    return app


def _only_version(version: Version = False) -> None:
    pass


def with_options_of_groups(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with each parameter that is annotated with a dataclass replaced by the fields of that dataclass.

    Typer reads the signature of the result, so every field becomes an option: its annotation is
    ``Annotated[type, typer.Option(...)]`` and its default that of the option.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    if not groups:
        return function

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        return function(**values)

    parameters = []
    keyword = inspect.Parameter.KEYWORD_ONLY
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name], kind=keyword))
            continue
        options = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            parameters.append(inspect.Parameter(field.name, keyword, default=default, annotation=options[field.name]))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
