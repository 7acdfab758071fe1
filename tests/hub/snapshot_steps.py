"""What the tests of snapshots let the client's process do with a model on the Hub."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["HF_TOKEN"] = "hf_owner"
REPO = "org/kept"


def build_and_push(work: str) -> None:
    from conftest import Tiny

    from hf_clamu import ClamuTrainer
    from hf_clamu.training import silent_progress

    options = {"processing_class": Tiny.processor("text"), "progress": silent_progress, "snapshot": True}
    model = ClamuTrainer(Tiny.config("text"), Tiny.tasks("text"), Tiny.arguments(), **options).train()
    model.save_pretrained(f"{work}/local")
    model.push_to_hub(REPO)


def forget(work: str, task_id: str, branch: str | None = None) -> list[dict]:
    """Forget a task of the model on the Hub, push, and return the receipts."""
    from hf_clamu import ClamuModel

    before = Path.cwd()
    os.chdir(work)
    try:
        model = ClamuModel.from_pretrained(REPO)
        model.unmerge_task(task_id)
        model.push_to_hub(revision=branch)
        return list(model.receipts)
    finally:
        os.chdir(before)
