"""Which files are a saved model's: those are read, replaced and pushed; what belongs to others is left alone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_clamu import CheckpointFormatError, ClamuModel
from hf_clamu.base_models.processors import load_processor
from hf_clamu.checkpoint import layout

# Names that a loader would look for, and what stands there.
UNLISTED = {
    "added_tokens.json": b'{"<new>": 257}',
    "special_tokens_map.json": b'{"eos_token": "a"}',
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "vocab.txt": b"a\nb\n",
    "tokenizer.model": b"\0",
    "preprocessor_config.json": b'{"image_processor_type": "ViTImageProcessor"}',
    "base_init.safetensors": b"\0",
    "task_masks/task_000.safetensors": b"\0",
    "masks/cluster_017/adapter_model.safetensors": b"\0",
    "base_model/adapter_config.json": b"{}",
    "base_model/pytorch_model.bin": b"\0",
    "base_model/model.safetensors.index.json": b"{}",
}
FOREIGN = {
    "notes.txt": b"mine",
    "my_lora.safetensors": b"mine",
    "results.json": b"{}",
    "run.py": b"raise SystemExit(9)",
    "masks/README.md": b"mine",
    "masks/mine/adapter_model.safetensors": b"mine",
    "base_model/notes.md": b"mine",
    "figures/a.png": b"\0png",
}


def _write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("name", UNLISTED)
def test_a_file_that_would_be_read_and_is_not_listed_is_refused(folder, name):
    _write(folder, {name: UNLISTED[name]})
    with pytest.raises(CheckpointFormatError, match="no part of this model") as caught:
        ClamuModel.from_pretrained(folder)
    assert name in str(caught.value)
    (folder / name).unlink()
    assert ClamuModel.from_pretrained(folder).tasks


def test_unlisted_features_are_refused(tiny, tmp_path):
    model = tiny.train("text", clustering="random", keep_features=False)
    model.save_pretrained(tmp_path / "m")
    save_file({"vectors": torch.zeros(5, 16)}, tmp_path / "m/features.safetensors")
    with pytest.raises(CheckpointFormatError, match=r"features\.safetensors is no part"):
        ClamuModel.from_pretrained(tmp_path / "m")


def test_a_link_to_a_folder_hides_nothing(folder, tmp_path):
    shutil.move(folder / "base_model", tmp_path / "elsewhere")
    (folder / "base_model").symlink_to(tmp_path / "elsewhere")
    assert ClamuModel.from_pretrained(folder).tasks
    (tmp_path / "elsewhere/adapter_config.json").write_bytes(b"{}")
    with pytest.raises(CheckpointFormatError, match="no part of this model"):
        ClamuModel.from_pretrained(folder)


def test_files_of_others_are_not_read_and_stay(tiny, folder):
    before = ClamuModel.from_pretrained(folder).processor.get_vocab()
    _write(folder, FOREIGN)
    (folder / "empty").mkdir()
    model = ClamuModel.from_pretrained(folder)
    assert model.processor.get_vocab() == before
    model.unmerge_task("user_1", data=tiny.tasks("text"))
    model.save_pretrained(folder)
    for name, data in FOREIGN.items():
        assert (folder / name).read_bytes() == data, name
    assert (folder / "empty").is_dir()
    assert "user_1" not in ClamuModel.from_pretrained(folder).tasks


def test_nothing_of_an_earlier_model_stays(tiny, folder, tmp_path):
    """Another build over a saved model leaves what the build alone writes."""
    earlier = tiny.processor("text")
    earlier.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model = tiny.train("lm", processor=earlier)
    model.save_pretrained(tmp_path / "m")
    assert (tmp_path / "m/chat_template.jinja").is_file()
    later = tiny.train("text", clustering="random", localization="emr")
    later.save_pretrained(tmp_path / "m")
    later.save_pretrained(tmp_path / "alone")
    assert tiny.digests(tmp_path / "m") == tiny.digests(tmp_path / "alone")


def test_processor_files_under_names_of_their_own_go_with_their_model(tiny, folder, model):
    """Some tokenizer has a file that no table knows: the ledger lists it, so it is the model's."""
    _write(folder, {"tokenizer.phonemes.txt": b"a b c"})
    ledger = json.loads((folder / "ledger.json").read_bytes())
    tiny.reseal(folder, files={**ledger["files"], "tokenizer.phonemes.txt": None})
    assert ClamuModel.from_pretrained(folder).processor is not None
    model.save_pretrained(folder)
    assert not (folder / "tokenizer.phonemes.txt").exists()


