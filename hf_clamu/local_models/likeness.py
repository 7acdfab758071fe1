"""Whether a local model was finetuned from a base: with its settings, and reading what it reads.

Settings are equal unless they are known to change nothing that is computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["other_processor", "other_setting"]

# Names, versions, what training alone looks at, and what only says how answers are handed out.
_HARMLESS = (
    *("_name_or_path", "_commit_hash", "transformers_version", "architectures", "auto_map", "model_type"),
    *("dtype", "torch_dtype", "use_bfloat16", "torchscript", "use_cache", "gradient_checkpointing"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
    *("return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "output_scores"),
    *("initializer_range", "initializer_factor", "init_std", "chunk_size_feed_forward"),
    *("tokenizer_class", "prefix", "_attn_implementation", "_experts_implementation"),
)
_TRAINING_ONLY = re.compile(r"drop|router_aux_loss|label_smooth|mask_time|mask_feature|apply_spec_augment")
# A checkpoint may leave them to the tokenizer.
_TOKEN_ID = re.compile(r"_token_id$")
_VOLATILE_IMAGE_KEYS = ("_processor_class", "processor_class", "image_processor_type", "feature_extractor_type")
# Each tells another habit of a tokenizer: case, accents, blanks, numbers, scripts, punctuation.
_PROBES = ("abc", "Abc XYZ", " a  b\n", "naïve Éa", "2024-01-31", "don't, «stop»!", "日本語 русский", "<x> [MASK]")
_ABSENT = object()


def other_setting(stated: Mapping[str, Any], made: Mapping[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """Return the first setting that two configurations of one class differ in, with both values.

    Args:
        stated (*mapping*): of the checkpoint, with the defaults of the class.
        made (*mapping*): of the base model, likewise.
        prefix (`str`): the keys that lead here.
    """
    from transformers import GenerationConfig

    generation = vars(GenerationConfig())
    for key in sorted({*stated, *made}):
        theirs, ours = stated.get(key, _ABSENT), made.get(key, _ABSENT)
        if key in _HARMLESS or _TRAINING_ONLY.search(key) or theirs == ours or _ABSENT in (theirs, ours):
            continue  # a key that the class does not know is in one of them alone
        if _TOKEN_ID.search(key):
            if theirs is None or ours is None:
                continue
        elif key in generation:
            continue
        if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
            found = other_setting(theirs, ours, f"{prefix}{key}.")
            if found is not None:
                return found
            continue
        return f"{prefix}{key}", theirs, ours
    return None


def other_processor(own: Any, other: Any) -> str | None:
    """Return in what a checkpoint's tokenizer or image processor differs from the base model's, if it does.

    Args:
        own (*tokenizer or image processor*): of the base model.
        other (*tokenizer or image processor*): of the checkpoint.
    """
    if not hasattr(own, "get_vocab") or not hasattr(other, "get_vocab"):
        return _other_pixels(own, other)
    ours, theirs = own.get_vocab(), other.get_vocab()
    for token in sorted(theirs.keys() & ours.keys()):
        if theirs[token] != ours[token]:
            return f"numbers {token!r} {theirs[token]}, the base model's {ours[token]}"
    for text in _PROBES:
        found, expected = (list(one(text, add_special_tokens=False)["input_ids"]) for one in (other, own))
        if found != expected:
            return f"reads {text!r} as {found}, the base model's as {expected}"
    return None


def _other_pixels(own: Any, other: Any) -> str | None:
    if not hasattr(own, "to_dict") or not hasattr(other, "to_dict"):
        return None
    ours, theirs = own.to_dict(), other.to_dict()
    for key in sorted(ours.keys() & theirs.keys()):
        if key not in _VOLATILE_IMAGE_KEYS and ours[key] != theirs[key]:
            return f"has {key} = {theirs[key]!r}, the base model's {ours[key]!r}"
    return None
