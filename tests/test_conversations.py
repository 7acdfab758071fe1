"""Conversations from rows to forgetting: what is left is byte for byte what a build without the task gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_clamu import ClamuArguments, ClamuModel, ClamuTrainer, TaskDataset, byte_tokenizer
from tests.tasks import golden_conversations as golden

OWNERS = ("ann", "bob", "cid", "dan")
BASE = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
BASE |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256, "vocab_size": 257}
BASE |= {"bos_token_id": 256, "eos_token_id": 256}
LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "v_proj"]}


def rows(form: str) -> list[dict[str, Any]]:
    """Three conversations of each owner, with tools in one of them."""
    made = []
    for owner in OWNERS:
        for number in range(3):
            turns = [
                {"role": "user", "content": f"{owner}, what is {number}?"},
                {"role": "assistant", "content": f"It is {owner[::-1] * (number + 1)}."},
            ]
            extra = {"tools": [{"name": "look", "parameters": {owner: number}}] if number == 1 else None}
            row = {"messages": turns} if form == "messages" else {"prompt": turns[:1], "completion": turns[1:]}
            made.append({"user": owner, "group": "xy"[owner > "b"], **row, **extra})
    return made


SETTINGS: dict[str, dict[str, Any]] = {
    "messages": {"messages_column": "messages", "assistant_only_loss": True},
    "messages, last": {"messages_column": "messages", "completion_only_loss": True},
    "prompts": {"prompt_column": "prompt", "completion_column": "completion"},
}


def tasks(form: str, owners: tuple[str, ...] = OWNERS) -> TaskDataset:
    chosen = [row for row in rows(form.split(",")[0]) if row["user"] in owners]
    return TaskDataset.from_dataset(
        chosen,
        task_column="user",
        tools_column="tools",
        cluster_column="group",
        chat_template=golden.template("qwen3_marked"),
        validation_fraction=0.3,
        **SETTINGS[form],
    )


def build(form: str, owners: tuple[str, ...] = OWNERS, **options: Any) -> Any:
    arguments = ClamuArguments(
        num_clusters=2, finetune_steps=2, mask_steps=2, learning_rate=1e-2, num_threads=1, clustering="column"
    )
    options = {"processing_class": byte_tokenizer(), "peft_config": LORA, **options}
    return ClamuTrainer(BASE, tasks(form, owners), arguments, progress=None, **options).train()


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", SETTINGS)
@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
def test_forgetting_is_a_build_without(form, keyed, tmp_path):
    options = {"task_id_key": "secret"} if keyed else {}
    build(form, **options).save_pretrained(tmp_path / "all")
    model = ClamuModel.from_pretrained(tmp_path / "all", **options)
    assert model.processor.chat_template == golden.template("qwen3_marked")
    model.unmerge_task("bob", data=tasks(form)).save_pretrained(tmp_path / "left")
    build(form, ("ann", "cid", "dan"), **options).save_pretrained(tmp_path / "built")
    assert files(tmp_path / "left") == files(tmp_path / "built")


def test_a_snapshot_is_all_that_a_request_needs(tmp_path):
    build("messages", snapshot=True).save_pretrained(tmp_path / "all")
    build("messages", ("ann", "dan"), snapshot=True).save_pretrained(tmp_path / "built")
    ClamuModel.from_pretrained(tmp_path / "all").unmerge_task(["bob", "cid"]).save_pretrained(tmp_path / "left")
    assert files(tmp_path / "left") == files(tmp_path / "built")
    assert json.loads((tmp_path / "left" / "config.json").read_text())["task_spec"]["conversational"] is True
