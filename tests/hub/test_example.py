"""The example of a round trip runs as it stands, and says so when something does not hold."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "hub_round_trip.py"


def _run(tmp_path, **settings):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment = {**kept, "TMPDIR": str(tmp_path), "HF_HOME": str(tmp_path / "home"), **settings}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert list(tmp_path.glob("clamu-*")) == []
    return done


def test_the_round_trip(tmp_path):
    done = _run(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    checks = [line for line in done.stdout.splitlines() if not line.startswith("     ")]
    assert len(checks) == 11
    assert all(line.startswith("ok   ") for line in checks)
    assert "for a shop 'delivery'" in checks[1]
    assert "byte for byte a build that never had it (13 files)" in done.stdout
    assert "answers [404] for them" in done.stdout
    # The server went with the script.
    address = next(line for line in done.stdout.splitlines() if "http://127.0.0.1:" in line).strip()
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(address.split("/owner/")[0])


def test_what_does_not_hold_is_said(double, tmp_path):
    local = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
    double.arm("resolve", "status", status=404, path="*/delta.safetensors")
    done = _run(tmp_path, HF_ENDPOINT=double.url, HF_TOKEN="hf_owner", **local)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "FAIL the first push answers with all its weights"
    # What it made is gone again.
    assert double.count("create_repo") > 0
    assert double.repos == {}
