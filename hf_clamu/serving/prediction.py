"""Predictions for rows, each served by its task's cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_clamu.errors import TaskDataError, TaskNotFoundError
from hf_clamu.serving.routing import Fallback, Route, find_route, group_by_route, require_one_choice, select_route
from hf_clamu.tasks import Example, ModelLimits, TaskSpec, traits_of
from hf_clamu.tasks.encoding import example_encoder, padding_id, tokenizer_limit
from hf_clamu.tasks.reading.checks import require_words
from hf_clamu.training import LiveModel

__all__ = ["predict"]

_BATCH = 32


def predict(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    cluster: int | None = None,
    task: str | None = None,
    fallback: Fallback | None = None,
    max_new_tokens: int = 64,
) -> list[dict[str, Any]]:
    """Predict rows, in their order.

    Args:
        model (`ClamuModel`): the model; what is selected is the same afterwards. It is held until all rows are
            answered: other threads wait.
        rows (*sequence* of *mapping*): with the columns of the model's recipe (labels are not needed).
        cluster (`int`, *optional*): serve all rows by this cluster.
        task (`str`, *optional*): serve all rows by this task's cluster. Without either, a row that has the task column
            is served by its task's cluster, any other by the global model.
        fallback (`str`, *optional*): who serves a task that is not merged (never was, or is forgotten): `"global"` or
            `"base"`; by default it raises.
        max_new_tokens (`int`): length of a generated completion.

    Returns:
        *list* of *dict*: `{"label", "score"}` for classifiers, `{"tags", "scores"}` for classifiers of words,
        `{"completion"}` for language models, each with `"served_by"` (`"cluster"`, `"global"` or `"base"`) and
        `"cluster"` (its number, or `None`). Tag and score are `None` for a word of which no token is left (an empty
        one, or beyond `max_length`).

    Raises:
        TaskDataError: if a row lacks the column.
        TaskNotFoundError: if a task is not merged and there is no fallback; names the row.
    """
    require_one_choice(cluster, task)
    answers: list[dict[str, Any]] = [{} for _ in rows]
    with model.held():
        spec = model.merged.checkpoint.task_spec
        if cluster is None and task is None:
            routes = [_route_of_row(model, spec, index, row, fallback) for index, row in enumerate(rows)]
        else:
            routes = [find_route(model, cluster, task, fallback)] * len(rows)
        for route, indices in group_by_route(routes).items():
            select_route(model, route)
            is_cluster = isinstance(route, int)
            served = {"cluster": route if is_cluster else None, "served_by": "cluster" if is_cluster else route}
            for start in range(0, len(indices), _BATCH):
                batch = indices[start : start + _BATCH]
                answered = _answer(model, spec, [(index, rows[index]) for index in batch], max_new_tokens)
                for index, answer in zip(batch, answered, strict=True):
                    answers[index] = {**answer, **served}
    return answers


def _route_of_row(model: Any, spec: TaskSpec, index: int, row: Mapping[str, Any], fallback: Fallback | None) -> Route:
    """Return the route of the task that a row names."""
    task = row.get(spec.task_column)
    if not isinstance(task, (str, type(None))):
        raise TaskDataError(f"Row {index}, column {spec.task_column!r}: a task id is a string, found {task!r}.")
    try:
        return find_route(model, None, task, fallback)
    except TaskNotFoundError as error:
        raise TaskNotFoundError(
            f"Row {index}, column {spec.task_column!r}: {error} To have such rows answered by the global model or the "
            "base, give fallback= (--fallback on the command line)."
        ) from None


@torch.no_grad()
def _answer(
    model: Any, spec: TaskSpec, rows: Sequence[tuple[int, Mapping[str, Any]]], max_new_tokens: int
) -> list[dict[str, Any]]:
    model.eval()
    if traits_of(spec.kind).writes_text:
        return [{"completion": _complete(model, spec, index, row, max_new_tokens)} for index, row in rows]
    column = str(spec.image_column or spec.tokens_column or spec.text_column)
    examples = _encoded(model, spec, rows, column)
    batch = LiveModel(model, device=model.device, pad_token_id=padding_id(model.processor)).batch(examples)
    words_BL = batch.pop("labels")
    try:
        logits = model(**batch).logits.float()
    except ValueError as error:
        if spec.image_column is None:
            raise
        # Vision models refuse sizes and channels that are not theirs; without a processor nothing fits the images.
        shape = tuple(examples[0]["pixel_values"].shape)
        raise TaskDataError(
            f"Row {rows[0][0]}, column {column!r}: the model does not take an image of shape {shape}: {error}"
        ) from error
    scores, labels = logits.softmax(-1).max(-1)
    names = model.config.id2label
    if spec.tokens_column is not None:
        return [
            _tags(len(row[column]), words_L, labels_L, scores_L, names)
            for (_, row), words_L, labels_L, scores_L in zip(
                rows, words_BL.tolist(), labels.tolist(), scores.tolist(), strict=True
            )
        ]
    return [
        {"label": names[label], "score": score} for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
    ]


def _encoded(model: Any, spec: TaskSpec, rows: Sequence[tuple[int, Mapping[str, Any]]], column: str) -> list[Example]:
    """Encode rows as in training, and refuse what the model cannot take."""
    encode, limit = example_encoder(spec, model.processor), _positions(model, spec)
    examples = []
    for index, row in rows:
        _require(row, column, index, spec)
        try:
            # For words, labels that say which word a token stands for.
            examples.append(encode(row, 0 if spec.tokens_column is None else tuple(range(len(row[column])))))
        except TaskDataError as error:
            raise TaskDataError(f"Row {index}, column {column!r}: {error}.") from None
        length = len(examples[-1].get("input_ids", ()))
        if limit is not None and length > limit:
            raise TaskDataError(
                f"Row {index}, column {column!r}: the text has {length} tokens, the model takes {limit}. Shorten it, "
                "or train with max_length in the recipe's data section."
            )
    if spec.image_column is not None:
        _require_one_shape(examples, rows, column)
    return examples


def _tags(
    num_words: int, words: Sequence[int], labels: Sequence[int], scores: Sequence[float], names: Mapping[int, str]
) -> dict[str, Any]:
    by_word = {
        word: (names[label], score) for word, label, score in zip(words, labels, scores, strict=True) if word >= 0
    }
    answers = [by_word.get(word, (None, None)) for word in range(num_words)]
    return {"tags": [tag for tag, _ in answers], "scores": [score for _, score in answers]}


def _complete(model: Any, spec: TaskSpec, index: int, row: Mapping[str, Any], max_new_tokens: int) -> str:
    column = str(spec.prompt_column or spec.text_column)
    _require(row, column, index, spec)
    text = spec.template.replace("{prompt}", row[column])
    limit = _positions(model, spec)
    if traits_of(spec.kind).labels == "decoder":
        cut = spec.max_length or tokenizer_limit(model.processor)  # as in training
        prompt = model.processor(text, truncation=cut is not None, max_length=cut, return_tensors="pt")
        length, taken = prompt["input_ids"].shape[1], 0
        if length == 0 or (limit is not None and length > limit):
            raise TaskDataError(
                f"Row {index}, column {column!r}: the prompt has {length} tokens, the model takes 1 to {limit}."
            )
    else:
        prompt = model.processor(text, return_tensors="pt")
        taken = prompt["input_ids"].shape[1]
    prompt = prompt.to(model.device)
    num_free_positions = max_new_tokens if limit is None else min(max_new_tokens, limit - taken)
    if num_free_positions < 1:
        raise TaskDataError(f"Row {index}, column {column!r}: the prompt fills the model's {limit} positions.")
    written = model.generate(
        input_ids=prompt["input_ids"],
        attention_mask=prompt["attention_mask"],
        max_new_tokens=num_free_positions,
        do_sample=False,
        pad_token_id=model.processor.pad_token_id,
    )
    return str(model.processor.decode(written[0, taken:], skip_special_tokens=True))


def _positions(model: Any, spec: TaskSpec) -> int | None:
    limits = ModelLimits.of(model)
    return limits.positions if limits.is_table or spec.max_length is None else None


def _require_one_shape(
    examples: Sequence[Example], rows: Sequence[tuple[int, Mapping[str, Any]]], column: str
) -> None:
    expected = tuple(examples[0]["pixel_values"].shape)
    for (index, _), example in zip(rows, examples, strict=True):
        shape = tuple(example["pixel_values"].shape)
        if shape != expected:
            raise TaskDataError(
                f"Row {index}, column {column!r}: image of shape {shape}, but row {rows[0][0]} has {expected}; images "
                "that no processor resizes must be of one shape."
            )


def _require(row: Mapping[str, Any], column: str, index: int, spec: TaskSpec) -> None:
    if row.get(column) is None:
        raise TaskDataError(
            f"Row {index} has no {column!r}, which the model's recipe names as its input; it has {sorted(row)}."
        )
    if spec.tokens_column is not None:
        try:
            require_words(row[column])
        except ValueError as error:
            raise TaskDataError(f"Row {index}, column {column!r}: {error}.") from None
    elif spec.image_column is None and not isinstance(row[column], str):
        raise TaskDataError(f"Row {index}, column {column!r}: expected a text, found {row[column]!r}.")
