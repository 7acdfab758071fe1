"""Training, serving and requests from Python."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tests.oracle.cells import Cell, rows, write_work
from tests.oracle.chains import write_locals
from tests.oracle.steps import Bench

__all__ = ["run_calls", "served"]

_CELLS = (
    Cell(),
    Cell(kind="image", localization="tall", clustering="task_vectors"),
    Cell(kind="lm", localization="emr", clustering="column", space="frozen_a"),
    Cell(kind="words", localization="sift", clustering="none", space="parameters"),
    Cell(kind="seq2seq", localization="global", space="product", keyed=True),
)
_PIPELINES = {"text": "text-classification", "lm": "text-generation", "words": "token-classification"}


def run_calls(bench: Bench, *, quick: bool = False) -> None:
    """Run the calls of each kind; quick, of one."""
    for cell in _CELLS[: 1 if quick else None]:
        _run(bench, cell, f"python-{cell.name}")


def _run(bench: Bench, cell: Cell, name: str) -> None:
    import hf_clamu

    write_work(cell, bench.root / name)
    folder = bench.enter(name)
    recipe = hf_clamu.Recipe.load("recipe.yaml")
    tasks = {key: _tasks(cell, values) for key, values in _rows(cell).items()}
    key = "a secret of the oracle" if cell.keyed else None

    def train() -> Any:
        return hf_clamu.ClamuTrainer(
            recipe.base(),
            tasks["four"],
            recipe.clamu_arguments(),
            processing_class=recipe.processor(tasks["four"].spec.kind),
            task_id_key=key,
            card={"license": "mit", "language": "en"},
            journal_dir="journal",
            archive_dir="vectors",
            progress=lambda items, description: items,
            **cell.peft,
        ).train()

    model = bench.call("train", train)
    bench.call("save", lambda: model.save_pretrained("model") and None)
    bench.answer("served", served(model))
    asked = {"receipt_dir": "receipts", "archive": "vectors"}
    bench.call("unmerge unknown", lambda: model.unmerge_task("user_77"))
    bench.call("add merged", lambda: model.add_task(tasks["four"].select("user_1")))
    bench.call("unmerge", lambda: model.unmerge_task("user_1", **asked))
    bench.call("add", lambda: model.add_task(tasks["five"].select(["user_1", "user_4"]), **asked))
    bench.call("save again", lambda: model.save_pretrained("again"))
    bench.answer("served again", served(model))
    loaded = bench.call("load", lambda: hf_clamu.ClamuModel.from_pretrained("again", task_id_key=key))
    bench.call("update", lambda: loaded.update_task(tasks["changed"], data=tasks["five"], **asked))
    requests = {"request 1": "user_0", "request 2": ["user_3"]}
    bench.call("requests", lambda: loaded.unmerge_requests(requests, data=tasks["now"], journal_dir="later", **asked))
    bench.call("save updated", lambda: loaded.save_pretrained("updated"))
    bench.answer("served updated", served(loaded))
    report = bench.call("verify", lambda: loaded.verify(data=tasks["now"]))
    bench.answer("verify", bool(report))
    bench.answer("receipts", [dict(receipt) for receipt in loaded.receipts])
    bench.call("export", lambda: loaded.export("plain", task="user_2"))
    if cell.space in ("frozen_a", "parameters"):
        bench.call("export adapter", lambda: loaded.export("adapter", task="user_2", merge=False))
    pushed = bench.call("push", lambda: loaded.push_to_hub("owner/pushed", private=True))
    bench.answer("push", sorted(vars(pushed)) if hasattr(pushed, "__dict__") else str(type(pushed).__name__))
    again = bench.call("pull", lambda: hf_clamu.ClamuModel.from_pretrained("owner/pushed", task_id_key=key))
    bench.answer("pulled", served(again))
    bench.call("push erasing", lambda: again.unmerge_task("user_4", data=tasks["now"], receipt_dir="receipts"))
    bench.call("erase", lambda: again.push_to_hub(erase_history=True) and None)
    if cell.kind in _PIPELINES:
        bench.answer("pipeline", bench.call("pipeline", lambda: _answers(cell)))
    if cell.space == "all":
        _merge(bench, folder)


def _merge(bench: Bench, folder: Path) -> None:
    import hf_clamu

    write_locals(folder / "plain", folder / "locals", ("anna", "ben", "carla"))
    found = {name: f"locals/{name}" for name in ("anna", "ben", "carla")}
    settings = hf_clamu.ClamuArguments(localization="tall", clustering="task_vectors", num_clusters=2, num_threads=1)
    some = {name: found[name] for name in ("anna", "ben")}
    merged = bench.call("merge", lambda: hf_clamu.ClamuModel.merge("plain", some, settings))
    bench.call("merge, add", lambda: merged.add_task(checkpoints=found))
    bench.call("merge, unmerge", lambda: merged.unmerge_task("anna", checkpoints=found))
    bench.call("merge, save", lambda: merged.save_pretrained("merged"))
    bench.answer("merge, verify", bool(bench.call("merge, verify", lambda: merged.verify(checkpoints=found))))


def _answers(cell: Cell) -> Any:
    import hf_clamu

    options = {"max_new_tokens": 4, "do_sample": False} if cell.kind == "lm" else {}
    pipe = hf_clamu.pipeline(_PIPELINES[cell.kind], "again", task="user_2")
    found = [pipe("great 7 of 2", **options), pipe("great 7 of 2", task="user_0", **options)]
    return [[_rounded(answer) for answer in answers] for answers in found]


def _rounded(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) for key, value in sorted(answer.items())}


def _rows(cell: Cell) -> dict[str, list[dict[str, Any]]]:
    five, changed = rows(cell.kind, range(5)), rows(cell.kind, range(2, 3), revision=2)
    four = [row for row in five if row["user"] != "user_4"]
    now = [row for row in five if row["user"] != "user_2"] + changed
    return {"four": four, "five": five, "changed": changed, "now": now}


def _tasks(cell: Cell, values: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    import hf_clamu

    return hf_clamu.TaskDataset.from_dataset(Dataset.from_list(values), **cell.columns)


def served(model: Any) -> dict[str, Any]:
    """Return tasks and clusters, and a digest of the weights that each cluster and the global model serve."""
    found: dict[str, Any] = {"tasks": list(model.tasks), "clusters": [list(one) for one in model.clusters]}
    for cluster in (None, *range(len(model.clusters))):
        model.set_cluster(cluster)
        total = hashlib.sha256()
        for name, value in sorted(model.state_dict().items()):
            total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().cpu().contiguous().float().numpy().tobytes())
        found["global" if cluster is None else f"cluster {cluster}"] = total.hexdigest()
    model.set_cluster(None)
    return found
