"""What `train` and `merge` print about a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_clamu.cli.output import emit
from hf_clamu.cli.terminal.program import command_line
from hf_clamu.resources import peak_memory, size_of_files

__all__ = ["report_build"]


def report_build(
    output: Path,
    summary: Mapping[str, Any],
    seconds: Mapping[str, float] | None,
    as_json: bool,
    *,
    data: Sequence[Path] | None = None,
) -> None:
    """Print what was built.

    Args:
        output (`Path`): folder of the model.
        summary (*mapping*): see `build_summary`.
        seconds (*mapping* of `str` to `float`, *optional*): durations by stage, and their `total`; `None` if an
            earlier run of the command has built it.
        as_json (`bool`): print one JSON object.
        data (*sequence* of `Path`, *optional*): files of rows that were given instead of those that the recipe names.
    """
    used = None if seconds is None else _resources(output, summary["num_tasks"], seconds["total"])
    emit(
        as_json,
        {**summary, "output": str(output), "seconds": dict(seconds or {"total": 0.0}), "resources": used},
        lambda: _build_text(output, summary, seconds or {"total": 0.0}, used),
        then=[_next_command(output, summary, data)],
    )


def _next_command(output: Path, summary: Mapping[str, Any], data: Sequence[Path] | None) -> str:
    if summary["scores"] is None:
        return command_line("info", output)
    files = [word for file in data or () for word in ("--data", str(file))]
    return command_line("evaluate", output, *files, *(("--split", "validation") if files else ()))


def _resources(output: Path, num_tasks: int, total: float) -> dict[str, float | None]:
    return {
        "tasks_per_second": num_tasks / total,
        "bytes_written": size_of_files(output),
        "peak_memory_bytes": peak_memory(),
    }


def _build_text(
    output: Path,
    summary: Mapping[str, Any],
    seconds: Mapping[str, float],
    used: Mapping[str, float | None] | None,
) -> str:
    lines = [
        f"Merged {summary['num_tasks']} tasks into {output}: {summary['num_clusters']} clusters, alpha "
        f"{summary['alpha']:.4g}, {seconds['total']:.0f} s."
    ]
    if used is not None:
        lines.append(_resources_text(seconds, used))
    if summary["scores"] is not None:
        shown = ", ".join(f"{name} {100 * score:.1f} %" for name, score in summary["scores"].items())
        lines.append(f"Scores on the validation rows: {shown}.")
    return "\n".join(lines)


def _resources_text(seconds: Mapping[str, float], used: Mapping[str, float | None]) -> str:
    """Return where the time went, the longest stages first, and what else was used."""
    from hf_clamu.planning.units import size_text

    stages = sorted((taken, name) for name, taken in seconds.items() if name != "total" and round(taken, 1) > 0)
    parts = ", ".join(f"{name} {taken:.1f}" for taken, name in reversed(stages))
    peak = used["peak_memory_bytes"]
    return (
        f"{f'Seconds: {parts}. ' if parts else ''}{used['tasks_per_second']:.3g} tasks per second, "
        f"{size_text(used['bytes_written'] or 0)} written"
        + (f", {size_text(peak)} of memory at most." if peak is not None else ".")
    )
