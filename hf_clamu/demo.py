"""The whole story in two minutes, without network: `clamu demo`.

Handwritten digits of scikit-learn; a small ViT pretrained on a public half; 48 data owners with two of the ten labels
each; merge, cluster, localize, serve, forget three of them, build again without them, compare every byte.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.loading import load_base
from hf_clamu.checkpoint.comparison import compare_folders
from hf_clamu.errors import RecipeError
from hf_clamu.evaluation import MethodScore, compare_methods, evaluate_model
from hf_clamu.models.modeling_clamu import ClamuModel
from hf_clamu.recipe import Recipe
from hf_clamu.tasks import TaskDataset, digits, digits_public, load_tasks
from hf_clamu.trainer import ClamuTrainer, progress_bars
from hf_clamu.training import Progress, derive_seed, deterministic, sample_batches, seeded

__all__ = ["RECIPE", "run_demo", "write_data"]

_FORGOTTEN = ("owner_07", "owner_19", "owner_33")
_HELD_OUT = 0.3
_VIT: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_PRETRAIN_STEPS = 80
_PRETRAIN_BATCH = 64
_PRETRAIN_LEARNING_RATE = 2e-3

RECIPE = """\
# What `clamu demo` trains. Try it with other settings: clamu train {folder}/recipe.yaml --output {folder}/again
base_model: base
data:
  files: data/train.jsonl
  task_column: task
  image_column: image
  label_column: label
  id_column: id
  label_names: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
arguments:
  num_clusters: 6
  clustering: features
  localization: clamu
  scaling: auto            # the same search for every method that the demo compares
  finetune_steps: 20
  learning_rate: 1.0e-3
  batch_size: 20
  mask_steps: 30
  mask_batch_size: 64
  num_threads: 1           # so small a model gains nothing from a second thread
"""


def run_demo(
    output: str | Path, *, progress: Progress = progress_bars, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Run the demo and leave everything it made in a folder.

    Args:
        output (`str` or `Path`): a new or empty folder. Gets `recipe.yaml`, `data/`, `base/`, `model/` (as trained),
            `unmerged/`, `rebuilt/`, `receipts/` and, with matplotlib, `figures/`.
        progress (`Progress`, *optional*): shows how far it is.
        say (*callable*, *optional*): receives a line about each stage.

    Returns:
        *dict*: `num_tasks`, `num_clusters`, `num_parameters`, `accuracy`, `alpha`, `storage_bytes`, `unmerged_tasks`,
        `retained_accuracy` (`before` and `after` the forgetting), `identical`, `files_compared`, `seconds`, `figures`.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RecipeError(f"{output} already exists and is not empty. Give a new folder (--output).")
    started = time.perf_counter()
    recipe = _prepare(output, say)

    say("Finetuning each owner, merging, clustering, learning a mask per cluster")
    trainer = recipe.trainer(progress=progress)
    model = trainer.train()
    model.save_pretrained(output / "model")

    say("Measuring on held-out examples, and what the other methods give on the same clusters")
    test = load_tasks({**recipe.data, "files": "data/test.jsonl"}, base_dir=output)
    result = _sizes(model) | _scores(_compare(trainer, model, test, progress))

    say(f"Forgetting {', '.join(_FORGOTTEN)}")
    unmerged, unmerge_seconds = _forget(output, progress)
    retained = test.without(_FORGOTTEN)
    result["unmerged_tasks"] = list(_FORGOTTEN)
    result["retained_accuracy"] = {
        "before": evaluate_model(model, retained).score,
        "after": evaluate_model(unmerged, retained).score,
    }

    say("Building again without them, and comparing every byte")
    rebuild_seconds = _rebuild(output, trainer, progress)
    report = compare_folders(output / "unmerged", output / "rebuilt")
    result |= {"identical": report.identical, "files_compared": report.files_compared}
    result["seconds"] = {
        "finetune": trainer.seconds["finetune"],
        "localize": trainer.seconds["localize"],
        "unmerge": unmerge_seconds,
        "rebuild": rebuild_seconds,
        "total": time.perf_counter() - started,
    }
    result["figures"] = _draw(output, result, model)
    result["seconds"]["total"] = time.perf_counter() - started
    return result


def _prepare(output: Path, say: Callable[[str], None]) -> Recipe:
    """Write the owners' rows, a pretrained base model and the recipe."""
    output.mkdir(parents=True, exist_ok=True)
    say("Cutting scikit-learn's digits into 48 data owners with two labels each")
    write_data(output / "data")
    say("Pretraining a small ViT on the public half")
    _pretrain(output / "base")
    (output / "recipe.yaml").write_text(RECIPE.format(folder=output.name), encoding="utf-8")
    return Recipe.load(output / "recipe.yaml")


