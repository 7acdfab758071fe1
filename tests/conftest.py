"""Tiny models and tasks that all tests share; everything is drawn from configurations, nothing is downloaded."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from compatibility import TABLES
from matrices import Matrices

pytest_plugins = ["saved_models", "signing_keys"]

KINDS = ("text", "lm", "image")
_LABELS = ("bad", "good", "mixed")
# A name that is no folder would be looked for on the Hub, many times over where there is no network. Set here, before
# any other conftest imports huggingface_hub, which reads it once.
if "network" not in " ".join(sys.argv).replace("not network", ""):
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
_WORDS = {"bad": "poor dull broken", "good": "great bright whole", "mixed": "fair grey partly"}


def pytest_configure(config: pytest.Config) -> None:
    root = Path(__file__).parents[1]
    config.pluginmanager.register(Matrices(TABLES, root / "docs" / "compatibility.md", root), "matrices")


class Tiny:
    """Makes tasks, settings and merged models of three kinds: text labels, completions and images.

    Tasks there are of two kinds more: "words" with labels, and "seq2seq".

    `train` and `digests` know no state: a fresh process that imports this file makes the same bytes.
    """

    kinds = KINDS

    @staticmethod
    def config(kind: str) -> dict[str, Any]:
        if kind == "image":
            sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 16}
            return {"model_type": "vit", "num_hidden_layers": 1, "num_attention_heads": 2, **sizes}
        ids = {"bos_token_id": 256, "eos_token_id": 256, "vocab_size": 257}
        return {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 48, **ids}

    @staticmethod
    def processor(kind: str) -> Any:
        from hf_clamu.base_models.byte_tokenizer import byte_tokenizer

        return None if kind == "image" else byte_tokenizer()

    @staticmethod
    def rows(kind: str, shuffled: int | None = None) -> dict[str, list[Any]]:
        """Five tasks of seven rows; shuffled, the rows and with them the tasks come in another order."""
        rows = []
        for user in range(5):
            for number in range(7):
                label = _LABELS[(user + number * number) % 3]
                text = f"{_WORDS[label].split()[(user * number) % 3]} {number} of {user}"
                rows.append({"user": f"user_{user}", "text": text, "label": label, "group": "AB"[user % 2]})
        if shuffled is not None:
            random.Random(shuffled).shuffle(rows)
        return {key: [row[key] for row in rows] for key in rows[0]}

    @classmethod
    @functools.cache
    def tasks(cls, kind: str, shuffled: int | None = None) -> Any:
        from datasets import Dataset

        from hf_clamu.tasks import TaskDataset, digits

        if kind == "image":
            dataset = digits(num_tasks=4).filter(lambda row: int(row["id"]) % 8 == 0)
            columns = {"task_column": "task", "image_column": "image", "label_column": "label"}
            if shuffled is not None:
                order = list(range(len(dataset)))
                random.Random(shuffled).shuffle(order)
                dataset = dataset.select(order)
            return TaskDataset.from_dataset(dataset, **columns, validation_fraction=0.3)
        columns = {"task_column": "user", "cluster_column": "group", "validation_fraction": 0.3}
        rows = cls.rows(kind, shuffled)
        if kind == "words":
            rows["words"] = [text.split() for text in rows["text"]]
            rows["tags"] = [["word" if word.isalpha() else "number" for word in words] for words in rows["words"]]
            columns |= {"tokens_column": "words", "tags_column": "tags"}
        elif kind == "seq2seq":
            columns |= {"prompt_column": "text", "completion_column": "label", "kind": "seq2seq-lm"}
        elif kind == "text":
            columns |= {"text_column": "text", "label_column": "label", "label_names": _LABELS}
        else:
            columns |= {"prompt_column": "text", "completion_column": "label", "template": "{prompt} is "}
        return TaskDataset.from_dataset(Dataset.from_dict(rows), **columns)

    @staticmethod
    def arguments(**changes: Any) -> Any:
        from hf_clamu import ClamuArguments

        # Batches smaller than a task, so that shuffles take part; one thread, so that cores do not.
        settings = {"finetune_steps": 3, "learning_rate": 0.01, "batch_size": 3, "mask_steps": 3, "mask_batch_size": 4}
        return ClamuArguments(**{**settings, "num_clusters": 3, "num_threads": 1, **changes})

    @classmethod
    def train(
        cls,
        kind: str,
        tasks: Any = None,
        base: Any = None,
        processor: Any = None,
        options: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Any:
        """Train a model; `options` are of the trainer, `changes` of its settings."""
        from hf_clamu import ClamuTrainer
        from hf_clamu.training import silent_progress

        return ClamuTrainer(
            cls.config(kind) if base is None else base,
            cls.tasks(kind) if tasks is None else tasks,
            cls.arguments(**changes),
            processing_class=cls.processor(kind) if processor is None else processor,
            progress=silent_progress,
            **(options or {}),
        ).train()

    @classmethod
    def local_models(cls, kind: str, folder: Path, **changes: Any) -> dict[str, Path]:
        """Finetune each task as `train` does, and save the base (`base`) and the local models as plain checkpoints."""
        from hf_clamu.base_models.loading import load_base
        from hf_clamu.base_models.processors import save_processor
        from hf_clamu.operations.context import open_trainer
        from hf_clamu.operations.resolution import resolved_arguments
        from hf_clamu.training import deterministic, silent_progress

        tasks, arguments = cls.tasks(kind), cls.arguments(**changes)
        base = load_base(cls.config(kind), tasks.spec, num_labels=tasks.num_labels, processor=cls.processor(kind))
        base.model.save_pretrained(folder / "base")
        if base.processor is not None:
            save_processor(base.processor, folder / "base")
        found = {}
        with deterministic(num_threads=1):
            arguments = resolved_arguments(arguments, base.model, None)
            trainer = open_trainer(base.model, base.processor, tasks, arguments, silent_progress)
            for task_id in tasks:
                trainer.finetune(task_id)
                found[task_id] = folder / "local" / task_id
                base.model.save_pretrained(found[task_id])
        return found

    @staticmethod
    def digests(folder: Path) -> dict[str, str]:
        """SHA-256 of every file below a folder, by its name there; other things than files must not be there."""
        found = {}
        for path in sorted(folder.rglob("*")):
            assert path.is_dir() or (path.is_file() and not path.is_symlink()), f"{path} is not a plain file"
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    @staticmethod
    def reseal(folder: Path, **changes: Any) -> None:
        """Write the ledger anew with true digests of all files, as somebody with intent would."""
        from hf_clamu.checkpoint.ledger import sealed
        from hf_clamu.exact import canonical_json

        path = folder / "ledger.json"
        ledger = json.loads(path.read_bytes())
        del ledger["digest"]
        ledger |= changes
        for name in ledger["files"]:
            if (folder / name).is_file():
                data = (folder / name).read_bytes()
                ledger["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        path.write_bytes(canonical_json(sealed(ledger)))


@pytest.fixture(scope="session")
def tiny() -> type[Tiny]:
    return Tiny


@pytest.fixture
def many_switches_of_threads():
    """Python changes from thread to thread so often that what is not guarded goes wrong soon."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def hashed(monkeypatch):
    """Counts how often each SHA-256 is computed."""
    count, real = Counter(), hashlib.sha256

    class Counted:
        def __init__(self, data=b"", **options):
            self.inner = real(data, **options)

        def update(self, data):
            self.inner.update(data)

        def digest(self):
            count[self.inner.hexdigest()] += 1
            return self.inner.digest()

        def hexdigest(self):
            return self.digest().hex()

    monkeypatch.setattr(hashlib, "sha256", Counted)
    return count
