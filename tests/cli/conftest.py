"""Recipes, data and merged models for the command line: tiny, made once, copied where a test changes them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_ARGUMENTS = (
    "{num_clusters: 2, finetune_steps: 2, learning_rate: 1.0e-2, batch_size: 3, mask_steps: 2, num_threads: 1}"
)
_GPT2 = "{model_type: gpt2, n_layer: 1, n_embd: 16, n_head: 2, n_positions: 48}"
_VIT = (
    "{model_type: vit, num_hidden_layers: 1, num_attention_heads: 2, image_size: 8, patch_size: 4, num_channels: 1, "
    "hidden_size: 16, intermediate_size: 16}"
)
_DATA = {
    "text": "{files: rows.jsonl, task_column: user, text_column: text, label_column: label, validation_fraction: 0.3}",
    "lm": "{files: rows.jsonl, task_column: user, prompt_column: text, completion_column: label}",
    "image": "{builtin: digits, options: {num_tasks: 4}, validation_fraction: 0.2}",
}
_WORDS = {"bad": "poor dull broken", "good": "great bright whole"}


def recipe(kind: str) -> str:
    lines = [f"base_model: {_VIT if kind == 'image' else _GPT2}", f"data: {_DATA[kind]}", f"arguments: {_ARGUMENTS}"]
    if kind != "image":
        lines.insert(1, "tokenizer: bytes")
    return "\n".join(lines) + "\n"


def data_rows() -> list[dict[str, str]]:
    rows = []
    for user in range(4):
        for number in range(6):
            label = ("bad", "good")[(user + number * number) % 2]
            text = f"{_WORDS[label].split()[(user * number) % 3]} {number} of {user}"
            rows.append({"user": f"user_{user}", "text": text, "label": label})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout; anything beside it fails here."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def error(self) -> str:
        """The one readable line of a refusal."""
        assert self.code in (1, 2), self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("clamu: ")
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def clamu(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process."""
    from hf_clamu.cli import main

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        with warnings.catch_warnings():
            code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes `text.yaml`, `lm.yaml`, `image.yaml`, the rows, and the models `text`, `lm`, `image`."""
    from hf_clamu.cli import main

    folder = tmp_path_factory.mktemp("trained")
    write_rows(folder / "rows.jsonl", data_rows())
    for kind in _DATA:
        (folder / f"{kind}.yaml").write_text(recipe(kind), encoding="utf-8")
        assert main(["train", str(folder / f"{kind}.yaml"), "--output", str(folder / kind)]) == 0
    return folder


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all that, as the working directory."""
    folder = tmp_path / "work"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder
