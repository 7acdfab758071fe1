"""What is handed over as a base: a model in memory keeps its meaning, or it is said what to give instead."""

import warnings

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from hf_clamu import TaskDataset
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.base_models.loading import load_base
from hf_clamu.errors import IncompatibleBaseError
from hf_clamu.serving.prediction import predict

_GPT2 = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": 257, "pad_token_id": 256}


def _classifier(**changes):
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**_GPT2, **changes))


def _with_adapter_inside():
    model = _classifier(num_labels=3)
    model.add_adapter(LoraConfig(target_modules=["c_attn"]))
    return model


def _without_weights():
    with torch.device("meta"):
        return _classifier(num_labels=3)


class _OwnClass(transformers.GPT2ForSequenceClassification):
    pass


_LORA = LoraConfig(target_modules=["c_attn"], task_type="SEQ_CLS")
_OTHERS = {
    "PeftModel": (lambda: get_peft_model(_classifier(), _LORA), "PeftModel.*merge_and_unload"),
    "adapter": (_with_adapter_inside, "has an adapter inside .*delete_adapter"),
    "compiled": (lambda: torch.compile(_classifier()), "OptimizedModule.*that torch.compile was called on"),
    "parallel": (lambda: torch.nn.DataParallel(_classifier()), r"DataParallel.*\(\.module\)"),
    "module": (lambda: torch.nn.Linear(2, 2), "Linear.*Only models of transformers"),
    "meta": (_without_weights, "meta device and has no weights"),
    "nothing": (lambda: None, "is a NoneType.*Give a Hub id"),
    "number": (lambda: 7, "is a int.*Give a Hub id"),
    "empty": (lambda: "", "no name.*Give a Hub id"),
    "own class": (lambda: _OwnClass(_classifier().config), "The base model is a '_OwnClass'.*class of transformers"),
}


@pytest.mark.parametrize("name", _OTHERS)
def test_what_cannot_be_a_base(tiny, name):
    make, message = _OTHERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT and of torch.compile
        base = make()
    with pytest.raises(IncompatibleBaseError, match=message):
        load_base(base, tiny.tasks("text").spec, num_labels=3, processor=byte_tokenizer())


def test_a_merged_model_is_no_base(tiny, tmp_path):
    model = tiny.train("text")
    with pytest.raises(IncompatibleBaseError, match="Export the merged model first"):
        tiny.train("text", base=model)
    model.save_pretrained(tmp_path)
    with pytest.raises(IncompatibleBaseError, match=r"merged ClAMU model.*clamu export"):
        tiny.train("text", base=tmp_path)


@pytest.mark.parametrize("tied", ["gpt2", "bert", "t5"])
def test_a_tie_that_is_none(tiny, tied):
    """A head with weights of its own under a configuration that ties it."""
    if tied == "t5":
        config = transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=257)
        model, kind = transformers.T5ForConditionalGeneration(config), "seq2seq"
    elif tied == "bert":
        sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model = transformers.BertLMHeadModel(
            transformers.BertConfig(hidden_size=16, vocab_size=257, is_decoder=True, **sizes)
        )
        kind = "lm"
    else:
        model, kind = transformers.GPT2LMHeadModel(transformers.GPT2Config(**_GPT2)), "lm"
    head = model.get_output_embeddings()
    assert head.weight is model.get_input_embeddings().weight
    spec = tiny.tasks(kind).spec
    with torch.no_grad():
        head.weight = torch.nn.Parameter(head.weight.clone() + 1)
    with pytest.raises(IncompatibleBaseError, match=r"its configuration ties them.*tie_word_embeddings = False"):
        load_base(model, spec, num_labels=None, processor=byte_tokenizer())
    if tied == "t5":  # its configuration ties whatever is said
        return
    model.config.tie_word_embeddings = False
    made = load_base(model, spec, num_labels=None, processor=byte_tokenizer()).model
    assert torch.equal(made.get_output_embeddings().weight, head.weight)
    assert not torch.equal(made.get_input_embeddings().weight, head.weight)


def test_types_that_lose_digits(tiny):
    mixed = _classifier(num_labels=3)
    mixed.transformer.wte.half()
    with pytest.raises(IncompatibleBaseError, match=r"as torch.float32, which does not fit its type torch.float16"):
        tiny.train("text", base=mixed)


def _tasks(**settings):
    rows = {"user": ["a"] * 4 + ["b"] * 4, "text": [f"{n}" for n in range(8)], "label": ["no", "yes"] * 4}
    columns = {"task_column": "user", "text_column": "text", "label_column": "label"}
    return TaskDataset.from_dataset(Dataset.from_dict(rows), **columns, **settings)


@pytest.mark.parametrize(
    ("names", "settings", "refused"),
    [
        (["LABEL_0", "LABEL_1"], {}, None),
        (["no", "yes"], {}, None),
        (["No", "YES"], {}, None),
        (["negative", "positive"], {}, None),
        (["yes", "no"], {}, r"Give label_names in its order: yes, no\."),
        (["yes", "no"], {"label_names": ["yes", "no"]}, None),
        (["no", "maybe"], {}, "the same numbers would mean other labels"),
    ],
)
@pytest.mark.parametrize("place", ["memory", "folder"])
def test_label_names_are_one_table(tiny, names, settings, refused, place, tmp_path):
    base = _classifier(id2label=dict(enumerate(names)), label2id={name: n for n, name in enumerate(names)})
    if place == "folder":
        base.save_pretrained(tmp_path)
        base = tmp_path
    tasks = _tasks(**settings)
    if refused:
        with pytest.raises(IncompatibleBaseError, match=refused):
            tiny.train("text", tasks, base=base)
        return
    model = tiny.train("text", tasks, base=base)
    assert model.config.id2label == dict(enumerate(tasks.spec.label_names))
    assert {answer["label"] for answer in predict(model, [{"text": "1"}, {"text": "2"}])} <= {"no", "yes"}


def test_a_head_that_is_drawn_has_no_names(tiny, tmp_path):
    base = _classifier(id2label={0: "yes", 1: "no", 2: "maybe"}, label2id={"yes": 0, "no": 1, "maybe": 2})
    base.save_pretrained(tmp_path)
    assert tiny.train("text", _tasks(), base=tmp_path).config.id2label == {0: "no", 1: "yes"}
