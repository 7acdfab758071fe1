"""Conversations: rows of messages, in TRL's conversational format.

- `messages`: lists of messages, checked, and the texts that tables keep of them
- `templates`: the chat template that makes a text of them
"""

from hf_clamu.tasks.conversations.messages import (
    Message,
    MessagesError,
    as_texts,
    check_conversation,
    prompt_of_row,
    read_messages,
    read_tools,
    split_row,
)
from hf_clamu.tasks.conversations.templates import ChatTemplate, template_text

__all__ = [
    "ChatTemplate",
    "Message",
    "MessagesError",
    "as_texts",
    "check_conversation",
    "prompt_of_row",
    "read_messages",
    "read_tools",
    "split_row",
    "template_text",
]
