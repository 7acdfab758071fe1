"""The pipeline that a classifier is measured by: it takes what the recipe's rows hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from hf_clamu.serving.recipe_pipelines import RecipeImagePipeline, RecipeTextPipeline, encoded, recipe_tokenizer
from hf_clamu.tasks import traits_of

__all__ = ["RecipeWordsPipeline", "recipe_pipeline"]

_BATCH = 32


class RecipeWordsPipeline(transformers.Pipeline):
    """Tags lists of words: for each, the tag of its first token; `None` where no token of it is left."""

    # What it needs is given; transformers looks for nothing else.
    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, {}, {}

    def preprocess(self, input_: Sequence[str], **preprocess_parameters: Any) -> dict[str, Any]:
        """Encode the words of one example; which word a token stands for goes along."""
        words = list(input_)
        found = encoded(self, "tokens_column", words, self.tokenizer, label=tuple(range(len(words))))
        # Words count from 1 here: batches are padded with 0.
        found["words"] = (found.pop("labels") + 1).clamp(min=0)
        return {**found, "num_words": torch.tensor([[len(words)]])}

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> Any:
        rest = {name: input_tensors.pop(name) for name in ("words", "num_words")}
        return {"logits": self.model(**input_tensors).logits, **rest}

    def postprocess(self, model_outputs: dict[str, Any], **kwargs: Any) -> list[str | None]:
        """Return a tag for each word."""
        names: Any = self.model.config.id2label
        tags: list[str | None] = [None] * int(model_outputs["num_words"])
        best_L = model_outputs["logits"][0].float().argmax(-1)
        for word, label in zip(model_outputs["words"][0].tolist(), best_L.tolist(), strict=True):
            if word > 0:
                tags[word - 1] = names[label]
        return tags


# By what the model reads.
_PIPELINES: dict[str, Any] = {"image": RecipeImagePipeline, "text": RecipeTextPipeline, "words": RecipeWordsPipeline}


def recipe_pipeline(model: Any) -> Any:
    """Return the pipeline that serves a classifier as its recipe trained it.

    Args:
        model (`ClamuModel`): a classifier of texts, words or images; whatever cluster is selected serves.

    Returns:
        `transformers.Pipeline`: takes what the recipe's rows hold.
    """
    traits = traits_of(model.clamu_config.task_spec["kind"])
    make, task = _PIPELINES[traits.reads], traits.pipeline
    if traits.reads == "image":
        # transformers puts images into batches only where a processor says how.
        size = 1 if model.processor is None else _BATCH
        return make(model=model, task=task, image_processor=model.processor, batch_size=size)
    return make(model=model, task=task, tokenizer=recipe_tokenizer(model), batch_size=_BATCH)
