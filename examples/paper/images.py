"""DTD, RESISC45 and MNIST, cut into the paper's 500 tasks in both of its ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from examples.paper.data import LoadReport, open_rows, require_columns
from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.tasks import PartitionReport, TaskDataset, partition_by_labels, partition_uniform

__all__ = ["CLIP_SETS", "clip_label_level", "clip_task_level", "images_of_zip"]

CLIP_SETS = {"dtd": "tanganke/dtd", "resisc45": "torchgeo/resisc45", "mnist": "ylecun/mnist"}
# Repositories that hold an archive of images in place of a table (`load_dataset` finds lists of file names beside it).
_ARCHIVES = {"resisc45": "NWPU-RESISC45.zip"}
_IMAGES = (".jpg", ".jpeg", ".png")

_Cut = Callable[..., tuple[Any, PartitionReport]]


def clip_task_level(
    *,
    seed: int,
    path: str | Path | None = None,
    num_tasks: int = 500,
    examples_per_task: int = 100,
    num_validation: int = 10,
) -> tuple[TaskDataset, LoadReport]:
    """Return tasks that each have random images of one of the three data sets (the "task-level split").

    500 tasks of 110 images cannot be dealt evenly to the three sets, for DTD has 5,640 images in all. It gives as many
    whole tasks as it holds (51) and the others share the rest; where even that is not enough, tasks get fewer images.
    All splits of a set are pooled first. The report has the numbers.

    Args:
        seed (`int`): of the cut.
        path (`str` or `Path`, *optional*): a folder with `dtd`, `resisc45` and `mnist`, each a folder of
            `save_to_disk` or a Parquet file, with columns "image" and "label" (a `ClassLabel`), or a ZIP file with a
            folder of images for each label.
        num_tasks (`int`, defaults to 500): tasks over all three sets.
        examples_per_task (`int`, defaults to 100): training examples.
        num_validation (`int`, defaults to 10): validation examples.

    Returns:
        *tuple* of `TaskDataset` ("dtd_00", ...; the cluster column is the data set, the labels are those of all three)
        and `LoadReport`.

    Raises:
        TaskDataError: if a column is missing, or there are fewer images than tasks.

    Source: the ClAMU paper, setting (i); `tanganke/dtd`, `torchgeo/resisc45` and `ylecun/mnist` on the Hub.
    """
    whole = examples_per_task + num_validation

    def capacity(counts: Mapping[int, int]) -> int:
        return sum(counts.values()) // whole

    def cut(rows: Any, count: int, name: str) -> tuple[Any, PartitionReport]:
        return partition_uniform(
            rows,
            num_tasks=count,
            seed=seed,
            examples_per_task=examples_per_task,
            num_validation=num_validation,
            label_column="label",
            content_columns=["image"],
            prefix=name,
        )

    return _load(path, num_tasks, capacity, cut)


def clip_label_level(
    *,
    seed: int,
    path: str | Path | None = None,
    num_tasks: int = 500,
    labels_per_task: int = 5,
    examples_per_task: int = 100,
    num_validation: int = 10,
) -> tuple[TaskDataset, LoadReport]:
    """Return tasks that each have images of few labels of one data set (the "task-and-label-level split").

    Sets and tasks share the images as in `clip_task_level`, but label by label: DTD has 120 images of each of its
    labels, which is enough for 47 tasks of five labels.

    Args:
        seed (`int`): of the cut.
        path (`str` or `Path`, *optional*): as for `clip_task_level`.
        num_tasks (`int`, defaults to 500): tasks over all three sets.
        labels_per_task (`int`, defaults to 5): labels of each; the paper does not say how many.
        examples_per_task (`int`, defaults to 100): training examples.
        num_validation (`int`, defaults to 10): validation examples.

    Returns:
        *tuple* of `TaskDataset` and `LoadReport`: as for `clip_task_level`.

    Raises:
        RecipeError: if a data set has fewer labels than a task is to have.
        TaskDataError: if a column is missing, or there are fewer images than tasks.

    Source: the ClAMU paper, setting (ii).
    """
    share = -(-(examples_per_task + num_validation) // labels_per_task)

    def capacity(counts: Mapping[int, int]) -> int:
        # Every task takes a label once, so no label can serve more tasks than there are.
        takers = [count // share for count in counts.values()]
        low, high = 0, sum(takers) // labels_per_task
        while low < high:
            middle = (low + high + 1) // 2
            fits = sum(min(count, middle) for count in takers) >= middle * labels_per_task
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def cut(rows: Any, count: int, name: str) -> tuple[Any, PartitionReport]:
        return partition_by_labels(
            rows,
            "label",
            num_tasks=count,
            labels_per_task=labels_per_task,
            seed=seed,
            examples_per_task=examples_per_task,
            num_validation=num_validation,
            content_columns=["image"],
            prefix=name,
        )

    return _load(path, num_tasks, capacity, cut)


def _load(
    path: str | Path | None, num_tasks: int, capacity: Callable[[Mapping[int, int]], int], cut: _Cut
) -> tuple[TaskDataset, LoadReport]:
    """Read the sets, give them one label space, deal the tasks to them, and cut each."""
    from datasets import DatasetDict, concatenate_datasets

    if num_tasks < len(CLIP_SETS):
        raise RecipeError(f"num_tasks must be at least {len(CLIP_SETS)}, one for each data set; found {num_tasks}.")
    names: list[str] = []
    dropped = {}
    sets: dict[str, Any] = {}
    for name, hub_id in CLIP_SETS.items():
        sets[name], found, unlabelled = _open(name, hub_id, path, len(names))
        names += found
        if unlabelled:
            dropped[f"{name}: no label"] = unlabelled
    counts = {name: _counts(rows["label"]) for name, rows in sets.items()}
    dealt = share_out(num_tasks, {name: capacity(found) for name, found in counts.items()})
    parts: dict[str, list[Any]] = {"train": [], "validation": []}
    reports = {}
    for name, rows in sets.items():
        split, reports[name] = cut(rows, dealt[name], name)
        whole = split if isinstance(split, DatasetDict) else {"train": split}
        for part, rows_of_part in whole.items():
            parts[part].append(rows_of_part)
    joined = {part: concatenate_datasets(found) for part, found in parts.items() if found}
    tasks = TaskDataset.from_dataset(
        DatasetDict(joined),
        task_column="task",
        image_column="image",
        label_column="label",
        cluster_column="set",
        label_names=_distinct(names),
    )
    uneven = ", ".join(f"{dealt[name]} of {name}" for name in dealt)
    return tasks, LoadReport(
        source=", ".join(CLIP_SETS.values()) if path is None else str(path),
        rows=sum(len(rows) for rows in sets.values()) + sum(dropped.values()),
        dropped=dropped,
        partitions=reports,
        remarks=(f"the {num_tasks} tasks are {uneven}",),
    )


def _open(name: str, hub_id: str, path: str | Path | None, offset: int) -> tuple[Any, list[str], int]:
    """Return a set's rows with labels counted from the offset, its label names, and how many rows had no label."""
    from datasets import Image, Value

    rows = _rows_of(name, hub_id, path)
    require_columns(rows, ("image", "label"), hub_id)
    names = getattr(rows.features["label"], "names", None)
    if names is None:
        raise TaskDataError(f"{hub_id} needs names of its labels: column 'label' must be a datasets.ClassLabel.")
    rows = rows.select_columns(["image", "label"])
    if not isinstance(rows.features["image"], Image):
        rows = rows.cast_column("image", Image())
    labels = list(rows.with_format(None)["label"])
    # The Hub's mark for a label that is kept secret is -1.
    known = [row for row, label in enumerate(labels) if label is not None and label >= 0]
    rows = rows.remove_columns("label")
    unlabelled = len(labels) - len(known)
    if unlabelled:
        rows = rows.select(known).flatten_indices()
    rows = rows.add_column("label", [offset + labels[row] for row in known], feature=Value("int64"))
    rows = rows.add_column("set", [name] * len(known), feature=Value("string"))
    return rows, [str(one).replace("_", " ") for one in names], unlabelled


