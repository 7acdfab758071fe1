"""The files of a saved model: their layout, their bytes, damage, and saving as a whole."""

from __future__ import annotations

import errno
import getpass
import json
import os
import shutil
import socket
import stat
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_clamu import CheckpointFormatError, ClamuError, ClamuModel, IncompatibleBaseError
from hf_clamu.checkpoint.masks import EMBEDDED_BASE
from hf_clamu.exact import canonical_json, digest_tensors
from hf_clamu.storage import tensors as tensors_module

LAYOUT = [
    "README.md",
    "base_model/config.json",
    "base_model/model.safetensors",
    "config.json",
    "delta.safetensors",
    "features.safetensors",
    "ledger.json",
    "masks/cluster_000/adapter_config.json",
    "masks/cluster_000/adapter_model.safetensors",
    "masks/cluster_001/adapter_config.json",
    "masks/cluster_001/adapter_model.safetensors",
    "masks/cluster_002/adapter_config.json",
    "masks/cluster_002/adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]
# The card is there for people to edit.
LOAD_BEARING = [name for name in LAYOUT if name != "README.md"]


def _stages(folder):
    return [path.name for path in folder.parent.iterdir() if path.name.startswith(f".{folder.name}.")]


# -- layout and bytes ------------------------------------------------------------------------------------------------


def test_layout(tiny, saved_text):
    assert sorted(tiny.digests(saved_text)) == LAYOUT


def test_layout_of_a_global_image_model(tiny, tmp_path):
    tiny.train("image", localization="global", clustering="none").save_pretrained(tmp_path / "m")
    assert sorted(tiny.digests(tmp_path / "m")) == [
        "README.md",
        "base_model/config.json",
        "base_model/model.safetensors",
        "config.json",
        "delta.safetensors",
        "features.safetensors",
        "ledger.json",
    ]


def test_tensors(saved_text, model):
    names = sorted(name for name, _ in model.named_parameters())
    delta = load_file(saved_text / "delta.safetensors")
    assert sorted(delta) == names
    for name, parameter in model.named_parameters():
        assert delta[name].shape == parameter.shape
        assert delta[name].dtype in (torch.int8, torch.int16, torch.int32)
    features = load_file(saved_text / "features.safetensors")
    assert list(features) == ["vectors"]
    assert features["vectors"].shape == (5, 16)
    for cluster in range(3):
        mask = load_file(saved_text / f"masks/cluster_{cluster:03d}/adapter_model.safetensors")
        assert list(mask) == ["base_model.model.clamu_adapters.clamu_mask"]
        (bits,) = mask.values()
        assert bits.dtype == torch.uint8
        assert bits.shape == (sum((delta[name].numel() + 7) // 8 for name in names),)


def test_safetensors_have_at_most_one_metadata_key(saved_text):
    files = sorted(saved_text.rglob("*.safetensors"))
    assert len(files) == 6
    for path in files:
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_json_is_canonical(saved_text):
    files = [path for path in saved_text.rglob("*.json") if path.name != "tokenizer.json"]
    assert len(files) == 7
    for path in files:
        assert path.read_bytes() == canonical_json(json.loads(path.read_bytes())), path.name


def test_mask_config(saved_text):
    config = json.loads((saved_text / "config.json").read_bytes())
    found = json.loads((saved_text / "masks/cluster_001/adapter_config.json").read_bytes())
    assert found == {
        "peft_type": "CLAMU_MASK",
        "auto_mapping": {"base_model_class": "GPT2ForSequenceClassification", "parent_library": "transformers"},
        "base_model_name_or_path": EMBEDDED_BASE,
        "revision": None,
        "cluster": 1,
        "cluster_name": config["cluster_names"][1],
        "delta_digest": config["delta_digest"],
        "mask_digest": digest_tensors(load_file(saved_text / "masks/cluster_001/adapter_model.safetensors")),
        "alpha": config["alpha"],
        "inference_mode": True,
        "requires_import": "hf_clamu",
    }
    assert config["alpha"] == 4.0 / 5


def test_ledger(saved_text, model):
    ledger = json.loads((saved_text / "ledger.json").read_bytes())
    keys = ["digest", "environment", "files", "format_version", "parameters", "source", "tasks", "tensors"]
    assert sorted(ledger) == keys
    assert sorted(ledger["files"]) == sorted(set(LOAD_BEARING) - {"ledger.json"})
    assert sorted(ledger["tasks"]) == list(model.tasks) == [f"user_{number}" for number in range(5)]
    for task_id, entry in ledger["tasks"].items():
        assert entry["cluster"] == model.cluster_of(task_id)
        assert entry["num_train"] + entry["num_validation"] == 7
        assert len(entry["bounds"]) == len(ledger["parameters"])
    assert model.ledger["tasks"] == ledger["tasks"]


def test_bytes_name_no_machine_user_or_time(tiny, tmp_path):
    place = tmp_path / "a-place-that-must-not-show" / "model"
    tiny.train("text").save_pretrained(place)
    loaded = ClamuModel.from_pretrained(place)
    loaded.unmerge_task("user_1", data=tiny.tasks("text"))
    loaded.save_pretrained(place)
    words = [str(tmp_path), "a-place-that-must-not-show", str(Path.home()), os.getcwd(), socket.gethostname()]
    words += [f"/{getpass.getuser()}/", "timestamp", '"time"', '_name_or_path": "/', "is_local"]
    words = [word.encode() for word in words if len(word) > 3]
    assert len(words) >= 8
    content = {name: (place / name).read_bytes() for name in tiny.digests(place)}
    for name, data in content.items():
        for word in words:
            assert word not in data, f"{word!r} is in {name}"
    assert b"user_1" not in b"".join(content.values())


def test_card_names_no_task(saved_text):
    card = (saved_text / "README.md").read_text(encoding="utf-8")
    assert "user_" not in card
    assert card.startswith("---\n")
    assert "pipeline_tag: text-classification" in card


def test_a_base_without_generation_has_no_generation_config(saved_image):
    assert json.loads((saved_image / "config.json").read_bytes())["generation_config"] is None


# -- damage ----------------------------------------------------------------------------------------------------------


def _load_fails(folder, match=None, error=CheckpointFormatError):
    with pytest.raises(error, match=match) as caught:
        ClamuModel.from_pretrained(folder)
    assert isinstance(caught.value, ClamuError)
    return str(caught.value)


@pytest.mark.parametrize("name", LOAD_BEARING)
def test_missing_file(folder, name):
    (folder / name).unlink()
    assert name.split("/")[-1] in _load_fails(folder, "missing")


@pytest.mark.parametrize("name", LOAD_BEARING)
def test_truncated_file(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    _load_fails(folder)
    (folder / name).write_bytes(b"")
    _load_fails(folder)


@pytest.mark.parametrize("name", LOAD_BEARING)
def test_flipped_byte(folder, name):
    data = (folder / name).read_bytes()
    for place in (0, len(data) // 3, len(data) // 2, len(data) - 1):
        (folder / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        _load_fails(folder)
    (folder / name).write_bytes(data)
    assert ClamuModel.from_pretrained(folder).tasks


@pytest.mark.parametrize("name", LOAD_BEARING)
def test_file_replaced_by_a_folder(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    _load_fails(folder)


def test_the_card_may_be_edited(folder):
    (folder / "README.md").write_text("My own words.", encoding="utf-8")
    assert len(ClamuModel.from_pretrained(folder).tasks) == 5


def _edit(folder, name, change):
    values = json.loads((folder / name).read_bytes())
    change(values)
    (folder / name).write_bytes(canonical_json(values))


@pytest.mark.parametrize("version", [5, 99, "1", None, True])
def test_other_format_version(tiny, folder, version):
    _edit(folder, "config.json", lambda values: values.update(format_version=version))
    tiny.reseal(folder)
    _load_fails(folder, "format version .* reads up to 4")


def test_a_key_twice(folder):
    """Readers differ in which of them they take."""
    text = (folder / "ledger.json").read_text(encoding="utf-8")
    (folder / "ledger.json").write_text(text.replace('"tasks": {', '"tasks": {}, "tasks": {', 1), encoding="utf-8")
    _load_fails(folder, "it has a key twice")


def test_newer_ledger(tiny, folder):
    tiny.reseal(folder, format_version=5)
    _load_fails(folder, "format version")


def test_not_a_folder(folder, tmp_path):
    _load_fails(folder / "README.md", "not a folder")
    _load_fails(tmp_path / "nothing", "not a folder")
    (tmp_path / "empty").mkdir()
    _load_fails(tmp_path / "empty", "config.json is missing")


def test_plain_transformers_folder(model, tmp_path):
    model.export(tmp_path / "plain")
    assert "Load it with transformers" in " ".join(
        _load_fails(tmp_path / "plain", "type 'gpt2', expected 'clamu'").split()
    )


@pytest.mark.parametrize("name", ["../x", "masks/../../x", "/etc/hostname"])
def test_ledger_names_a_file_outside(tiny, folder, name):
    (folder.parent / "x").write_bytes(b"secret")
    ledger = json.loads((folder / "ledger.json").read_bytes())
    tiny.reseal(folder, files={**ledger["files"], name: {"sha256": "0" * 64, "size": 6}})
    _load_fails(folder, "outside the folder")


@pytest.mark.parametrize("key", ["files", "environment", "parameters", "tasks"])
@pytest.mark.parametrize("value", [None, 3, [], {"x": 1}], ids=str)
def test_resealed_nonsense_in_the_ledger(tiny, folder, key, value):
    ledger = json.loads((folder / "ledger.json").read_bytes())
    if key == "files":
        from hf_clamu.exact import digest_json

        del ledger["digest"]
        ledger["files"] = value
        (folder / "ledger.json").write_bytes(canonical_json({**ledger, "digest": digest_json(ledger)}))
    else:
        tiny.reseal(folder, **{key: value})
    _load_fails(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_train", "many"), ("bounds", [1]), ("bounds", None), ("cluster", 7), ("cluster", -1), ("cluster", "a")],
)
def test_resealed_nonsense_in_a_task(tiny, folder, key, value):
    tasks = json.loads((folder / "ledger.json").read_bytes())["tasks"]
    tasks["user_2"][key] = value
    tiny.reseal(folder, tasks=tasks)
    _load_fails(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"unknown_setting": 1},
        {"alpha": "much"},
        {"alpha": None},
        {"delta_digest": "0" * 64},
        {"arguments": None},
        {"arguments": {"learning_rte": 1.0}},
        {"arguments": [1]},
        {"task_spec": None},
        {"task_spec": {"task_column": "user"}},
        {"base_model": None},
        {"base_config": None},
        {"base_config": {"model_type": "gpt2", "id2label": 7}},
        {"base_config": {"model_type": "gpt2", "num_labels": [2]}},
        {"architecture": ""},
        {"num_tasks": 4},
        {"num_clusters": 9},
    ],
    ids=str,
)
def test_resealed_nonsense_in_the_config(tiny, folder, change):
    _edit(folder, "config.json", lambda values: values.update(change))
    tiny.reseal(folder)
    _load_fails(folder, error=(CheckpointFormatError, IncompatibleBaseError))


def test_resealed_mask_of_another_shape(tiny, folder):
    path = folder / "masks/cluster_000/adapter_model.safetensors"
    mask = load_file(path)
    key = next(iter(mask))
    save_file({**mask, key: mask[key][:-1].clone()}, path, metadata={"format": "pt"})
    tiny.reseal(folder)
    _load_fails(folder)
    save_file({"mask": mask[key]}, path, metadata={"format": "pt"})
    tiny.reseal(folder)
    _load_fails(folder, "must be one tensor")


def test_resealed_features_of_other_tasks(tiny, folder):
    path = folder / "features.safetensors"
    save_file({"vectors": load_file(path)["vectors"][:-1].clone()}, path, metadata={"format": "pt"})
    tiny.reseal(folder)
    _load_fails(folder, "4 rows for 5 tasks")
    save_file({"vektors": torch.zeros(5, 16)}, path, metadata={"format": "pt"})
    tiny.reseal(folder)
    _load_fails(folder)


def test_changed_base_model(tiny, folder):
    path = folder / "base_model/model.safetensors"
    weights = load_file(path)
    weights["score.weight"][0, 0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    tiny.reseal(folder)
    _load_fails(folder, "its digest differs", IncompatibleBaseError)


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_base_model_of_another_shape(tiny, folder, damage):
    path = folder / "base_model/model.safetensors"
    weights = load_file(path)
    if damage == "missing":
        del weights["score.weight"]
    else:
        weights["score.weight"] = torch.zeros(7, 16)
    save_file(weights, path, metadata={"format": "pt"})
    tiny.reseal(folder)
    _load_fails(folder, error=IncompatibleBaseError)


def test_unknown_architecture(tiny, folder):
    _edit(folder, "config.json", lambda values: values.update(architecture="GPT9ForEverything"))
    tiny.reseal(folder)
    _load_fails(folder, "GPT9ForEverything", IncompatibleBaseError)


# -- saving as a whole -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_full_disk_in_the_middle_changes_nothing(tiny, folder, model, monkeypatch, call):
    before = tiny.digests(folder)
    model.unmerge_task("user_1", data=tiny.tasks("text"))
    write = tensors_module.save_file
    calls = []

    def fails(tensors, path, metadata):
        calls.append(path)
        if len(calls) == call:
            Path(path).write_bytes(b"half of a fi")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path, metadata=metadata)

    monkeypatch.setattr(tensors_module, "save_file", fails)
    with pytest.raises(OSError, match="No space left") as caught:
        model.save_pretrained(folder)
    assert caught.value.errno == errno.ENOSPC
    assert len(calls) == call
    assert tiny.digests(folder) == before
    assert _stages(folder) == []
    calls.clear()
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder.parent / "new")
    assert not (folder.parent / "new").exists()
    assert _stages(folder.parent / "new") == []
    monkeypatch.undo()
    model.save_pretrained(folder)
    assert ClamuModel.from_pretrained(folder).tasks == ("user_0", "user_2", "user_3", "user_4")


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("a real full disk needs the mount command")
    if done.returncode != 0:
        pytest.skip(f"a real full disk needs the right to mount: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_real_full_disk_changes_nothing(tiny, saved_text, model, small_disk):
    folder = small_disk / "model"
    shutil.copytree(saved_text, folder)
    # Room for some of the new files, not for all.
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(b"x" * (free // 4096 * 4096 - 81920))
    before = tiny.digests(folder)
    model.unmerge_task("user_1", data=tiny.tasks("text"))
    with pytest.raises(Exception, match=r"(?i)no space left|os error 28"):
        model.save_pretrained(folder)
    assert tiny.digests(folder) == before
    assert _stages(folder) == []
    (small_disk / "ballast").unlink()
    model.save_pretrained(folder)
    assert "user_1" not in ClamuModel.from_pretrained(folder).tasks


def test_an_interrupt_leaves_no_stage(tiny, folder, model, monkeypatch):
    before = tiny.digests(folder)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tensors_module, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(folder)
    assert tiny.digests(folder) == before
    assert _stages(folder) == []


def test_foreign_files_stay_and_vanished_masks_go(tiny, folder, model):
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "my_adapter.safetensors").write_bytes(b"mine")
    (folder / "results/run_1").mkdir(parents=True)
    (folder / "results/run_1/scores.json").write_text("{}", encoding="utf-8")
    (folder / "link").symlink_to("notes.txt")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"an older shard")
    model.unmerge_task(["user_0", "user_1", "user_2"], data=tiny.tasks("text"))
    model.save_pretrained(folder)
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert (folder / "my_adapter.safetensors").read_bytes() == b"mine"
    assert (folder / "results/run_1/scores.json").read_text(encoding="utf-8") == "{}"
    assert os.readlink(folder / "link") == "notes.txt"
    assert not (folder / "model-00001-of-00002.safetensors").exists()
    assert sorted(path.name for path in (folder / "masks").iterdir()) == ["cluster_000", "cluster_001"]
    assert len(ClamuModel.from_pretrained(folder).clusters) == 2


def test_all_masks_go_with_the_last_task(tiny, folder, model):
    model.unmerge_task(list(model.tasks), data=tiny.tasks("text"))
    model.save_pretrained(folder)
    assert not (folder / "masks").exists()
    assert not (folder / "features.safetensors").exists()


def test_saving_twice_gives_the_same_bytes(tiny, folder, model):
    before = tiny.digests(folder)
    model.save_pretrained(folder)
    model.save_pretrained(folder)
    assert tiny.digests(folder) == before


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_rights_follow_the_umask(model, tmp_path, umask):
    old = os.umask(umask)
    try:
        model.save_pretrained(tmp_path / "m")
        model.export(tmp_path / "plain")
    finally:
        os.umask(old)
    paths = [tmp_path / "m", tmp_path / "plain", *(tmp_path / "m").rglob("*"), *(tmp_path / "plain").rglob("*")]
    assert len(paths) > 15
    for path in paths:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_a_link_to_a_folder_stays_a_link(tiny, folder, model, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(folder.name)
    model.unmerge_task("user_1", data=tiny.tasks("text"))
    model.save_pretrained(link)
    assert link.is_symlink()
    assert "user_1" not in ClamuModel.from_pretrained(folder).tasks
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "model"]


def test_a_file_is_not_replaced(model, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(NotADirectoryError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(FileExistsError, match="Export to a new folder"):
        model.export(tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_relative_places_and_missing_parents(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("a/b/model")
    assert len(ClamuModel.from_pretrained("a/b/model").tasks) == 5


def test_readers_see_one_model_or_the_other(tiny, folder, model, tmp_path):
    unmerged = ClamuModel.from_pretrained(folder).unmerge_task("user_1", data=tiny.tasks("text"))
    seen, problems, stop = set(), [], threading.Event()

    def read():
        while not stop.is_set():
            # One open folder is one model: paths are walked anew, as another process would.
            try:
                ledger = json.loads((folder / "ledger.json").read_bytes())
            except OSError as error:
                problems.append(error)
                return
            seen.add(len(ledger["tasks"]))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(5):
            unmerged.save_pretrained(folder, overwrite=True)
            model.save_pretrained(folder, overwrite=True)
    finally:
        stop.set()
        reader.join()
    assert problems == []
    assert seen <= {4, 5}
    assert seen