def test_a_tokenizer_that_cannot_be_made_is_no_missing_one(tiny, folder):
    """Else the next save would leave it out."""
    (folder / "tokenizer.json").write_bytes(b'{"version": "1.0", "model": {"type": "Nothing"}}')
    tiny.reseal(folder)
    with pytest.raises(CheckpointFormatError, match="tokenizer"):
        ClamuModel.from_pretrained(folder)
    assert (folder / "tokenizer_config.json").is_file()


def test_a_listed_name_is_data_of_a_known_place(tiny, folder):
    ledger = json.loads((folder / "ledger.json").read_bytes())
    for name in ("evil.py", "base_model/pytorch_model.bin", "a/b.json", "masks/x.json", "a\\..\\b.json", ".h/x.json"):
        _write(folder, {name: b"{}"})
        tiny.reseal(folder, files={**ledger["files"], name: None})
        with pytest.raises(CheckpointFormatError, match=r"no file of a saved model|outside the folder"):
            ClamuModel.from_pretrained(folder)


def test_each_file_of_every_kind_of_model_has_a_row(saved_kind):
    for kind in ("text", "image", "lm", "seq2seq", "words"):
        folder = saved_kind(kind)
        names = layout.files_of(folder)
        assert len(names) > 6
        for name in names:
            rule = layout.rule_of(name)
            assert rule is not None, name
            assert rule.is_ours, name
        listed = json.loads((folder / "ledger.json").read_bytes())["files"]
        assert {name for name in names if layout.rule_of(name).is_listed} == set(listed)


def test_a_sparse_file_is_refused_by_its_size(folder):
    """64 GiB of zeros take no room, and hours to hash."""
    with (folder / "delta.safetensors").open("r+b") as file:
        file.truncate(2**36)
    with pytest.raises(CheckpointFormatError, match="68719476736 bytes, the ledger says"):
        ClamuModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "ledger.json", "tokenizer.json"])
def test_a_sparse_json_file_is_refused(folder, name):
    with (folder / name).open("r+b") as file:
        file.truncate(2**36)
    with pytest.raises(CheckpointFormatError, match=name):
        ClamuModel.from_pretrained(folder)


@pytest.mark.parametrize("place", ["/etc/model", "../model", "a/b/c", "./m", "", "~/m"])
def test_a_base_model_by_a_path_is_refused(tiny, folder, place):
    config = json.loads((folder / "config.json").read_bytes())
    config["base_model"] |= {"embedded": False, "name_or_path": place}
    (folder / "config.json").write_text(json.dumps(config))
    tiny.reseal(folder)
    with pytest.raises(CheckpointFormatError, match="base_model"):
        ClamuModel.from_pretrained(folder)


@pytest.mark.parametrize("shard", ["../../secret.safetensors", "/etc/x.safetensors", "sub/x.safetensors", 5, None])
def test_an_index_that_leads_out_of_the_base_folder_is_refused(tiny, folder, tmp_path, shard):
    weights = load_file(folder / "base_model/model.safetensors")
    save_file(weights, tmp_path / "secret.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
    (folder / "base_model/model.safetensors").unlink()
    (folder / "base_model/model.safetensors.index.json").write_text(json.dumps(index))
    files = json.loads((folder / "ledger.json").read_bytes())["files"]
    del files["base_model/model.safetensors"]
    tiny.reseal(folder, files={**files, "base_model/model.safetensors.index.json": None})
    with pytest.raises(CheckpointFormatError, match="which is no file of this model"):
        ClamuModel.from_pretrained(folder)


def test_an_embedded_base_in_shards_loads(tiny, folder):
    weights = load_file(folder / "base_model/model.safetensors")
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    (folder / "base_model/model.safetensors").unlink()
    for shard, part in halves.items():
        save_file({name: weights[name] for name in part}, folder / "base_model" / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, part in halves.items() for name in part}}
    (folder / "base_model/model.safetensors.index.json").write_text(json.dumps(index))
    files = json.loads((folder / "ledger.json").read_bytes())["files"]
    del files["base_model/model.safetensors"]
    more = dict.fromkeys([f"base_model/{name}" for name in (*halves, "model.safetensors.index.json")])
    tiny.reseal(folder, files={**files, **more})
    assert ClamuModel.from_pretrained(folder).tasks


def test_the_processor_of_a_folder_with_foreign_files_is_the_same(folder):
    plain = load_processor(str(folder), "sequence-classification")
    _write(folder, {"vocab.tsv": b"x", "my_tokens.json": b"{}"})
    found = ClamuModel.from_pretrained(folder).processor
    assert found.get_vocab() == plain.get_vocab()
    assert found.special_tokens_map == plain.special_tokens_map
