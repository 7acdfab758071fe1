"""Tiny configurations of the architectures that are tested, and what their saved files alone say the weights are."""

from __future__ import annotations

import json

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

KEY = "base_model.model.clamu_adapters.clamu_mask"
_SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_ENDS = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
_TEXT = {**_SMALL, **_ENDS, "vocab_size": 257, "max_position_embeddings": 48}
_ONE_HEAD = {"num_key_value_heads": 1, "head_dim": 8}
_IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 1}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
_DISTILBERT = {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2}
_CLIP = {"vision_config": {**_SMALL, **_IMAGE}, "text_config": _TEXT, "projection_dim": 16}
# The kind of the tasks, and the configuration (None: the one that tests use by default).
CATALOGUE = {
    "gpt2": ("lm", None),
    "bert": ("text", {"model_type": "bert", **_TEXT}),
    "bert-words": ("words", {"model_type": "bert", **_TEXT}),
    # Its positions are counted from the padding token.
    "roberta": ("text", {"model_type": "roberta", **_TEXT, "max_position_embeddings": 320}),
    "distilbert": ("text", {"model_type": "distilbert", **_TEXT, **_DISTILBERT}),
    "modernbert": ("text", {"model_type": "modernbert", **_TEXT, "cls_token_id": 256, "sep_token_id": 256}),
    "llama": ("lm", {"model_type": "llama", **_TEXT, "num_key_value_heads": 1}),
    "qwen3": ("lm", {"model_type": "qwen3", **_TEXT, **_ONE_HEAD}),
    "gemma": ("lm", {"model_type": "gemma", **_TEXT, **_ONE_HEAD}),
    "opt": ("lm", {"model_type": "opt", **_TEXT, "ffn_dim": 16, "word_embed_proj_dim": 16}),
    "t5": ("seq2seq", {"model_type": "t5", **_ENDS, "vocab_size": 257, **_T5}),
    "vit": ("image", None),
    "clip": ("image", {"model_type": "clip", **_CLIP}),
    "dinov2": ("image", {"model_type": "dinov2", **_SMALL, **_IMAGE, "mlp_ratio": 1}),
    "resnet": (
        "image",
        {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    ),
}
# Those that PEFT's and transformers' operations are tested on.
ADAPTED = ("gpt2", "llama", "bert", "t5", "vit", "clip")


def bits(model):
    """The weights of a model, or of one within PEFT's, as integers: NaN and -0.0 compare, too."""
    named = ((name.removeprefix("base_model.model."), parameter) for name, parameter in model.named_parameters())
    return {n: p.detach().clone().view(torch.int32) for n, p in named if not n.startswith("clamu_adapters.")}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def base_of(folder):
    """The base model inside a saved model, as transformers loads it."""
    architecture = json.loads((folder / "config.json").read_bytes())["architecture"]
    return getattr(transformers, architecture).from_pretrained(folder / "base_model")


def reference(folder, cluster):
    """M0 + alpha * (mask * delta) of the files alone: sums in float64, then one rounding.

    `cluster` is a number, "global" for all of delta under the global model's alpha, or None for M0.
    """
    config = json.loads((folder / "config.json").read_bytes())
    alpha, step = (
        config["global_alpha" if cluster == "global" else "alpha"],
        0.5 ** config["arguments"]["fraction_bits"],
    )
    delta = load_file(folder / "delta.safetensors")
    base = dict(base_of(folder).named_parameters())
    assert base.keys() == delta.keys()
    if isinstance(cluster, int):
        packed = load_file(folder / f"masks/cluster_{cluster:03d}/adapter_model.safetensors")[KEY].numpy()
    found, start = {}, 0
    for name in sorted(delta):
        weights, steps = base[name].detach().numpy(), delta[name].numpy()
        moved = (weights.astype(np.float64) + alpha * steps * step).astype(np.float32)
        if isinstance(cluster, int):
            size = -(-steps.size // 8)
            mask = np.unpackbits(packed[start : start + size], bitorder="little")[: steps.size].reshape(steps.shape)
            start += size
            weights = np.where(mask == 1, moved, weights)
        elif cluster == "global":
            weights = moved
        found[name] = torch.from_numpy(np.ascontiguousarray(weights)).view(torch.int32)
    return found
