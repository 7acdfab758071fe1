"""A pipeline for encoder-decoders, which transformers 5 has none for."""

from __future__ import annotations

from typing import Any

import transformers

__all__ = ["Text2TextPipeline"]


class Text2TextPipeline(transformers.Pipeline):
    """Writes the answers of an encoder-decoder.

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
