"""Clusters around anchors in public rows: exact after every request, without the rows, and nobody else moves."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from safetensors.torch import load_file

from hf_clamu import ClamuModel, ClamuTrainer, Recipe, RecipeError, TaskDataError, TaskDataset
from hf_clamu.errors import CheckpointFormatError
from hf_clamu.tasks import digits_public
from hf_clamu.training import silent_progress

TEXTS = [{"text": f"{word} {number} of nobody"} for word in ("sun", "rain", "snow", "wind") for number in range(5)]


def _public(kind):
    if kind == "image":
        return [{"image": image.tolist()} for image in digits_public()[0][:30]]
    if kind == "words":
        return [{"words": row["text"].split()} for row in TEXTS]
    return TEXTS


@pytest.fixture
def train(tiny):
    def build(kind="text", tasks=None, public_rows=None, **changes):
        settings = {"clustering": "public_rows", "num_clusters": 4, **changes}
        base = tiny.config("text" if kind == "words" else kind)
        if kind == "seq2seq":
            ends = {"pad_token_id": 256, "eos_token_id": 256, "decoder_start_token_id": 256}
            base = {
                "model_type": "t5",
                "vocab_size": 257,
                "d_model": 16,
                "d_kv": 8,
                "d_ff": 16,
                "num_layers": 1,
            } | ends
            base["num_heads"] = 2
        rows = _public(kind) if public_rows is None else public_rows
        return tiny.train(kind, tasks, base, options={"public_rows": rows}, **settings)

    return build


def _files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _saved(model, folder):
    model.save_pretrained(folder)
    return _files(folder)


@pytest.mark.parametrize("kind", ["text", "image", "lm", "words", "seq2seq"])
def test_unmerging_equals_a_build_of_the_rest(tiny, train, tmp_path, kind):
    tasks = tiny.tasks(kind)
    gone = tasks.task_ids[0]
    train(kind).save_pretrained(tmp_path / "whole")
    model = ClamuModel.from_pretrained(tmp_path / "whole")
    model.unmerge_task(gone, data=tasks)
    left = train(kind, tasks.without(gone))
    assert _saved(model, tmp_path / "left") == _saved(left, tmp_path / "built")
    model.add_task(tasks.select([gone]), data=tasks)
    assert _saved(model, tmp_path / "again") == _files(tmp_path / "whole")


@pytest.mark.parametrize("localization", ["sift", "emr"])
def test_nobody_else_moves_and_a_rebuild_needs_no_public_rows(tiny, train, tmp_path, localization):
    tasks = tiny.tasks("text")
    train(localization=localization).save_pretrained(tmp_path / "whole")
    before = ClamuModel.from_pretrained(tmp_path / "whole")
    where = {one: before.cluster_names[before.cluster_of(one)] for one in tasks.task_ids}
    assert 1 < len(set(where.values())) <= 4
    assert before.verify(data=tasks).identical
    for gone in tasks.task_ids:
        model = ClamuModel.from_pretrained(tmp_path / "whole")
        model.unmerge_task(gone, data=tasks)
        assert {one: model.cluster_names[model.cluster_of(one)] for one in model.tasks} == {
            one: name for one, name in where.items() if one != gone
        }


def test_new_data_move_nobody_but_their_owner(tiny, train, tmp_path):
    tasks, other = tiny.tasks("text"), tiny.rows("text")
    pairs = zip(other["user"], other["text"], strict=True)
    other["text"] = [f"{text} and more" if user == "user_1" else text for user, text in pairs]
    new = TaskDataset.from_spec(Dataset.from_dict(other), tasks.spec)
    train().save_pretrained(tmp_path / "whole")
    model = ClamuModel.from_pretrained(tmp_path / "whole")
    model.update_task(new.select(["user_1"]), data=tasks)
    assert _saved(model, tmp_path / "updated") == _saved(train(tasks=new), tmp_path / "built")


def test_no_owner_label_or_order_of_public_rows_shows(train, tmp_path):
    plain = _saved(train(), tmp_path / "plain")
    more = [{"user": "x", "label": "cold", "group": "A", "other": 1, **row} for row in reversed(TEXTS)]
    assert _saved(train(public_rows=more), tmp_path / "more") == plain
    assert _saved(train(public_rows=TEXTS[:-1]), tmp_path / "fewer") != plain


def test_the_model_says_what_it_was_placed_in(train, tmp_path):
    train().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_bytes())["public_rows"]
    assert (saved["num_rows"], len(saved["digest"])) == (20, 64)
    anchors = load_file(tmp_path / "anchors.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in anchors.items()} == {
        "centre": (16,),
        "directions": (4, 16),
    }


def test_all_tasks_may_go_and_come_back(tiny, train, tmp_path):
    tasks = tiny.tasks("text")
    whole = _saved(train(), tmp_path / "whole")
    model = ClamuModel.from_pretrained(tmp_path / "whole")
    model.unmerge_task(list(tasks.task_ids), data=tasks)
    model.save_pretrained(tmp_path / "none")
    model = ClamuModel.from_pretrained(tmp_path / "none")
    model.add_task(tasks)
    assert _saved(model, tmp_path / "again") == whole


def test_a_recipe_names_files(tiny, tmp_path):
    rows = tiny.rows("text")
    lines = [{key: values[number] for key, values in rows.items()} for number in range(len(rows["user"]))]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "public.jsonl").write_text("\n".join(map(json.dumps, TEXTS)))
    values = {
        "base_model": tiny.config("text"),
        "tokenizer": "bytes",
        "data": {"files": "rows.jsonl", "task_column": "user", "text_column": "text", "label_column": "label"},
        "public_rows": "public.jsonl",
        "arguments": {"preset": "clusters", "clustering": "public_rows", "num_clusters": 2, "finetune_steps": 1},
    }
    recipe = Recipe.from_dict(values, folder=tmp_path)
    model = recipe.trainer(progress=silent_progress).train()
    assert len(model.clusters) <= 2
    with pytest.raises(RecipeError, match=r"public_rows must be a path or a list of paths, got \{\}"):
        Recipe.from_dict({**values, "public_rows": {}}, folder=tmp_path)


def test_rows_and_the_clustering_go_together(tiny):
    options = {"processing_class": tiny.processor("text")}
    with pytest.raises(RecipeError, match=r"none are given: name a file of them \(public_rows in the recipe"):
        ClamuTrainer(tiny.config("text"), tiny.tasks("text"), tiny.arguments(clustering="public_rows"), **options)
    arguments = tiny.arguments(clustering="random")
    with pytest.raises(RecipeError, match=r"clustering='random' does not use them: leave them out, or choose"):
        ClamuTrainer(tiny.config("text"), tiny.tasks("text"), arguments, public_rows=TEXTS, **options)


def test_rows_that_cannot_be_used_are_refused(train):
    with pytest.raises(TaskDataError, match=r"public rows have no column 'text' \(text_column\); they have answer"):
        train(public_rows=[{"answer": "a"}])
    with pytest.raises(TaskDataError, match=r"4 anchors \(num_clusters\) need as many public rows, .* tells 2 apart"):
        train(public_rows=[{"text": "a"}, {"text": "b"}, {"text": "a"}])


def test_damaged_anchors_are_refused(train, tmp_path):
    from hf_clamu.checkpoint.ledger import sealed
    from hf_clamu.exact import canonical_json, sha256_hex
    from hf_clamu.storage import save_tensors

    train().save_pretrained(tmp_path)
    path, ledger_path = tmp_path / "anchors.safetensors", tmp_path / "ledger.json"
    anchors, ledger = load_file(path), json.loads(ledger_path.read_bytes())
    for damaged in ({"centre": anchors["centre"]}, {**anchors, "directions": anchors["directions"][:2]}):
        save_tensors(path, damaged)
        content = path.read_bytes()
        ledger["files"][path.name] = {"sha256": sha256_hex(content), "size": len(content)}
        ledger.pop("digest")
        ledger = sealed(ledger)
        ledger_path.write_bytes(canonical_json(ledger))
        with pytest.raises(CheckpointFormatError, match=r"anchors\.safetensors holds no anchors of these"):
            ClamuModel.from_pretrained(tmp_path)
