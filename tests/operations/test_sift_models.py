"""Saved models of SIFT-Masks: one retraining forgets a task, and its mask is nowhere any more."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_clamu import CheckpointFormatError, ClamuArguments, ClamuModel, RecipeError
from hf_clamu.checkpoint.masks import join_mask
from hf_clamu.checkpoint.reader import read_checkpoint

LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"]}
# Nothing but clusters looks at data.
QUIET = {"localization": "sift", "score_validation": False}
CLUSTERINGS = ("none", "features", "task_vectors", "random", "column")
GONE = ["user_1", "user_3"]


def _train(tiny, tasks, options=None, **changes):
    return tiny.train("text", tasks, options=options, **{**QUIET, **changes})


@pytest.fixture(scope="session")
def sifted(tiny, tmp_path_factory):
    """Gives the folder of a model that was built without some tasks; each is made once, and not to be changed."""
    folders = {}

    def build(without=(), **changes):
        key = json.dumps([sorted(without), sorted(changes.items())])
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("sifted") / "model"
            _train(tiny, tiny.tasks("text").without(without), **changes).save_pretrained(folders[key])
        return folders[key]

    return build


@pytest.fixture
def same(tiny, tmp_path):
    def check(model, expected):
        model.save_pretrained(tmp_path / "ours")
        assert tiny.digests(tmp_path / "ours") == tiny.digests(expected)

    return check


# -- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clustering", CLUSTERINGS)
def test_the_rows_of_the_forgotten_are_enough(tiny, sifted, same, clustering, monkeypatch):
    from hf_clamu.training import TaskTrainer

    expected = sifted(GONE, clustering=clustering)
    model = ClamuModel.from_pretrained(sifted(clustering=clustering))
    finetuned, finetune = [], TaskTrainer.finetune

    def noting(self, task_id):
        finetuned.append(task_id)
        return finetune(self, task_id)

    monkeypatch.setattr(TaskTrainer, "finetune", noting)
    model.unmerge_task(GONE, data=tiny.tasks("text").select(GONE))
    assert sorted(finetuned) == GONE
    same(model, expected)


@pytest.mark.parametrize("clustering", ["none", "features"])
@pytest.mark.parametrize("order", [GONE, GONE[::-1]])
def test_one_by_one_and_back(tiny, sifted, same, clustering, order, tmp_path):
    tasks = tiny.tasks("text")
    model = ClamuModel.from_pretrained(sifted(clustering=clustering))
    for task_id in order:
        model.unmerge_task(task_id, data=tasks.select(task_id))
        model.save_pretrained(tmp_path / "between")
        model = ClamuModel.from_pretrained(tmp_path / "between")
    same(model, sifted(GONE, clustering=clustering))
    assert model.verify(data=tasks)
    model.add_task(tasks.select(order[0]), data=tasks)
    model.add_task(tasks.select(order[1]), data=tasks)
    same(model, sifted(clustering=clustering))


def test_all_but_one_and_all(tiny, sifted, same):
    tasks = tiny.tasks("text")
    model = ClamuModel.from_pretrained(sifted(clustering="features"))
    others = [task_id for task_id in tasks if task_id != "user_4"]
    model.unmerge_task(others, data=tasks)
    same(model, sifted(others, clustering="features"))
    model.unmerge_task("user_4", data=tasks)
    same(model, sifted(tasks.task_ids, clustering="features"))
    model.add_task(tasks)
    same(model, sifted(clustering="features"))


def test_scores_and_a_searched_alpha_need_the_rows_of_all(tiny, sifted, same):
    changes = {"clustering": "features", "scaling": "auto", "score_validation": True}
    model = ClamuModel.from_pretrained(sifted(**changes))
    model.unmerge_task(GONE, data=tiny.tasks("text"))
    same(model, sifted(GONE, **changes))


def test_rows_that_are_gone_are_built_without(tiny, sifted, same):
    model = ClamuModel.from_pretrained(sifted(clustering="features"))
    model.unmerge_task(GONE, data=tiny.tasks("text").without(GONE), on_mismatch="rebuild")
    assert model.receipts[-1]["how"] == "rebuilt"
    same(model, sifted(GONE, clustering="features"))


def test_with_an_archive_nothing_is_needed(tiny, sifted, same, tmp_path, monkeypatch):
    from hf_clamu.training import Environment

    model = _train(tiny, tiny.tasks("text"), {"archive_dir": tmp_path / "archive"}, clustering="random")
    model.save_pretrained(tmp_path / "model")
    model = ClamuModel.from_pretrained(tmp_path / "model")

    def elsewhere(self, recorded):
        raise AssertionError("no environment counts")

    monkeypatch.setattr(Environment, "require", elsewhere)
    model.unmerge_task(GONE, archive=tmp_path / "archive")
    same(model, sifted(GONE, clustering="random"))


@pytest.mark.parametrize("clustering", ["none", "features"])
def test_an_interrupted_request_goes_on(tiny, sifted, same, clustering, tmp_path, monkeypatch):
    monkeypatch.setenv("CLAMU_JOURNAL_SECONDS", "0")
    tasks = tiny.tasks("text")
    model = ClamuModel.from_pretrained(sifted(GONE, clustering=clustering))

    def one(items, description):
        yield next(iter(items))
        raise KeyboardInterrupt

    def stopping(items, description):
        return one(items, description) if description == "finetune" else items

    with pytest.raises(KeyboardInterrupt):
        model.add_task(tasks.select(GONE), data=tasks, journal_dir=tmp_path / "journal", progress=stopping)
    model.add_task(tasks.select(GONE), data=tasks, journal_dir=tmp_path / "journal")
    same(model, sifted(clustering=clustering))
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"peft_config": LORA, "peft_merging": "frozen_a"}, {}),
        ({"peft_config": LORA, "peft_merging": "parameters"}, {"clustering": "none"}),
        ({"dtype": "bfloat16"}, {}),
        ({}, {"bf16": True, "weight_decay": 0.1, "clustering": "none"}),
        ({}, {"freeze": ["transformer.wte.*"], "fraction_bits": 20}),
        ({"task_id_key": "a secret"}, {}),
    ],
    ids=["frozen_a", "parameters", "bf16 weights", "autocast", "frozen", "keyed"],
)
def test_other_spaces_types_and_ids(tiny, same, options, changes, tmp_path):
    tasks = tiny.tasks("text")
    _train(tiny, tasks, options, **changes).save_pretrained(tmp_path / "model")
    _train(tiny, tasks.without(GONE), options, **changes).save_pretrained(tmp_path / "without")
    model = ClamuModel.from_pretrained(tmp_path / "model", task_id_key=options.get("task_id_key"))
    model.unmerge_task(GONE, data=tasks.select(GONE))
    same(model, tmp_path / "without")


# -- what is refused -------------------------------------------------------------------------------------------------


def test_products_of_adapters_are_refused(tiny):
    message = r"'product' merges products of them.*Choose 'frozen_a' or 'parameters', or .*preset: clusters\."
    with pytest.raises(RecipeError, match=message):
        _train(tiny, tiny.tasks("text"), {"peft_config": LORA, "peft_merging": "product"})


def test_checkpoints_are_refused(tiny, sifted, tmp_path):
    local_models = tiny.local_models("text", tmp_path)
    arguments = tiny.arguments(**QUIET, clustering="random")
    message = r"'sift' needs every task finetuned here.*'user_0' comes from a checkpoint: give .*preset: clusters"
    for tasks in (None, tiny.tasks("text")):
        for settings in (arguments, ClamuArguments(num_threads=1)):
            with pytest.raises(RecipeError, match=message):
                ClamuModel.merge(tmp_path / "base", local_models, settings, tasks=tasks)
    smaller = ClamuModel.from_pretrained(sifted(["user_0"], clustering="random"))
    with pytest.raises(RecipeError, match=message):
        smaller.add_task(
            tiny.tasks("text").select("user_0"),
            checkpoints={"user_0": local_models["user_0"]},
            data=tiny.tasks("text"),
        )


def test_no_table_compares_it_on_vectors_of_others():
    from hf_clamu.evaluation import compare_methods

    with pytest.raises(RecipeError, match="'sift' needs vectors of its own"):
        compare_methods(None, None, (), None, {}, methods=("global", "sift"))


# -- files -----------------------------------------------------------------------------------------------------------


def _masks_of(folder, name):
    return {path.relative_to(folder).as_posix(): load_file(path) for path in sorted(folder.glob(name))}


def test_masks_of_tasks_are_stored_where_clusters_are_larger(sifted, tiny):
    assert not (sifted(clustering="none") / "task_masks").exists()
    folder = sifted(clustering="features")
    masks = _masks_of(folder, "task_masks/*")
    assert list(masks) == [f"task_masks/task_00{place}.safetensors" for place in range(5)]
    assert all(list(mask) == ["mask"] for mask in masks.values())
    model = ClamuModel.from_pretrained(folder)
    assert set(masks) <= set(json.loads((folder / "ledger.json").read_bytes())["files"])
    for number, members in enumerate(model.clusters):
        (mask,) = load_file(folder / f"masks/cluster_00{number}/adapter_model.safetensors").values()
        expected = torch.zeros_like(mask)
        for task_id in members:
            expected |= masks[f"task_masks/task_00{model.tasks.index(task_id)}.safetensors"]["mask"]
        assert torch.equal(mask, expected)
    # The same tasks have the same masks, however they are clustered.
    single = _masks_of(sifted(clustering="none"), "masks/*/*.safetensors")
    for one, other in zip(masks.values(), single.values(), strict=True):
        assert torch.equal(*one.values(), *other.values())


@pytest.mark.parametrize("clustering", ["none", "features"])
def test_nothing_of_a_forgotten_mask_is_left(tiny, sifted, clustering, tmp_path):
    model = ClamuModel.from_pretrained(sifted(clustering=clustering))
    state = read_checkpoint(sifted(clustering=clustering)).state
    place = state.task_ids.index("user_1")
    longest = max(state.task_masks[place].values(), key=len)
    traces = [join_mask(state.task_masks[place]), longest, longest[: len(longest) // 4]]
    shutil.copytree(sifted(clustering=clustering), tmp_path / "model")

    def found():
        data = b"".join(path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file())
        return [bits.numpy().tobytes() in data for bits in traces]

    assert found() == [True] * 3
    model.unmerge_task("user_1", data=tiny.tasks("text").select("user_1"))
    model.save_pretrained(tmp_path / "model")
    assert found() == [False] * 3
    before = {name: digest for name, digest in tiny.digests(sifted(clustering=clustering)).items() if "mask" in name}
    assert len([path for path in (tmp_path / "model").rglob("*mask*/*") if path.is_file()]) < len(before)


@pytest.mark.parametrize("place", [0, 3, 4])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "swapped"])
def test_damaged_masks_are_refused(sifted, tmp_path, place, damage):
    folder = shutil.copytree(sifted(clustering="features"), tmp_path / "model")
    path = folder / f"task_masks/task_00{place}.safetensors"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "swapped":
        shutil.copy(folder / f"task_masks/task_00{(place + 1) % 5}.safetensors", path)
    else:
        path.write_bytes(data[:-5] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointFormatError, match=path.name):
        ClamuModel.from_pretrained(folder)


def test_resealed_nonsense_is_refused(tiny, sifted, tmp_path):
    folder = shutil.copytree(sifted(clustering="features"), tmp_path / "model")
    path = folder / "task_masks/task_002.safetensors"
    mask = load_file(path)["mask"]
    for wrong, message in (
        ({"mask": mask[:-1].clone()}, "must be uint8 of shape"),
        ({"bits": mask}, "must be one tensor 'mask'"),
    ):
        save_file(wrong, path, metadata={"format": "pt"})
        tiny.reseal(folder)
        with pytest.raises(CheckpointFormatError, match=message):
            ClamuModel.from_pretrained(folder)


def test_a_mask_that_another_one_is_made_of_shows_in_the_digest(sifted):
    import dataclasses

    def with_task_masks(checkpoint, task_masks):
        return dataclasses.replace(checkpoint, state=dataclasses.replace(checkpoint.state, task_masks=task_masks))

    several = read_checkpoint(sifted(clustering="features"))
    others = with_task_masks(several, several.state.task_masks[::-1])
    assert others.state_digest != several.state_digest
    single = read_checkpoint(sifted(clustering="none"))
    # A mask per task is there once, and counts once.
    assert with_task_masks(single, ()).state_digest == single.state_digest


def test_the_card_counts_them(sifted):
    card = (sifted(clustering="features") / "README.md").read_text(encoding="utf-8")
    size = load_file(sifted(clustering="features") / "task_masks/task_000.safetensors")["mask"].numel()
    assert f"| masks of the tasks | {5 * size:,} bytes" in card
    assert f"| masks | {3 * size:,} bytes, a bit per weight |" in card
    assert "masks of the tasks" not in (sifted(clustering="none") / "README.md").read_text(encoding="utf-8")
