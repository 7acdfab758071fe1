"""Tables that commands write into the docs, between `<!-- generated: NAME -->` and `<!-- end: NAME -->`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def write(page: str, name: str, text: str) -> None:
    """Replace a generated part of a page."""
    path = DOCS / page
    head, _, tail = _cut(path, name)
    path.write_text(f"{head}{text}\n{tail}", encoding="utf-8")


def write_sections(page: str, name: str, sections: Mapping[str, str]) -> None:
    """Replace sections of a generated part of a page, by their headings; the others stay."""
    head, *old = _cut(DOCS / page, name)[1].strip().split("\n\n### ")
    found = {one.partition("\n")[0]: one.partition("\n\n")[2] for one in old} | dict(sections)
    write(page, name, "\n\n".join([head, *(f"### {heading}\n\n{text}" for heading, text in found.items())]))


def _cut(path: Path, name: str) -> tuple[str, str, str]:
    start, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
    head, found, rest = path.read_text(encoding="utf-8").partition(start)
    text, also, tail = rest.partition(end)
    if not found or not also:
        raise SystemExit(f"{path} has no part {start.strip()} … {end}")
    return head + found, text, also + tail


def machine() -> str:
    """Name the machine in a few words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}"
