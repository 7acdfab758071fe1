"""What a request does to everybody else: each task is forgotten alone, under every clustering and localization.

    python -m examples.stability --work FOLDER --output docs/stability.md

Task vectors are finetuned once for each setting; the rest is what `unmerge` derives, by the same code. Forgetting is
exact, so what is measured is also the difference between two builds.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch

from examples.paper.bases import load_setting_base
from examples.paper.scale import Scale
from examples.paper.scale import Setting as PaperSetting
from examples.paper.sources import VIEWS, load_setting_tasks
from hf_clamu.base_models.loading import load_base
from hf_clamu.demo.preparation import prepare
from hf_clamu.exact import DeltaAccumulator, TaskVector
from hf_clamu.merging import PRESETS, ClamuArguments, MergedState, TaskRecord, place_anchors
from hf_clamu.merging.derivation import derive
from hf_clamu.merging.state import PartialState
from hf_clamu.operations.context import open_trainer
from hf_clamu.operations.resolution import resolved_arguments
from hf_clamu.recipe import Recipe
from hf_clamu.tasks import PUBLIC_TASK, Example, digits_public, load_tasks, public_rows, stdlib_public
from hf_clamu.training import TaskTrainer, deterministic, example_features

__all__ = [
    "SETTINGS",
    "WAYS",
    "Row",
    "Setting",
    "answered",
    "answers_of",
    "derived",
    "keep_row",
    "kept_rows",
    "measure",
    "open_setting",
    "page",
    "partial_state",
    "write_tables",
]

SETTINGS = {
    "demo": "48 owners of `clamu demo`, two digits and a scanner each",
    "images_label": "48 tasks, two digits each in one of three views ([paper](paper.md), ii)",
    "images_task": "48 tasks, all digits each in one of three views ([paper](paper.md), i)",
    "reddit_cls": "48 users, two packages of docstrings each ([paper](paper.md), iv)",
}
_CLUSTERINGS = ("features", "task_vectors", "stable_kmeans", "anchored", "public_rows", "random")
# How masks are made: as the preset `clusters` does, or in the short way of before, whose steps the command line gives.
_BEFORE = {"scaling": 4.0, "mask_gradient_norm": "raw", "mask_factors": "none"}
MASKS: dict[str, dict[str, Any]] = {
    "preset": {name: PRESETS["clusters"].settings[name] for name in (*_BEFORE, "mask_steps")},
    "before": _BEFORE,
    "plain": {"scaling": 1.0},
}
# Localization, clustering, masks, and how many of the requests are measured (all if 0).
Way = tuple[str, str, str, int]
WAYS: tuple[Way, ...] = (
    *(("clamu", clustering, "before", 0) for clustering in _CLUSTERINGS),
    *(("clamu", clustering, "preset", 0) for clustering in ("stable_kmeans", "features", "anchored")),
    ("clamu", "none", "before", 6),
    *((name, clustering, "before", 0) for name in ("emr", "tall") for clustering in _CLUSTERINGS),
    *(("sift", clustering, "plain", 0) for clustering in (*_CLUSTERINGS, "none")),
    ("global", "none", "plain", 0),
)
_PLACES = {way[:3]: place for place, way in reversed(list(enumerate(WAYS)))}
RowT = TypeVar("RowT")
_MARK = "<!-- The table below is written by examples/stability.py. -->\n"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A live model with the tasks of a setting, and rows that no training saw.

    Args:
        trainer (`TaskTrainer`): live model and data.
        arguments (`ClamuArguments`): how tasks are finetuned.
        held_out (*dict* of `str` to *sequence* of `Example`): per task.
        processor (*optional*): tokenizer or image processor.
    """

    trainer: TaskTrainer
    arguments: ClamuArguments
    held_out: dict[str, Sequence[Example]]
    processor: Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """What requests for one task did to the others, means over the requests unless the name says `worst`.

    Args:
        setting, localization, clustering, masks (`str`): what was measured.
        requests (`int`): how many.
        score (`float`): accuracy on held-out rows before, mean over all tasks.
        similarity (`float`): adjusted Rand index of the others' clusters before and after.
        moved (`float`), worst_moved (`int`): others that share their cluster with others than before.
        changed (`float`), worst_changed (`int`): others of whose held-out rows at least one is answered otherwise.
        drop (`float`): loss of accuracy, mean over the others (below 0: a gain).
        worst_drop (`float`): the largest loss of any of the others.
        kept_names (`float`): share of the others whose cluster is called as before.
    """

    setting: str
    localization: str
    clustering: str
    masks: str
    requests: int
    score: float
    similarity: float
    moved: float
    worst_moved: int
    changed: float
    worst_changed: int
    drop: float
    worst_drop: float
    kept_names: float


