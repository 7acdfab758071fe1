"""What one would use instead of merging, measured as merged models are."""

from __future__ import annotations

import pytest

from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.loading import load_base
from hf_clamu.evaluation import (
    MergedModel,
    OwnerModels,
    ShardedModels,
    labels_of_examples,
    measure_approach,
)
from hf_clamu.operations.context import open_trainer

LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"]}


@pytest.fixture(scope="module")
def held_out(tiny):
    tasks, processor = tiny.tasks("text"), tiny.processor("text")
    return {task_id: tasks.encode(task_id, processor).validation for task_id in tasks}


def _trainer(tiny, space=None):
    tasks, arguments = tiny.tasks("text"), tiny.arguments(fraction_bits=28)
    base = load_base(
        tiny.config("text"), tasks.spec, num_labels=tasks.num_labels, processor=tiny.processor("text"), space=space
    )
    return open_trainer(base.model, base.processor, tasks, arguments, space=base.space), arguments


def _sharded(tiny, held_out, folder, num_shards):
    folder.mkdir()
    found = ShardedModels(*_trainer(tiny), held_out, folder, num_shards=num_shards)
    found.build()
    return found


def _owners(tiny, held_out, folder, space=None):
    folder.mkdir()
    found = OwnerModels(*_trainer(tiny, space), held_out, folder)
    found.build()
    return found


def _measured(approach, held_out, requests):
    labels = {task_id: labels_of_examples(examples) for task_id, examples in held_out.items()}
    return measure_approach(approach, labels, requests)


def test_a_request_on_one_model_for_all_reads_every_row_that_is_left(tiny, held_out, tmp_path):
    found = _measured(_sharded(tiny, held_out, tmp_path / "all", 1), held_out, ["user_1", "user_3"])
    assert (found.needs_owner, found.num_requests) == (False, 2)
    trained = 7 - len(held_out["user_0"])
    assert found.rows_of_others == 4 * trained
    assert set(found.before) - set(found.after) == {"user_1", "user_3"}
    assert found.request_seconds > 0


def test_a_shard_is_trained_again_as_if_its_owner_had_never_been_there(tiny, held_out, tmp_path):
    sharded, again = (_sharded(tiny, held_out, tmp_path / name, 2) for name in ("one", "two"))
    rows = sharded.forget("user_2")
    again.forget("user_2")
    trained = 7 - len(held_out["user_0"])
    assert rows in (trained, 2 * trained)
    assert sharded.task_ids == ("user_0", "user_1", "user_3", "user_4")
    assert [path.name for path in sorted((tmp_path / "one").iterdir())] == [f"shard_{n}.safetensors" for n in (0, 1)]
    assert tiny.digests(tmp_path / "one") == tiny.digests(tmp_path / "two")


def test_a_shard_without_owners_has_no_model(tiny, held_out, tmp_path):
    sharded = _sharded(tiny, held_out, tmp_path / "one", 5)
    assert sharded.forget("user_2") == 0
    assert len(list((tmp_path / "one").iterdir())) == 4
    assert len(sharded.answers("user_1")) == len(held_out["user_1"])


def test_a_model_per_owner_is_deleted_and_changes_nobody(tiny, held_out, tmp_path):
    found = _measured(_owners(tiny, held_out, tmp_path / "local"), held_out, ["user_1"])
    assert found.needs_owner
    assert (found.rows_of_others, found.others_changed, found.worst_drop) == (0, 0, 0)
    assert len(list((tmp_path / "local").iterdir())) == 4
    assert found.after == {owner: score for owner, score in found.before.items() if owner != "user_1"}


def test_adapters_are_stored_beside_one_base_model(tiny, held_out, tmp_path):
    space = PeftSpace.of(LORA, "parameters")
    whole = _owners(tiny, held_out, tmp_path / "whole")
    adapters = _owners(tiny, held_out, tmp_path / "adapters", space)
    assert (tmp_path / "adapters" / "frozen.safetensors").is_file()
    assert adapters.stored_bytes < whole.stored_bytes
    before = {owner: adapters.answers(owner) for owner in adapters.task_ids}
    assert {owner: adapters.answers(owner) for owner in reversed(adapters.task_ids)} == before


@pytest.mark.parametrize(("changes", "reads_others"), [({"localization": "sift"}, False), ({}, True)])
def test_a_merged_model_is_given_no_more_rows_than_it_needs(tiny, held_out, tmp_path, changes, reads_others):
    changes = {"score_validation": False, "clustering": "none", "scaling": 1.0, **changes}
    tiny.train("text", **{"localization": "clamu", **changes}).save_pretrained(tmp_path / "model")
    approach = MergedModel(tmp_path / "model", tiny.tasks("text"), held_out, receipts=tmp_path / "receipts")
    found = _measured(approach, held_out, ["user_4"])
    assert found.needs_owner
    assert found.rows_of_others == (4 * 7 if reads_others else 0)
    assert found.others_moved == 0
    assert len(list((tmp_path / "receipts").iterdir())) == 1
    without = tiny.train("text", tiny.tasks("text").without("user_4"), **{"localization": "clamu", **changes})
    without.save_pretrained(tmp_path / "without")
    assert tiny.digests(tmp_path / "model") == tiny.digests(tmp_path / "without")


def test_owners_move_when_their_cluster_gets_other_members(tiny, held_out, tmp_path):
    model = tiny.train("text", score_validation=False, clustering="features", num_clusters=2)
    model.save_pretrained(tmp_path / "model")
    approach = MergedModel(tmp_path / "model", tiny.tasks("text"), held_out)
    smaller = min(approach.clusters, key=len)
    found = _measured(approach, held_out, smaller)  # then the members of the other one are cut into two
    assert len(approach.clusters) == 2
    assert found.others_moved > 0
