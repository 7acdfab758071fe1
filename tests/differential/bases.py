"""Tiny base models, and what each of them calls its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARCHITECTURES", "Architecture"]

_SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_ENDS = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
_TEXT = {**_SMALL, **_ENDS, "vocab_size": 257, "max_position_embeddings": 48}
_IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 1}
_ONE_HEAD = {"num_key_value_heads": 1, "head_dim": 8}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A base model to draw.

    Args:
        config (*dict*): as `ClamuTrainer` takes it.
        kinds (*tuple* of `str`): tasks that it has a head for.
        attention, other, embeddings, heads (*tuple* of `str`): module names, as PEFT takes them.
        body (`str`): pattern of all but the head.
        ties (`bool`): whether `tie_word_embeddings` means something.
    """

    config: dict[str, Any]
    kinds: tuple[str, ...]
    attention: tuple[str, ...]
    other: tuple[str, ...]
    embeddings: tuple[str, ...]
    heads: dict[str, str] = field(default_factory=dict)
    body: str
    ties: bool = False


ARCHITECTURES = {
    "gpt2": Architecture(
        config={
            "model_type": "gpt2",
            "n_layer": 1,
            "n_embd": 16,
            "n_head": 2,
            "n_positions": 48,
            "bos_token_id": 256,
            "eos_token_id": 256,
            "vocab_size": 257,
        },
        kinds=("text", "lm", "words"),
        attention=("c_attn", "c_proj"),
        other=("c_fc",),
        embeddings=("wte",),
        heads={"text": "score", "words": "classifier", "lm": "lm_head"},
        body="transformer.*",
        ties=True,
    ),
    "llama": Architecture(
        config={"model_type": "llama", **_TEXT, "num_key_value_heads": 1},
        kinds=("text", "lm"),
        attention=("q_proj", "v_proj"),
        other=("up_proj", "down_proj"),
        embeddings=("embed_tokens",),
        heads={"text": "score", "lm": "lm_head"},
        body="model.*",
        ties=True,
    ),
    "gemma": Architecture(
        config={"model_type": "gemma", **_TEXT, **_ONE_HEAD},
        kinds=("lm", "text"),
        attention=("q_proj", "o_proj"),
        other=("gate_proj",),
        embeddings=("embed_tokens",),
        heads={"text": "score", "lm": "lm_head"},
        body="model.*",
        ties=True,
    ),
    "opt": Architecture(
        config={"model_type": "opt", **_TEXT, "ffn_dim": 16, "word_embed_proj_dim": 16},
        kinds=("lm", "text"),
        attention=("q_proj", "v_proj"),
        other=("fc1",),
        embeddings=("embed_tokens",),
        heads={"text": "score", "lm": "lm_head"},
        body="model.*",
        ties=True,
    ),
    "bert": Architecture(
        config={"model_type": "bert", **_TEXT},
        kinds=("text", "words"),
        attention=("query", "value"),
        other=("dense",),
        embeddings=("word_embeddings",),
        heads={"text": "classifier", "words": "classifier"},
        body="bert.*",
    ),
    "roberta": Architecture(
        config={"model_type": "roberta", **_TEXT, "max_position_embeddings": 320},
        kinds=("text",),
        attention=("query", "key"),
        other=("dense",),
        embeddings=("word_embeddings", "position_embeddings"),
        heads={"text": "classifier"},
        body="roberta.*",
    ),
    "distilbert": Architecture(
        config={"model_type": "distilbert", **_TEXT, "dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2},
        kinds=("text", "words"),
        attention=("q_lin", "v_lin"),
        other=("lin1", "lin2"),
        embeddings=("word_embeddings",),
        heads={"text": "classifier", "words": "classifier"},
        body="distilbert.*",
    ),
    "modernbert": Architecture(
        config={"model_type": "modernbert", **_TEXT, "cls_token_id": 256, "sep_token_id": 256},
        kinds=("text", "words"),
        attention=("Wqkv",),
        other=("Wi", "Wo"),
        embeddings=("tok_embeddings",),
        heads={"text": "classifier", "words": "classifier"},
        body="model.*",
    ),
    "t5": Architecture(
        config={
            "model_type": "t5",
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 16,
            "num_layers": 1,
            "num_heads": 2,
            "vocab_size": 257,
            "pad_token_id": 256,
            "eos_token_id": 256,
            "decoder_start_token_id": 256,
        },
        kinds=("seq2seq",),
        attention=("q", "v"),
        other=("wi", "wo"),
        embeddings=("shared",),
        heads={"seq2seq": "lm_head"},
        body="encoder.*",
        ties=True,
    ),
    "vit": Architecture(
        config={"model_type": "vit", **_SMALL, **_IMAGE},
        kinds=("image",),
        attention=("q_proj", "v_proj"),
        other=("fc1", "fc2"),
        embeddings=("projection",),
        heads={"image": "classifier"},
        body="vit.*",
    ),
    "clip": Architecture(
        config={
            "model_type": "clip",
            "vision_config": {**_SMALL, **_IMAGE},
            "text_config": _TEXT,
            "projection_dim": 16,
        },
        kinds=("image",),
        attention=("q_proj", "v_proj"),
        other=("fc1", "fc2"),
        embeddings=("patch_embedding",),
        heads={"image": "classifier"},
        body="vision_model.*",
    ),
    "dinov2": Architecture(
        config={"model_type": "dinov2", **_SMALL, **_IMAGE, "mlp_ratio": 1},
        kinds=("image",),
        attention=("query", "value"),
        other=("fc1",),
        embeddings=("projection",),
        heads={"image": "classifier"},
        body="dinov2.*",
    ),
    "resnet": Architecture(
        config={
            "model_type": "resnet",
            "num_channels": 1,
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
        },
        kinds=("image",),
        attention=("convolution",),
        other=("normalization",),
        embeddings=("embedder",),
        heads={"image": "1"},
        body="resnet.*",
    ),
}
