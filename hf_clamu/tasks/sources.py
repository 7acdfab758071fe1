"""The `data:` section of a recipe: from a description of where the rows are to a `TaskDataset`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.known_names import hint_for, refuse_unknown_keys
from hf_clamu.tasks.builtin import STDLIB_PACKAGES, digits, stdlib_text
from hf_clamu.tasks.conversations import template_text
from hf_clamu.tasks.dataset import TaskDataset
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["DataFiles", "load_tasks"]

# Files of rows: one, or several that are read one after the other.
DataFiles = str | Path | Sequence[str | Path]

_ORIGINS = ("builtin", "files", "dataset")
_HUB_KEYS = ("config", "revision", "split")
_BUILTINS: dict[str, Callable[..., Any]] = {"digits": digits, "stdlib": stdlib_text}
_BUILTIN_OPTIONS = ("num_tasks", "labels_per_task", "seed")
_BUILTIN_SPECS: dict[str, dict[str, Any]] = {
    "digits": {"image_column": "image", "label_names": tuple(str(digit) for digit in range(10))},
    "stdlib": {"text_column": "text", "label_names": STDLIB_PACKAGES},
}
_BUILTIN_COLUMNS = {"task_column": "task", "label_column": "label", "id_column": "id"}


def load_tasks(
    source: Mapping[str, Any],
    *,
    base_dir: Path | None = None,
    data: DataFiles | None = None,
    search_dirs: Sequence[Path] = (),
    refuse_near_ids: bool = True,
    also_missing: str = "",
) -> TaskDataset:
    """Load the tasks that a recipe or a saved model describes.

    Args:
        source (*mapping* of `str` to *JSON-able object*):
            Exactly one of `builtin` ("digits" or "stdlib", with an optional mapping `options` of `num_tasks`,
            `labels_per_task` and `seed`), `files` (a path or a list) and `dataset` (a Hub id, with optional `config`,
            `revision` and `split`), beside the fields of `TaskSpec`.
        base_dir (`Path`, *optional*): the folder that relative paths start from, by default the working directory.
        data (`str`, `Path` or *list* of them, *optional*): files to read instead of those that `source` names.
        search_dirs (*list* of `Path`): further folders to look for the files in.
        refuse_near_ids (`bool`): see `TaskDataset.from_spec`.
        also_missing (`str`): a sentence for the error where a file is not found.

    Returns:
        `TaskDataset`: its `source` is the same mapping, with absolute paths reduced to file names.

    Raises:
        RecipeError: if a key is unknown or missing.
        TaskDataError: if the data are not found or cannot be used.

    Example:

    ```python
    >>> tasks = load_tasks({"builtin": "digits", "options": {"num_tasks": 4}})
    >>> tasks.task_ids
    ('owner_00', 'owner_01', 'owner_02', 'owner_03')

    ```
    """
    origin = _check_keys(source)
    source = _with_template(source, [base_dir or Path(), *search_dirs])
    fields = {f.name: source[f.name] for f in dataclasses.fields(TaskSpec) if f.name in source}
    stored = {**source, "files": _portable(source["files"])} if origin == "files" else dict(source)
    if origin == "builtin":
        fields = {**_BUILTIN_COLUMNS, **_BUILTIN_SPECS[source["builtin"]], **fields}
    spec = TaskSpec.from_dict(fields)  # a wrong setting should show before a long download
    if data is not None:
        paths = [Path(path) for path in ([data] if isinstance(data, (str, Path)) else data)]
        for path in paths:
            if not path.is_file():
                raise TaskDataError(f"There is no data file {path} (given as --data).")
        dataset: Any = paths
    elif origin == "builtin":
        dataset = _BUILTINS[source["builtin"]](**(source.get("options") or {}))
    elif origin == "files":
        base = [] if base_dir is None else [base_dir]
        folders = [*base, *search_dirs] or [Path()]
        dataset = [_find(name, folders, also_missing) for name in _listed(source["files"])]
    else:
        dataset = _from_hub(source)
    return TaskDataset.from_spec(dataset, spec, stored, refuse_near_ids=refuse_near_ids)


def _with_template(source: Mapping[str, Any], folders: Sequence[Path]) -> Mapping[str, Any]:
    """Return a source with the text of its chat template: in a saved model a path says nothing."""
    template = source.get("chat_template")
    return source if template is None else {**source, "chat_template": template_text(template, folders)}


def _check_keys(source: Mapping[str, Any]) -> str:
    names = [f.name for f in dataclasses.fields(TaskSpec)]
    refuse_unknown_keys(source, [*_ORIGINS, *_HUB_KEYS, "options", *names], where="the data section")
    origins = [name for name in _ORIGINS if source.get(name) is not None]
    if len(origins) != 1:
        found = " and ".join(origins) or "none of them"
        raise RecipeError(f"The data section needs exactly one of {', '.join(_ORIGINS)}; found {found}.")
    origin = origins[0]
    for key, owner in (("options", "builtin"), *((key, "dataset") for key in _HUB_KEYS)):
        if source.get(key) is not None and origin != owner:
            raise RecipeError(f"{key!r} in the data section goes with {owner!r} only, but {origin!r} is given.")
    if origin == "builtin":
        if source["builtin"] not in _BUILTINS:
            hint = hint_for(source["builtin"], tuple(_BUILTINS), lists=False)
            raise RecipeError(
                f"Unknown builtin data set {source['builtin']!r}; there are {', '.join(_BUILTINS)}.{hint}"
            )
        options = source.get("options") or {}
        refuse_unknown_keys(options, _BUILTIN_OPTIONS, where="the options of the builtin data set")
        for key, value in options.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise RecipeError(f"{key} must be an integer, found {value!r}.")
    elif origin == "files":
        _portable(source["files"])
    elif not isinstance(source["dataset"], str) or _is_absolute(source["dataset"]):
        raise RecipeError(
            f"dataset must be the id of a data set on the Hub, found {source['dataset']!r}; "
            "local data go under 'files'."
        )
    return origin


def _listed(files: Any) -> list[str]:
    names = [files] if isinstance(files, (str, Path)) else files
    if (
        not isinstance(names, (list, tuple))
        or not names
        or not all(isinstance(n, (str, Path)) and str(n) for n in names)
    ):
        raise RecipeError(f"files must be a path or a list of paths, found {files!r}.")
    return [str(name) for name in names]


def _portable(files: Any) -> str | list[str]:
    """Reduce absolute paths to file names: a saved model must not tell on which machine it was made."""
    names = [_file_name(name) if _is_absolute(name) else name for name in _listed(files)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"Data files must differ in name; given twice: {', '.join(twice)}. Give relative paths.")
    return names[0] if isinstance(files, (str, Path)) else names


def _is_absolute(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()


def _file_name(name: str) -> str:
    return PurePosixPath(name).name if PurePosixPath(name).is_absolute() else PureWindowsPath(name).name


def _find(name: str, folders: Sequence[Path], also_missing: str) -> Path:
    # Joining an absolute path gives that path itself, so it is tried first, then its name in every folder.
    names = [name, _file_name(name)] if _is_absolute(name) else [name]
    candidates = list(dict.fromkeys(folder / n for n in names for folder in folders))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = ", ".join(str(candidate.absolute()) for candidate in candidates)
    raise TaskDataError(
        f"The data file {name!r} was not found; looked for {looked}. Say where it is with --data PATH.{also_missing}"
    )


def _from_hub(source: Mapping[str, Any]) -> Any:
    from datasets import load_dataset

    name = source["dataset"]
    try:
        return load_dataset(name, source.get("config"), split=source.get("split"), revision=source.get("revision"))
    except (OSError, ValueError) as error:
        raise TaskDataError(
            f"Cannot load the data set {name!r} from the Hub: {error} Say where a copy is with --data PATH."
        ) from error