def _rows_of(name: str, hub_id: str, path: str | Path | None) -> Any:
    if path is None:
        if name not in _ARCHIVES:
            return open_rows(hub_id, split=None)
        from huggingface_hub import hf_hub_download

        return images_of_zip(hf_hub_download(hub_id, _ARCHIVES[name], repo_type="dataset"))
    local = Path(path) / name
    if local.with_suffix(".zip").is_file():
        return images_of_zip(local.with_suffix(".zip"))
    return open_rows(hub_id, local if local.is_dir() else local.with_suffix(".parquet"), split=None)


def images_of_zip(path: str | Path) -> Any:
    """Read images from an archive with a folder for each label.

    Args:
        path (`str` or `Path`): a ZIP file.

    Returns:
        `datasets.Dataset`: columns "image" and "label" (the names of the folders, sorted), in the order of the names.

    Raises:
        TaskDataError: if it is no such archive.
    """
    from datasets import ClassLabel, Dataset, Features, Image

    try:
        with ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.lower().endswith(_IMAGES))
            images = [{"bytes": archive.read(name), "path": Path(name).name} for name in names]
    except (OSError, BadZipFile) as error:
        raise TaskDataError(f"Cannot read images from {path}: {error}.") from error
    folders = [Path(name).parent.name for name in names]
    labels = sorted(set(folders))
    if not images or "" in labels:
        raise TaskDataError(f"{path} needs a folder of images for each label; it has {len(images)} images.")
    return Dataset.from_dict(
        {"image": images, "label": [labels.index(folder) for folder in folders]},
        features=Features({"image": Image(), "label": ClassLabel(names=labels)}),
    )


def share_out(num_tasks: int, capacities: Mapping[str, int]) -> dict[str, int]:
    """Deal tasks evenly to data sets, none of which gets more than it holds unless all are full.

    Args:
        num_tasks (`int`): at least as many as there are sets.
        capacities (*mapping* of `str` to `int`): how many whole tasks each set holds.
    """
    dealt = dict.fromkeys(capacities, 0)
    for _ in range(num_tasks):
        # One task of every set comes first; a full set waits until all are full.
        name = min(dealt, key=lambda name: (dealt[name] > 0 and dealt[name] >= capacities[name], dealt[name]))
        dealt[name] += 1
    return dealt


def _counts(labels: Any) -> dict[int, int]:
    counts: dict[int, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return counts


def _distinct(names: list[str]) -> list[str]:
    """Number names that two sets share, so that they stay two labels."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return found
