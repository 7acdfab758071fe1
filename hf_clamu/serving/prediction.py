"""Predictions for rows, each served by its task's cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from hf_clamu.errors import TaskDataError, TaskNotFoundError
from hf_clamu.serving.auto_routing import input_example, resolve_routes
from hf_clamu.serving.conversations import prompt_ids
from hf_clamu.serving.routing import Fallback, Route, find_route, group_by_route, require_one_choice, select_route
from hf_clamu.tasks import Example, ModelLimits, TaskSpec, traits_of
from hf_clamu.tasks.conversations import Message, MessagesError, prompt_of_row
from hf_clamu.tasks.encoding import example_encoder, padding_id, tokenizer_limit
from hf_clamu.tasks.reading.checks import require_words
from hf_clamu.training import LiveModel

__all__ = ["predict", "predict_by_routes"]

_BATCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class _Input:
    """A row, and what messages call it."""

    number: int
    row: Mapping[str, Any]
    name: Callable[[int], str]

    @property
    def place(self) -> str:
        """What the row is called at the beginning of a sentence."""
        name = self.name(self.number)
        return f"{name[0].upper()}{name[1:]}"

    def problem(self, column: str, text: str) -> str:
        """Return a sentence about a column of the row."""
        return f"{self.place}, column {column!r}: {text}"

    @contextmanager
    def column(self, column: str) -> Iterator[None]:
        """Name the row and a column in errors that come from its cell."""
        try:
            yield
        except TaskDataError as error:
            raise TaskDataError(self.problem(column, f"{error}.")) from None


def _numbered(number: int) -> str:
    return f"row {number}"


def predict(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    cluster: int | str | None = None,
    task: str | None = None,
    fallback: Fallback | None = None,
    max_new_tokens: int = 64,
    name_of_row: Callable[[int], str] = _numbered,
) -> list[dict[str, Any]]:
    """Predict rows, in their order.

    Args:
        model (`ClamuModel`): the model; what is selected is the same afterwards. It is held until all rows are
            answered: other threads wait.
        rows (*sequence* of *mapping*): with the columns of the model's recipe (labels are not needed). Of a
            conversation the assistant's last turn, if it ends with one, is what is to be answered, and is not read.
        cluster (`str` or `int`, *optional*): serve all rows by this cluster, or with `"auto"` each by the cluster that
            is nearest to it by the base model's features.
        task (`str`, *optional*): serve all rows by this task's cluster. Without either, a row that has the task column
            is served by its task's cluster, any other by the global model.
        fallback (`str`, *optional*): who serves a task that is not merged (never was, or is forgotten): `"global"`,
            `"base"` or `"auto"`; by default it raises.
        max_new_tokens (`int`): length of a generated completion.
        name_of_row (*callable* from `int` to `str`): what messages call a row, by default its number from 0.

    Returns:
        *list* of *dict*: `{"label", "score"}` for classifiers, `{"tags", "scores"}` for classifiers of words,
        `{"completion"}` for language models, each with `"served_by"` (`"cluster"`, `"global"` or `"base"`),
        `"cluster"` and `"cluster_name"` (its number and name, or `None`). Tag and score are `None` for a word of which
        no token is left (an empty one, or beyond `max_length`).

    Raises:
        RecipeError: if `"auto"` is asked for and the model keeps no features.
        TaskDataError: if a row lacks the column.
        TaskNotFoundError: if a task is not merged and there is no fallback; names the row.
    """
    require_one_choice(cluster, task)
    inputs = [_Input(number=number, row=row, name=name_of_row) for number, row in enumerate(rows)]
    with model.held():
        spec = model.merged.checkpoint.task_spec
        if cluster is None and task is None:
            routes = [_route_of(model, spec, given, fallback) for given in inputs]
        else:
            routes = [find_route(model, cluster, task, fallback)] * len(rows)
        return _predict(model, inputs, routes, max_new_tokens)


def predict_by_routes(
    model: Any, rows: Sequence[Mapping[str, Any]], routes: Sequence[Route], *, max_new_tokens: int = 64
) -> list[dict[str, Any]]:
    """Predict rows by what is said for each: the base model, the global model, or a cluster by its number.

    Args:
        model (`ClamuModel`): as in `predict`.
        rows (*sequence* of *mapping*): as in `predict`; a task that a row names does not count.
        routes (*sequence* of `str` or `int`): for each row `"base"`, `"global"`, `"auto"` or the number of a cluster.
        max_new_tokens (`int`): length of a generated completion.

    Returns:
        *list* of *dict*: as of `predict`.
    """
    inputs = [_Input(number=number, row=row, name=_numbered) for number, row in enumerate(rows)]
    with model.held():
        return _predict(model, inputs, routes, max_new_tokens)


def _predict(
    model: Any, inputs: Sequence[_Input], wanted: Sequence[Route], max_new_tokens: int
) -> list[dict[str, Any]]:
    """Answer inputs with a model that is held, so that each route is selected once."""
    answers: list[dict[str, Any]] = [{} for _ in inputs]
    spec = model.merged.checkpoint.task_spec
    routes = resolve_routes(model, list(wanted), lambda index: _routed_example(model, spec, inputs[index]))
    for route, indices in group_by_route(routes).items():
        select_route(model, route)
        served: dict[str, Any] = {"cluster": None, "cluster_name": None, "served_by": route}
        if isinstance(route, int):
            served = {"cluster": route, "cluster_name": model.cluster_names[route], "served_by": "cluster"}
        for start in range(0, len(indices), _BATCH):
            batch = indices[start : start + _BATCH]
            answered = _answer(model, spec, [inputs[index] for index in batch], max_new_tokens)
            for index, answer in zip(batch, answered, strict=True):
                answers[index] = {**answer, **served}
    return answers


def _route_of(model: Any, spec: TaskSpec, given: _Input, fallback: Fallback | None) -> Route:
    """Return the route of the task that a row names."""
    task = given.row.get(spec.task_column)
    if not isinstance(task, (str, type(None))):
        raise TaskDataError(given.problem(spec.task_column, f"a task id is a string, found {task!r}."))
    try:
        return find_route(model, None, task if task is None else spec.task_id(task), fallback)
    except TaskNotFoundError as error:
        way_out = "To have such rows answered all the same, give fallback= (--fallback in clamu)."
        raise TaskNotFoundError(given.problem(spec.task_column, f"{error} {way_out}")) from None


@torch.no_grad()
def _answer(model: Any, spec: TaskSpec, inputs: Sequence[_Input], max_new_tokens: int) -> list[dict[str, Any]]:
    model.eval()
    if traits_of(spec.kind).writes_text:
        return [{"completion": _complete(model, spec, given, max_new_tokens)} for given in inputs]
    column = str(spec.image_column or spec.tokens_column or spec.text_column)
    examples = _encoded(model, spec, inputs, column)
    batch = LiveModel(model, device=model.device, pad_token_id=padding_id(model.processor)).batch(examples)
    words_BL = batch.pop("labels")
    try:
        logits = model(**batch).logits.float()
    except ValueError as error:
        if spec.image_column is None:
            raise
        # Vision models refuse sizes and channels that are not theirs; without a processor nothing fits the images.
        shape = tuple(examples[0]["pixel_values"].shape)
        problem = f"the model does not take an image of shape {shape}: {error}"
        raise TaskDataError(inputs[0].problem(column, problem)) from error
    scores, labels = logits.softmax(-1).max(-1)
    names = model.config.id2label
    if spec.tokens_column is not None:
        return [
            _tags(len(given.row[column]), words_L, labels_L, scores_L, names)
            for given, words_L, labels_L, scores_L in zip(
                inputs, words_BL.tolist(), labels.tolist(), scores.tolist(), strict=True
            )
        ]
    return [
        {"label": names[label], "score": score} for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
    ]


def _encoded(model: Any, spec: TaskSpec, inputs: Sequence[_Input], column: str) -> list[Example]:
    """Encode rows as in training, and refuse what the model cannot take."""
    encode, limit = example_encoder(spec, model.processor), _positions(model, spec)
    examples = []
    for given in inputs:
        _require(given, column, spec)
        try:
            # For words, labels that say which word a token stands for.
            labels = 0 if spec.tokens_column is None else tuple(range(len(given.row[column])))
            examples.append(encode(given.row, labels))
        except TaskDataError as error:
            raise TaskDataError(given.problem(column, f"{error}.")) from None
        length = len(examples[-1].get("input_ids", ()))
        if limit is not None and length > limit:
            problem = f"the text has {length} tokens, the model takes {limit}"
            advice = "Shorten it, or train with max_length in the recipe's data section."
            raise TaskDataError(given.problem(column, f"{problem}. {advice}"))
    if spec.image_column is not None:
        _require_one_shape(examples, inputs, column)
    return examples


def _routed_example(model: Any, spec: TaskSpec, given: _Input) -> Example:
    """Encode what of a row is known before it is answered."""
    if spec.conversational:
        column, messages, tools = _conversation(spec, given)
        with given.column(column):
            return input_example(model, messages, tools)
    if traits_of(spec.kind).writes_text:
        column, text = _prompt(spec, given)
        with given.column(column):
            return input_example(model, text)
    return _encoded(model, spec, [given], str(spec.image_column or spec.tokens_column or spec.text_column))[0]


def _prompt(spec: TaskSpec, given: _Input) -> tuple[str, str]:
    """Return the column of a row that is answered, and what the model reads of it."""
    column = str(spec.prompt_column or spec.text_column)
    _require(given, column, spec)
    return column, spec.template.replace("{prompt}", given.row[column])


def _conversation(spec: TaskSpec, given: _Input) -> tuple[str, list[Message], Any]:
    """Return the column of a row that is answered, its messages and its tools."""
    column = str(spec.messages_column or spec.prompt_column)
    _require(given, column, spec)
    try:
        return (column, *prompt_of_row(spec, given.row))
    except MessagesError as error:
        raise TaskDataError(given.problem(error.column, f"{error}.")) from None


def _prompt_tokens(model: Any, spec: TaskSpec, given: _Input) -> tuple[str, Any]:
    """Return the column of a row that a decoder alone goes on from, and its encoded tokens."""
    if not spec.conversational:
        column, text = _prompt(spec, given)
        return column, model.processor(text, return_tensors="pt")
    column, messages, tools = _conversation(spec, given)
    with given.column(column):
        ids = torch.tensor([prompt_ids(spec, model.processor, messages, tools)])
    return column, transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _tags(
    num_words: int, words: Sequence[int], labels: Sequence[int], scores: Sequence[float], names: Mapping[int, str]
) -> dict[str, Any]:
    by_word = {
        word: (names[label], score) for word, label, score in zip(words, labels, scores, strict=True) if word >= 0
    }
    answers = [by_word.get(word, (None, None)) for word in range(num_words)]
    return {"tags": [tag for tag, _ in answers], "scores": [score for _, score in answers]}


def _complete(model: Any, spec: TaskSpec, given: _Input, max_new_tokens: int) -> str:
    limit = _positions(model, spec)
    if traits_of(spec.kind).labels == "decoder":
        column, text = _prompt(spec, given)
        cut = spec.max_length or tokenizer_limit(model.processor)  # as in training
        prompt = model.processor(text, truncation=cut is not None, max_length=cut, return_tensors="pt")
        length, taken = prompt["input_ids"].shape[1], 0
        if length == 0 or (limit is not None and length > limit):
            raise TaskDataError(
                given.problem(column, f"the prompt has {length} tokens, the model takes 1 to {limit}.")
            )
    else:
        column, prompt = _prompt_tokens(model, spec, given)
        taken = prompt["input_ids"].shape[1]
    prompt = prompt.to(model.device)
    num_free_positions = max_new_tokens if limit is None else min(max_new_tokens, limit - taken)
    if num_free_positions < 1:
        raise TaskDataError(given.problem(column, f"the prompt fills the model's {limit} positions."))
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


def _require_one_shape(examples: Sequence[Example], inputs: Sequence[_Input], column: str) -> None:
    expected = tuple(examples[0]["pixel_values"].shape)
    for given, example in zip(inputs, examples, strict=True):
        shape = tuple(example["pixel_values"].shape)
        if shape != expected:
            problem = f"image of shape {shape}, but row {inputs[0].number} has {expected}"
            raise TaskDataError(
                given.problem(column, f"{problem}; images that no processor resizes must be of one shape.")
            )


def _require(given: _Input, column: str, spec: TaskSpec) -> None:
    value = given.row.get(column)
    if value is None:
        names = sorted(given.row)
        raise TaskDataError(
            f"{given.place} has no {column!r}, which the model's recipe names as its input; it has {names}."
        )
    if spec.tokens_column is not None:
        try:
            require_words(value)
        except ValueError as error:
            raise TaskDataError(given.problem(column, f"{error}.")) from None
    elif spec.image_column is None and not spec.conversational and not isinstance(value, str):
        raise TaskDataError(given.problem(column, f"expected a text, found {value!r}."))
