"""transformers' pipelines that encode inputs as the model's recipe did, so that they see what training saw.

A stock pipeline may cut texts elsewhere, add token types, or turn a grey image into three channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transformers

from hf_clamu.tasks import TaskSpec
from hf_clamu.tasks.encoding import example_encoder

__all__ = ["RECIPE_PIPELINES", "RecipeImagePipeline", "RecipeTextPipeline", "RecipeWordsPipeline"]


class RecipeTextPipeline(transformers.TextClassificationPipeline):  # type: ignore[misc]
    """Classifies texts; settings of the tokenizer that a call gives are not used."""

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> dict[str, Any]:
        """Encode one text, or a *dict* with it as `"text"`."""
        return _encoded(self, "text_column", inputs["text"] if isinstance(inputs, Mapping) else inputs, self.tokenizer)


class RecipeImagePipeline(transformers.ImageClassificationPipeline):  # type: ignore[misc]
    """Classifies images, also for a model that has no image processor: pixels are then taken as they are."""

    _load_image_processor = False

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        """Encode one image: PIL, numbers, or a path or address of an image."""
        if isinstance(image, str):
            image = transformers.image_utils.load_image(image, timeout=timeout)
        return _encoded(self, "image_column", image, self.image_processor)


class RecipeWordsPipeline(transformers.Pipeline):  # type: ignore[misc]
    """Tags lists of words: for each, the tag of its first token; `None` where no token of it is left."""

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_feature_extractor = False

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, {}, {}

    def preprocess(self, input_: Sequence[str], **kwargs: Any) -> dict[str, Any]:
        """Encode the words of one example; which word a token stands for goes along."""
        # For words, labels that say which word a token stands for.
        found = _encoded(self, "tokens_column", list(input_), self.tokenizer, label=tuple(range(len(input_))))
        return {**found, "num_words": [len(input_)]}

    def _forward(self, input_tensors: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        rest = {name: input_tensors.pop(name) for name in ("labels", "num_words")}
        return {"logits": self.model(**input_tensors).logits, **rest}

    def postprocess(self, model_outputs: dict[str, Any], **kwargs: Any) -> list[str | None]:
        """Return a tag for each word."""
        names = self.model.config.id2label
        tags: list[str | None] = [None] * model_outputs["num_words"][0]
        best_L = model_outputs["logits"][0].float().argmax(-1)
        for word, label in zip(model_outputs["labels"][0].tolist(), best_L.tolist(), strict=True):
            if word >= 0:
                tags[word] = names[label]
        return tags


RECIPE_PIPELINES = {
    "image-classification": RecipeImagePipeline,
    "text-classification": RecipeTextPipeline,
    "token-classification": RecipeWordsPipeline,
}


def _encoded(pipe: Any, column: str, value: Any, processor: Any, *, label: Any = None) -> dict[str, Any]:
    spec = TaskSpec.from_dict(pipe.model.clamu_config.task_spec)
    example = example_encoder(spec, processor)({str(getattr(spec, column)): value}, 0 if label is None else label)
    if label is None:
        del example["labels"]
    return {name: tensor[None] for name, tensor in example.items()}
