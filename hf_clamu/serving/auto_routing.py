"""`cluster="auto"`: the cluster of an input by what the base model makes of it, for owners that nobody has named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.serving.conversations import is_conversation, prompt_ids
from hf_clamu.serving.routing import Route
from hf_clamu.tasks import Example, ModelLimits, traits_of
from hf_clamu.tasks.encoding import example_encoder, padding_id, tokenizer_limit
from hf_clamu.training import LiveModel, example_features

__all__ = ["input_example", "nearest_clusters", "nearest_tasks", "require_features", "resolve_routes"]

_BATCH = 32


def require_features(model: Any) -> torch.Tensor:
    """Return the base model's feature of each task.

    Args:
        model (`ClamuModel`): the model.

    Returns:
        `torch.Tensor` of shape `(tasks, hidden_size)`, float32.

    Raises:
        RecipeError: if the model keeps none, or has no masks to choose from.
    """
    if model.clusters and not model.merged.state.masks:
        raise RecipeError(
            "cluster='auto' chooses the mask of a cluster, and this model has none (localization "
            f"{model.clamu_config.arguments['localization']!r}): one model answers every input. Leave 'auto' out."
        )
    features: torch.Tensor | None = model.merged.checkpoint.routing_features
    if features is None:
        raise RecipeError(
            "cluster='auto' compares an input with the base model's features of the tasks, and this model keeps none "
            "(its tasks came without data, keep_features was false, or an older release built it): name a cluster or "
            "a task, or build it again with keep_features: true."
        )
    return features


def resolve_routes(model: Any, routes: Sequence[Route], example_of: Callable[[int], Example]) -> list[Route]:
    """Return routes in which `"auto"` is replaced by the cluster that is nearest to the input.

    The base model is run once on the inputs that wait for it, in batches, and stays selected.

    Args:
        model (`ClamuModel`): held by the caller.
        routes (*sequence* of `Route`): one for each input.
        example_of (*callable*): gives the encoded input of a number.

    Raises:
        RecipeError: if one is `"auto"` and the model keeps no features.
    """
    found, waiting = list(routes), [index for index, route in enumerate(routes) if route == "auto"]
    for start in range(0, len(waiting), _BATCH):
        batch = waiting[start : start + _BATCH]
        for index, cluster in zip(batch, nearest_clusters(model, list(map(example_of, batch))), strict=True):
            found[index] = cluster
    return found


def nearest_clusters(model: Any, examples: Sequence[Example]) -> list[int]:
    """Return the cluster of the task that is nearest to each example, see `nearest_tasks`.

    Args:
        model (`ClamuModel`): held by the caller; its base weights are selected.
        examples (*sequence* of `Example`): encoded inputs, at least one.

    Raises:
        RecipeError: if the model keeps no features.
    """
    tasks_TD, state = require_features(model), model.merged.checkpoint.state
    numbers = state.cluster_numbers()
    model.set_base()
    live = LiveModel(model, device=model.device, pad_token_id=padding_id(model.processor))
    nearest_B = nearest_tasks(example_features(live, examples), tasks_TD)
    return [numbers[state.task_ids[task]] for task in nearest_B.tolist()]


def nearest_tasks(inputs: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
    """Return the task whose feature has the largest cosine with that of each input.

    Features are taken from the mean of those of all tasks: what all inputs of a base model share tells none apart.

    Args:
        inputs (`torch.Tensor` of shape `(inputs, hidden_size)`): features of inputs.
        tasks (`torch.Tensor` of shape `(tasks, hidden_size)`): features of tasks.

    Returns:
        `torch.Tensor` of shape `(inputs,)`, int64: rows of `tasks`.

    Example:

    ```python
    >>> nearest_tasks(torch.tensor([[9.0, 2.0]]), torch.tensor([[9.0, 1.0], [9.0, -1.0], [8.0, 0.0]])).tolist()
    [0]

    ```
    """
    centre_D = tasks.double().mean(0)
    inputs_BD, tasks_TD = (torch.nn.functional.normalize(rows.double() - centre_D, dim=-1) for rows in (inputs, tasks))
    return (inputs_BD @ tasks_TD.T).argmax(-1)


def input_example(model: Any, value: Any, tools: Any = None) -> Example:
    """Encode what a pipeline takes as the model's recipe encodes the inputs of its rows.

    Args:
        model (`ClamuModel`): its recipe and its tokenizer or image processor are used.
        value: a text, a *dict* with it as `"text"`, a conversation (messages), a *list* of words, or an image (PIL,
            numbers, a path or an URL).
        tools (*list* of *dict*, *optional*): those of a conversation.

    Raises:
        TaskDataError: if it is something else.
    """
    spec, processor = model.merged.checkpoint.task_spec, model.processor
    traits = traits_of(spec.kind)
    if is_conversation(value) and traits.takes_conversations:
        return _open_example(prompt_ids(spec, processor, value, tools), _limit(model))
    if traits.reads == "image":
        from transformers.image_utils import load_image

        image = load_image(value) if isinstance(value, str) else value
        return example_encoder(spec, processor)({str(spec.image_column): image}, 0)
    text = value["text"] if isinstance(value, Mapping) and set(value) == {"text"} else value
    if traits.reads == "words":
        text = text.split() if isinstance(text, str) else text
        return example_encoder(spec, processor)({str(spec.tokens_column): text}, None)
    if not isinstance(text, str):
        raise TaskDataError(f"cluster='auto' takes a text, found {value!r}. Name a cluster or a task for it.")
    if traits.writes_text:
        return _prompt_example(processor, text, _limit(model), traits.labels)
    return example_encoder(spec, processor)({str(spec.text_column): text}, 0)


def _limit(model: Any) -> int | None:
    limits = (
        model.merged.checkpoint.task_spec.max_length,
        tokenizer_limit(model.processor),
        ModelLimits.of(model).positions,
    )
    return min((limit for limit in limits if limit), default=None)


def _prompt_example(tokenizer: Any, text: str, limit: int | None, labels: str) -> Example:
    if labels == "decoder":
        ids = tokenizer(text, truncation=limit is not None, max_length=limit)["input_ids"]
        limit = None
    else:
        ids = tokenizer(text)["input_ids"]
    if not ids:
        raise TaskDataError(f"the prompt {text!r} tokenises to nothing")
    return _open_example(ids, limit)


def _open_example(ids: Sequence[int], limit: int | None) -> Example:
    # What comes last is what is to be answered.
    tokens = torch.tensor(list(ids)[-(limit or 0) :], dtype=torch.int64)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
