"""transformers' pipelines, served per cluster and per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from hf_clamu.errors import TaskNotFoundError
from hf_clamu.models.modeling_clamu import ClamuModel

__all__ = ["ClamuPipeline", "pipeline"]

Fallback = Literal["global", "base"]


def pipeline(
    kind: str,
    model: Any,
    /,
    *,
    cluster: int | None = None,
    task: str | None = None,
    fallback: Fallback | None = None,
    tokenizer: Any = None,
    image_processor: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    dtype: Any = None,
    device_map: Any = None,
    **kwargs: Any,
) -> ClamuPipeline:
    """Make a pipeline that serves one cluster, and others on request.

    Args:
        kind (`str`): the pipeline's task in transformers' words, such as `"text-classification"`.
        model (`ClamuModel`, `str` or `Path`): a model, a folder or a Hub id.
        cluster (`int`, *optional*): the cluster that serves when a call names none; by default the global model.
        task (`str`, *optional*): instead, the cluster that serves this task.
        fallback (`str`, *optional*): who serves a task that is not merged (never was, or is forgotten): `"global"` or
            `"base"`; by default it raises.
        tokenizer (*optional*): by default the model's own.
        image_processor (*optional*): by default the model's own.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        token (`str` or `bool`, *optional*): for private repos.
        dtype (*optional*): as in `ClamuModel.from_pretrained`.
        device_map (*optional*): as in `ClamuModel.from_pretrained`.
        kwargs: for `transformers.pipeline`.

    Raises:
        TaskNotFoundError: if the task is not merged and there is no fallback.

    Example:

    ```python
    pipe = pipeline("text-classification", "org/clamu-reddit", task="user_17")
    pipe("Never again.")
    pipe(["Never again.", "Once more."], task=["user_17", "user_3"])  # each row by its task's cluster, in order
    ```
    """
    import transformers

    if not isinstance(model, ClamuModel):
        model = ClamuModel.from_pretrained(model, revision=revision, token=token, dtype=dtype, device_map=device_map)
    if kind == "image-classification":
        kwargs["image_processor"] = image_processor or model.processor
    else:
        kwargs["tokenizer"] = tokenizer or model.processor
    make: Any = transformers.pipeline
    return ClamuPipeline(make(kind, model=model, **kwargs), cluster=cluster, task=task, fallback=fallback)


class ClamuPipeline:
    """A transformers pipeline whose calls may name a cluster or a task.

    Everything else (`model`, `tokenizer`, `device`, ...) is the transformers pipeline's, which is `inner`.

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
        self._default = self._served(cluster, task)
        _select(inner.model, self._default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(
        self,
        inputs: Any,
        *args: Any,
        cluster: int | None = None,
        task: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer inputs.

        Args:
            inputs: what the transformers pipeline takes.
            cluster (`int`, *optional*): the cluster for this call.
            task (`str` or *sequence* of `str`, *optional*): the task whose cluster serves this call, or one for each
                input; inputs are grouped by cluster and answered in their order.

        Raises:
            TaskNotFoundError: if a task is not merged and there is no fallback; nothing is answered then.
        """
        if task is None or isinstance(task, str):
            named = cluster is not None or task is not None
            _select(self.inner.model, self._served(cluster, task) if named else self._default)
            return self.inner(inputs, *args, **kwargs)
        if not isinstance(inputs, (list, tuple)) or len(inputs) != len(task):
            count = len(inputs) if isinstance(inputs, (list, tuple)) else 1
            raise ValueError(f"task= names {len(task)} tasks for {count} inputs; give one for each input of a list.")
        groups: dict[int | str, list[int]] = {}
        for index, task_id in enumerate(task):
            groups.setdefault(self._served(None, task_id), []).append(index)
        answers: list[Any] = [None] * len(inputs)
        for served, indices in groups.items():
            _select(self.inner.model, served)
            found = self.inner([inputs[index] for index in indices], *args, **kwargs)
            for index, answer in zip(indices, found, strict=True):
                answers[index] = answer
        return answers

    def _served(self, cluster: int | None, task: str | None) -> int | str:
        if task is None:
            return "global" if cluster is None else cluster
        if cluster is not None:
            raise ValueError("Give cluster= or task=, not both.")
        try:
            return int(self.inner.model.cluster_of(task))
        except TaskNotFoundError:
            if self._fallback is None:
                raise
            return self._fallback


def _select(model: Any, served: int | str) -> None:
    if served == "base":
        model.set_base()
    else:
        model.set_cluster(None if served == "global" else served)
