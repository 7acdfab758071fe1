from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.tasks import TaskDataset, digits
from hf_clamu.training import Workspace, deterministic, seeded


@pytest.fixture(autouse=True)
def _one_thread():
    with deterministic(num_threads=1):
        yield


def build_vit(dropout: float = 0.0) -> torch.nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=10,
        hidden_dropout_prob=dropout,
    )
    with seeded(1):
        return ViTForImageClassification(config).eval()


def build_gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=257,
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=256,
        eos_token_id=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with seeded(2):
        return GPT2LMHeadModel(config).eval()


def build_bert() -> torch.nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=257,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=256,
        num_labels=2,
    )
    with seeded(3):
        return BertForSequenceClassification(config).eval()


def build_resnet() -> torch.nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=10
    )
    with seeded(4):
        return ResNetForImageClassification(config).eval()


@pytest.fixture(scope="session")
def build():
    return {"vit": build_vit, "gpt2": build_gpt2, "bert": build_bert, "resnet": build_resnet}


@pytest.fixture(scope="session")
def images() -> TaskDataset:
    dataset = digits(num_tasks=6).filter(lambda row: int(row["id"]) % 5 == 0)
    return TaskDataset.from_dataset(
        dataset, task_column="task", image_column="image", label_column="label", validation_fraction=0.2
    )


@pytest.fixture(scope="session")
def encoded(images):
    return {task_id: images.encode(task_id, None) for task_id in images}


def _texts() -> dict[str, list[str]]:
    prompts = ["a", "what is it", "who goes there at night", "why", "when does it end"]
    return {
        "user": ["ann"] * 5 + ["bob"] * 5,
        "text": prompts + [f"{prompt} now" for prompt in prompts],
        "answer": [f" {len(prompt) * 37}" for prompt in prompts] * 2,
        "label": ["no", "yes", "no", "no", "yes"] * 2,
    }


@pytest.fixture(scope="session")
def completions():
    tasks = TaskDataset.from_dataset(
        Dataset.from_dict(_texts()), task_column="user", prompt_column="text", completion_column="answer"
    )
    return {task_id: tasks.encode(task_id, byte_tokenizer()) for task_id in tasks}


@pytest.fixture(scope="session")
def labelled():
    tasks = TaskDataset.from_dataset(
        Dataset.from_dict(_texts()), task_column="user", text_column="text", label_column="label"
    )
    return {task_id: tasks.encode(task_id, byte_tokenizer()) for task_id in tasks}


@pytest.fixture
def vit() -> Workspace:
    return Workspace(build_vit())


@pytest.fixture
def gpt2() -> Workspace:
    return Workspace(build_gpt2(), pad_token_id=256)