class _Trainer(TaskTrainer):
    """Finetunes a task once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._vectors: dict[str, TaskVector] = {}

    def vector(self, task_id: str) -> TaskVector:
        """Return the task's vector."""
        if task_id not in self._vectors:
            lent = super().vector(task_id)
            self._vectors[task_id] = TaskVector.of({name: steps.clone() for name, steps in lent.steps.items()})
        return self._vectors[task_id]


def open_setting(name: str, work: Path, mask_steps: int, *, has_signs: bool = False, seed: int = 0) -> Setting:
    """Load or make the base model and tasks of a setting.

    Args:
        name (`str`): one of `SETTINGS`.
        work (`Path`): keeps base models.
        mask_steps (`int`): steps of mask training.
        has_signs (`bool`): tasks are finetuned under fixed signs, as SIFT needs it.
        seed (`int`): of the run; the paper's settings draw base model and tasks by it, too.
    """
    if name == "demo":
        folder = work / "demo"
        if not folder.is_dir():
            prepare(folder)
        recipe = Recipe.load(folder / ("recipe.yaml" if has_signs else "recipe-clusters.yaml"))
        tasks, given = recipe.tasks(), recipe.clamu_arguments()
        test = load_tasks({**recipe.data, "files": "data/test.jsonl"}, base_dir=folder)
        base = load_base(str(folder / "base"), tasks.spec, num_labels=tasks.num_labels, run_seed=given.seed)
        held_out = {task_id: test.encode(task_id, None).train for task_id in test.task_ids}
    else:
        setting = _smaller(Scale.load("local").settings[name])
        tasks, given = load_setting_tasks({**setting.data, "num_tasks": 48}, seed, {}), setting.settings(seed)
        base = load_setting_base(setting, tasks, work / f"bases-{seed}", seed, {})
        held_out = {task_id: tasks.encode(task_id, base.processor).validation for task_id in tasks.task_ids}
    localization = "sift" if has_signs else "clamu"
    changes: dict[str, Any] = {"localization": localization, "num_clusters": 6, "mask_steps": mask_steps}
    arguments = replace(given, **changes, seed=seed, score_validation=False)
    arguments = resolved_arguments(arguments, base.model, None)
    workspace = open_trainer(base.model, base.processor, tasks, arguments).workspace
    public = public_rows(_public(name), tasks.spec).encode(PUBLIC_TASK, base.processor).train
    anchors = place_anchors(example_features(workspace, public), arguments.num_clusters, arguments.seed)
    trainer = _Trainer(workspace, tasks, base.processor, arguments, arguments.codec, anchors=anchors)
    return Setting(trainer=trainer, arguments=arguments, held_out=held_out, processor=base.processor)


def _public(name: str) -> list[dict[str, Any]]:
    """Return rows that no task has, as many kinds of them as the tasks have."""
    if name == "reddit_cls":
        return [{"text": text} for text in stdlib_public()[0]]
    images = torch.from_numpy(digits_public()[0][::4])
    views = [lambda image, turns=turns: image.rot90(turns, (-2, -1)) for turns in range(4)]
    seen = views if name == "demo" else [view for _, view in VIEWS]
    return [{"image": view(image).tolist()} for view in seen for image in images]


def _smaller(setting: PaperSetting) -> PaperSetting:
    """Return a setting whose texts are so short that 48 requests do not take hours; images are small already."""
    if setting.data["source"] != "stdlib":
        return setting
    arguments = {**setting.arguments, "mask_batch_size": 16}
    return replace(setting, data={**setting.data, "max_length": 24}, arguments=arguments)


