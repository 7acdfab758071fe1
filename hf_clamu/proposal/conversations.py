"""Conversations in files of rows: which cells hold one, and what it looks like as a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_clamu.tasks import TaskSpec
from hf_clamu.tasks.conversations import check_conversation, read_messages
from hf_clamu.tasks.reading.problems import is_empty

__all__ = ["conversation_problem", "conversation_text", "is_conversation"]


def is_conversation(value: Any) -> bool:
    """Whether a cell is a list of messages, or the JSON of one; whatever is wrong with them."""
    if isinstance(value, str):
        return value.lstrip().startswith("[{") and '"role"' in value
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def conversation_problem(spec: TaskSpec, row: Mapping[str, Any]) -> str:
    """Return what is wrong with the messages of a row; "" if nothing is, or a cell is empty."""
    if any(is_empty(row.get(column)) for column in spec.content_columns if column != spec.tools_column):
        return ""
    try:
        check_conversation(spec, row)
    except ValueError as error:
        return str(error)
    return ""


def conversation_text(value: Any) -> str:
    """Return the turns of a conversation as lines, "" of one that cannot be read."""
    try:
        messages = read_messages(value)
    except ValueError:
        return ""
    return "\n".join(
        f"{message['role']}: {message.get('content') or message.get('tool_calls')}" for message in messages
    )
