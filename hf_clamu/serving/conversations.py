"""Conversations to be answered: the tokens of a prompt, as the model's recipe has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.tasks import TaskSpec
from hf_clamu.tasks.conversations import ChatTemplate, read_messages

__all__ = ["is_conversation", "prompt_ids"]


def is_conversation(value: Any) -> bool:
    """Whether a value is one list of messages, and no list of inputs."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(one, Mapping) and "role" in one for one in value)
    )


def prompt_ids(spec: TaskSpec, tokenizer: Any, messages: Sequence[Any], tools: Any = None) -> list[int]:
    """Return the tokens of messages and of the beginning of the assistant's turn that answers them.

    Args:
        spec (`TaskSpec`): of the model.
        tokenizer (`transformers.PreTrainedTokenizerBase`): of the model.
        messages (*list* of *dict*): at least one.
        tools (*list* of *dict*, *optional*): JSON schemas of tools.

    Raises:
        TaskDataError: if these are no messages, or there is no template, or it refuses them.
    """
    try:
        return ChatTemplate(spec, tokenizer).prompt_tokens(read_messages(messages), tools)
    except RecipeError as error:
        raise TaskDataError(str(error).rstrip(".")) from error
    except TaskDataError:
        raise
    except ValueError as error:
        raise TaskDataError(str(error)) from error