def measure(name: str, setting: Setting, ways: Iterable[Way], limit: int) -> Iterator[Row]:
    """Forget each task alone, under each way, and yield what it did.

    Args:
        name (`str`): of the setting.
        setting (`Setting`): opened.
        ways (*iterable* of *tuple*): entries of `WAYS` whose localizations finetune tasks alike.
        limit (`int`): at most so many requests.
    """
    for localization, clustering, masks, count in ways:
        changes: dict[str, Any] = {"localization": localization, "clustering": clustering, **MASKS[masks]}
        arguments = replace(setting.arguments, **changes)
        requests = setting.trainer.tasks.task_ids[: min(limit, count or limit)]
        measured = _measured(setting, arguments, partial_state(setting, arguments), requests)
        yield Row(setting=name, localization=localization, clustering=clustering, masks=masks, **measured)


def partial_state(setting: Setting, arguments: ClamuArguments) -> PartialState:
    """Return what is kept of all tasks."""
    trainer, method = setting.trainer, arguments.clustering_method
    records, features, masks = {}, {}, {}
    for task_id in trainer.tasks.task_ids:
        vector, data = trainer.vector(task_id), trainer.encoded(task_id)
        records[task_id] = TaskRecord(
            vector_digest=vector.digest,
            data_digest=data.digest,
            num_train=len(data.train),
            num_validation=len(data.validation),
            bounds=vector.bounds,
        )
        if method.feature_source == "data":
            features[task_id] = method.data_feature(trainer, task_id)
        elif method.feature_source == "task_vector":
            features[task_id] = method.vector_feature(vector, arguments.seed)
        if arguments.localization_method.keeps_task_masks:
            masks[task_id] = arguments.localization_method.task_mask(vector)
    return PartialState(total=None, records=records, features=features, masks=masks, base_features={})


def derived(setting: Setting, arguments: ClamuArguments, whole: PartialState, gone: str | None) -> MergedState:
    """Return the state of all tasks but one."""
    trainer = setting.trainer

    def total(task_ids: Iterable[str]) -> DeltaAccumulator:
        added = DeltaAccumulator(trainer.workspace.shapes)
        for task_id in task_ids:
            added.add(trainer.vector(task_id))
        return added

    kept = [task_id for task_id in whole.records if task_id != gone]
    partial = PartialState(
        total=total(kept),
        records={task_id: whole.records[task_id] for task_id in kept},
        features={task_id: row for task_id, row in whole.features.items() if task_id != gone},
        masks={task_id: mask for task_id, mask in whole.masks.items() if task_id != gone},
        base_features={},
    )
    return derive(partial, trainer, arguments, lambda members: total(members).narrowed())


@torch.no_grad()
def answered(setting: Setting, task_id: str) -> tuple[list[int], float]:
    """Return the live model's answers to a task's held-out rows, and their accuracy."""
    workspace = setting.trainer.workspace
    workspace.model.eval()
    batch = workspace.batch(setting.held_out[task_id])
    labels = batch.pop("labels")
    answers = workspace.forward(batch).logits.argmax(-1)
    return answers.tolist(), float((answers == labels).float().mean())


def answers_of(setting: Setting, state: MergedState) -> dict[str, tuple[list[int], float]]:
    """Return the answers to each task's held-out rows by its own cluster, and its accuracy."""
    found = {}
    for number, members in enumerate(state.clusters):
        setting.trainer.load_masked(state.delta, state.served_alpha, state.mask(number))
        found.update({task_id: answered(setting, task_id) for task_id in members})
    return found


def _measured(
    setting: Setting, arguments: ClamuArguments, whole: PartialState, requests: Sequence[str]
) -> dict[str, Any]:
    from sklearn.metrics import adjusted_rand_score

    before = derived(setting, arguments, whole, None)
    answers = answers_of(setting, before)
    measured: dict[str, list[float]] = {key: [] for key in ("similarity", "moved", "changed", "drop", "worst", "kept")}
    for gone in requests:
        after = derived(setting, arguments, whole, gone)
        others, now = after.task_ids, answers_of(setting, after)
        old, new = ([state.cluster_of(task_id) for task_id in others] for state in (before, after))
        drops = [answers[task_id][1] - now[task_id][1] for task_id in others]
        mates = {task_id: set(before.clusters[number]) - {gone} for task_id, number in zip(others, old, strict=True)}
        measured["similarity"].append(adjusted_rand_score(old, new))
        measured["moved"].append(
            sum(mates[task_id] != set(after.clusters[number]) for task_id, number in zip(others, new, strict=True))
        )
        measured["changed"].append(sum(answers[task_id][0] != now[task_id][0] for task_id in others))
        measured["drop"].append(fmean(drops))
        measured["worst"].append(max(drops))
        names = (before.cluster_names[a] == after.cluster_names[b] for a, b in zip(old, new, strict=True))
        measured["kept"].append(fmean(names))
    return {
        "requests": len(requests),
        "score": fmean(score for _, score in answers.values()),
        "similarity": fmean(measured["similarity"]),
        "moved": fmean(measured["moved"]),
        "worst_moved": int(max(measured["moved"])),
        "changed": fmean(measured["changed"]),
        "worst_changed": int(max(measured["changed"])),
        "drop": fmean(measured["drop"]),
        "worst_drop": max(measured["worst"]),
        "kept_names": fmean(measured["kept"]),
    }


