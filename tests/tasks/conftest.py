from __future__ import annotations

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(*, add_bos: bool = False, eos: bool = True) -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<bos>", "<eos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<bos>"} | ({"eos_token": "<eos>"} if eos else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="session")
def make_tokenizer():
    return byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(add_bos=True)


@pytest.fixture
def rows() -> dict[str, list]:
    users = ["u2", "u1", "u2", "u3", "u1", "u2", "u1", "u2", "u2", "u2", "u2", "u2"]
    return {
        "user": users,
        "text": [f"text number {n}" for n in range(len(users))],
        "label": ["pos", "neg", "pos", "neutral"] * 3,
        "id": [f"row{n}" for n in range(len(users))],
        "group": [{"u1": "A", "u2": "B", "u3": "A"}[user] for user in users],
    }


@pytest.fixture
def dataset(rows) -> Dataset:
    return Dataset.from_dict(rows)
