"""Serves three tasks from threads while a request runs and is saved: what a web server with a deletion job does.

Started with the folder of a saved model, the ids to forget, and a file of the answers that are right: by task, those
before and after the request. Ends with code 3 and a line on stderr if a thread saw another answer or an error.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

TEXT = "great 1 of 2"


def answers(folder: Path, task_ids: list[str]) -> dict[str, float]:
    """Return the score that each task's cluster gives, in a process without other threads."""
    from hf_clamu import ClamuModel, pipeline

    pipe = pipeline("text-classification", ClamuModel.from_pretrained(folder))
    return {task_id: pipe(TEXT, task=task_id)[0]["score"] for task_id in task_ids}


def serve_and_forget(folder: Path, forgotten: list[str], right: dict[str, list[float]]) -> int:
    """Serve from one thread per task until the request is saved; return how many calls went wrong."""
    from hf_clamu import ClamuModel, pipeline

    model = ClamuModel.from_pretrained(folder)
    pipe = pipeline("text-classification", model)
    stop, wrong, served = threading.Event(), [], []

    def serve(task_id: str) -> None:
        while not stop.is_set():
            try:
                score = pipe(TEXT, task=task_id)[0]["score"]
            except Exception as error:
                wrong.append(f"{task_id}: {error!r}")
                return
            served.append(task_id)
            if score not in right[task_id]:
                wrong.append(f"{task_id}: {score} is none of {right[task_id]}")

    threads = [threading.Thread(target=serve, args=(task_id,), daemon=True) for task_id in right]
    for thread in threads:
        thread.start()
    present = [task_id for task_id in forgotten if task_id in model.tasks]
    if present:
        beside = folder.parent
        model.unmerge_task(
            present,
            data=beside / "rows.jsonl",
            journal_dir=beside / f".{folder.name}.journal",
            receipt_dir=beside / "receipts",
        )
        model.save_pretrained(folder)
    stop.set()
    for thread in threads:
        thread.join()
    for line in wrong[:3]:
        sys.stderr.write(line + "\n")
    return len(wrong) if served else 1


if __name__ == "__main__":
    sys.setswitchinterval(1e-5)
    model_folder, ids, expected = sys.argv[1:]
    found = serve_and_forget(Path(model_folder).absolute(), ids.split(","), json.loads(Path(expected).read_text()))
    sys.exit(3 if found else 0)