def _sizes(model: Any) -> dict[str, Any]:
    return {
        "num_tasks": len(model.tasks),
        "num_clusters": len(model.clusters),
        "num_parameters": model.num_parameters(),
    }


def _scores(scores: Mapping[str, MethodScore]) -> dict[str, Any]:
    return {
        "accuracy": {name: method.score for name, method in scores.items()},
        "alpha": {name: method.alpha for name, method in scores.items() if method.alpha is not None},
        "storage_bytes": {name: method.storage_bytes for name, method in scores.items()},
    }


def _forget(output: Path, progress: Progress) -> tuple[Any, float]:
    """Unmerge three owners from the saved model; return the result, and the seconds from loading to saving."""
    started = time.perf_counter()
    model = ClamuModel.from_pretrained(output / "model")
    model.unmerge_task(_FORGOTTEN, receipt_dir=output / "receipts", progress=progress)
    model.save_pretrained(output / "unmerged")
    return model, time.perf_counter() - started


def _rebuild(output: Path, trainer: ClamuTrainer, progress: Progress) -> float:
    """Build from the other owners' rows alone; return the seconds that it takes."""
    started = time.perf_counter()
    without = ClamuTrainer(str(output / "base"), trainer.tasks.without(_FORGOTTEN), trainer.args, progress=progress)
    without.train().save_pretrained(output / "rebuilt")
    return time.perf_counter() - started


def write_data(folder: Path) -> None:
    """Write each owner's rows, 30 % of them (by a hash of the row's id) held out."""
    folder.mkdir()
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in digits(num_tasks=48):
        rows.setdefault(row["task"], []).append(row)
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for task_id in sorted(rows):
        ranked = sorted(rows[task_id], key=lambda row: hashlib.sha256(f"{row['task']}/{row['id']}".encode()).digest())
        cut = round(_HELD_OUT * len(ranked))
        parts["test"] += ranked[:cut]
        parts["train"] += ranked[cut:]
    for name, part in parts.items():
        lines = [json.dumps({**row, "label": str(row["label"])}) + "\n" for row in part]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _pretrain(folder: Path) -> None:
    """Pretrain the ViT on the public half; its head is thrown away, so the merged models start from a fresh one."""
    import transformers

    images, labels = digits_public()
    pixels, targets = torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    seed = derive_seed(0, "demo-pretrain")
    with deterministic(1), seeded(seed):
        config: Any = transformers.AutoConfig.for_model("vit", **_VIT, num_labels=10)
        model = transformers.ViTForImageClassification(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=_PRETRAIN_LEARNING_RATE, weight_decay=0.0, fused=True)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.05, total_iters=20)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=_PRETRAIN_STEPS)
        for batch in sample_batches(range(len(pixels)), _PRETRAIN_BATCH, _PRETRAIN_STEPS, seed):
            rows = torch.tensor(list(batch))
            model(pixel_values=pixels[rows], labels=targets[rows]).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            warmup.step()
            decay.step()
    model.vit.save_pretrained(folder)


def _compare(trainer: ClamuTrainer, model: Any, test: TaskDataset, progress: Progress) -> dict[str, MethodScore]:
    base = load_base(
        trainer.model, trainer.tasks.spec, num_labels=trainer.tasks.num_labels, run_seed=trainer.args.seed
    )
    held_out = {task_id: test.encode(task_id, None).train for task_id in test.task_ids}
    scores = compare_methods(base, trainer.tasks, model.clusters, trainer.args, held_out, progress=progress)
    own = evaluate_model(model, test)
    mask_bytes = (model.num_parameters() + 7) // 8 * len(model.clusters)
    scores["clamu"] = MethodScore(
        score=own.score, alpha=model.clamu_config.alpha, storage_bytes=4 * model.num_parameters() + mask_bytes
    )
    return scores


def _draw(output: Path, result: dict[str, Any], model: Any) -> list[str]:
    """Draw the figures if matplotlib is there; return their paths inside the folder."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return []
    from hf_clamu.evaluation.figures import draw_demo

    return draw_demo(output / "figures", result, model)
