"""Lists of messages: the form in which tables keep them, and what must be true of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hf_clamu.tasks.spec import TaskSpec

__all__ = [
    "Message",
    "MessagesError",
    "as_texts",
    "check_conversation",
    "prompt_of_row",
    "read_messages",
    "read_tools",
    "split_row",
]

# With `role` and, but for calls of tools, `content`.
Message = dict[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_EXPECTED = "expected a list of messages, each with role and content"


class MessagesError(ValueError):
    """What is wrong with a cell of messages or tools.

    Args:
        column (`str`): its column.
        problem (`str`): a sentence without a full stop.
    """

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(problem)
        self.column = column


def as_texts(value: Any) -> Any:
    """Return a list of messages or tools as the JSON text of each; anything else as it is.

    A table that keeps messages as they are gives each the keys of all others, in the order in which they came first:
    the rows of one task would depend on those of others. Texts stay what they are.

    Args:
        value: a cell.

    Raises:
        ValueError: if an entry is no JSON.

    Example:

    ```python
    >>> as_texts([{"role": "user", "content": "Hi"}])
    ['{"role": "user", "content": "Hi"}']

    ```
    """
    if hasattr(value, "tolist"):  # of data frames that were read from Parquet
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return value
    try:
        return [one if isinstance(one, str) else _text(one) for one in value]
    except TypeError as error:
        raise ValueError(f"messages and tools are JSON ({error}); pictures and other objects are not taken") from None


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """Return a list for an array, of which data frames have many; other objects are no JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"found {type(value).__name__}")


def read_messages(value: Any) -> list[Message]:
    """Return a cell as a list of messages that were checked one by one.

    Args:
        value (*list* of *mapping* or of `str`, or `str`): messages, the JSON text of each, or of all. Keys without a
            value are left out: tables add them.

    Raises:
        ValueError: saying what is wrong with which message, the first being 0.
    """
    messages = _entries(value, _EXPECTED)
    if not messages:
        raise ValueError("the list of messages is empty")
    for number, message in enumerate(messages):
        problem = _problem(message)
        if problem:
            raise ValueError(f"message {number} {problem}")
    return messages


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Return a cell as a list of tools (JSON schemas); `None` if it is empty.

    Raises:
        ValueError: if it is something else.
    """
    expected = "expected a list of tools, each a JSON schema"
    if value is None or value == "":
        return None
    tools = _entries(value, expected)
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise ValueError(f"{expected}; tool {number} is {_shown(tool)}")
    return tools or None


def _entries(value: Any, expected: str) -> list[Any]:
    """Return the entries of a cell without keys that have no value."""
    if isinstance(value, str):
        value = _parsed(value, expected)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{expected}, found {_shown(value)}")
    return [_without_nulls(_parsed(one, expected) if isinstance(one, str) else one) for one in value]


def _parsed(text: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{expected}, or their JSON; found the text {_cut(repr(text))}") from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, (list, tuple)) else value


def _problem(message: Any) -> str:
    """Return what is wrong with a message; "" if nothing is."""
    if not isinstance(message, dict):
        return f"is {_shown(message)}; {_EXPECTED}"
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        known = ", ".join(_ROLES)
        return (
            f"has no role; known are {known}" if role is None else f"has the unknown role {role!r}; known are {known}"
        )
    calls = role == "assistant" and bool(message.get("tool_calls"))
    if content is None:
        return "" if calls else f"({role}) has no content"
    if isinstance(content, list):
        types = sorted({str(part.get("type")) for part in content if isinstance(part, dict)}) or ["unknown"]
        return (
            f"({role}) has a list of parts ({', '.join(types)}) as its content; parts, which models of pictures and "
            "sound take, are not supported: give a text"
        )
    if not isinstance(content, str):
        return f"({role}) has content that is no text but {_shown(content)}"
    if role == "assistant" and not content.strip() and not calls:
        return "(assistant) is empty; there is nothing to learn from it, so leave the turn out"
    return ""


def check_conversation(spec: TaskSpec, row: Mapping[str, Any]) -> None:
    """Check the conversation of a row, as far as no template is needed for it.

    Args:
        spec (`TaskSpec`): which column is which.
        row (*mapping*): its columns.

    Raises:
        MessagesError: saying what is wrong.
    """
    prompt, completion, _ = split_row(spec, row)
    column = str(spec.messages_column or spec.completion_column)
    if spec.messages_column is not None and prompt is not None and completion[-1]["role"] != "assistant":
        raise MessagesError(
            column,
            f"the last message has the role {completion[-1]['role']!r}, and completion_only_loss learns the last "
            "message: it must be the assistant's",
        )
    if not any(message["role"] == "assistant" for message in completion):
        raise MessagesError(column, "there is no assistant turn, so there is nothing to learn")


def split_row(
    spec: TaskSpec, row: Mapping[str, Any]
) -> tuple[list[Message] | None, list[Message], list[dict[str, Any]] | None]:
    """Return the prompt, the completion and the tools of a row; without a prompt all of it is the completion.

    Args:
        spec (`TaskSpec`): which column is which. Of a list of messages the last one is the completion where
            `completion_only_loss` is set.
        row (*mapping*): its columns.

    Raises:
        MessagesError: as `read_messages`.
    """
    tools = _cell(row, spec.tools_column, read_tools)
    if spec.messages_column is None:
        prompt = _cell(row, spec.prompt_column, read_messages)
        return prompt, _cell(row, spec.completion_column, read_messages), tools
    messages = _cell(row, spec.messages_column, read_messages)
    return (messages[:-1], messages[-1:], tools) if spec.completion_only_loss else (None, messages, tools)


def prompt_of_row(spec: TaskSpec, row: Mapping[str, Any]) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Return what a model is to answer in a row: the prompt, or the messages without the assistant's last turn.

    Raises:
        MessagesError: if there is nothing to answer, or as `read_messages`.
    """
    tools = _cell(row, spec.tools_column, read_tools)
    if spec.messages_column is None:
        return _cell(row, spec.prompt_column, read_messages), tools
    messages = _cell(row, spec.messages_column, read_messages)
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise MessagesError(spec.messages_column, "there is no message to answer")
    return messages, tools


def _cell(row: Mapping[str, Any], column: str | None, read: Any) -> Any:
    if column is None:
        return None
    try:
        return read(row.get(column))
    except ValueError as error:
        raise MessagesError(column, str(error)) from None


def _shown(value: Any) -> str:
    return "null" if value is None else f"{_cut(repr(value))} ({type(value).__name__})"


def _cut(text: str) -> str:
    return text if len(text) < 80 else text[:80] + "…"
