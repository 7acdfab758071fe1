"""Saved models in shards: where a shard ends, the same bytes whatever the way, and damage."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from transformers import GPT2ForSequenceClassification

from hf_clamu import CheckpointFormatError, ClamuModel, RecipeError
from hf_clamu.checkpoint.files.shards import read_shards, reshard, save_shards, shard_bytes, split_names
from hf_clamu.exact import canonical_json

# So small that delta and base model of the tiny model have several shards, some of one large tensor.
SIZE = 4000
INDEXES = ["base_model/model.safetensors.index.json", "delta.safetensors.index.json"]


def _names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _shards(folder, index):
    weight_map = json.loads((folder / index).read_bytes())["weight_map"]
    return sorted({(folder / index).with_name(name) for name in weight_map.values()})


@pytest.fixture(scope="session")
def saved_in_shards(saved_text, tmp_path_factory):
    """The saved text model in shards; not to be changed."""
    folder = tmp_path_factory.mktemp("shards") / "model"
    ClamuModel.from_pretrained(saved_text).save_pretrained(folder, max_shard_size=SIZE)
    return folder


@pytest.fixture
def sharded(saved_in_shards, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(saved_in_shards, tmp_path / "sharded")


# -- boundaries ------------------------------------------------------------------------------------------------------


def test_boundaries_follow_from_names_and_sizes():
    sizes = {"b": 4, "a": 6, "c": 30, "d": 5, "e": 5, "f": 1}
    assert split_names(sizes, 10) == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert split_names(dict(reversed(sizes.items())), 10) == split_names(sizes, 10)
    assert split_names(sizes, 51) == [["a", "b", "c", "d", "e", "f"]]
    assert split_names({}, 10) == [[]]


def test_boundaries_do_not_depend_on_the_storage(tmp_path):
    names = [f"w{number}" for number in range(6)]
    apart = {name: torch.full((250,), float(number)) for number, name in enumerate(names)}
    buffer = torch.cat(list(apart.values()))
    together = dict(zip(names, buffer.split(250), strict=True))
    for place, tensors in (("apart", apart), ("together", together)):
        (tmp_path / place).mkdir()
        save_shards(tmp_path / place / "delta.safetensors", tensors, 2000)
    files, other = ({path.name: path.read_bytes() for path in place.iterdir()} for place in sorted(tmp_path.iterdir()))
    assert files == other
    assert len(files) == 4
    # The Hub's client looks at it, which is why its rule is not ours.
    theirs = [split_torch_state_dict_into_shards(one, max_shard_size=2000) for one in (apart, together)]
    assert theirs[0].filename_to_tensors != theirs[1].filename_to_tensors


@pytest.mark.parametrize(("size", "expected"), [("5GB", 5 * 10**9), ("1.5MiB", 1572864), (7, 7)])
def test_sizes(size, expected):
    assert shard_bytes(size) == expected


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "", "many", "0KB", "5"])
def test_what_is_no_size(size, model, tmp_path):
    with pytest.raises(RecipeError, match="max_shard_size"):
        model.save_pretrained(tmp_path / "m", max_shard_size=size)
    assert not (tmp_path / "m").exists()


def test_shards_are_written_again_in_others(tmp_path):
    tensors = {f"w{number}": torch.arange(100.0) + number for number in range(5)}
    path = tmp_path / "model.safetensors"
    save_shards(path, tensors, 10**6)
    whole = path.read_bytes()
    for size in (1000, 500, 500, 400):
        reshard(path, size)
        found = read_shards(path.with_name("model.safetensors.index.json"), path.with_name)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
        assert len(found) == 5
    assert len(_names(tmp_path)) == 6
    reshard(path, 10**6)
    assert _names(tmp_path) == ["model.safetensors"]
    assert path.read_bytes() == whole


# -- bytes -----------------------------------------------------------------------------------------------------------


def test_files(saved_in_shards):
    files = _names(saved_in_shards)
    assert [name for name in files if name.endswith("index.json")] == INDEXES
    assert "delta.safetensors" not in files
    assert "base_model/model.safetensors" not in files
    for index in INDEXES:
        content = json.loads((saved_in_shards / index).read_bytes())
        assert (saved_in_shards / index).read_bytes() == canonical_json(content)
        shards = _shards(saved_in_shards, index)
        assert len(shards) > 3
        held = [load_file(shard) for shard in shards]
        names = {name: shard.name for shard, one in zip(shards, held, strict=True) for name in one}
        assert names == content["weight_map"]
        sizes = [sum(tensor.nbytes for tensor in one.values()) for one in held]
        assert all(size <= SIZE or len(one) == 1 for size, one in zip(sizes, held, strict=True))
        assert sum(sizes) == content["metadata"]["total_size"]
    assert json.loads((saved_in_shards / "config.json").read_bytes())["max_shard_size"] == SIZE


def test_the_size_stays_until_another_is_given(tiny, saved_text, sharded, tmp_path):
    model = ClamuModel.from_pretrained(sharded)
    model.save_pretrained(tmp_path / "again")
    assert tiny.digests(tmp_path / "again") == tiny.digests(sharded)
    model.save_pretrained(sharded, max_shard_size="50GB")
    assert tiny.digests(sharded) == tiny.digests(saved_text)
    model.save_pretrained(tmp_path / "third")
    assert tiny.digests(tmp_path / "third") == tiny.digests(saved_text)


def test_forgetting_gives_the_bytes_of_a_build(tiny, sharded, tmp_path):
    tasks = tiny.tasks("text")
    model = ClamuModel.from_pretrained(sharded)
    model.unmerge_task(["user_1", "user_3"], data=tasks)
    model.save_pretrained(sharded)
    without = tasks.without(["user_1", "user_3"])
    tiny.train("text", tasks=without).save_pretrained(tmp_path / "built", max_shard_size=SIZE)
    assert tiny.digests(sharded) == tiny.digests(tmp_path / "built")
    model = ClamuModel.from_pretrained(sharded)
    model.add_task(tasks.select(["user_3"]), data=without)
    model.save_pretrained(sharded)
    tiny.train("text", tasks=tasks.without(["user_1"])).save_pretrained(tmp_path / "more", max_shard_size=SIZE)
    assert tiny.digests(sharded) == tiny.digests(tmp_path / "more")


def test_a_rebuild_is_compared_shard_by_shard(tiny, sharded):
    model = ClamuModel.from_pretrained(sharded)
    assert model.verify(data=tiny.tasks("text")).identical
    path = _shards(sharded, INDEXES[1])[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointFormatError, match=path.name):
        model.verify(data=tiny.tasks("text"))


def test_no_shard_of_an_earlier_model_stays(tiny, saved_text, sharded, tmp_path):
    model = ClamuModel.from_pretrained(sharded)
    model.save_pretrained(sharded, max_shard_size=2 * SIZE)
    model.save_pretrained(tmp_path / "new")
    assert tiny.digests(sharded) == tiny.digests(tmp_path / "new")


# -- use -------------------------------------------------------------------------------------------------------------


def test_it_serves_what_the_same_model_in_one_file_serves(saved_text, sharded, tmp_path):
    one, several = (ClamuModel.from_pretrained(folder, cluster=1) for folder in (saved_text, sharded))
    weights, expected = several.state_dict(), one.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    several.export(tmp_path / "plain", cluster=1)
    assert (tmp_path / "plain/model.safetensors.index.json").is_file()
    plain = GPT2ForSequenceClassification.from_pretrained(tmp_path / "plain").state_dict()
    assert all(torch.equal(plain[name], expected[name]) for name in expected)


def test_a_class_of_transformers_finds_no_weights_in_it(sharded):
    with pytest.raises(ValueError, match="this is a ClAMU model"):
        GPT2ForSequenceClassification.from_pretrained(sharded)


def test_a_cast_model_writes_the_base_model_in_other_shards(tiny, saved_text, sharded, tmp_path):
    model = ClamuModel.from_pretrained(sharded, dtype="bfloat16")
    model.save_pretrained(tmp_path / "m", max_shard_size="50GB")
    assert tiny.digests(tmp_path / "m") == tiny.digests(saved_text)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_mask_adapter_finds_the_delta(saved_text, sharded):
    from peft import PeftModel

    def load(folder):
        base = GPT2ForSequenceClassification.from_pretrained(folder / "base_model")
        return PeftModel.from_pretrained(base, folder, subfolder="masks/cluster_001").state_dict()

    found, expected = load(sharded), load(saved_text)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# -- damage ----------------------------------------------------------------------------------------------------------


def _refused(folder, match):
    with pytest.raises(CheckpointFormatError, match=match) as caught:
        ClamuModel.from_pretrained(folder)
    assert str(caught.value).count("\n") == 0


def _edit(tiny, folder, index, **weight_map):
    content = json.loads((folder / index).read_bytes())
    content["weight_map"] |= weight_map
    (folder / index).write_bytes(canonical_json(content))
    tiny.reseal(folder)


@pytest.mark.parametrize("index", INDEXES)
def test_a_missing_shard(tiny, sharded, index):
    shard = _shards(sharded, index)[1]
    shard.unlink()
    _refused(sharded, rf"{shard.name} is missing: the ledger lists it")
    ledger = json.loads((sharded / "ledger.json").read_bytes())
    del ledger["files"][shard.relative_to(sharded).as_posix()]
    tiny.reseal(sharded, files=ledger["files"])
    _refused(sharded, rf"index.json names '{shard.name}', which is no file of this model")


@pytest.mark.parametrize("index", INDEXES)
def test_a_shard_too_many(tiny, sharded, index):
    stem = (sharded / index).name.split(".")[0]
    spare = (sharded / index).with_name(f"{stem}-00009-of-00009.safetensors")
    save_file({"x": torch.zeros(1)}, spare)
    _refused(sharded, rf"{spare.name} is no part of this model")
    files = json.loads((sharded / "ledger.json").read_bytes())["files"]
    tiny.reseal(sharded, files={**files, spare.relative_to(sharded).as_posix(): None})
    _refused(sharded, rf"{spare.name} is listed, but {stem}.safetensors.index.json does not name it")


@pytest.mark.parametrize("index", INDEXES)
def test_a_file_beside_its_shards(tiny, sharded, index):
    whole = sharded / index.removesuffix(".index.json")
    save_file({"x": torch.zeros(1)}, whole)
    files = json.loads((sharded / "ledger.json").read_bytes())["files"]
    tiny.reseal(sharded, files={**files, whole.relative_to(sharded).as_posix(): None})
    _refused(sharded, rf"{whole.name} is listed, but {whole.name}.index.json does not name it")


@pytest.mark.parametrize("index", INDEXES)
def test_a_changed_shard(tiny, sharded, index):
    for shard in _shards(sharded, index):
        data = shard.read_bytes()
        shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        _refused(sharded, rf"{shard.name} has SHA-256")
        shard.write_bytes(data)
    assert ClamuModel.from_pretrained(sharded).tasks


def test_changed_shards_of_the_delta_with_fitting_file_digests(tiny, sharded):
    first, second = _shards(sharded, INDEXES[1])[:2]
    steps = load_file(first)
    save_file({name: tensor + 1 for name, tensor in steps.items()}, first, metadata={"format": "pt"})
    tiny.reseal(sharded)
    _refused(sharded, "is not the delta that config.json names")
    shutil.copy(second, first)
    tiny.reseal(sharded)
    _refused(sharded, rf"{first.name} holds other tensors than delta.safetensors.index.json says")


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("place", ["../x.safetensors", "/x.safetensors", "masks/x.safetensors", "..\\x.safetensors"])
def test_an_index_names_a_file_outside(tiny, sharded, index, place):
    (sharded.parent / "x.safetensors").write_bytes(b"secret")
    name = min(json.loads((sharded / index).read_bytes())["weight_map"])
    _edit(tiny, sharded, index, **{name: place})
    _refused(sharded, "x.safetensors', which is no file of this model")


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": "a"}])
def test_an_index_that_is_none(tiny, sharded, index, content):
    (sharded / index).write_bytes(canonical_json(content))
    tiny.reseal(sharded)
    _refused(sharded, "does not say which shard holds which tensor")


@pytest.mark.parametrize("size", [0, -5, "5GB", 1.5, True])
def test_a_saved_size_that_is_none(tiny, sharded, size):
    config = json.loads((sharded / "config.json").read_bytes())
    (sharded / "config.json").write_bytes(canonical_json({**config, "max_shard_size": size}))
    tiny.reseal(sharded)
    _refused(sharded, "max_shard_size")
