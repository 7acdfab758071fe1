"""Conversations: token ids and loss masks as TRL has them, what is refused, and the digest of the template."""

from __future__ import annotations

import json
import re
import sys
import threading
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.tasks import StoredTask, TaskDataset, load_tasks, pack, packed_template, unpack
from hf_clamu.tasks.encoding import arrange
from tests.tasks import golden_conversations as golden

CASES = json.loads(golden.GOLDEN.read_text(encoding="utf-8"))["cases"]
HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]


@pytest.fixture(scope="module")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    return golden.tokenizer()


def tasks_of(*conversations: Any, style: str | None = "chatml_marked", **settings: Any) -> TaskDataset:
    rows = [{"user": "ann", "messages": messages} for messages in conversations]
    template = None if style is None else golden.template(style)
    return TaskDataset.from_dataset(
        rows, task_column="user", messages_column="messages", chat_template=template, **settings
    )


def settings_of(mode: str, columns: dict[str, Any]) -> dict[str, Any]:
    names = {f"{name}_column": name for name in columns}
    return {**names, **golden.MODES[mode]}


def test_the_golden_file_has_all_cases():
    assert [(case["style"], case["mode"], case["row"]) for case in CASES] == golden.cases()
    assert len({case["style"].removesuffix("_marked") for case in CASES}) == 6


@pytest.mark.parametrize("style", golden.styles())
def test_tokens_and_masks_are_those_of_trl(style, chat_tokenizer):
    for case in CASES:
        if case["style"] != style:
            continue
        columns = golden.columns_of(case["mode"], case["row"])
        settings = settings_of(case["mode"], columns)
        tasks = TaskDataset.from_dataset(
            [{"user": "ann", **columns}], task_column="user", chat_template=golden.template(style), **settings
        )
        if case["expected"] is None:
            # TRL drops what is left without a loss, and says nothing.
            with pytest.raises(TaskDataError, match=r"row 0: the conversation has \d+ tokens, of which the first"):
                tasks.encode("ann", chat_tokenizer)
            continue
        (example,) = tasks.encode("ann", chat_tokenizer).train
        assert {name: example[name].tolist() for name in case["expected"]} == case["expected"], case


def test_the_last_message_is_learned_where_that_is_declared(chat_tokenizer):
    """TRL has this for prompts and completions alone; a list of messages is learned as these would be."""
    row = golden.ROWS["turns"]["messages"]
    (one,) = tasks_of(row, style="llama3", completion_only_loss=True).encode("ann", chat_tokenizer).train
    prompts = [{"user": "ann", "prompt": row[:-1], "completion": row[-1:]}]
    columns = {"task_column": "user", "prompt_column": "prompt", "completion_column": "completion"}
    other = TaskDataset.from_dataset(prompts, **columns, chat_template=golden.template("llama3"))
    (example,) = other.encode("ann", chat_tokenizer).train
    assert {name: tensor.tolist() for name, tensor in one.items()} == {
        name: tensor.tolist() for name, tensor in example.items()
    }
    assert other.spec.conversational


FORMS = ("rows", "frame", "dataset", "jsonl", "json", "parquet", "csv", "texts")


@pytest.fixture
def forms(tmp_path):
    """The same rows in all forms that users have."""
    rows = [
        {"user": user, "messages": golden.ROWS[name]["messages"], "tools": golden.ROWS[name].get("tools")}
        for user, name in (("bob", "tools"), ("ann", "one turn"), ("bob", "turns"))
    ]
    texts = [
        {
            "user": row["user"],
            "messages": json.dumps(row["messages"]),
            "tools": row["tools"] and json.dumps(row["tools"]),
        }
        for row in rows
    ]
    made = {
        "rows": rows,
        "texts": texts,
        "dataset": Dataset.from_list(rows),
        "frame": Dataset.from_list(rows).to_pandas(),
    }
    made["jsonl"], made["json"], made["parquet"], made["csv"] = (
        tmp_path / f"rows.{kind}" for kind in ("jsonl", "json", "parquet", "csv")
    )
    made["jsonl"].write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    made["json"].write_text(json.dumps(rows), encoding="utf-8")
    made["dataset"].to_parquet(made["parquet"])
    Dataset.from_list(texts).to_csv(made["csv"])
    return made


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_data_gives_the_same_digests(form, forms, chat_tokenizer):
    def digests(data: Any) -> list[str | None]:
        columns = {"task_column": "user", "messages_column": "messages", "tools_column": "tools"}
        tasks = TaskDataset.from_dataset(data, **columns, chat_template=golden.template("qwen3_marked"))
        return [tasks.encode(task_id, chat_tokenizer).digest for task_id in tasks]

    assert digests(forms[form]) == digests(forms["rows"])


