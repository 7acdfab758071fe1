"""transformers' pipelines, served per cluster and per task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from transformers.pipelines import TASK_ALIASES
from transformers.pipelines.pt_utils import PipelineIterator

from hf_clamu.errors import IncompatibleBaseError
from hf_clamu.models.modeling_clamu import ClamuModel
from hf_clamu.serving.auto_routing import input_example, require_features, resolve_routes
from hf_clamu.serving.conversations import is_conversation
from hf_clamu.serving.recipe_pipelines import (
    RecipeFeaturePipeline,
    RecipeImageFeaturePipeline,
    RecipePixels,
    RecipeTextPipeline,
    RecipeWordsInTextPipeline,
    recipe_tokenizer,
)
from hf_clamu.serving.routing import Fallback, Route, find_route, group_by_route, require_one_choice, select_route
from hf_clamu.serving.text2text import Text2TextPipeline
from hf_clamu.tasks import KindTraits, TaskSpec, task_kinds, traits_of

__all__ = ["ClamuPipeline", "pipeline"]

# Pipelines whose stock versions encode otherwise than training, or take the head's answers for the model's.
_HIDDEN_STATES: dict[str, Any] = {
    "feature-extraction": RecipeFeaturePipeline,
    "image-feature-extraction": RecipeImageFeaturePipeline,
}
_CLASSIFIERS: dict[str, Any] = {"text": RecipeTextPipeline, "words": RecipeWordsInTextPipeline}


def pipeline(
    kind: str,
    model: Any,
    *,
    cluster: int | str | None = None,
    task: str | None = None,
    fallback: Fallback | None = None,
    tokenizer: Any = None,
    image_processor: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Any = None,
    local_files_only: bool = False,
    dtype: Any = None,
    device_map: Any = None,
    task_id_key: str | None = None,
    **kwargs: Any,
) -> ClamuPipeline:
    """Make a pipeline that serves one cluster, and others on request.

    Args:
        kind (`str`): the pipeline's task in transformers' words, such as `"text-classification"`; for
            encoder-decoders, which transformers 5 has no pipeline for, `"text2text-generation"`.
        model (`ClamuModel`, `str` or `Path`): a model, a folder or a Hub id.
        cluster (`str` or `int`, *optional*): the cluster, by name or number, that serves when a call names none; by
            default the global model. `"auto"` serves each input by the cluster that is nearest to it by the base
            model's features, see `hf_clamu.serving.auto_routing`.
        task (`str`, *optional*): instead, the cluster that serves this task.
        fallback (`str`, *optional*): who serves a task that is not merged (never was, or is forgotten): `"global"`,
            `"base"` or `"auto"`; by default it raises.
        tokenizer (*optional*): by default the model's own, which cuts and pads as in training; a given one as it says.
        image_processor (*optional*): by default the model's own; without one, pixels are taken as they are, as in
            training.
        revision, token, cache_dir, local_files_only, dtype, device_map, task_id_key (*optional*): as in
            `ClamuModel.from_pretrained`, for a model that is loaded here.
        kwargs: for `transformers.pipeline`, such as `device` and `batch_size`.

    Raises:
        IncompatibleBaseError: if the model has the head of another pipeline, or no tokenizer.
        RecipeError: if `"auto"` is asked for and the model keeps no features.
        TaskNotFoundError: if the task is not merged and there is no fallback.

    Example:

    ```python
    pipe = pipeline("text-classification", "org/clamu-reddit", task="user_17")
    pipe("Never again.")
    pipe(["Never again.", "Once more."], task=["user_17", "user_3"])  # each row by its task's cluster, in order
    ```
    """
    options = {"revision": revision, "token": token, "cache_dir": cache_dir, "dtype": dtype, "device_map": device_map}
    options |= {"local_files_only": local_files_only or None, "task_id_key": task_id_key}
    model = _loaded(model, {key: value for key, value in options.items() if value is not None})
    inner = _inner(kind, model, {**kwargs, "tokenizer": tokenizer, "image_processor": image_processor})
    return ClamuPipeline(inner, cluster=cluster, task=task, fallback=fallback)


def _loaded(model: Any, options: Mapping[str, Any]) -> Any:
    """Return a model that is given, or load it with the options."""
    if not isinstance(model, ClamuModel):
        return ClamuModel.from_pretrained(model, **options)
    if options:
        raise TypeError(f"{next(iter(options))}= is for loading, but the model is loaded already: leave it out.")
    return model


def _inner(pipeline_task: str, model: Any, options: dict[str, Any]) -> Any:
    """Make the transformers pipeline, which encodes as the recipe did."""
    spec = model.merged.checkpoint.task_spec
    traits = traits_of(spec.kind)
    pipeline_task = TASK_ALIASES.get(pipeline_task, pipeline_task)
    # Pipelines of no head, such as feature-extraction, work with any.
    is_of_head = pipeline_task == traits.pipeline
    if not is_of_head and any(pipeline_task == traits_of(kind).pipeline for kind in task_kinds()):
        raise IncompatibleBaseError(
            f"The pipeline {pipeline_task!r} needs another head than that of this {type(model).__name__}, which is "
            f"for {traits.pipeline!r}."
        )
    options |= _preprocessing(model, spec, options.pop("tokenizer"), options.pop("image_processor"))
    pipeline_class = _pipeline_class(pipeline_task, traits)
    if pipeline_class is not None:
        options["pipeline_class"] = pipeline_class
    make: Any = Text2TextPipeline if is_of_head and traits.labels == "decoder" else transformers.pipeline
    return make(task=pipeline_task, model=model, **options)


def _preprocessing(model: Any, spec: TaskSpec, tokenizer: Any, image_processor: Any) -> dict[str, Any]:
    """Return the tokenizer or image processor: given, or the model's own."""
    if traits_of(spec.kind).reads == "image":
        own = model.processor if model.processor is not None else RecipePixels(model, spec)
        return {"image_processor": own if image_processor is None else image_processor}
    tokenizer = recipe_tokenizer(model) if tokenizer is None else tokenizer
    if tokenizer is None:
        raise IncompatibleBaseError("The model comes without a tokenizer that can be loaded here: give tokenizer=.")
    return {"tokenizer": tokenizer}


