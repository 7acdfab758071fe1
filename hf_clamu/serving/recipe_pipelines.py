"""transformers' pipelines that encode inputs as the model's recipe did, so that they see what training saw.

A stock pipeline may cut texts elsewhere, put words together in another way, or pad on the other side.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers

from hf_clamu.tasks import ModelLimits, TaskSpec, traits_of
from hf_clamu.tasks.encoding import example_encoder, tokenizer_limit

__all__ = [
    "RecipeFeaturePipeline",
    "RecipeImageFeaturePipeline",
    "RecipeImagePipeline",
    "RecipePixels",
    "RecipeTextPipeline",
    "RecipeWordsInTextPipeline",
    "RecipeWordsPipeline",
    "recipe_pipeline",
    "recipe_tokenizer",
]

_BATCH = 32


class RecipeTextPipeline(transformers.TextClassificationPipeline):
    """Classifies texts; pairs of texts, and what settings of the tokenizer are given for, are transformers' own."""

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:  # type: ignore[override]
        """Encode one text, or a *dict* with it as `"text"`."""
        text = input_["text"] if isinstance(input_, Mapping) and set(input_) == {"text"} else input_
        if preprocess_parameters or not isinstance(text, str):
            stock: Any = super().preprocess(input_, **preprocess_parameters)
            return stock  # type: ignore[no-any-return]
        return _encoded(self, "text_column", text, self.tokenizer)


class RecipeImagePipeline(transformers.ImageClassificationPipeline):
    """Classifies images, also for a model that has no image processor: pixels are then taken as they are."""

    _load_image_processor = False

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:  # type: ignore[override]
        """Encode one image, PIL or numbers, as the recipe's rows have it."""
        return _encoded(self, "image_column", input_, self.image_processor)


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
        spans = [match.span() for match in re.finditer(r"\S+", sentence)]
        words = [sentence[start:stop] for start, stop in spans]
        settings = {**preprocess_params, "is_split_into_words": True, "delimiter": " "}
        for part in stock(words, offset_mapping, **settings):
            if part["sentence"] is not None:
                part["sentence"] = sentence
            yield {**part, "word_to_chars_map": spans}


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
        tensors = _encoded(self, "tokens_column", words, self.tokenizer, label=tuple(range(len(words))))
        # Words count from 1 here: batches are padded with 0.
        tensors["words"] = (tensors.pop("labels") + 1).clamp(min=0)
        return {**tensors, "num_words": torch.tensor([[len(words)]])}

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


class RecipePixels:
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


# By what the model reads.
_PIPELINES: dict[str, Any] = {"image": RecipeImagePipeline, "text": RecipeTextPipeline, "words": RecipeWordsPipeline}


def recipe_pipeline(model: Any) -> Any:
    """Return the pipeline that serves a classifier as its recipe trained it.

    Args:
        model (`ClamuModel`): a classifier of texts, words or images; whatever cluster is selected serves.

    Returns:
        `transformers.Pipeline`: takes what the recipe's rows hold.
    """
    traits = traits_of(model.merged.checkpoint.task_spec.kind)
    make, task = _PIPELINES[traits.reads], traits.pipeline
    if traits.reads == "image":
        # transformers puts images into batches only where a processor says how.
        size = 1 if model.processor is None else _BATCH
        return make(model=model, task=task, image_processor=model.processor, batch_size=size)
    return make(model=model, task=task, tokenizer=recipe_tokenizer(model), batch_size=_BATCH)


def recipe_tokenizer(model: Any) -> Any:
    """Return a tokenizer for a pipeline: the model's own, that cuts and pads as training does.

    A model that writes on is padded on the left, where batches leave what it reads.

    Args:
        model (`ClamuModel`): of texts or words.
    """
    spec = model.merged.checkpoint.task_spec
    tokenizer = copy.deepcopy(model.processor)
    if tokenizer is not None:
        tokenizer.padding_side = "left" if traits_of(spec.kind).labels == "next_tokens" else "right"
        if not traits_of(spec.kind).writes_text:
            tokenizer.model_max_length = spec.max_length or tokenizer_limit(tokenizer) or tokenizer.model_max_length
    return tokenizer


def _encoded(pipe: Any, column: str, value: Any, processor: Any, *, label: Any = None) -> dict[str, Any]:
    """Return a row's tensors as a batch of one.

    Args:
        pipe (`transformers.Pipeline`): over a `ClamuModel`.
        column (`str`): the field of the recipe that names the column.
        value: what the column holds.
        processor (*tokenizer or image processor*, *optional*): of the pipeline.
        label (*optional*): labels that come back among the tensors.
    """
    spec = pipe.model.merged.checkpoint.task_spec
    encode = example_encoder(spec, processor, ModelLimits.of(pipe.model))
    example = encode({str(getattr(spec, column)): value}, 0 if label is None else label)
    if label is None:
        del example["labels"]
    return {name: tensor[None] for name, tensor in example.items()}
