"""`--format` for every command, in one place: commands have `--json` alone, and print through `emit`."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

from hf_clamu.cli.terminal.formats import OutputFormat, chosen_format, use_format

__all__ = ["add_formats"]

_NAME = "output_format"
_Format = Annotated[
    OutputFormat | None,
    typer.Option(
        "--format",
        help="How the result is printed: for people, as JSON, as plain lines and tables for programs that read text, "
        "or its paths or ids alone [default: human].",
        show_default=False,
    ),
]


def add_formats(app: typer.Typer) -> None:
    """Add `--format` beside `--json` to each command of a program, and to those of its groups.

    Args:
        app (`typer.Typer`): the program. Its commands take `as_json: Json`, and print by `emit`.
    """
    for info in app.registered_commands:
        if info.callback is not None and _NAME not in inspect.signature(info.callback).parameters:
            info.callback = _with_format(info.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_formats(group.typer_instance)


def _with_format(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def run(**values: Any) -> None:
        chosen = chosen_format(values["as_json"], values.pop(_NAME))
        use_format(chosen)
        command(**{**values, "as_json": chosen == "json"})

    # Typer reads the parameters of a command from its signature and its annotations.
    hints = typing.get_type_hints(command, include_extras=True)
    option = inspect.Parameter(_NAME, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_Format)
    own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values()]
    run.__signature__ = inspect.Signature([*own, option])  # type: ignore[attr-defined]
    run.__annotations__ = {**hints, _NAME: _Format}
    return run
