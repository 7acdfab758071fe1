"""Rows of a task to examples, with task, column and row in the message if one cannot be encoded."""

from __future__ import annotations

from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.encoding.encoders import example_encoder
from hf_clamu.tasks.encoding.examples import Example
from hf_clamu.tasks.limits import ModelLimits
from hf_clamu.tasks.reading.task_rows import PartRows
from hf_clamu.tasks.spec import TaskSpec

__all__ = ["check_shapes", "encode_rows"]


def encode_rows(
    spec: TaskSpec, task_id: str, part: PartRows, processor: Any, limits: ModelLimits | None = None
) -> list[Example]:
    """Encode the rows of one task in one split, in their order.

    Args:
        spec (`TaskSpec`): which column is which.
        task_id (`str`): the task, for the message.
        part (`PartRows`): the rows.
        processor (`transformers.PreTrainedTokenizerBase`, image processor, or None for images as they are).
        limits (`ModelLimits`, *optional*): of the model that the examples are for; what it cannot take is refused.

    Raises:
        TaskDataError: if a row cannot be encoded.
    """
    encode = example_encoder(spec, processor, limits)
    examples = []
    for number, row in enumerate(part.rows.tolist()):
        # One row at a time: a task's images need never be decoded together.
        values = part.split.dataset[row]
        try:
            examples.append(encode(values, None if part.labels is None else part.labels[number]))
        except TaskDataError as error:
            columns = set(spec.content_columns) - {spec.label_column, spec.tags_column, spec.tools_column}
            location = part.split.location(task_id, " + ".join(sorted(columns)), row)
            raise TaskDataError(f"{location}: {error}.") from error
    return examples


def check_shapes(spec: TaskSpec, task_id: str, parts: list[tuple[PartRows, list[Example]]]) -> None:
    """Check that all images of a task have one shape.

    Args:
        spec (`TaskSpec`): names the column, for the message.
        task_id (`str`): the task, for the message.
        parts (*list* of *tuple* of `PartRows` and *list* of `Example`): rows and what they are encoded to.

    Raises:
        TaskDataError: naming the first row whose image has another shape.
    """
    expected = tuple(parts[0][1][0]["pixel_values"].shape)
    for part, examples in parts:
        for number, example in enumerate(examples):
            shape = tuple(example["pixel_values"].shape)
            if shape != expected:
                location = part.split.location(task_id, spec.image_column, int(part.rows[number]))
                raise TaskDataError(f"{location}: image of shape {shape}, but the task's first has {expected}.")
