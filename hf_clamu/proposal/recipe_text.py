"""The recipe for a file that was surveyed, with comments that say what to change."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.proposal.survey import Survey

__all__ = ["CHAT_LENGTH", "MAX_LENGTH", "SAMPLE", "is_tiny_base", "recipe_text"]

# Messages to twelve shops, written for this package.
SAMPLE = Path(__file__).with_name("messages.csv")
MAX_LENGTH = 128
CHAT_LENGTH = 512

_ABOUT = """\
# A small model with random weights{reads}: it needs no network, and is there to try things. For real use
# name a pretrained model of the Hub or a folder instead of these lines, such as
#   base_model: {example}
# and take finetune_steps: 20.
"""
_TINY_TEXT: dict[str, Any] = {
    "model_type": "gpt2",
    "n_positions": MAX_LENGTH,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
_TINY_IMAGE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_MEANINGS = {
    "task_column": "whose row it is: the unit that can be forgotten",
    "text_column": "what the model reads",
    "prompt_column": "what the model reads",
    "image_column": "what the model reads",
    "label_column": "what it learns to say of it",
    "completion_column": "what it learns to write after it",
    "messages_column": "conversations: lists of messages, each with role and content",
    "tools_column": "the tools of a conversation; cells may be empty",
}
_CHAT_TEMPLATE = """\
  # How messages become one text. With a pretrained model leave it out: its tokenizer has its own.
  chat_template: |
    {% for tool in tools or [] %}{{ tool | tojson }}
    {% endfor %}
    {% for message in messages %}{{ message.role }}:
    {% if message.role == 'assistant' %}
    {% generation %}
    {{ message.content }}{{ message.tool_calls | tojson if message.tool_calls }}{{ eos_token }}
    {%- endgeneration %}
    {% else %}{{ message.content }}{{ eos_token }}{% endif %}
    {% endfor %}
    {% if add_generation_prompt %}assistant:
    {% endif %}
"""
_IDS = {"strip": "white space at the ends of ids is removed", "as-is": "ids that look alike are different owners"}
# Patches of the small image model, which is quick with so few.
_MOST_PATCHES = 16


def recipe_text(
    survey: Survey, *, files: str | Sequence[str], base: str | None = None, preset: str = "per-task"
) -> str:
    """Return a recipe as YAML.

    Args:
        survey (`Survey`): of the files.
        files (`str` or *sequence* of `str`): the files' paths, as the recipe is to name them.
        base (`str`, *optional*): a Hub id or folder; by default a small model made from a configuration.
        preset (`str`): the preset.

    Raises:
        TaskDataError: if no small model could read images of these shapes.
    """
    columns = [f"  {option}: {_quoted(name)}  # {_MEANINGS[option]}" for option, name in survey.columns.named.items()]
    rows = [] if survey.ids == "strict" else [f"  ids: {survey.ids}  # {_IDS[survey.ids]}"]
    if survey.incomplete_rows == "skip":
        rows.append("  incomplete_rows: skip  # rows with an empty cell are left out")
    talks = survey.columns.has_conversations
    limit = CHAT_LENGTH if talks else MAX_LENGTH
    length = [] if survey.columns.image_column else [f"  max_length: {limit}  # tokens; longer texts are cut"]
    if talks:
        length += _conversation_lines(survey, base)
    steps = 60 if base is None else 20
    section = "\n".join([*columns, *rows, *length])
    return f"""\
# Written by `clamu init`. Look it over, then: clamu plan, clamu train.
{_tiny(survey) if base is None else f"base_model: {_quoted(base)}{chr(10)}"}
data:
  files: {_quoted(files if isinstance(files, str) else list(files))}
{section}
  validation_fraction: 0.2  # of each owner's rows, to measure with

arguments:
  preset: {preset}  # or: clusters, adapters, one-model
  finetune_steps: {steps}
  batch_size: 16
  num_threads: 1  # small models are fastest so; the number shows in the bits, so keep it

# Keep a private copy of the tokenised rows beside the model: requests then need no file, and an owner who edits or
# deletes a row stops nobody else's request. A forgotten owner's copy is destroyed with it.
snapshot: true
"""


def _conversation_lines(survey: Survey, base: str | None) -> list[str]:
    lines = [] if base is not None else [_CHAT_TEMPLATE.rstrip("\n")]
    if survey.columns.messages_column is None:
        return lines
    if base is None:
        return [*lines, "  assistant_only_loss: true  # learn what stands between the marks of the template"]
    others = "where the template marks what the assistant says, assistant_only_loss: true learns all of that"
    return [*lines, f"  completion_only_loss: true  # learn the last message; {others}"]


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _tiny(survey: Survey) -> str:
    """Return a small base model for what was seen."""
    columns = survey.columns
    if columns.image_column is None:
        example = "openai-community/gpt2" if columns.prompt_column else "distilbert/distilbert-base-uncased"
        example = "Qwen/Qwen3-0.6B" if columns.has_conversations else example
        about = _ABOUT.format(reads=" that reads bytes", example=example)
        positions = {"n_positions": CHAT_LENGTH} if columns.has_conversations else {}
        return f"{about}base_model:\n{_lines({**_TINY_TEXT, **positions})}tokenizer: bytes\n"
    if len(survey.image_shapes) != 1:
        shapes = ", ".join("x".join(map(str, shape)) for shape in survey.image_shapes[:3]) or "none that can be read"
        raise TaskDataError(
            f"The images have no single shape (channels x height x width: {shapes}), as the small model needs. Give "
            "--base MODEL: a pretrained model's image processor resizes them."
        )
    ((channels, height, width),) = survey.image_shapes
    sizes = [size for size in range(1, math.gcd(height, width) + 1) if height % size == width % size == 0]
    few = [size for size in sizes if (height // size) * (width // size) <= _MOST_PATCHES]
    about = _ABOUT.format(reads="", example="google/vit-base-patch16-224-in21k")
    return f"""\
{about}base_model:
  model_type: vit
  image_size: {height if height == width else [height, width]}
  patch_size: {(few or sizes[-1:])[0]}
  num_channels: {channels}
{_lines(_TINY_IMAGE)}"""


def _lines(values: Mapping[str, Any]) -> str:
    return "".join(f"  {key}: {value}\n" for key, value in values.items())


def is_tiny_base(config: Mapping[str, Any]) -> bool:
    """Whether a base model is the small one with random weights that recipes name unless `--base` is given.

    Args:
        config (*mapping*): the base model's configuration.
    """
    tiny = (_TINY_TEXT, {**_TINY_TEXT, "n_positions": CHAT_LENGTH}, {"model_type": "vit", **_TINY_IMAGE})
    return any(all(config.get(key) == value for key, value in values.items()) for values in tiny)
