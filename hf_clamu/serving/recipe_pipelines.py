"""transformers' pipelines that encode inputs as the model's recipe did, so that they see what training saw.

A stock pipeline may cut texts elsewhere, put words together in another way, or pad on the other side.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import transformers

from hf_clamu.tasks import ModelLimits, TaskSpec, traits_of
from hf_clamu.tasks.encoding import example_encoder, tokenizer_limit

__all__ = [
    "RecipeFeaturePipeline",
    "RecipeImageFeaturePipeline",
    "RecipeImagePipeline",
    "RecipeTextPipeline",
    "RecipeWordsInTextPipeline",
    "encoded",
    "recipe_tokenizer",
]


class RecipeTextPipeline(transformers.TextClassificationPipeline):
    """Classifies texts; pairs of texts, and what settings of the tokenizer are given for, are transformers' own."""

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:  # type: ignore[override]
        """Encode one text, or a *dict* with it as `"text"`."""
        text = input_["text"] if isinstance(input_, Mapping) and set(input_) == {"text"} else input_
        if preprocess_parameters or not isinstance(text, str):
            stock: Any = super().preprocess(input_, **preprocess_parameters)
            return stock  # type: ignore[no-any-return]
        return encoded(self, "text_column", text, self.tokenizer)


class RecipeImagePipeline(transformers.ImageClassificationPipeline):
    """Classifies images, also for a model that has no image processor: pixels are then taken as they are."""

    _load_image_processor = False

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:  # type: ignore[override]
        """Encode one image, PIL or numbers, as the recipe's rows have it."""
        return encoded(self, "image_column", input_, self.image_processor)


class RecipeWordsInTextPipeline(transformers.TokenClassificationPipeline):
    """Tags the words of texts: what stands between white space, tokenised as the recipe's lists of words are."""

    def preprocess(  # type: ignore[override]
        self, sentence: Any, offset_mapping: Any = None, **preprocess_params: Any
    ) -> Iterator[Any]:
        """Encode the words of one text, and remember where they stand in it."""
        stock: Any = super().preprocess
        if not isinstance(sentence, str) or preprocess_params.get("is_split_into_words"):
            yield from stock(sentence, offset_mapping, **preprocess_params)
            return
        places = [match.span() for match in re.finditer(r"\S+", sentence)]
        words = [sentence[start:stop] for start, stop in places]
        settings = {**preprocess_params, "is_split_into_words": True, "delimiter": " "}
        for found in stock(words, offset_mapping, **settings):
            if found["sentence"] is not None:
                found["sentence"] = sentence
            yield {**found, "word_to_chars_map": places}


class RecipeFeaturePipeline(transformers.FeatureExtractionPipeline):
    """Gives the hidden states of the model below its head, as of a plain checkpoint that `AutoModel` loads."""

    def _forward(self, input_tensors: Any, **forward_parameters: Any) -> Any:  # type: ignore[override]
        model: Any = self.model
        return model.base_model(**input_tensors)


class RecipeImageFeaturePipeline(transformers.ImageFeatureExtractionPipeline):
    """Gives the hidden states of an image, as `RecipeFeaturePipeline` does of a text."""

    def _forward(self, input_tensors: Any, **forward_parameters: Any) -> Any:  # type: ignore[override]
        model: Any = self.model
        return model.base_model(**input_tensors)


def recipe_tokenizer(model: Any) -> Any:
    """Return a tokenizer for a pipeline: the model's own, that cuts and pads as training does.

    A model that writes on is padded on the left, where batches leave what it reads.

    Args:
        model (`ClamuModel`): of texts or words.
    """
    spec = TaskSpec.from_dict(model.clamu_config.task_spec or {})
    tokenizer = copy.deepcopy(model.processor)
    if tokenizer is not None:
        tokenizer.padding_side = "left" if traits_of(spec.kind).labels == "next_tokens" else "right"
        if not traits_of(spec.kind).writes_text:
            tokenizer.model_max_length = spec.max_length or tokenizer_limit(tokenizer) or tokenizer.model_max_length
    return tokenizer


def encoded(pipe: Any, column: str, value: Any, processor: Any, *, label: Any = None) -> dict[str, Any]:
    """Return a row's tensors as a batch of one.

    Args:
        pipe (`transformers.Pipeline`): over a `ClamuModel`.
        column (`str`): the field of the recipe that names the column.
        value: what the column holds.
        processor (*tokenizer or image processor*, *optional*): of the pipeline.
        label (*optional*): labels that come back among the tensors.
    """
    spec = TaskSpec.from_dict(pipe.model.clamu_config.task_spec)
    encode = example_encoder(spec, processor, ModelLimits.of(pipe.model))
    example = encode({str(getattr(spec, column)): value}, 0 if label is None else label)
    if label is None:
        del example["labels"]
    return {name: tensor[None] for name, tensor in example.items()}
