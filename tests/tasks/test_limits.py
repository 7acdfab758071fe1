"""Texts that a model cannot take are refused by name, before anything is trained."""

import pytest
import torch
import transformers
from datasets import Dataset
from tokenizers import processors

from hf_clamu import TaskDataset
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.tasks import ModelLimits

_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_TEXT = {**_SMALL, "vocab_size": 257, "max_position_embeddings": 40}
_BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 257}
_BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
_LED = {**_BART, "max_encoder_position_embeddings": 40, "max_decoder_position_embeddings": 20}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 257}
_GPT2 = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 40, "vocab_size": 257}
# Model type, settings, longest text, whether beyond it nothing can be computed, longest completion.
_MODELS = {
    "bert": ("bert", _TEXT, 40, True, None),
    "distilbert": ("distilbert", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, **_TEXT}, 40, True, None),
    "roberta": ("roberta", {**_TEXT, "pad_token_id": 3}, 36, True, None),
    "gpt2": ("gpt2", _GPT2, 40, True, None),
    "opt": ("opt", {**_TEXT, "ffn_dim": 16, "word_embed_proj_dim": 16}, 40, True, None),
    "llama": ("llama", _TEXT, 40, False, None),
    "bart": ("bart", {**_BART, "max_position_embeddings": 40}, 40, True, 40),
    "led": ("led", _LED, 40, True, 20),
    "t5": ("t5", _T5, None, False, None),
    "bloom": ("bloom", {"hidden_size": 16, "n_layer": 1, "n_head": 2, "vocab_size": 257}, None, False, None),
}


def _made(name):
    model_type, settings, *_ = _MODELS[name]
    config = transformers.AutoConfig.for_model(model_type, **settings)
    return transformers.AutoModel.from_config(config).eval()


@pytest.mark.parametrize("name", _MODELS)
def test_the_limits_are_those_of_the_model(name):
    *_, positions, is_table, answers = _MODELS[name]
    model = _made(name)
    limits = ModelLimits.of(model)
    assert (limits.positions, limits.is_table, limits.answers, limits.embeddings) == (
        positions,
        is_table,
        answers,
        257,
    )
    if positions is None or name == "led":  # which computes more than it was trained for
        return
    ids = torch.full((1, positions), 5)
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=ids).last_hidden_state).all()
        if is_table:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, positions + 1), 5))


def test_images_have_none():
    config = transformers.ViTConfig(**_SMALL, image_size=8, patch_size=4)
    assert ModelLimits.of(transformers.ViTModel(config)).embeddings is None


def _tasks(texts, **settings):
    rows = {"user": [f"u{n}" for n in range(len(texts))], "text": texts, "label": ["x", "y"] * (len(texts) // 2)}
    columns = {"task_column": "user", "text_column": "text", "label_column": "label"}
    return TaskDataset.from_dataset(Dataset.from_dict(rows), **columns, **settings)


@pytest.mark.parametrize("clustering", ["features", "random", "task_vectors", "none"])
def test_a_long_text_is_refused_before_anything_is_trained(tiny, clustering, monkeypatch):
    tasks = _tasks(["a", "b", "c", "d" * 60])
    monkeypatch.setattr("torch.optim.AdamW.step", lambda *_, **__: pytest.fail("something was trained"))
    with pytest.raises(TaskDataError, match=r"Task 'u3', column 'text', row 3: the text has 60 tokens.* takes 48"):
        tiny.train("text", tasks, clustering=clustering)


def test_max_length_cuts_it(tiny):
    tasks = _tasks(["a", "b", "c", "d" * 60], max_length=48)
    assert len(tiny.train("text", tasks).tasks) == 4
    with pytest.raises(TaskDataError, match="60 tokens, and the model takes 48"):
        tiny.train("text", _tasks(["a", "b", "c", "d" * 60], max_length=64))


def test_positions_that_go_on_are_for_who_asks(tiny):
    """Rotary positions are computed; what was never trained needs a word of the user."""
    base = {"model_type": "llama", **_TEXT}
    texts = ["a", "b", "c", "d" * 60]
    with pytest.raises(TaskDataError, match="60 tokens, and the model takes 40"):
        tiny.train("text", _tasks(texts), base=base)
    assert len(tiny.train("text", _tasks(texts, max_length=60), base=base).tasks) == 4


def test_a_long_completion(tiny):
    rows = {"user": ["u", "u"], "q": ["a", "b"], "a": ["short", "long" * 20]}
    columns = {"task_column": "user", "prompt_column": "q", "completion_column": "a", "kind": "seq2seq-lm"}
    tasks = TaskDataset.from_dataset(Dataset.from_dict(rows), **columns)
    base = {"model_type": "bart", **_BART, "max_position_embeddings": 40, "decoder_start_token_id": 256}
    with pytest.raises(TaskDataError, match=r"row 1: the completion has 81 tokens, and the model takes 40"):
        tiny.train("seq2seq", tasks, base=base)
    assert len(tiny.train("seq2seq", tasks, base={"model_type": "t5", **_T5}).tasks) == 1


@pytest.mark.parametrize("base", [{"model_type": "gpt2", **_GPT2}, {"model_type": "bert", **_TEXT}])
def test_a_token_without_an_embedding(tiny, base):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<x>"])
    assert len(tiny.train("text", _tasks(["a", "b"]), base=base, processor=tokenizer).tasks) == 2
    with pytest.raises(TaskDataError, match=r"row 1: the tokenizer has the number 257 for '<x>'.*0 to 256 alone"):
        tiny.train("text", _tasks(["a", "<x>"]), base=base, processor=tokenizer)


def _closing(single):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    ids = [("<s>", tokenizer.bos_token_id), ("<|endoftext|>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize("single", ["<s> $A <|endoftext|>", "$A <|endoftext|>"])
def test_a_tokenizer_that_ends_prompts(tiny, single):
    tasks = tiny.tasks("lm")
    with pytest.raises(RecipeError, match=r"puts '<\|endoftext\|>' behind every text.*add_eos_token=False"):
        tasks.encode(tasks.task_ids[0], _closing(single))


@pytest.mark.parametrize("single", ["<s> $A", "<|endoftext|> $A"])
def test_what_stands_before_a_prompt_is_fine(tiny, single):
    tasks = tiny.tasks("lm")
    assert tasks.encode(tasks.task_ids[0], _closing(single)).train
    text = tiny.tasks("text")
    assert text.encode(text.task_ids[0], _closing("$A <|endoftext|>")).train  # nothing comes behind it
