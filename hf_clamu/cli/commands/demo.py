"""`clamu demo`: the whole story on handwritten digits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_clamu.cli.options import Json
from hf_clamu.cli.output import emit, note, quieten, table
from hf_clamu.cli.terminal.bars import progress_bars
from hf_clamu.cli.terminal.program import command_line

__all__ = ["demo", "demo_text"]


def demo(
    output: Annotated[Path, typer.Option(help="New folder for data, models, receipts and figures.")] = Path(
        "clamu-demo"
    ),
    as_json: Json = False,
) -> None:
    """Show the whole story on real handwritten digits, without network: three minutes, more on a busy or slow machine.

    Ten ways to serve 48 owners are built and measured, three owners are forgotten one by one, and the result is
    compared with a build without them, byte for byte.
    """
    from hf_clamu.demo import run_demo

    quieten()
    result = run_demo(output, progress=progress_bars, say=note)
    model = output / "model"
    then = [command_line("unmerge", model, "owner_00"), command_line("verify", model)]
    emit(as_json, result, lambda: demo_text(output, result), quiet=[str(output)], then=then)
    if not result["identical"] or result["audit"]["verdict"] != "proven":
        raise typer.Exit(1)


def demo_text(output: Path, result: dict[str, Any]) -> str:
    """Return the result of the demo as readable lines."""
    from hf_clamu.demo.table import COLUMNS, footnote, table_rows

    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in result["seconds"].items())
    proof = "identical" if result["identical"] else "DIFFERENT"
    retained = {when: f"{100 * score:.1f} %" for when, score in result["retained_accuracy"].items()}
    rows = [tuple(cell.replace("`", "") for cell in row) for row in table_rows(result)]
    lines = [
        f"{result['num_tasks']} owners with two digits each; {result['num_parameters']:,} weights; the preset "
        f"clusters has {result['num_clusters']} masks",
        "",
        table(COLUMNS, rows),
        "",
        footnote(result).replace("\\*", "*"),
        "",
        f"Forgot {', '.join(result['unmerged_tasks'])}: {output / 'unmerged'} and {output / 'rebuilt'} (built without "
        f"them) are {proof} in all {result['files_compared']} files, byte for byte.",
        _audit_text(result["audit"], result["unmerged_tasks"][0]),
        f"Held-out accuracy of the other {result['num_tasks'] - len(result['unmerged_tasks'])} tasks: "
        f"{retained['before']} before, {retained['after']} after it.",
        f"Seconds: {seconds}.",
        f"Figures: {', '.join(str(output / name) for name in result['figures'])}.",
    ]
    return "\n".join(lines)


def _audit_text(audit: Mapping[str, Any], owner: str) -> str:
    (found,) = [check["text"] for check in audit["checks"] if check["name"] == "difference"]
    return (
        f"Audit of the request of {owner}, without any rows, {audit['seconds']:.1f} s: {audit['verdict']}. What left "
        f"the merged delta is {found}."
    )