def test_a_task_does_not_depend_on_the_keys_of_others(chat_tokenizer):
    """Arrow gives each message the keys of all, in the order in which they came first."""

    def row(user: str, arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
        first, _, tool, last = golden.ROWS["tools"]["messages"]
        return {"user": user, "messages": [first, {"role": "assistant", "tool_calls": [call]}, tool, last]}

    rows = [row("ann", {"day": 1, "town": "Ulm"}), row("bob", {"town": "Ulm", "day": 2, "hour": 3})]
    columns = {"task_column": "user", "messages_column": "messages", "chat_template": golden.template("qwen3")}
    both, alone = (TaskDataset.from_dataset(part, **columns) for part in (rows, rows[1:]))
    assert both.encode("bob", chat_tokenizer).digest == alone.encode("bob", chat_tokenizer).digest
    text = chat_tokenizer.decode(alone.encode("bob", chat_tokenizer).train[0]["input_ids"])
    assert '{"town": "Ulm", "day": 2, "hour": 3}' in text


def test_the_template_is_part_of_the_digest_and_its_name_is_not(tmp_path, chat_tokenizer):
    """A comment changes no token, and the digest all the same."""
    for name, text in (("a", ""), ("b", ""), ("c", "{# another #}")):
        (tmp_path / f"{name}.jinja").write_text(golden.template("chatml") + text, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"user": "ann", "messages": HELLO}), encoding="utf-8")
    source = {"files": "rows.jsonl", "task_column": "user", "messages_column": "messages"}
    read = {
        name: load_tasks({**source, "chat_template": f"{name}.jinja"}, base_dir=tmp_path).encode("ann", chat_tokenizer)
        for name in "abc"
    }
    assert read["a"].digest == read["b"].digest != read["c"].digest
    (one,), (other,) = read["a"].train, read["c"].train
    assert one["input_ids"].tolist() == other["input_ids"].tolist()
    own = golden.tokenizer()
    own.chat_template = golden.template("chatml")
    assert load_tasks(source, base_dir=tmp_path).encode("ann", own).digest == read["a"].digest
    stored = load_tasks({**source, "chat_template": "a.jinja"}, base_dir=tmp_path).source
    assert stored["chat_template"] == golden.template("chatml")


def test_stored_rows_keep_the_digest(chat_tokenizer):
    tasks = tasks_of(HELLO, golden.ROWS["turns"]["messages"], assistant_only_loss=True)
    encoded = tasks.encode("ann", chat_tokenizer)
    packed = pack(encoded)
    back = arrange(tasks.spec, "ann", *unpack(packed), None, packed_template(packed))
    assert back.digest == encoded.digest
    kept = StoredTask(num_train=2, num_validation=0, cluster_key=None, origin="here", read=lambda: back)
    assert TaskDataset(tasks.spec, {"ann": kept}, None).num_examples("ann") == 2


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


