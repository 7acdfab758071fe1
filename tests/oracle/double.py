"""The double of the Hub in this process, and an environment that knows no other Hub."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["hub_files", "start_hub"]


def start_hub(home: Path) -> Any:
    """Start the double and point this process at it, before anything imports huggingface_hub."""
    assert "huggingface_hub" not in sys.modules, "huggingface_hub reads its settings when it is imported"
    path = Path(__file__).parents[1] / "hub_double.py"
    spec = importlib.util.spec_from_file_location("oracle_hub_double", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["oracle_hub_double"] = module  # where its dataclasses look for their module
    spec.loader.exec_module(module)
    hub = module.HubDouble().start()
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "CLAMU_"))]:
        del os.environ[name]
    os.environ |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_owner",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    return hub


def hub_files(hub: Any) -> dict[str, str]:
    """Return the SHA-256 of every file at the head of every branch, and how many commits led there."""
    found = {}
    with hub.lock:
        for name, repo in sorted(hub.repos.items()):
            for branch, head in sorted(repo.branches.items()):
                place = f"hub:{name}@{branch}"
                found[place] = f"{len(repo.history(head))} commits, private {repo.private}, tags {sorted(repo.tags)}"
                for path in repo.commits[head].files:
                    found[f"{place}/{path}"] = hashlib.sha256(hub.content(name, path, branch)).hexdigest()
    return found
