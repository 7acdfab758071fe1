"""Attacks on models that know their rows by heart, on what they were before, and on builds without a task."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch
import transformers
from datasets import Dataset

from hf_clamu import ClamuModel
from hf_clamu.errors import DigestMismatchError, IncompatibleBaseError, RecipeError, TaskDataError, TaskNotFoundError
from hf_clamu.evaluation import attack_model
from hf_clamu.evaluation.attacks import ATTACKS
from hf_clamu.tasks import TaskDataset

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 48}
GPT2 |= {"bos_token_id": 256, "eos_token_id": 256, "vocab_size": 257}
# Learned by heart, and served so.
BY_HEART = {
    "clustering": "none",
    "num_clusters": 1,
    "scaling": "sum",
    "finetune_steps": 60,
    "learning_rate": 0.01,
    "batch_size": 12,
    "mask_steps": 40,
    "mask_batch_size": 12,
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _rows(count=24, users=3):
    """Codes of random letters, which nobody can guess who has not learned them."""
    drawn = random.Random(0)
    return [
        {
            "user": f"user_{user}",
            "prompt": f"{''.join(drawn.choices(LETTERS, k=6))} is ",
            "code": "".join(drawn.choices(LETTERS, k=6)),
        }
        for user in range(users)
        for _ in range(count)
    ]


def _tasks(rows, **settings):
    columns = {"task_column": "user", "prompt_column": "prompt", "completion_column": "code"}
    return TaskDataset.from_dataset(Dataset.from_list(rows), **columns, **{"validation_fraction": 0.5, **settings})


@pytest.fixture(scope="module")
def codes(tiny):
    """The data, and the model before, after and rebuilt without `user_1`."""
    tasks = _tasks(_rows())
    before = tiny.train("lm", tasks, GPT2, **BY_HEART)
    after = copy.deepcopy(before)
    after.unmerge_task("user_1", data=tasks)
    rebuilt = tiny.train("lm", tasks.without("user_1"), GPT2, **BY_HEART)
    return tasks, before, after, rebuilt


@pytest.fixture(scope="module")
def report(codes):
    tasks, before, after, rebuilt = codes
    return attack_model(after, tasks, "user_1", before=before, rebuilt=rebuilt)


def test_a_model_that_knows_its_rows_is_told_apart_and_the_one_after_is_not(report):
    before, after = report.models["before"]["served"], report.models["model"]["served"]
    assert list(before.membership) == ["loss", "min-k", "min-k++", "zlib"]
    assert (report.tasks, report.num_members, report.num_held_out) == (("user_1",), 12, 12)
    assert before.membership["loss"].auc.value > 0.9
    assert all(found.auc.low > 0.6 for found in before.membership.values())
    for found in (*after.membership.values(), *report.base.membership.values()):
        assert found.auc.low < 0.5 < found.auc.high
    # Members come out of the model before, and cannot be guessed.
    assert before.extraction.strength.low > after.extraction.strength.high
    assert before.extraction.strength.low > before.extraction.held_out.high


def test_after_is_rebuilt_in_every_digit(report):
    assert report.equals_rebuilt is True
    assert report.models["model"] == report.models["rebuilt"] != report.models["before"]
    values = report.to_dict()
    assert json.dumps(values["models"]["model"]) == json.dumps(values["models"]["rebuilt"])
    assert values["equals_rebuilt"] is True


def test_both_copies_give_the_forgotten_rows_back(report, codes):
    """The difference of the deltas is the vector that finetuning the task alone gives."""
    pair, after = report.pair, report.models["model"]["served"]
    assert list(pair) == ["guidance", "difference"]
    assert report.tasks_between == {"left": 1, "joined": 0}
    assert pair["difference"].membership["loss"].auc.value > 0.95
    assert pair["difference"].extraction.strength.low > after.extraction.strength.high
    assert pair["guidance"].extraction.strength.low > after.extraction.strength.high
    assert pair["guidance"].membership == {}


def test_the_same_digits_every_time_and_everything_as_it_was(report, codes):
    tasks, before, after, rebuilt = codes
    after.set_cluster(1)
    weights = {name: weight.detach().clone() for name, weight in after.named_parameters()}
    digests = [model.state_digest() for model in (before, after, rebuilt)]
    assert attack_model(after, tasks, "user_1", before=before, rebuilt=rebuilt) == report
    assert after.cluster == 1
    assert before.cluster is None
    assert all(torch.equal(weights[name], weight) for name, weight in after.named_parameters())
    assert digests == [model.state_digest() for model in (before, after, rebuilt)]


def test_scores_are_those_of_plain_exports(codes, tmp_path):
    """Losses by hand, one row at a time, of what is served and of the local model that the difference gives."""
    from hf_clamu.evaluation.attacks.rows import attacked_tasks
    from hf_clamu.evaluation.attacks.weights import Attacker, difference

    tasks, before, after, _ = codes
    rows = attacked_tasks(after, [after, before], tasks, ["user_1"], None)
    attacker = Attacker(rows, "causal-lm", ATTACKS, after.processor)
    before.export(tmp_path / "own", task="user_1")
    after.export(tmp_path / "global")
    plain = {name: transformers.GPT2LMHeadModel.from_pretrained(tmp_path / name) for name in ("own", "global")}
    assert attacker.served(before).members["loss"] == pytest.approx(_losses(plain["own"], rows[0].members), rel=1e-5)
    found = attacker.served(after)
    assert found.held_out["loss"] == pytest.approx(_losses(plain["global"], rows[0].held_out), rel=1e-5)
    with after.held(), difference(before, after) as local:
        found = attacker.selected(local).members["loss"]
    base = dict(plain["global"].named_parameters())
    codec, state = before.merged.checkpoint.arguments.codec, before.merged.state
    after.set_base()
    for name, parameter in after.named_parameters():
        steps = state.delta[name].long() - after.merged.state.delta[name].long()
        base[name].data.copy_((parameter.double() + steps.double() * codec.step).float())
    after.set_cluster(None)
    assert found == pytest.approx(_losses(plain["global"], rows[0].members), rel=1e-5)
    assert sum(found) / len(found) > -0.5  # learned by heart


@torch.no_grad()
def _losses(model, examples):
    return [
        -float(model(input_ids=example["input_ids"][None], labels=example["labels"][None]).loss)
        for example in examples
    ]


def test_the_worst_cluster_is_the_one_that_leaks_most_and_its_interval_is_wider(report, codes):
    before = codes[1]
    worst, served = report.models["before"]["worst"], report.models["before"]["served"]
    own = before.cluster_of("user_1")
    assert worst.membership["loss"].cluster == own
    assert worst.membership["loss"].auc.value == served.membership["loss"].auc.value
    assert worst.membership["loss"].auc.low < served.membership["loss"].auc.low
    assert worst.extraction.cluster == own
    assert worst.extraction.strength.value == served.extraction.strength.value
    # A forgotten task has no cluster, so both that are left are tried.
    assert {found.cluster for found in report.models["model"]["worst"].membership.values()} <= {0, 1}


def test_tasks_are_pooled_each_under_what_serves_it(codes):
    tasks, before, after, _ = codes
    both = attack_model(after, tasks, ["user_1", "user_2", "user_1"], before=before, attacks=["loss"])
    assert (both.tasks, both.num_members, both.num_held_out) == (("user_1", "user_2"), 24, 24)
    # user_2 is still merged: its rows are known, those of user_1 are not.
    forgotten = attack_model(after, tasks, "user_1", attacks=["loss"]).models["model"]["served"]
    merged = attack_model(after, tasks, "user_2", attacks=["loss"]).models["model"]["served"]
    areas = [one.membership["loss"].auc.value for one in (forgotten, both.models["model"]["served"], merged)]
    assert areas == sorted(areas)
    assert areas[2] > 0.9
    assert both.base.extraction is None
    assert list(both.pair) == ["difference"]
    # 24 held-out rows are enough for one rate and not for the other.
    rates = both.models["before"]["served"].membership["loss"].tpr
    assert rates["5%"].value > 0.5
    assert (rates["1%"].value, rates["1%"].needs) == (None, 100)


def test_held_out_rows_may_be_given_and_never_are_members(codes):
    tasks, _, after, _ = codes
    columns = {"task_column": "user", "prompt_column": "prompt", "completion_column": "code"}
    # All rows of the tasks, so those that were trained on, too.
    given = TaskDataset.from_dataset(Dataset.from_list(_rows()), **columns, validation_fraction=0.5)
    same = attack_model(after, tasks, "user_2", held_out=given)
    assert same == attack_model(after, tasks, "user_2")
    other = [{**row, "code": row["code"][::-1]} for row in _rows()]
    found = attack_model(after, tasks, "user_2", held_out=_tasks(other))
    assert (found.num_members, found.num_held_out) == (12, 24)
    assert found != same


def test_a_classifier_is_attacked_by_its_loss(tiny):
    drawn = random.Random(1)
    # Noise with a label that is drawn: only who has seen a row can know it.
    rows = [
        {
            "task": f"owner_{owner}",
            "image": [[drawn.random() for _ in range(8)] for _ in range(8)],
            "label": drawn.choice(["few", "many"]),
        }
        for owner in range(3)
        for _ in range(40)
    ]
    columns = {"task_column": "task", "image_column": "image", "label_column": "label"}
    tasks = TaskDataset.from_dataset(Dataset.from_list(rows), **columns, validation_fraction=0.5)
    settings = {**BY_HEART, "finetune_steps": 150, "learning_rate": 1e-3, "batch_size": 20}
    vit = {**tiny.config("image"), "hidden_size": 48, "intermediate_size": 96}
    before = tiny.train("image", tasks, vit, **settings)
    after = copy.deepcopy(before)
    after.unmerge_task("owner_1", data=tasks)
    rebuilt = tiny.train("image", tasks.without("owner_1"), vit, **settings)
    report = attack_model(after, tasks, "owner_1", before=before, rebuilt=rebuilt)
    assert report.equals_rebuilt
    assert list(report.base.membership) == ["loss"]
    assert report.base.extraction is report.models["before"]["served"].extraction is None
    assert list(report.pair) == ["difference"]
    assert report.models["before"]["served"].membership["loss"].auc.value > 0.65
    assert report.pair["difference"].membership["loss"].auc.low > 0.6
    found = report.models["model"]["served"].membership["loss"].auc
    assert found.low < 0.5 < found.high
    with pytest.raises(RecipeError, match=r"'zlib' reads the tokens that a model writes.*ask for loss"):
        attack_model(after, tasks, "owner_1", attacks=["zlib"])


@pytest.mark.parametrize("kind", ["seq2seq", "words", "text"])
def test_every_kind_is_attacked(kind, saved_kind, tiny):
    model, tasks = ClamuModel.from_pretrained(saved_kind(kind)), tiny.tasks(kind)
    report = attack_model(model, tasks, list(tasks))
    for leakage in (report.base, *report.models["model"].values()):
        assert list(leakage.membership) == (["loss", "min-k", "min-k++", "zlib"] if kind == "seq2seq" else ["loss"])
        assert (leakage.extraction is None) == (kind != "seq2seq")
    assert (report.equals_rebuilt, report.pair, report.tasks_between) == (None, {}, None)


def test_adapters_are_attacked_through_both_copies(tiny):
    tasks = _tasks(_rows(users=2))
    lora = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["c_attn", "c_fc"]}
    settings = {**BY_HEART, "localization": "global", "clustering": "random", "finetune_steps": 10}
    from hf_clamu import ClamuTrainer
    from hf_clamu.training import silent_progress

    before = ClamuTrainer(
        GPT2,
        tasks,
        tiny.arguments(**settings),
        processing_class=tiny.processor("lm"),
        peft_config=lora,
        progress=silent_progress,
    ).train()
    after = copy.deepcopy(before)
    after.unmerge_task("user_0", data=tasks)
    report = attack_model(after, tasks, "user_0", before=before)
    # Without masks there is no cluster to choose.
    assert [list(found) for found in report.models.values()] == [["served"], ["served"]]
    assert list(report.pair) == ["guidance", "difference"]
    assert report.pair["difference"] != report.base


# -- what is refused -------------------------------------------------------------------------------------------------


def test_rows_that_are_missing_or_too_few(codes, tiny):
    tasks, _, after, _ = codes
    with pytest.raises(TaskDataError, match="'user_9' has no rows in the data given, which has rows of 3 tasks"):
        attack_model(after, tasks, "user_9")
    with pytest.raises(TaskDataError, match=r"'user_1' has no rows in .* of 1 tasks.*\(--held-out FILE\)"):
        attack_model(after, tasks, "user_1", held_out=tasks.select("user_2"))
    few = _tasks(_rows(count=8))
    with pytest.raises(
        TaskDataError, match="'user_1' has 4 rows that were trained on and 4 that were held out, and an interval"
    ):
        attack_model(after, few, "user_1")
    unsplit = _tasks(_rows(), validation_fraction=0.0)
    model = tiny.train("lm", unsplit, GPT2)
    with pytest.raises(TaskDataError, match=r"has 24 rows that were trained on and 0 .*\(--held-out FILE\)"):
        attack_model(model, unsplit, "user_1")
    fewest = _tasks(_rows(count=4))
    with pytest.raises(TaskDataError, match="The 2 tasks have 4 rows that were trained on and 4 that were held out"):
        attack_model(tiny.train("lm", fewest, GPT2), fewest, ["user_1", "user_0"])


def test_rows_that_were_not_merged(codes):
    _, before, after, _ = codes
    changed = _tasks(_rows()[:-1])
    with pytest.raises(DigestMismatchError, match="rows of task 'user_2' are not those that were merged"):
        attack_model(after, changed, "user_2")
    fewer = _tasks([row for number, row in enumerate(_rows()) if number != 30])
    attack_model(after, fewer, "user_1", attacks=["loss"])  # nobody knows it any more
    with pytest.raises(DigestMismatchError, match="rows of task 'user_1' are not those that were merged"):
        attack_model(after, fewer, "user_1", before=before)


def test_models_that_are_no_copies(codes, tiny):
    tasks, _, after, _ = codes
    other = tiny.train("lm", tasks, {**GPT2, "n_embd": 16})
    with pytest.raises(IncompatibleBaseError, match=r"given as before is a GPT2LMHeadModel of base .*--before DIR"):
        attack_model(after, tasks, "user_1", before=other)
    cut = tiny.train("lm", _tasks(_rows(), max_length=12), GPT2)
    with pytest.raises(RecipeError, match="given as rebuilt reads rows with other settings"):
        attack_model(after, tasks, "user_1", rebuilt=cut)
    for guidance in (0, -1.0, float("nan")):
        with pytest.raises(RecipeError, match="guidance must be a positive number"):
            attack_model(after, tasks, "user_1", guidance=guidance)


def test_keyed_ids_need_the_key(codes, tiny, tmp_path):
    from hf_clamu import ClamuTrainer
    from hf_clamu.training import silent_progress

    tasks = codes[0]
    ClamuTrainer(
        GPT2,
        tasks,
        tiny.arguments(),
        processing_class=tiny.processor("lm"),
        task_id_key="secret",
        progress=silent_progress,
    ).train().save_pretrained(tmp_path / "keyed")
    keyed = ClamuModel.from_pretrained(tmp_path / "keyed", task_id_key="secret")
    report = attack_model(keyed, tasks, "user_1", attacks=["loss"])
    assert (report.tasks, report.num_members) == (("user_1",), 12)
    with pytest.raises(TaskDataError, match="'user_9' has no rows"):
        attack_model(keyed, tasks, "user_9")
    blind = ClamuModel.from_pretrained(tmp_path / "keyed")
    with pytest.raises((TaskDataError, TaskNotFoundError), match="without the key"):
        attack_model(blind, tasks, "user_1")
