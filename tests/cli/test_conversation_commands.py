"""Conversations on the command line, through LoRA: a file, a template beside the recipe, a request, the proof."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tasks import golden_conversations as golden
from tests.test_conversations import rows

_RECIPE = """\
base_model: {model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
  num_key_value_heads: 2, max_position_embeddings: 256}
tokenizer: bytes
peft_config: {peft_type: LORA, r: 2, target_modules: [q_proj, v_proj]}
data:
  files: chats.jsonl
  task_column: user
  messages_column: messages
  tools_column: tools
  chat_template: TEMPLATE
  assistant_only_loss: true
  validation_fraction: 0.3
arguments: {num_clusters: 2, finetune_steps: 2, learning_rate: 1.0e-2, mask_steps: 2, num_threads: 1}
"""


@pytest.fixture
def chats(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "chats.jsonl", rows("messages"))
    for name in ("one.jinja", "other.jinja"):
        (tmp_path / name).write_text(golden.template("qwen3_marked"), encoding="utf-8")
        (tmp_path / name).with_suffix(".yaml").write_text(_RECIPE.replace("TEMPLATE", name), encoding="utf-8")
    return tmp_path


def write(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in values), encoding="utf-8")


def test_a_chat_is_forgotten_byte_for_byte(clamu, chats, tiny):
    assert clamu("plan", "one.yaml").code == 0
    assert clamu("train", "one.yaml", "--output", "model").code == 0
    assert clamu("train", "other.yaml", "--output", "renamed").code == 0
    assert tiny.digests(chats / "model") == tiny.digests(chats / "renamed")
    assert clamu("train", "one.yaml", "--output", "less", "--without", "bob").code == 0
    (chats / "one.jinja").unlink()  # the model has its text
    assert clamu("unmerge", "model", "bob").code == 0
    assert tiny.digests(chats / "model") == tiny.digests(chats / "less")
    write(chats / "chats.jsonl", [row for row in rows("messages") if row["user"] != "bob"])
    assert clamu("verify", "model").code == 0
    assert clamu("evaluate", "model", "--json").json["num_tasks"] == 3


def test_answers_on_the_command_line(clamu, chats):
    assert clamu("train", "one.yaml", "--output", "model").code == 0
    (one,) = clamu("predict", "model", "What is 1?", "--task", "ann", "--max-new-tokens", "4", "--json").json[
        "predictions"
    ]
    asked = [{"user": "ann", "messages": [{"role": "user", "content": "What is 1?"}]}]
    write(
        chats / "asked.jsonl",
        [*asked, {"user": "ann", "messages": [*asked[0]["messages"], *rows("messages")[0]["messages"][1:]]}],
    )
    two = clamu("predict", "model", "--data", "asked.jsonl", "--max-new-tokens", "4", "--json").json["predictions"]
    assert [answer["completion"] for answer in two] == [one["completion"]] * 2
    write(chats / "asked.jsonl", [*asked, {"user": "ann", "messages": [{"role": "robot", "content": "a"}]}])
    refused = clamu("predict", "model", "--data", "asked.jsonl")
    assert refused.code == 2
    assert "line 2 of asked.jsonl, column 'messages': message 0 has the unknown role 'robot'" in refused.error.replace(
        "Line", "line"
    )


def test_a_changed_template_is_other_data(clamu, chats):
    assert clamu("train", "one.yaml", "--output", "model").code == 0
    config = json.loads((chats / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["task_spec"]["chat_template"] == golden.template("qwen3_marked")
    (chats / "one.jinja").write_text(golden.template("qwen3_marked") + "{# new #}", encoding="utf-8")
    assert clamu("train", "one.yaml", "--output", "changed").code == 0
    first, second = (
        json.loads((chats / name / "ledger.json").read_text(encoding="utf-8"))["tasks"]
        for name in ("model", "changed")
    )
    for name in first:
        assert first[name]["data_digest"] != second[name]["data_digest"]
        assert first[name]["vector_digest"] == second[name]["vector_digest"]


def test_bad_rows_and_templates_cost_nothing(clamu, chats):
    bad = rows("messages")
    bad[4] = {**bad[4], "messages": [{"role": "user", "content": [{"type": "image"}]}, bad[4]["messages"][1]]}
    bad[7] = {**bad[7], "messages": bad[7]["messages"][:1]}
    write(chats / "chats.jsonl", bad)
    refused = clamu("train", "one.yaml", "--output", "model")
    assert refused.code == 2
    assert (
        "2 problems in the data: (1) Task 'bob', column 'messages', line 5 of chats.jsonl: message 0 (user) has a list"
        in refused.error
    )
    assert "(2) Task 'cid', column 'messages', line 8 of chats.jsonl: there is no assistant turn" in refused.error
    write(chats / "chats.jsonl", rows("messages"))
    (chats / "one.jinja").write_text(golden.template("chatml"), encoding="utf-8")
    refused = clamu("train", "one.yaml", "--output", "model")
    assert refused.code == 2
    assert "assistant_only_loss learns what stands between the markers" in refused.error
    assert not (chats / "model").exists()