def _pipeline_class(pipeline_task: str, traits: KindTraits) -> Any:
    """Return the class that replaces transformers' own; None if that one is right."""
    if pipeline_task == traits.pipeline and not traits.writes_text:
        return _CLASSIFIERS.get(traits.reads)
    return _HIDDEN_STATES.get(pipeline_task)


class ClamuPipeline:
    """A transformers pipeline whose calls may name a cluster or a task.

    Everything else (`model`, `tokenizer`, `device`, ...) is the transformers pipeline's, which is `inner`. A call
    selects its cluster in the model and leaves it there. Threads may share a pipeline, and pipelines a model: from
    selecting to the answer a call holds the model, and others wait.

    Args:
        inner (`transformers.Pipeline`): over a `ClamuModel`.
        cluster (`str` or `int`, *optional*): who serves by default.
        task (`str`, *optional*): who serves by default.
        fallback (`str`, *optional*): who serves a task that is not merged.
    """

    def __init__(
        self,
        inner: Any,
        *,
        cluster: int | str | None = None,
        task: str | None = None,
        fallback: Fallback | None = None,
    ) -> None:
        if fallback not in (None, "global", "base", "auto"):
            raise ValueError(f"fallback must be 'global', 'base', 'auto' or None, got {fallback!r}.")
        self.inner = inner
        self._fallback = fallback
        self._default = (cluster, task)
        if "auto" in (cluster, fallback):
            require_features(inner.model)
        route = find_route(inner.model, cluster, task, fallback)
        select_route(inner.model, "global" if route == "auto" else route)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # a copy is being made, which has no pipeline yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(
        self,
        inputs: Any,
        *args: Any,
        cluster: int | str | None = None,
        task: str | Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer inputs.

        Args:
            inputs: what the transformers pipeline takes; for `"text-generation"` also a conversation (a list of
                messages) or a list of them. Generators and datasets are answered one by one when the answers are asked
                for, by the cluster of this call whatever was selected in between.
            cluster (`str` or `int`, *optional*): the cluster for this call; with `"auto"` inputs are grouped by the
                clusters that are found, after one more pass of the base model.
            task (`str` or *sequence* of `str`, *optional*): the task whose cluster serves this call, or one for each
                input (`None`: who serves by default); inputs are grouped by cluster and answered in their order.

        Raises:
            TaskNotFoundError: if a task is not merged and there is no fallback; nothing is answered then.
        """
        require_one_choice(cluster, task)
        model = self.inner.model
        if task is None or isinstance(task, str):
            asked = self._default if task is None and cluster is None else (cluster, task)
            with model.held(restores=False):
                route = find_route(model, *asked, self._fallback)
                if route == "auto":
                    return self._routed(inputs, asked, args, kwargs)
                select_route(model, route)
                answers = self.inner(inputs, *args, **kwargs)
            return _Answers(self, answers, *asked) if isinstance(answers, PipelineIterator) else answers
        rows = self._rows(inputs, len(task))
        with model.held(restores=False):
            choices = [self._default if task_id is None else (None, task_id) for task_id in task]
            routes = [find_route(model, *choice, self._fallback) for choice in choices]
            return self._grouped(rows, routes, args, kwargs)

    def _routed(self, inputs: Any, asked: tuple[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer inputs by the clusters that are nearest to them."""
        if isinstance(inputs, Iterator):
            named = dict(zip(("cluster", "task"), asked, strict=True))
            return (self([one], *args, **named, **kwargs)[0] for one in inputs)
        if isinstance(inputs, (list, tuple, torch.utils.data.Dataset)) and not is_conversation(inputs):
            rows = [inputs[index] for index in range(len(inputs))]  # type: ignore[arg-type]
            return self._grouped(rows, ["auto"] * len(rows), args, kwargs)
        model = self.inner.model
        tools = kwargs.get("tools")
        select_route(model, resolve_routes(model, ["auto"], lambda index: input_example(model, inputs, tools))[0])
        return self.inner(inputs, *args, **kwargs)

    def _grouped(
        self, rows: Sequence[Any], routes: Sequence[Route], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any]:
        """Answer inputs in their order, those of a route together."""
        model = self.inner.model
        tools = kwargs.get("tools")
        routes = resolve_routes(model, routes, lambda index: input_example(model, rows[index], tools))
        in_order: list[Any] = [None] * len(rows)
        for route, indices in group_by_route(routes).items():
            select_route(model, route)
            answers = self.inner([rows[index] for index in indices], *args, **kwargs)
            for index, answer in zip(indices, answers, strict=True):
                in_order[index] = answer
        return in_order

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save the model with its own tokenizer or image processor."""
        self.inner.model.save_pretrained(save_directory, **kwargs)

    @staticmethod
    def _rows(inputs: Any, num_tasks: int) -> list[Any]:
        is_single = isinstance(inputs, str) or is_conversation(inputs)
        if is_single or not isinstance(inputs, (Sequence, torch.utils.data.Dataset)):
            found = "one conversation" if is_single and not isinstance(inputs, str) else type(inputs).__name__
            raise ValueError(
                f"A sequence of tasks names one for each input, so the inputs must be a list, got {found}. For a "
                "single input or a generator name a single task."
            )
        rows = [inputs[index] for index in range(len(inputs))]  # type: ignore[arg-type]
        if len(rows) != num_tasks:
            raise ValueError(f"task= names {num_tasks} tasks for {len(rows)} inputs; give one for each input.")
        return rows

    def _select(self, cluster: int | str | None, task: str | None) -> None:
        # At each call: an unmerge moves tasks to other clusters, and forgets some.
        select_route(self.inner.model, find_route(self.inner.model, cluster, task, self._fallback))


class _Answers:
    """Lazy answers, each computed under the cluster that was asked for, whatever was selected in between."""

    def __init__(self, pipe: ClamuPipeline, answers: Any, cluster: int | str | None, task: str | None) -> None:
        self._pipe = pipe
        self._answers = answers
        self._asked = (cluster, task)
        # The steps are those of the iterators: rows, then the model, then answers. Only the model is held, so that
        # a generator may wait for its next row while others are served.
        self._forward, answers.loader.infer = answers.loader.infer, self._forward_by_the_cluster

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[Any]:
        iter(self._answers)
        return self

    def __next__(self) -> Any:
        return next(self._answers)

    def _forward_by_the_cluster(self, *args: Any, **kwargs: Any) -> Any:
        with self._pipe.inner.model.held(restores=False):
            self._pipe._select(*self._asked)
            return self._forward(*args, **kwargs)
