"""`clamu demo`: the whole story on handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_clamu.cli.options import Json
from hf_clamu.cli.output import emit, note, quieten, table

__all__ = ["demo", "demo_text"]


def demo(
    output: Annotated[Path, typer.Option(help="New folder for data, models, receipts and figures.")] = Path(
        "clamu-demo"
    ),
    as_json: Json = False,
) -> None:
    """Show the whole story on real handwritten digits, without network, in about two minutes."""
    from hf_clamu.demo import run_demo

    quieten()
    result = run_demo(output, say=note)
    emit(as_json, result, lambda: demo_text(output, result))
    if not result["identical"]:
        raise typer.Exit(1)


def demo_text(output: Path, result: dict[str, Any]) -> str:
    """Return the result of the demo as readable lines."""
    one = 4 * result["num_parameters"]
    rows = [
        (
            name,
            f"{100 * score:.1f} %",
            f"{result['storage_bytes'][name] / one:.2f}",
            _number(result["alpha"].get(name)),
        )
        for name, score in result["accuracy"].items()
    ]
    seconds = ", ".join(f"{stage} {value:.0f}" for stage, value in result["seconds"].items())
    proof = "identical" if result["identical"] else "DIFFERENT"
    retained = {when: f"{100 * score:.1f} %" for when, score in result["retained_accuracy"].items()}
    lines = [
        f"{result['num_tasks']} tasks with two labels each, {result['num_clusters']} clusters, "
        f"{result['num_parameters']:,} weights",
        "",
        table(("method", "held-out accuracy", "stored models", "alpha"), rows),
        "",
        f"Forgot {', '.join(result['unmerged_tasks'])}: {output / 'unmerged'} and {output / 'rebuilt'} (built without "
        f"them) are {proof} in all {result['files_compared']} files, byte for byte.",
        f"Held-out accuracy of the other {result['num_tasks'] - len(result['unmerged_tasks'])} tasks: "
        f"{retained['before']} before, {retained['after']} after it.",
        f"Seconds: {seconds}.",
    ]
    if result["figures"]:
        lines.append(f"Figures: {', '.join(str(output / name) for name in result['figures'])}.")
    else:
        lines.append("No figures: matplotlib is not installed (pip install 'hf-clamu[plots]').")
    lines.append(f"Next: clamu unmerge {output / 'model'} owner_00; clamu verify {output / 'model'}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
