"""Time and memory of builds with more and more tasks and clusters."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.benchmarks.rows import Size


def measure_growth(size: Size) -> list[dict[str, Any]]:
    """Build each in a process of its own."""
    found = []
    for tasks, clusters in size.growth:
        command = [sys.executable, "-m", "tests.benchmarks.scaling", "--one", "--tasks", str(tasks)]
        command += ["--clusters", str(clusters), "--base", json.dumps({"model_type": "gpt2", **size.small})]
        done = subprocess.run([*command, "--localization", "clamu"], stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found
