"""Tokenizers and image processors: absent, unloadable and useless ones are told apart."""

import json

import pytest
import transformers
from datasets import Dataset

from hf_clamu import TaskDataset
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.base_models.processors import load_processor
from hf_clamu.errors import IncompatibleBaseError, TaskDataError
from hf_clamu.recipe import Recipe
from hf_clamu.tasks import require_known_words

_TEXT = {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_VIT = transformers.ViTConfig(**{key: value for key, value in _TEXT.items() if key != "vocab_size"})


@pytest.fixture
def texts(tmp_path):
    transformers.GPT2Config().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def images(tmp_path):
    _VIT.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    return tmp_path


def _change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", ["image-classification", "causal-lm"])
@pytest.mark.parametrize("config", ["bert", "electra", "llama", "gpt2", "vit"])
def test_a_folder_without_one(kind, config, tmp_path):
    transformers.AutoConfig.for_model(config).save_pretrained(tmp_path)
    assert load_processor(str(tmp_path), kind) is None


def test_those_that_are_there(texts, tmp_path):
    assert len(load_processor(str(texts), "causal-lm")) == 257


def test_an_image_processor_that_is_there(images):
    assert load_processor(str(images), "image-classification").size["height"] == 8


@pytest.mark.parametrize("content", ["", "{ broken", "[]", '{"image_processor_type": "Strange"}', '{"a":' * 100_000])
def test_an_image_processor_that_does_not_load(tiny, images, content):
    (images / "preprocessor_config.json").write_text(content)
    with pytest.raises(IncompatibleBaseError, match=r"image processor of .* cannot be loaded"):
        load_processor(str(images), "image-classification")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", ["", "{ broken", "[]", '{"model": 7}', "version https://git-lfs.github.com/spec/v1"]
)
def test_a_tokenizer_that_does_not_load(texts, name, content):
    if name == "tokenizer_config.json" and content == '{"model": 7}':
        content = '{"tokenizer_class": "NobodysTokenizer", "auto_map": {"AutoTokenizer": ["own.Own", null]}}'
        (texts / "tokenizer.json").unlink()
    (texts / name).write_text(content)
    with pytest.raises(IncompatibleBaseError, match=r"tokenizer of .* cannot be loaded"):
        load_processor(str(texts), "causal-lm")


def test_a_damaged_tokenizer_is_not_said_to_be_absent(tiny, tmp_path):
    transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=64, vocab_size=257)
    ).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{ broken")
    from hf_clamu import ClamuTrainer

    with pytest.raises(IncompatibleBaseError, match=r"tokenizer of .* cannot be loaded"):
        ClamuTrainer(tmp_path / "base", tiny.tasks("text"), tiny.arguments()).train()
    recipe = {"base_model": str(tmp_path / "base"), "tokenizer": str(tmp_path / "base"), "data": {"files": "x"}}
    with pytest.raises(IncompatibleBaseError, match=r"tokenizer of .* cannot be loaded"):
        Recipe.from_dict(recipe).processor("causal-lm")


def test_nobody_is_asked_and_no_code_runs(texts, images, monkeypatch, capsys):
    """The two fixtures share a folder."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    (texts / "own.py").write_text("raise SystemExit('it ran')")
    _change(texts / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]}, tokenizer_class="Own")
    _change(
        images / "preprocessor_config.json", auto_map={"AutoImageProcessor": "own.Own"}, image_processor_type="Own"
    )
    for kind in ("causal-lm", "image-classification"):
        with pytest.raises(IncompatibleBaseError, match=r"code of its own \(auto_map\), which is never run"):
            load_processor(str(texts), kind)
    assert capsys.readouterr().out == ""


def _words(folder, known):
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *known]))
    return transformers.BertTokenizer.from_pretrained(folder)


def test_a_tokenizer_of_another_language(tiny, tmp_path):
    rows = {"user": ["a", "a", "b"], "text": ["well done", "so bad", "👍"], "label": [0, 1, 1]}
    columns = {"task_column": "user", "text_column": "text", "label_column": "label"}
    tasks = TaskDataset.from_dataset(Dataset.from_dict(rows), **columns)
    require_known_words(tasks, _words(tmp_path, ["well", "so"]))  # some words will do
    require_known_words(tasks, byte_tokenizer())
    base = {"model_type": "bert", **_TEXT, "intermediate_size": 16}
    with pytest.raises(TaskDataError, match="does not know 5 of the first 5 words"):
        tiny.train("text", tasks, base=base, processor=_words(tmp_path, ["bien", "mal"]))
