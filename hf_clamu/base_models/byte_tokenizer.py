"""A tokenizer of UTF-8 bytes: no training data, no download, for small models made from a configuration."""

from __future__ import annotations

from typing import Any

__all__ = ["byte_tokenizer"]


def byte_tokenizer() -> Any:
    """Return a fast tokenizer with one token per byte, and `<|endoftext|>` for end and padding.

    Returns:
        `transformers.PreTrainedTokenizerFast`: 257 tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", padding_side="right"
    )
