"""Conversations answered per cluster and per task, by `predict` and by pipelines."""

from __future__ import annotations

from typing import Any

import pytest

from hf_clamu import ClamuModel, pipeline
from hf_clamu.errors import TaskDataError
from hf_clamu.serving.prediction import predict
from tests.tasks import golden_conversations as golden
from tests.test_conversations import build

MESSAGES = [{"role": "system", "content": "Short."}, {"role": "user", "content": "What is 2?"}]
ANSWER = {"role": "assistant", "content": "It is not read."}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Any]:
    """Saved and loaded models of lists of messages, and of prompts that are messages."""
    made = {}
    for form in ("messages", "prompts"):
        folder = tmp_path_factory.mktemp(form) / "model"
        build(form).save_pretrained(folder)
        made[form] = ClamuModel.from_pretrained(folder)
    return made


def by_hand(model: Any, messages: list[dict[str, Any]], task: str, tools: Any = None, tokens: int = 8) -> str:
    """Answer with transformers alone."""
    tokenizer = model.processor
    prompt = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with model.serving(task=task):
        written = model.generate(**prompt, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("form", ["messages", "prompts"])
def test_predictions_begin_the_answer(form, models):
    model, column = models[form], "messages" if form == "messages" else "prompt"
    tools = [{"name": "look", "parameters": {}}]
    rows = [
        {"user": "ann", column: MESSAGES},
        {"user": "cid", column: MESSAGES, "tools": tools},
        {"user": "ann", column: MESSAGES, "tools": []},
    ]
    answers = [answer["completion"] for answer in predict(model, rows, max_new_tokens=8)]
    expected = [by_hand(model, MESSAGES, "ann"), by_hand(model, MESSAGES, "cid", tools)]
    assert answers == [*expected, expected[0]]
    assert {answer["cluster"] for answer in predict(model, rows)} == {model.cluster_of("ann"), model.cluster_of("cid")}


def test_the_answer_that_a_row_has_is_not_read(models):
    rows = [{"user": "ann", "messages": MESSAGES}, {"user": "ann", "messages": [*MESSAGES, ANSWER]}]
    first, second = predict(models["messages"], rows, max_new_tokens=8)
    assert first == second


def test_rows_that_cannot_be_answered(models):
    def refused(row: dict[str, Any], sentence: str, form: str = "messages") -> None:
        with pytest.raises(TaskDataError, match=sentence):
            predict(models[form], [row], task="ann")

    refused({"messages": [ANSWER]}, r"Row 0, column 'messages': there is no message to answer\.")
    refused({"messages": []}, r"Row 0, column 'messages': the list of messages is empty\.")
    refused({"messages": "Hello"}, r"Row 0, column 'messages': expected a list of messages, .* the text 'Hello'\.")
    refused({"messages": [{"role": "user"}]}, r"Row 0, column 'messages': message 0 \(user\) has no content\.")
    refused({"text": "Hello"}, "Row 0 has no 'messages'")
    refused({"prompt": "Hello"}, "Row 0, column 'prompt': expected a list of messages", "prompts")
    refused({"messages": MESSAGES, "tools": "x"}, "Row 0, column 'tools': expected a list of tools")
    long = [{"role": "user", "content": "x" * 300}]
    refused({"messages": long}, r"Row 0, column 'messages': the prompt fills the model's 256 positions\.")


def test_pipelines_answer_conversations_per_task(models):
    model = models["messages"]
    pipe = pipeline("text-generation", model, task="ann", max_new_tokens=8, do_sample=False)
    chat = pipe(MESSAGES)[0]["generated_text"]
    assert chat == [*MESSAGES, {"role": "assistant", "content": by_hand(model, MESSAGES, "ann")}]
    tasks = ["dan", "ann", None]
    answers = pipe([MESSAGES, MESSAGES, MESSAGES[1:]], task=tasks, return_full_text=False)
    expected = [by_hand(model, MESSAGES, "dan"), by_hand(model, MESSAGES, "ann"), by_hand(model, MESSAGES[1:], "ann")]
    assert [answer[0]["generated_text"] for answer in answers] == expected
    tools = [{"name": "look", "parameters": {}}]
    told = pipe(MESSAGES, tools=tools, return_full_text=False)[0]["generated_text"]
    assert told == by_hand(model, MESSAGES, "ann", tools)
    with pytest.raises(ValueError, match="the inputs must be a list, got one conversation"):
        pipe(MESSAGES, task=["ann", "dan"])


def test_pipelines_find_the_cluster_of_a_conversation(models):
    model = models["messages"]
    pipe = pipeline("text-generation", model, cluster="auto", max_new_tokens=8, do_sample=False)
    one, many = pipe(MESSAGES), pipe([MESSAGES, MESSAGES])
    assert many == [one, one]
    rows = predict(model, [{"messages": MESSAGES}], cluster="auto", max_new_tokens=8)
    assert one[0]["generated_text"][-1] == {"role": "assistant", "content": rows[0]["completion"]}
    assert rows[0]["cluster"] in range(2)


def test_the_template_of_the_recipe_is_exported(models, tmp_path):
    models["messages"].export(tmp_path / "plain", task="ann")
    assert (tmp_path / "plain" / "chat_template.jinja").read_text(encoding="utf-8") == golden.template("qwen3_marked")