ANSWER = {"role": "assistant", "content": "Yes"}
BAD_ROWS: dict[str, tuple[Any, str]] = {
    "unknown role": ([{"role": "robot", "content": "a"}, ANSWER], "message 0 has the unknown role 'robot'; known are"),
    "no role": ([{"content": "a"}, ANSWER], "message 0 has no role; known are system"),
    "no content": ([{"role": "user"}, ANSWER], "message 0 (user) has no content"),
    "a number": ([user(5), ANSWER], "message 0 (user) has content that is no text but 5 (int)"),
    "parts": (
        [user([{"type": "image"}, {"type": "text", "text": "what?"}]), ANSWER],
        "message 0 (user) has a list of parts (image, text) as its content",
    ),
    "empty turn": ([user("a"), {"role": "assistant", "content": " "}], "message 1 (assistant) is empty"),
    "no messages": ([], "the list of messages is empty"),
    "no assistant": ([user("a")], "there is no assistant turn, so there is nothing to learn"),
    "a text": (
        "Hello",
        "expected a list of messages, each with role and content, or their JSON; found the text 'Hello'",
    ),
    "texts": (
        ["Hello"],
        "expected a list of messages, each with role and content, or their JSON; found the text 'Hello'",
    ),
    "numbers": ("[1]", "message 0 is 1 (int); expected a list of messages"),
    "null": (None, "expected a list of messages, each with role and content, found null"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named(name):
    messages, sentence = BAD_ROWS[name]
    good = json.dumps(HELLO) if isinstance(messages, str) else HELLO
    with pytest.raises(TaskDataError, match=re.escape(f"Task 'ann', column 'messages', row 1: {sentence}")):
        tasks_of(good, messages)


def test_all_bad_rows_are_told_at_once():
    with pytest.raises(TaskDataError, match=r"2 problems in the data: \(1\) .* row 1: .* \(2\) .* row 2: "):
        tasks_of(HELLO, [user("a")], [{"role": "x", "content": "a"}, ANSWER])


def test_empty_rows_are_left_out_if_that_is_said(caplog):
    tasks = tasks_of(HELLO, [], None, incomplete_rows="skip")
    assert tasks.num_examples("ann") == 1
    assert "Left out 2 of the 3 rows" in caplog.text


def test_lines_of_files_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [{"user": "ann", "messages": HELLO}, {"user": "ann", "messages": [user("a"), {"role": "tool"}]}]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(TaskDataError, match=r"line 2 of rows.jsonl: message 1 \(tool\) has no content"):
        TaskDataset.from_dataset(path, task_column="user", messages_column="messages")


def test_pictures_are_refused_where_rows_are_objects():
    with pytest.raises(TaskDataError, match=r"messages and tools are JSON .*pictures and other objects are not taken"):
        tasks_of([user([{"type": "image", "image": object()}]), ANSWER])


def test_the_last_message_must_be_the_assistants_where_it_is_learned():
    with pytest.raises(TaskDataError, match="row 0: the last message has the role 'user', and completion_only_loss"):
        tasks_of([*HELLO, user("more")], completion_only_loss=True)


TOOL = {"role": "tool", "content": "rain"}
BAD_TEMPLATES: dict[str, tuple[list[dict[str, Any]], str, str]] = {
    "raises": (
        [{"role": "system", "content": "x"}, *HELLO],
        "gemma",
        "refuses the conversation: System role not supp",
    ),
    "alternates": ([*HELLO, ANSWER], "mistral", "refuses the conversation: roles must alternate"),
    "left out": (
        [*HELLO, TOOL, ANSWER],
        "{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}",
        "r",
    ),
    "no such key": (
        HELLO,
        "{{ messages[0].content }}{{ messages[1].content + messages[0].tools }}",
        "refuses the conv",
    ),
    "no turn": (
        HELLO,
        "{% for m in messages %}{{ m.content }}{% endfor %}{% generation %}{% endgeneration %}",
        "puts no",
    ),
}


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_a_template_that_does_not_fit_a_row_is_told_with_the_row(name, chat_tokenizer):
    messages, style, sentence = BAD_TEMPLATES[name]
    text = style if "{" in style else golden.template(style)
    rows = [{"user": "ann", "messages": messages}]
    tasks = TaskDataset.from_dataset(
        rows, task_column="user", messages_column="messages", chat_template=text, assistant_only_loss=name == "no turn"
    )
    with pytest.raises(TaskDataError, match=r"Task 'ann', column 'messages', row 0: the chat template") as caught:
        tasks.encode("ann", chat_tokenizer)
    if name == "left out":
        sentence = "leaves out message 2 (role 'tool'); give a template that has this role"
    assert sentence in str(caught.value)


def test_tools_that_a_template_leaves_out_are_told(chat_tokenizer):
    rows = [{"user": "ann", **golden.ROWS["one turn"], "tools": golden.ROWS["tools"]["tools"]}]
    columns = {"task_column": "user", "messages_column": "messages", "tools_column": "tools"}
    tasks = TaskDataset.from_dataset(rows, **columns, chat_template=golden.template("chatml"))
    with pytest.raises(TaskDataError, match="row 0: the chat template leaves out the tools"):
        tasks.encode("ann", chat_tokenizer)
    assert TaskDataset.from_dataset(rows, **columns, chat_template=golden.template("qwen3")).encode(
        "ann", chat_tokenizer
    )


def test_templates_that_cannot_be_used(tmp_path, chat_tokenizer):
    def refused(style: str | None, sentence: str, **settings: Any) -> None:
        with pytest.raises(RecipeError, match=sentence):
            tasks_of(HELLO, style=style, **settings).encode("ann", chat_tokenizer)

    refused(None, "the tokenizer has no chat template: in the data section give chat_template")
    refused("chatml", "the markers {% generation %} and .* and it has none", assistant_only_loss=True)
    columns = {"task_column": "user", "messages_column": "messages"}
    rows = [{"user": "ann", "messages": HELLO}]
    for text, sentence in (
        ("line 1\n{% for m in messages %}", "a mistake in line 2: Unexpected end of template"),
        ("{{ strftime_now('%d') }}{{ messages }}", "writes today's date .* could not be forgotten"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            TaskDataset.from_dataset(rows, **columns, chat_template=text).encode("ann", chat_tokenizer)
    with pytest.raises(RecipeError, match=r"names the file 'none.jinja', which was not found"):
        TaskDataset.from_dataset(rows, **columns, chat_template="none.jinja")
    (tmp_path / "plain.txt").write_text("no template", encoding="utf-8")
    with pytest.raises(RecipeError, match="has no Jinja in it"):
        TaskDataset.from_dataset(rows, **columns, chat_template=str(tmp_path / "plain.txt"))


def test_settings_of_conversations_go_with_conversations():
    texts = [{"user": "ann", "prompt": "a", "completion": "b"}]
    columns = {"task_column": "user", "prompt_column": "prompt", "completion_column": "completion"}
    for name, value in (("assistant_only_loss", True), ("completion_only_loss", False), ("chat_template", "{{ x }}")):
        with pytest.raises(
            RecipeError, match=f"{name} is for conversations, and the columns 'prompt' and 'completion'"
        ):
            TaskDataset.from_dataset(texts, **columns, **{name: value})
        with pytest.raises(RecipeError, match=f"{name} is for conversations: messages_column"):
            TaskDataset.from_dataset(
                texts, task_column="user", text_column="prompt", label_column="completion", **{name: value}
            )
    with pytest.raises(RecipeError, match="template is put around prompts"):
        tasks_of(HELLO, template="Q: {prompt}")
    with pytest.raises(RecipeError, match="assistant_only_loss must be true or false, found 'yes'"):
        tasks_of(HELLO, assistant_only_loss="yes")
    mixed = [{"user": "ann", "prompt": [user("a")], "completion": "b"}]
    with pytest.raises(TaskDataError, match="column 'completion', row 0: expected a list of messages"):
        TaskDataset.from_dataset(mixed, **columns)


def test_threads_do_not_mix_their_masks(chat_tokenizer):
    """transformers keeps what it marks in one place for all who use a template."""
    tasks = tasks_of(*([golden.ROWS["turns"]["messages"]] * 30), assistant_only_loss=True)
    expected, digests = tasks.encode("ann", chat_tokenizer).digest, []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: digests.append(tasks.encode("ann", golden.tokenizer()).digest))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert digests == [expected] * 4
