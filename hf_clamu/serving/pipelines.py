"""transformers' pipelines, served per cluster and per task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from transformers.pipelines import TASK_ALIASES
from transformers.pipelines.pt_utils import PipelineIterator

from hf_clamu.errors import IncompatibleBaseError
from hf_clamu.models.modeling_clamu import ClamuModel
from hf_clamu.serving.recipe_pipelines import (
    RecipeFeaturePipeline,
    RecipeImageFeaturePipeline,
    RecipeTextPipeline,
    RecipeWordsInTextPipeline,
    recipe_tokenizer,
)
from hf_clamu.serving.routing import Fallback, Served, bring, who_serves
from hf_clamu.tasks import TaskSpec, task_kinds, traits_of
from hf_clamu.tasks.encoding import example_encoder

__all__ = ["ClamuPipeline", "Text2TextPipeline", "pipeline"]

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
    cluster: int | None = None,
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
        cluster (`int`, *optional*): the cluster that serves when a call names none; by default the global model.
        task (`str`, *optional*): instead, the cluster that serves this task.
        fallback (`str`, *optional*): who serves a task that is not merged (never was, or is forgotten): `"global"` or
            `"base"`; by default it raises.
        tokenizer (*optional*): by default the model's own, which cuts and pads as in training; a given one as it says.
        image_processor (*optional*): by default the model's own; without one, pixels are taken as they are, as in
            training.
        revision (`str`, *optional*): branch, tag or commit on the Hub. This and the following are as in
            `ClamuModel.from_pretrained`, and for a model that is loaded here.
        token (`str` or `bool`, *optional*): for private repos.
        cache_dir (`str` or `Path`, *optional*): of huggingface_hub.
        local_files_only (`bool`): do not look at the Hub.
        dtype (*optional*): serve in this type.
        device_map (*optional*): where to serve.
        task_id_key (`str`, *optional*): the key of the ledger's task ids.
        kwargs: for `transformers.pipeline`, such as `device` and `batch_size`.

    Raises:
        IncompatibleBaseError: if the model has the head of another pipeline, or no tokenizer.
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
    options = {key: value for key, value in options.items() if value is not None}
    if not isinstance(model, ClamuModel):
        model = ClamuModel.from_pretrained(model, **options)
    elif options:
        raise TypeError(f"{next(iter(options))}= is for loading, but the model is loaded already: leave it out.")
    spec = TaskSpec.from_dict(model.clamu_config.task_spec or {})
    traits = traits_of(spec.kind)
    kind = TASK_ALIASES.get(kind, kind)
    # Pipelines of no head, such as feature-extraction, work with any.
    if kind != traits.pipeline and any(kind == traits_of(other).pipeline for other in task_kinds()):
        raise IncompatibleBaseError(
            f"The pipeline {kind!r} needs another head than that of this {type(model).__name__}, which is for "
            f"{traits.pipeline!r}."
        )
    if traits.reads == "image":
        own = model.processor if model.processor is not None else _PixelsAsTheyAre(model, spec)
        kwargs["image_processor"] = own if image_processor is None else image_processor
    else:
        kwargs["tokenizer"] = recipe_tokenizer(model) if tokenizer is None else tokenizer
        if kwargs["tokenizer"] is None:
            raise IncompatibleBaseError(
                "The model comes without a tokenizer that can be loaded here: give tokenizer=."
            )
    is_of_head = kind == traits.pipeline
    pipeline_class = _HIDDEN_STATES.get(kind)
    if is_of_head and not traits.writes_text:
        pipeline_class = _CLASSIFIERS.get(traits.reads)
    if pipeline_class is not None:
        kwargs["pipeline_class"] = pipeline_class
    make: Any = Text2TextPipeline if is_of_head and traits.labels == "decoder" else transformers.pipeline
    return ClamuPipeline(make(task=kind, model=model, **kwargs), cluster=cluster, task=task, fallback=fallback)


class ClamuPipeline:
    """A transformers pipeline whose calls may name a cluster or a task.

    Everything else (`model`, `tokenizer`, `device`, ...) is the transformers pipeline's, which is `inner`. A call
    selects its cluster in the model and leaves it there. Threads may share a pipeline, and pipelines a model: from
    selecting to the answer a call holds the model, and others wait.

    Args:
        inner (`transformers.Pipeline`): over a `ClamuModel`.
        cluster (`int`, *optional*): who serves by default.
        task (`str`, *optional*): who serves by default.
        fallback (`str`, *optional*): who serves a task that is not merged.
    """

    def __init__(
        self, inner: Any, *, cluster: int | None = None, task: str | None = None, fallback: Fallback | None = None
    ) -> None:
        if fallback not in (None, "global", "base"):
            raise ValueError(f"fallback must be 'global', 'base' or None, got {fallback!r}.")
        self.inner = inner
        self._fallback = fallback
        self._default = (cluster, task)
        self._select(cluster, task)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(
        self,
        inputs: Any,
        *args: Any,
        cluster: int | None = None,
        task: str | Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer inputs.

        Args:
            inputs: what the transformers pipeline takes. Generators and datasets are answered one by one when the
                answers are asked for, by the cluster of this call whatever was selected in between.
            cluster (`int`, *optional*): the cluster for this call.
            task (`str` or *sequence* of `str`, *optional*): the task whose cluster serves this call, or one for each
                input (`None`: who serves by default); inputs are grouped by cluster and answered in their order.

        Raises:
            TaskNotFoundError: if a task is not merged and there is no fallback; nothing is answered then.
        """
        if task is not None and cluster is not None:
            raise ValueError("Give cluster= or task=, not both.")
        model = self.inner.model
        if task is None or isinstance(task, str):
            asked = self._default if task is None and cluster is None else (cluster, task)
            with model.held(restores=False):
                self._select(*asked)
                found = self.inner(inputs, *args, **kwargs)
            return _Answers(self, found, *asked) if isinstance(found, PipelineIterator) else found
        rows = self._rows(inputs, len(task))
        with model.held(restores=False):
            groups: dict[Served, list[int]] = {}
            for index, task_id in enumerate(task):
                asked = self._default if task_id is None else (None, task_id)
                groups.setdefault(who_serves(model, *asked, self._fallback), []).append(index)
            answers: list[Any] = [None] * len(rows)
            for served, indices in groups.items():
                bring(model, served)
                found = self.inner([rows[index] for index in indices], *args, **kwargs)
                for index, answer in zip(indices, found, strict=True):
                    answers[index] = answer
        return answers

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save the model with its own tokenizer or image processor."""
        self.inner.model.save_pretrained(save_directory, **kwargs)

    @staticmethod
    def _rows(inputs: Any, num_tasks: int) -> list[Any]:
        if isinstance(inputs, str) or not isinstance(inputs, (Sequence, torch.utils.data.Dataset)):
            raise ValueError(
                f"A sequence of tasks names one for each input, so the inputs must be a list, got "
                f"{type(inputs).__name__}. For a single input or a generator name a single task."
            )
        rows = [inputs[index] for index in range(len(inputs))]  # type: ignore[arg-type]
        if len(rows) != num_tasks:
            raise ValueError(f"task= names {num_tasks} tasks for {len(rows)} inputs; give one for each input.")
        return rows

    def _select(self, cluster: int | None, task: str | None) -> None:
        # At each call anew: an unmerge moves tasks to other clusters, and forgets some.
        bring(self.inner.model, who_serves(self.inner.model, cluster, task, self._fallback))


class _Answers:
    """Lazy answers, each computed under the cluster that was asked for, whatever was selected in between."""

    def __init__(self, pipe: ClamuPipeline, found: Any, cluster: int | None, task: str | None) -> None:
        self._pipe = pipe
        self._found = found
        self._asked = (cluster, task)
        # The steps are those of the iterators: rows, then the model, then answers. Only the model is held, so that
        # a generator may wait for its next row while others are served.
        self._forward, found.loader.infer = found.loader.infer, self._forward_by_the_cluster

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Any]:
        iter(self._found)
        return self

    def __next__(self) -> Any:
        return next(self._found)

    def _forward_by_the_cluster(self, *args: Any, **kwargs: Any) -> Any:
        with self._pipe.inner.model.held(restores=False):
            self._pipe._select(*self._asked)
            return self._forward(*args, **kwargs)


class _PixelsAsTheyAre:
    """Stands in for an image processor where the tasks were encoded without one."""

    def __init__(self, model: Any, spec: TaskSpec) -> None:
        self._column = str(spec.image_column)
        self._encode = example_encoder(spec, None)
        self._is_grey = getattr(model.config, "num_channels", None) == 1

    def __call__(self, images: Any, return_tensors: str | None = None) -> Any:
        if self._is_grey and hasattr(images, "convert"):
            images = images.convert("L")  # the pipeline has made three equal channels of it
        pixels = self._encode({self._column: images}, 0)["pixel_values"]
        return transformers.BatchFeature({"pixel_values": pixels[None]})


class Text2TextPipeline(transformers.Pipeline):
    """Writes the answers of an encoder-decoder; transformers 5 has no pipeline for these.

    Options of `generate` are given here or with a call; without a length among them, up to 256 tokens are written.
    Each input is answered by a *list* of *dict*, `{"generated_text": ...}`, one for each returned sequence.
    """

    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False

    def _sanitize_parameters(
        self, truncation: Any = None, skip_special_tokens: bool = True, **generate_kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {} if truncation is None else {"truncation": truncation}
        return preprocess, generate_kwargs, {"skip_special_tokens": skip_special_tokens}

    def preprocess(self, input_: str, **preprocess_parameters: Any) -> Any:
        """Tokenise one text."""
        tokenizer: Any = self.tokenizer
        return tokenizer(input_, return_tensors="pt", **preprocess_parameters)

    def _forward(self, input_tensors: Any, **forward_parameters: Any) -> Any:
        model: Any = self.model
        names = ("input_ids", "attention_mask")
        given = {name: input_tensors[name] for name in names if name in input_tensors}
        if not {"max_length", "max_new_tokens"} & {*forward_parameters, *model.generation_config.to_diff_dict()}:
            forward_parameters["max_new_tokens"] = 256
        written = model.generate(**given, **forward_parameters)
        num_inputs = len(given["input_ids"])
        return {"written": written.reshape(num_inputs, -1, written.shape[-1])}

    def postprocess(self, model_outputs: Any, **postprocess_parameters: Any) -> list[dict[str, str]]:
        """Decode the sequences of one text."""
        tokenizer: Any = self.tokenizer
        texts = tokenizer.batch_decode(model_outputs["written"][0], **postprocess_parameters)
        return [{"generated_text": text} for text in texts]
