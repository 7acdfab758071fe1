"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Data", "Json"]

Data = Annotated[
    list[Path] | None,
    typer.Option(
        help="File of the tasks' rows, instead of those that the recipe names; may be repeated.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
