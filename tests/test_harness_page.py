"""docs/how-to/harnesses.md, run for real where the harnesses are installed: `pip install lm-eval lighteval`."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "harnesses.md"
_BLOCK = re.compile(r"(?:<!-- skip: needs (\w+) -->\n)?```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def test_the_page_has_a_block_for_each_harness():
    assert [package for package, _ in _BLOCK.findall(PAGE.read_text(encoding="utf-8"))] == ["", "lm_eval", "lighteval"]


@pytest.mark.parametrize("package", ["lm_eval", "lighteval"])
def test_a_cluster_is_measured_by_a_harness(package, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install lm-eval lighteval")
    code = [text for needs, text in _BLOCK.findall(PAGE.read_text(encoding="utf-8")) if needs in ("", package)]
    # In a process of its own: lighteval turns gradients off for good.
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scores = dict(re.findall(r"^(user_\d) (\d\.\d+)$", done.stdout, flags=re.MULTILINE))
    # Rows of user_1, who means the opposite of user_0.
    assert scores == {"user_0": "0.0", "user_1": "1.0"}
