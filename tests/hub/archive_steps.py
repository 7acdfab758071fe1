"""What the tests of an archive on the Hub let the client's process do: `tiny` models, built and changed there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
# Each step names whoever is logged in, as `hf auth login` would.
os.environ["HF_TOKEN"] = "hf_owner"


def build(place: str, output: str, without: tuple[str, ...] = (), journal: str | None = None) -> None:
    from conftest import Tiny

    from hf_clamu import ClamuTrainer
    from hf_clamu.training import silent_progress

    tasks = Tiny.tasks("text").without(without)
    options = {"processing_class": Tiny.processor("text"), "progress": silent_progress, "journal_dir": journal}
    config = Tiny.config("text")
    ClamuTrainer(config, tasks, Tiny.arguments(), archive_dir=place or None, **options).train().save_pretrained(output)


def request(folder: str, output: str, place: str, **options: str) -> list[dict]:
    """Unmerge, add or update one task, save, and return the receipts."""
    from conftest import Tiny

    from hf_clamu import ClamuModel

    model, tasks = ClamuModel.from_pretrained(folder), Tiny.tasks("text")
    for kind, task_id in options.items():
        if kind == "unmerge":
            model.unmerge_task(task_id, data=tasks.without(task_id), archive=place, journal_dir=output + ".journal")
        else:
            model.add_task(tasks.select(task_id), data=tasks.without(task_id), archive=place)
    model.save_pretrained(output)
    return list(model.receipts)


def settle(journal: str, after: str, place: str, receipts: str) -> bool:
    """Do as the next command does that changes the model and names the archive."""
    from hf_clamu.hub.archive import archive_at
    from hf_clamu.operations.lifecycle import recovery
    from hf_clamu.storage import Journal

    options = {"merged": set(), "receipt_dir": Path(receipts), "archive": archive_at(place)}
    return bool(recovery.recover_pending(Journal(Path(journal)), {after}, **options).changes)


def command(*words: str) -> int:
    from hf_clamu.cli import main

    return main(words)
