"""`routes.json` beside exported adapters: which adapter answers for which task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hf_clamu.errors import CheckpointFormatError, TaskNotFoundError
from hf_clamu.storage import read_json
from hf_clamu.tasks.keyed_ids import keyed_id

__all__ = ["GLOBAL_ADAPTER", "ROUTES_NAME", "Routes"]

ROUTES_NAME = "routes.json"
# No cluster has this name.
GLOBAL_ADAPTER = "global"
_FORMAT = 1
_MOST_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Routes:
    """What answers for whom.

    Args:
        base_model (`str`, *optional*): Hub id of the base model, or the folder beside the adapters that has it.
        revision (`str`, *optional*): its commit.
        adapters (*dict* of `str` to `str`): name of each adapter to its folder beside this file.
        tasks (*dict* of `str` to `str`): task id to the name of its adapter.
        keyed (`bool`): the ids are keyed commitments, and a plain id needs the key.
    """

    base_model: str | None
    revision: str | None
    adapters: dict[str, str]
    tasks: dict[str, str]
    keyed: bool

    def write(self, folder: Path) -> None:
        """Write the file into the folder of the adapters; the same routes give the same bytes."""
        values = {
            "format": _FORMAT,
            "base_model": self.base_model,
            "revision": self.revision,
            "adapters": self.adapters,
            "tasks": self.tasks,
            "keyed": self.keyed,
        }
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / ROUTES_NAME).write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Routes:
        """Read the file from the folder of the adapters.

        Raises:
            CheckpointFormatError: if it is missing, damaged, of a later format, or names a folder outside.
        """
        path = folder / ROUTES_NAME
        way_out = "Export the adapters again (clamu export MODEL --adapters all)."
        try:
            values = read_json(path, _MOST_BYTES, may_link=True)
        except FileNotFoundError:
            raise CheckpointFormatError(f"{path} is missing. {way_out}") from None
        except ValueError as error:
            raise CheckpointFormatError(f"{path} is no JSON ({error}). {way_out}") from error
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            found = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise CheckpointFormatError(f"{path}: expected format {_FORMAT}, found {found!r}. {way_out}")
        adapters, tasks = values.get("adapters"), values.get("tasks")
        for name, one in (("adapters", adapters), ("tasks", tasks)):
            if not isinstance(one, dict) or not all(isinstance(value, str) for value in one.values()):
                raise CheckpointFormatError(f"{path}: {name!r} must map names to names. {way_out}")
        assert isinstance(adapters, dict)
        assert isinstance(tasks, dict)
        for one in adapters.values():
            if Path(one).name != one or one in (".", ".."):
                raise CheckpointFormatError(f"{path} names the folder {one!r}, which is not beside it. {way_out}")
        unknown = sorted(set(tasks.values()) - set(adapters))
        if unknown:
            raise CheckpointFormatError(f"{path}: tasks go to {unknown[0]!r}, which is no adapter there. {way_out}")
        return cls(
            base_model=values.get("base_model"),
            revision=values.get("revision"),
            adapters=adapters,
            tasks=tasks,
            keyed=bool(values.get("keyed")),
        )

    def adapter_of(self, name: str, key: str | None = None) -> str:
        """Return the name of the adapter that a name asks for: an adapter's own, or a task's id.

        Args:
            name (`str`): of an adapter, or a task.
            key (`str`, *optional*): the key of the ids, where they are keyed.

        Raises:
            TaskNotFoundError: if there is neither, or both and they are not the same.
        """
        found = self.tasks.get(keyed_id(key, name) if self.keyed and key is not None else name)
        if name in self.adapters:
            if found not in (None, name):
                raise TaskNotFoundError(
                    f"{name!r} is an adapter, and a task that is answered by another one, {found!r}. Ask for the task "
                    "by that name."
                )
            return name
        if found is None:
            hint = " Task ids are keyed: give the key (CLAMU_TASK_ID_KEY)." if self.keyed and key is None else ""
            raise TaskNotFoundError(f"No adapter and no task is called {name!r}.{hint}")
        return found
