"""Chat templates: from messages to tokens, as TRL and transformers make them."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.exact.digest import canonical_json, sha256_hex
from hf_clamu.tasks.conversations.messages import Message
from hf_clamu.tasks.spec import TaskSpec, is_template

__all__ = ["ChatTemplate", "template_text"]

# As transformers looks for them.
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What templates raise of values that they do not expect, beside errors of Jinja.
_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
# transformers compiles a template once for all, and it notes what is between markers in itself.
_RENDERING = threading.Lock()
_PROBE: list[Message] = [{"role": "user", "content": "a"}]
_WAYS_OUT = "in the data section give chat_template, the path or the text of a Jinja template"


def template_text(value: Any, folders: Sequence[Path] = ()) -> Any:
    """Return the text of a chat template that is given as text or as the path of a file.

    Args:
        value (`str`): the text, which has Jinja's braces, or a path.
        folders (*sequence* of `Path`): where relative paths start, by default the working directory.

    Returns:
        `str`: the text, with lines that end in line feeds; what is no string comes back as it is, to be refused.

    Raises:
        RecipeError: if there is no such file, or it is no text.
    """
    if not isinstance(value, str) or is_template(value):
        return value
    paths = [folder / value for folder in folders or [Path()]]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        looked = ", ".join(str(path.absolute()) for path in paths)
        raise RecipeError(f"chat_template names the file {value!r}, which was not found; looked for {looked}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The chat template {path} cannot be read: {error}.") from error
    if not is_template(text):
        raise RecipeError(f"The chat template {path} has no Jinja in it ({{{{ … }}}} or {{% … %}}).")
    return text


class ChatTemplate:
    """The chat template of a recipe, or of its tokenizer.

    Args:
        spec (`TaskSpec`): may have one.
        tokenizer (`transformers.PreTrainedTokenizerBase`): turns its text into tokens, and may have one.

    Raises:
        RecipeError: if there is none, it cannot be read, its text changes from day to day, or it lacks the markers
            that `assistant_only_loss` needs.
    """

    def __init__(self, spec: TaskSpec, tokenizer: Any) -> None:
        self._tokenizer, self._given = tokenizer, spec.chat_template
        template = spec.chat_template or getattr(tokenizer, "chat_template", None)
        if not template:
            raise RecipeError(f"The rows are conversations, and the tokenizer has no chat template: {_WAYS_OUT}.")
        texts = [str(text) for text in template.values()] if isinstance(template, dict) else [str(template)]
        self.digest = sha256_hex(canonical_json(template) if isinstance(template, dict) else template.encode())
        if any("strftime_now" in text for text in texts):
            raise RecipeError(
                "The chat template writes today's date (strftime_now), so a row would have other tokens tomorrow and "
                f"could not be forgotten then: {_WAYS_OUT}, with a fixed date."
            )
        if spec.assistant_only_loss:
            self._require_markers(texts)
        self._require_syntax()

    def _require_markers(self, texts: Sequence[str]) -> None:
        if not all(_MARKERS.search(text) for text in texts):
            raise RecipeError(
                "assistant_only_loss learns what stands between the markers {% generation %} and {% endgeneration %} "
                f"of the chat template, and it has none: {_WAYS_OUT}, that has them; or learn the last turn alone "
                "(completion_only_loss: true), or all of it (assistant_only_loss: false)."
            )
        if not getattr(self._tokenizer, "is_fast", False):
            raise RecipeError(
                f"assistant_only_loss needs a fast tokenizer, which says where a token stands in the text; found the "
                f"slow {type(self._tokenizer).__name__}."
            )

    def _require_syntax(self) -> None:
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            self._apply(_PROBE, None, tokenize=False)
        except TemplateSyntaxError as error:
            raise RecipeError(f"The chat template has a mistake in line {error.lineno}: {error.message}.") from error
        except (TemplateError, *_FAULTS):
            pass  # it may want more than this one message; rows are told when they come

    def tokens(
        self, messages: Sequence[Message], tools: Any, *, finds_assistant: bool = False
    ) -> tuple[list[int], list[int]]:
        """Return the token ids of a whole conversation, and 1 for those between the markers.

        Args:
            messages (*sequence* of *dict*): at least one.
            tools (*list* of *dict*, *optional*): JSON schemas of tools.
            finds_assistant (`bool`): without it all are 1.

        Raises:
            TaskDataError: if the template refuses the messages, or leaves one of them or the tools out.
        """
        self._require_whole(messages, tools)
        encoded = self._applied(messages, tools, return_dict=True, return_assistant_tokens_mask=finds_assistant)
        ids = list(encoded["input_ids"])
        return ids, list(encoded["assistant_masks"]) if finds_assistant else [1] * len(ids)

    def prompt_tokens(self, messages: Sequence[Message], tools: Any) -> list[int]:
        """Return the token ids of messages that wait for an answer: the assistant's turn is begun.

        Raises:
            TaskDataError: as `tokens`.
        """
        self._require_whole(messages, tools)
        return self._prompt_ids(messages, tools)

    def completion_start(self, prompt: Sequence[Message], tools: Any, ids: Sequence[int]) -> int:
        """Return the number of tokens that a prompt and the whole conversation begin with alike, as TRL counts them.

        Args:
            prompt (*sequence* of *dict*): the first messages; may be empty.
            tools (*list* of *dict*, *optional*): JSON schemas of tools.
            ids (*sequence* of `int`): of the whole conversation.

        Raises:
            TaskDataError: if the template refuses the prompt.
        """
        pairs = zip(self._prompt_ids(prompt, tools) if prompt else (), ids, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _prompt_ids(self, messages: Sequence[Message], tools: Any) -> list[int]:
        return list(self._applied(messages, tools, return_dict=True, add_generation_prompt=True)["input_ids"])

    def _require_whole(self, messages: Sequence[Message], tools: Any) -> None:
        """Check that nothing is left out: with another content of a message, or without tools, the text is another."""
        text = self._applied(messages, tools, tokenize=False)
        for number, message in enumerate(messages):
            content = str(message.get("content") or "")
            # A tool's answer, short as it may be, may also stand elsewhere.
            if content.strip() and (message["role"] == "tool" or content.strip() not in text):
                other = [*messages[:number], {**message, "content": f"{content}x"}, *messages[number + 1 :]]
                if self._is_same(text, other, tools):
                    raise TaskDataError(
                        f"the chat template leaves out message {number} (role {message['role']!r}); give a template "
                        "that has this role, or leave the message out"
                    )
        if tools and self._is_same(text, messages, None):
            raise TaskDataError("the chat template leaves out the tools; give a template that has them, or none")

    def _is_same(self, text: str, messages: Sequence[Message], tools: Any) -> bool:
        from jinja2 import TemplateError

        try:
            return bool(self._apply(messages, tools, tokenize=False) == text)
        except (TemplateError, *_FAULTS):
            return False

    def _applied(self, messages: Sequence[Message], tools: Any, **options: Any) -> Any:
        from jinja2 import TemplateError

        try:
            return self._apply(messages, tools, **options)
        except (TemplateError, *_FAULTS) as error:
            raise TaskDataError(f"the chat template refuses the conversation: {error}") from error

    def _apply(self, messages: Sequence[Message], tools: Any, **options: Any) -> Any:
        with _RENDERING:
            return self._tokenizer.apply_chat_template(
                list(messages), tools=tools, chat_template=self._given, **options
            )
