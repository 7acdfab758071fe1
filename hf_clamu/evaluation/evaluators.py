"""`evaluate`'s evaluators, made to take pipelines of transformers 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import evaluate

from hf_clamu.errors import RecipeError
from hf_clamu.tasks import task_kinds, traits_of

__all__ = ["evaluator"]


class _TakesPipelines:
    """Takes the pipeline that it is given.

    evaluate 0.4.6 asks whether it is a `transformers.TFPreTrainedModel`, which transformers 5 does not have, and for
    words it tries a sentence that need not fit the model.
    """

    task: str

    def prepare_pipeline(
        self, model_or_pipeline: Any, tokenizer: Any = None, feature_extractor: Any = None, device: Any = None
    ) -> Any:
        task = getattr(model_or_pipeline, "task", None)
        if task != self.task:
            raise RecipeError(f"Expected a pipeline for {self.task!r}, found {task or type(model_or_pipeline)!r}.")
        return model_or_pipeline


class _TextEvaluator(_TakesPipelines, evaluate.TextClassificationEvaluator):  # type: ignore[misc]
    pass


class _ImageEvaluator(_TakesPipelines, evaluate.ImageClassificationEvaluator):  # type: ignore[misc]
    pass


class _WordsEvaluator(_TakesPipelines, evaluate.TokenClassificationEvaluator):  # type: ignore[misc]
    """Compares tags word by word, where evaluate's own joins the words and looks for them in the answer."""

    PIPELINE_KWARGS: dict[str, Any] = {}  # noqa: RUF012 - the name is evaluate's

    def compute(self, *, label_mapping: Mapping[str, int], label_column: str, data: Any, **settings: Any) -> Any:
        """Measure a pipeline; `label_mapping` and numbers as labels are what evaluate's own does not take."""
        self._label_mapping, self._references = label_mapping, list(data[label_column])
        return super().compute(data=data, label_column=label_column, **settings)

    def prepare_data(
        self, data: Any, input_column: str, label_column: str, join_by: str
    ) -> tuple[dict[str, Any], list[Any]]:
        """Return the words as the pipeline takes them; the labels wait for the answers."""
        self.check_required_columns(data, {"input_column": input_column, "label_column": label_column})
        return {}, list(data[input_column])

    def predictions_processor(
        self, predictions: Sequence[Sequence[str | None]], words: Any, join_by: str
    ) -> dict[str, Any]:
        """Return numbers of tags beside the right ones."""
        # Where no token of a word is left there is nothing to compare; training does not count it either.
        pairs = [
            [(self._label_mapping[tag], right) for tag, right in zip(predicted, tags, strict=True) if tag is not None]
            for predicted, tags in zip(predictions, self._references, strict=True)
        ]
        return {
            "predictions": [[tag for tag, _ in example] for example in pairs],
            "references": [[right for _, right in example] for example in pairs],
        }


# By what the model reads.
_EVALUATORS: dict[str, Any] = {"image": _ImageEvaluator, "text": _TextEvaluator, "words": _WordsEvaluator}


def evaluator(task: str) -> Any:
    """Return an evaluator for pipelines, as `evaluate.evaluator` does, that works with transformers 5.

    Args:
        task (`str`): the pipeline's task: `"text-classification"`, `"image-classification"` or
            `"token-classification"` (whose pipeline is a `RecipeWordsPipeline`).

    Returns:
        `evaluate.Evaluator`: `compute(model_or_pipeline=..., data=..., metric=..., ...)`.

    Raises:
        RecipeError: if there is none for this task. Language models are measured by the probability of the right
            answer, which text generation does not give.
    """
    classifiers = [traits for traits in map(traits_of, task_kinds()) if not traits.writes_text]
    reads = {traits.pipeline: traits.reads for traits in classifiers}
    if task not in reads:
        raise RecipeError(f"There is no evaluator for {task!r}; expected one of {', '.join(sorted(reads))}.")
    return _EVALUATORS[reads[task]](task=task)
