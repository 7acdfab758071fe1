"""Adapter targets that are frozen, tied or embeddings: exact, or refused before training."""

from __future__ import annotations

import pytest

from hf_clamu import ClamuTrainer, RecipeError
from hf_clamu.training import silent_progress

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 257,
    "max_position_embeddings": 64,
}


def _trainer(tiny, targets, merging, tasks=None, tied=False, **changes):
    options = {key: changes.pop(key) for key in ("bias", "lora_bias") if key in changes}
    return ClamuTrainer(
        {**LLAMA, "tie_word_embeddings": tied},
        tiny.tasks("lm") if tasks is None else tasks,
        tiny.arguments(**changes),
        processing_class=tiny.processor("lm"),
        peft_config={"peft_type": "LORA", "r": 2, "target_modules": targets, **options},
        peft_merging=merging,
        progress=silent_progress,
    )


@pytest.mark.parametrize(
    ("targets", "merging", "options", "message"),
    [
        (["q_proj", "v_proj"], "product", {"freeze": ("*.v_proj.weight",)}, r"v_proj\.weight', which is frozen"),
        (["q_proj", "lm_head"], "product", {"tied": True}, "shares its weight"),
        (["lm_head"], "frozen_a", {"tied": True}, "shares its weight"),
        (["embed_tokens"], "parameters", {"tied": True}, "shares its weight"),
        (["q_proj"], "product", {"lora_bias": True}, "cannot merge the adapter into"),
        (["q_proj"], "parameters", {"lora_bias": True}, "cannot merge the adapter into"),
        (["q_proj"], "frozen_a", {"lora_bias": True}, "cannot merge the adapter into"),
    ],
)
def test_what_cannot_be_undone_is_refused_before_training(tiny, targets, merging, options, message):
    trainer = _trainer(tiny, targets, merging, **options)
    with pytest.raises(RecipeError, match=message):
        trainer.train()


@pytest.mark.parametrize("merging", ["frozen_a", "parameters", "product"])
def test_an_embedding_learns_and_forgets(tiny, merging):
    tasks = tiny.tasks("lm")
    model = _trainer(tiny, ["embed_tokens", "q_proj"], merging).train()
    names = model.ledger["parameters"]
    for task in model.ledger["tasks"].values():
        moved = {name for name, bound in zip(names, task["bounds"], strict=True) if bound}
        assert any("embed_tokens" in name for name in moved)
        assert any("q_proj" in name for name in moved)
    without = _trainer(tiny, ["embed_tokens", "q_proj"], merging, tasks.without("user_1")).train()
    assert model.unmerge_task("user_1").state_digest() == without.state_digest()
