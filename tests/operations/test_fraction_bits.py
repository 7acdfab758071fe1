"""A recipe that names no grid: bits by the learning rates of its steps, the same for every set of tasks."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers

from hf_clamu import ClamuArguments, ClamuModel
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.errors import RecipeError
from hf_clamu.operations.resolution import resolved_arguments

LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"]}


@pytest.fixture(scope="module")
def gpt2():
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=16, vocab_size=8, bos_token_id=0, eos_token_id=0)
    return lambda: transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({"learning_rate": 1e-3, "finetune_steps": 20}, 12),  # 0.02 are 82 steps
        ({"learning_rate": 1e-3, "finetune_steps": 40}, 11),
        ({"learning_rate": 1e-3, "finetune_steps": 20, "lr_scheduler_type": "linear"}, 13),  # 0.0105
        ({"learning_rate": 5e-5, "finetune_steps": 20}, 16),
        ({"learning_rate": 5e-5, "finetune_steps": 20, "batch_size": 1, "weight_decay": 0.1, "num_clusters": 2}, 16),
        ({"learning_rate": 1e-20, "finetune_steps": 1}, 52),
        ({"learning_rate": 1e3, "finetune_steps": 1}, 0),
        ({"learning_rate": 1e-3, "fraction_bits": 28}, 28),
    ],
)
def test_bits_follow_from_the_learning_rates_of_all_steps(gpt2, settings, bits):
    assert resolved_arguments(ClamuArguments(**settings), gpt2(), None).fraction_bits == bits


def test_a_rate_that_is_left_open_is_chosen_first(gpt2):
    found = resolved_arguments(ClamuArguments(finetune_steps=20), gpt2(), None)
    assert found.learning_rate == 6.3e-3
    assert 64 <= 20 * 6.3e-3 / found.codec.step < 128


@pytest.mark.parametrize(("merging", "bits"), [("frozen_a", 12), ("parameters", 12), ("product", 28)])
def test_adapters_too_unless_their_products_are_merged(gpt2, merging, bits):
    space = PeftSpace.of(LORA, merging)
    arguments = ClamuArguments(preset="clusters", learning_rate=1e-3, finetune_steps=20)
    assert resolved_arguments(arguments, gpt2(), space).fraction_bits == bits


def test_without_a_base_model_there_is_no_grid():
    with pytest.raises(RecipeError, match="fraction_bits is 'auto', which stands for a number"):
        ClamuArguments().codec  # noqa: B018


def test_one_checkpoint_is_given_back_by_its_merge(gpt2, tmp_path):
    base, tuned = gpt2(), gpt2()
    with torch.no_grad():
        for one, other in zip(tuned.parameters(), base.parameters(), strict=True):
            one.copy_(other + 1e-2 * torch.randn_like(other))
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    model = ClamuModel.merge(
        tmp_path / "base", {"a": tmp_path / "tuned"}, ClamuArguments(localization="global", clustering="none")
    )
    assert model.clamu_config.arguments["fraction_bits"] == 20
    served = dict(model.set_cluster(None).named_parameters())
    for name, weight in tuned.named_parameters():
        # Half a step, and what float32 tells apart in the weight and in how far it moved, which is less than 0.1.
        error = 2.0**-21 + 0.1 * 2.0**-24 + weight.double().abs() * 2.0**-24
        assert bool(((served[name].double() - weight.double()).abs() <= error).all()), name


def test_vectors_are_small_and_bits_the_same_for_any_tasks(tiny, tmp_path, caplog):
    tasks = tiny.tasks("text")

    with caplog.at_level(logging.INFO, "hf_clamu"):
        model = tiny.train("text", tasks)
    assert caplog.messages.count("fraction_bits 12, by the sum of the learning rates of all steps, 3.00e-02") == 1
    assert model.clamu_config.arguments["fraction_bits"] == 12
    assert {steps.dtype for steps in model.merged.state.delta.values()} <= {torch.int8, torch.int16}
    largest = max(max(record.bounds.values()) for record in model.merged.state.records.values())
    assert 20 < largest <= 127
    model.save_pretrained(tmp_path / "open")
    tiny.train("text", tasks, fraction_bits=12).save_pretrained(tmp_path / "named")
    assert tiny.digests(tmp_path / "open") == tiny.digests(tmp_path / "named")
    forgetting = ClamuModel.from_pretrained(tmp_path / "open")
    forgetting.unmerge_task(["user_1", "user_2", "user_3"], data=tasks).save_pretrained(tmp_path / "unmerged")
    alone = tiny.train("text", tasks.without(["user_1", "user_2", "user_3"]))
    alone.save_pretrained(tmp_path / "alone")
    assert alone.clamu_config.arguments["fraction_bits"] == 12
    assert tiny.digests(tmp_path / "unmerged") == tiny.digests(tmp_path / "alone")
