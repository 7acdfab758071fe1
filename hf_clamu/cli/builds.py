"""What `train` and `merge` print about a build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_clamu.cli.output import emit

__all__ = ["report_build"]


def report_build(output: Path, summary: Mapping[str, Any], seconds: Mapping[str, float], as_json: bool) -> None:
    """Print what was built.

    Args:
        output (`Path`): folder of the model.
        summary (*mapping*): see `build_summary`.
        seconds (*mapping* of `str` to `float`): durations.
        as_json (`bool`): print one JSON object.
    """
    emit(
        as_json,
        {**summary, "output": str(output), "seconds": dict(seconds)},
        lambda: _build_text(output, summary, seconds["total"]),
    )


def _build_text(output: Path, summary: Mapping[str, Any], seconds: float) -> str:
    lines = [
        f"Merged {summary['num_tasks']} tasks into {output}: {summary['num_clusters']} clusters, alpha "
        f"{summary['alpha']:.4g}, {seconds:.0f} s."
    ]
    if summary["scores"] is not None:
        shown = ", ".join(f"{name} {100 * score:.1f} %" for name, score in summary["scores"].items())
        lines.append(f"Scores on the validation rows: {shown}.")
    return "\n".join(lines)
