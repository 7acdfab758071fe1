"""Weights of a base in a folder: all of them arrive, or it is said which do not; nothing in it brings in code."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.base_models.loading import load_base
from hf_clamu.errors import IncompatibleBaseError, RecipeError
from hf_clamu.tasks import TaskSpec

_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_TEXT = {**_SMALL, "vocab_size": 257, "max_position_embeddings": 64}
_CLASSIFIER = TaskSpec(
    kind="sequence-classification", task_column="u", text_column="t", label_column="l", label_names=("a", "b")
)
_WRITER = TaskSpec(kind="causal-lm", task_column="u", prompt_column="p", completion_column="c")
_TRANSLATOR = TaskSpec(kind="seq2seq-lm", task_column="u", prompt_column="p", completion_column="c")
_IMAGES = TaskSpec(
    kind="image-classification", task_column="u", image_column="i", label_column="l", label_names=("a", "b")
)
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 257}
_MODELS = {
    "bert": (transformers.BertModel, transformers.BertConfig(**_TEXT), _CLASSIFIER),
    "roberta": (transformers.RobertaModel, transformers.RobertaConfig(**_TEXT, pad_token_id=0), _CLASSIFIER),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(**_TEXT, num_key_value_heads=1), _WRITER),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=64, vocab_size=257),
        _WRITER,
    ),
    "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config(**_T5), _TRANSLATOR),
    "vit": (
        transformers.ViTForImageClassification,
        transformers.ViTConfig(**_SMALL, image_size=8, patch_size=4, num_labels=2),
        _IMAGES,
    ),
}


def _saved(name, folder, **options):
    architecture, config, spec = _MODELS[name]
    torch.manual_seed(0)
    model = architecture(config)
    model.save_pretrained(folder, **options)
    return model, spec


def _load(base, spec):
    processor = None if spec.kind == "image-classification" else byte_tokenizer()
    if processor is not None:
        processor.pad_token = "!"  # the first of its bytes
    return load_base(base, spec, num_labels=len(spec.label_names or ()) or None, processor=processor)


def test_positions_count_from_the_padding_token(tmp_path):
    _, spec = _saved("roberta", tmp_path)
    in_memory = transformers.RobertaForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = '"'
    for base in (tmp_path, in_memory):
        with pytest.raises(IncompatibleBaseError, match=r"pretrained with the padding token 0 .* pads with 1"):
            load_base(base, spec, num_labels=2, processor=tokenizer)


def _configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", _MODELS)
def test_everything_pretrained_arrives(name, tmp_path):
    model, spec = _saved(name, tmp_path)
    own = dict(_load(tmp_path, spec).model.named_parameters())
    prefix = "" if hasattr(model, model.base_model_prefix) or name == "t5" else f"{model.base_model_prefix}."
    compared = 0
    for key, weights in model.named_parameters():
        if "pooler" not in key:
            assert torch.equal(own[prefix + key], weights), key
            compared += 1
    assert compared > 10


@pytest.mark.parametrize(
    ("name", "change", "lost"),
    [
        ("bert", {"vocab_size": 300}, "bert.embeddings.word_embeddings.weight"),
        ("roberta", {"max_position_embeddings": 80}, "roberta.embeddings.position_embeddings.weight"),
        ("roberta", {"type_vocab_size": 1}, "roberta.embeddings.token_type_embeddings.weight"),
        ("llama", {"intermediate_size": 32}, "model.layers.0.mlp.down_proj.weight"),
        ("gpt2", {"n_positions": 32}, "transformer.wpe.weight"),
        ("t5", {"d_ff": 32}, "decoder.block.0.layer.2.DenseReluDense.wi.weight"),
        ("vit", {"image_size": 12}, "vit.embeddings.position_embeddings"),
    ],
)
def test_another_shape_than_the_configuration_says(name, change, lost, tmp_path):
    _, spec = _saved(name, tmp_path)
    _configure(tmp_path, **change)
    with pytest.raises(IncompatibleBaseError, match=f"{lost}.*in another shape than its config.json says"):
        _load(tmp_path, spec)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("bert", "embeddings.LayerNorm.weight"),
        ("llama", "model.norm.weight"),
        ("llama", "lm_head.weight"),
        ("t5", "encoder.final_layer_norm.weight"),
        ("vit", "classifier.weight"),
    ],
)
def test_a_weight_is_missing(name, key, tmp_path):
    _, spec = _saved(name, tmp_path)
    _rewrite(tmp_path, lambda tensors: tensors.pop(key))
    with pytest.raises(IncompatibleBaseError, match=rf"lacks '.*{key}', which would be random"):
        _load(tmp_path, spec)


@pytest.mark.parametrize(
    ("name", "key"), [("bert", "num_hidden_layers"), ("llama", "num_hidden_layers"), ("gpt2", "n_layer")]
)
def test_the_number_of_layers_is_not_that_of_the_file(name, key, tmp_path):
    _, spec = _saved(name, tmp_path)
    _configure(tmp_path, **{key: 1})
    with pytest.raises(IncompatibleBaseError, match=r"has more layers than its config\.json says"):
        _load(tmp_path, spec)
    _configure(tmp_path, **{key: 3})
    with pytest.raises(IncompatibleBaseError, match="which would be random"):
        _load(tmp_path, spec)


def test_only_a_head_is_drawn(tmp_path):
    """Another head, another number of labels, or a pooler that a language model is saved without."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**_TEXT, num_labels=5)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "five")
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "words")
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path / "tags")
    for name in ("five", "words", "tags"):
        first, again = _load(tmp_path / name, _CLASSIFIER).model, _load(tmp_path / name, _CLASSIFIER).model
        assert torch.equal(first.classifier.weight, again.classifier.weight)
        assert first.classifier.weight.shape == (2, 16)
        kept = load_file(tmp_path / name / "model.safetensors")
        key = "bert.encoder.layer.1.output.dense.weight"
        assert torch.equal(dict(first.named_parameters())[key], kept[key])


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def _pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def _shard(folder):
    sorted(folder.glob("model-0*.safetensors"))[0].unlink()