def page(rows: Sequence[Row]) -> str:
    """Return the tables, one for each setting."""
    columns = ["localization", "clustering", "masks", "requests", "accuracy", "ARI", "moved (most)"]
    columns += ["answers changed (most)", "mean drop", "worst drop", "names kept"]
    parts = []
    for name, of_setting in itertools.groupby(rows, key=lambda row: row.setting):
        lines = [columns, ["---"] * len(columns)]
        for row in of_setting:
            lines.append(
                [
                    f"`{row.localization}`",
                    f"`{row.clustering}`",
                    row.masks,
                    str(row.requests),
                    f"{100 * row.score:.1f}",
                    f"{row.similarity:.2f}",
                    f"{row.moved:.1f} ({row.worst_moved})",
                    f"{row.changed:.1f} ({row.worst_changed})",
                    f"{100 * row.drop:.1f}",
                    f"{100 * row.worst_drop:.0f}",
                    f"{100 * row.kept_names:.0f} %",
                ]
            )
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"### {SETTINGS[name]}\n\n{table}\n")
    return "\n".join(parts)


def kept_rows(file: Path, kind: Callable[..., RowT]) -> list[RowT]:
    """Return the rows that an interrupted run has measured, none if there is no file."""
    return [kind(**json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []


def keep_row(file: Path, row: Any) -> None:
    """Print a measured row, and keep it: an interrupted run goes on from there."""
    text = json.dumps(asdict(row))
    print(text, flush=True)
    with file.open("a") as opened:
        opened.write(text + "\n")


def write_tables(file: Path, mark: str, tables: str) -> None:
    """Write the tables of a page again: all that stands behind a mark."""
    text = file.read_text(encoding="utf-8")
    file.write_text(text.partition(mark)[0] + mark + "\n" + tables, encoding="utf-8")


def main(given: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m examples.stability", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Keeps base models and measured rows.")
    parser.add_argument("--output", type=Path, help="Page whose tables are written again.")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--localizations", nargs="+", default=sorted({way[0] for way in WAYS}))
    parser.add_argument("--clusterings", nargs="+", default=sorted({way[1] for way in WAYS}))
    parser.add_argument("--masks", nargs="+", choices=list(MASKS), default=list(MASKS))
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--mask-steps", type=int, default=20, help="Of the masks of before.")
    options = parser.parse_args(given)
    ways = [
        way
        for way in WAYS
        if way[0] in options.localizations and way[1] in options.clusterings and way[2] in options.masks
    ]
    kept = options.work / "measured.jsonl"
    options.work.mkdir(parents=True, exist_ok=True)
    rows = kept_rows(kept, Row)
    done = {(row.setting, row.localization, row.clustering, row.masks) for row in rows}
    with deterministic(1):
        for name, has_signs in itertools.product(options.settings, (True, False)):
            wanted = [way for way in ways if (way[0] == "sift") == has_signs and (name, *way[:3]) not in done]
            if not wanted:
                continue
            setting = open_setting(name, options.work, options.mask_steps, has_signs=has_signs)
            for row in measure(name, setting, wanted, options.requests):
                rows.append(row)
                keep_row(kept, row)
    if options.output is not None:
        ordered = sorted(
            rows,
            key=lambda row: [
                list(SETTINGS).index(row.setting),
                _PLACES[row.localization, row.clustering, row.masks],
            ],
        )
        write_tables(options.output, _MARK, page(ordered))


if __name__ == "__main__":
    main()
