"""Rows of tasks that are drawn from their names, and data sets of them in any order."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from hf_clamu import TaskDataset
from tests.differential.space import Configuration

__all__ = ["Data"]

_LABELS = ("bad", "good", "mixed")
_WORDS = {"bad": "poor dull broken nul", "good": "great bright whole été", "mixed": "fair grey partly 半分"}
_ODD = (
    *("user 1", " leading", "trailing ", "a/b/../c", "..", "naïve é", "naïve e\u0301", "ユーザー", "\N{PILE OF POO}"),
    *('"quoted"', "back\\slash", "%2F", "tab\there", "line\nbreak", "-u", "--all", "None", "0", "00", "CON", "a:b"),
    *("A", "a", "{prompt}", "\u202ertl", "zero\u200bwidth", "'; DROP", "*", "user?", "~", "$HOME", "#1", "a" * 64),
)
# As short as texts without one.
_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }} is {% endif %}{% endfor %}"
)
_CONVERSATIONS: dict[str, dict[str, Any]] = {
    "messages": {"messages_column": "messages"},
    "assistant": {"messages_column": "messages", "assistant_only_loss": True},
    "last": {"messages_column": "messages", "completion_only_loss": True},
    "prompts": {"prompt_column": "asked", "completion_column": "answer"},
}


class Data:
    """The data of one sequence: what rows a task has at which revision.

    Args:
        configuration (*dict*): drawn by `draw`.
        seed (`int`): of the sequence.
    """

    def __init__(self, configuration: Configuration, seed: int) -> None:
        self._configuration = configuration
        self._seed = seed
        count = configuration["num_tasks"] + configuration["num_spare"]
        chance = random.Random(f"ids {seed}")
        names = {
            "plain": [f"user_{number}" for number in range(count)],
            "odd": chance.sample(_ODD, count),
            "long": [f"{number} {'long name ' * 30}" for number in range(count)],
        }
        self.task_ids: list[str] = names[configuration["ids"]]

    @property
    def columns(self) -> dict[str, Any]:
        """What `TaskDataset.from_dataset` takes."""
        spec = self._configuration["spec"]
        columns: dict[str, Any] = {
            "task_column": "user",
            "validation_fraction": self._configuration["validation_fraction"],
            "id_column": "row" if spec["with_id_column"] else None,
            "cluster_column": "group" if spec["with_cluster_column"] else None,
            "incomplete_rows": self._configuration["incomplete_rows"],
        }
        kind = self._configuration["kind"]
        if kind == "image":
            return {**columns, "image_column": "image", "label_column": "label", "label_names": _LABELS}
        columns["max_length"] = spec["max_length"]
        if kind == "text":
            return {**columns, "text_column": "text", "label_column": "label", "label_names": _LABELS}
        if kind == "words":
            return {**columns, "tokens_column": "words", "tags_column": "tags", "label_names": ("number", "word")}
        if kind == "lm" and self._configuration["conversations"] is not None:
            columns["max_length"] = columns["max_length"] and 20  # at least a token of each answer
            return {**columns, **_CONVERSATIONS[self._configuration["conversations"]], "chat_template": _TEMPLATE}
        more = {"kind": "seq2seq-lm"} if kind == "seq2seq" else {"template": "{prompt} is "}
        return {**columns, "prompt_column": "text", "completion_column": "label", **more}

    def rows(self, task_id: str, revision: int) -> list[dict[str, Any]]:
        """Return the rows of a task; a later revision has some of them and some others."""
        chance = random.Random(f"rows {self._seed} {task_id}")
        group = chance.choice("ABC")
        found = [self._row(chance, task_id, group, number) for number in range(chance.choice((2, 3, 4, 5, 7)))]
        if chance.random() < 0.3:
            found.append({**found[0], "row": f"{task_id}-again"})
        for number in range(revision):
            later = random.Random(f"rows {self._seed} {task_id} {number}")
            if later.random() < 0.2:
                group = later.choice("ABC")
            if len(found) > 2:
                del found[later.randrange(len(found))]
            found.append(self._row(later, task_id, group, 100 + number))
            found = [{**row, "group": group} for row in found]
        return found

    def _row(self, chance: random.Random, task_id: str, group: str, number: int) -> dict[str, Any]:
        label = chance.choice(_LABELS)
        words = [chance.choice(_WORDS[label].split()), str(chance.randrange(100)), chance.choice(("of", "for", "to"))]
        row: dict[str, Any] = {"user": task_id, "group": group, "row": f"{task_id}-{number}", "label": label}
        kind = self._configuration["kind"]
        if kind == "image":
            shades = random.Random(chance.random())
            pixels = np.array([shades.randrange(256) for _ in range(64)], dtype=np.uint8).reshape(8, 8)
            return {**row, "image": Image.fromarray(pixels)}
        if kind == "words":
            return {**row, "words": words, "tags": ["number" if one.isdigit() else "word" for one in words]}
        if kind == "lm" and self._configuration["conversations"] is not None:
            asked, answer = [{"role": "user", "content": " ".join(words)}], [{"role": "assistant", "content": label}]
            return {**row, "messages": asked + answer, "asked": asked, "answer": answer}
        return {**row, "text": " ".join(words)}

    def tasks(self, revisions: Mapping[str, int], order: int) -> TaskDataset:
        """Return tasks with their rows, in an order of one's own.

        Args:
            revisions (*mapping* of `str` to `int`): task id to which of its rows.
            order (`int`): shuffles all rows, and with them the tasks.
        """
        if not revisions:
            first = self.task_ids[0]
            return self.tasks({first: 0}, order).without(first)
        rows = self._shuffled(revisions, order)
        dataset = Dataset.from_dict({key: [row[key] for row in rows] for key in rows[0]})
        return TaskDataset.from_dataset(dataset, **self.columns)

    def public_rows(self, order: int) -> Dataset:
        """Return rows of nobody, in an order of one's own, whose labels and owners are not looked at."""
        rows = [self._row(random.Random(f"public {self._seed} {number}"), "", "", number) for number in range(40)]
        random.Random(order).shuffle(rows)
        return Dataset.from_dict({key: [row[key] for row in rows] for key in rows[0]})

    def file(self, revisions: Mapping[str, int], order: int, path: Path) -> Path:
        """Write the same rows as JSON lines, and return the path."""
        lines = [json.dumps(row, ensure_ascii=False) for row in self._shuffled(revisions, order)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def _shuffled(self, revisions: Mapping[str, int], order: int) -> list[dict[str, Any]]:
        rows = [row for task_id, revision in revisions.items() for row in self.rows(task_id, revision)]
        if self._configuration["incomplete_rows"] == "skip":
            content = next(name for name in ("image", "words", "messages", "text") if name in rows[0])
            content = (
                "asked" if self._configuration["conversations"] == "prompts" and content == "messages" else content
            )
            rows += [{**row, "row": f"{row['row']}-hole", content: None} for row in rows[::2]]
        random.Random(order).shuffle(rows)
        return rows