def _no_weights(folder):
    for path in folder.glob("*.safetensors"):
        path.unlink()


def _deep(folder):
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "safetensors file is damaged or incomplete"),
        (_pointer, "pointer of Git LFS.*git lfs pull"),
        (_pickle, r"could not be loaded"),
        (_shard, "could not be loaded"),
        (_no_weights, "could not be loaded"),
        (_deep, "could not be loaded"),
        (lambda folder: _configure(folder, model_type="nobody_has_it"), "could not be loaded"),
        (lambda folder: _configure(folder, hidden_size="many"), "could not be loaded"),
        (lambda folder: _configure(folder, id2label=7), "could not be loaded"),
    ],
)
def test_damage_is_one_sentence(damage, message, tmp_path):
    _, spec = _saved("bert", tmp_path, max_shard_size="5KB" if damage is _shard else "1GB")
    damage(tmp_path)
    with pytest.raises(IncompatibleBaseError, match=message) as caught:
        _load(tmp_path, spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"is quantised \(quantization_config: gptq\)"),
        ({"attn_implementation": "org/kernel"}, "asks for .*_implementation = 'org/kernel'"),
        ({"_attn_implementation": "org/kernel"}, "asks for .*_implementation = 'org/kernel'"),
        ({"experts_implementation": "org/kernel"}, "asks for .*_implementation = 'org/kernel'"),
        ({"kernel_config": {"RMSNorm": "org/kernel"}}, "the key 'kernel_config'"),
    ],
)
@pytest.mark.parametrize("given", ["folder", "mapping"])
def test_no_key_brings_in_code(given, change, message, tmp_path):
    _, spec = _saved("bert", tmp_path)
    _configure(tmp_path, **change)
    base = tmp_path if given == "folder" else json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(IncompatibleBaseError, match=message):
        _load(base, spec)


@pytest.mark.parametrize("model_type", ["bert", "its_own"])
def test_code_beside_the_weights_never_runs(model_type, tmp_path, monkeypatch):
    _, spec = _saved("bert", tmp_path)
    names = {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"}
    _configure(tmp_path, model_type=model_type, auto_map=names)
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    if model_type == "bert":  # transformers' own class
        assert type(_load(tmp_path, spec).model) is transformers.BertForSequenceClassification
        return
    with pytest.raises(IncompatibleBaseError, match=r"Python code of its own.*never run"):
        _load(tmp_path, spec)


def test_a_published_configuration_as_a_mapping(tmp_path):
    """It says of labels and types what another head had; ours are those of the data, and float32."""
    config = transformers.BertConfig(**_TEXT, num_labels=7).to_dict()
    config |= {"torch_dtype": "float16", "architectures": ["BertForMaskedLM"], "transformers_version": "4.1.0"}
    config |= {"id2label": {"0": "x", "1": "y"}, "label2id": {"x": 0, "y": 1}, "num_labels": 2}
    found = [_load(base, _CLASSIFIER).model for base in (config, transformers.BertConfig(**_TEXT, dtype="float16"))]
    for model in found:
        assert (model.dtype, model.config.id2label) == (torch.float32, {0: "a", 1: "b"})
    with pytest.raises(RecipeError, match="describes a bert that transformers does not make"):
        _load({"model_type": "bert", **_TEXT, "num_attention_heads": 5}, _CLASSIFIER)


def test_a_damaged_base_inside_a_saved_model(tiny, tmp_path):
    """Also where the ledger's digests were made to fit."""
    from hf_clamu import ClamuModel
    from hf_clamu.errors import CheckpointFormatError, ClamuError

    tiny.train("text").save_pretrained(tmp_path / "model")

    def changed(name, change):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "model", folder)
        values = json.loads((folder / "config.json").read_text())
        change(values)
        (folder / "config.json").write_text(json.dumps(values))
        tiny.reseal(folder)
        return folder

    folder = changed("kernel", lambda v: v["base_config"].update(_attn_implementation="org/kernel"))
    with pytest.raises(IncompatibleBaseError, match="_attn_implementation = 'org/kernel'"):
        ClamuModel.from_pretrained(folder)
    folder = changed("quantised", lambda v: v["base_config"].update(quantization_config={"quant_method": "awq"}))
    with pytest.raises(IncompatibleBaseError, match="is quantised"):
        ClamuModel.from_pretrained(folder)
    folder = changed("dtype", lambda v: v["base_model"].update(dtype="load"))
    with pytest.raises(CheckpointFormatError, match=r"config\.json.*base_model"):
        ClamuModel.from_pretrained(folder)
    folder = changed("labels", lambda v: v["base_config"].update(n_layer="many"))
    with pytest.raises(ClamuError, match=r"config\.json"):
        ClamuModel.from_pretrained(folder)
