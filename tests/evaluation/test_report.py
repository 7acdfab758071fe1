"""Reports of merged models, against answers that plain exports of their clusters give."""

from __future__ import annotations

import math
import statistics

import PIL.Image
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.evaluation import evaluate_model, evaluator
from hf_clamu.serving.recipe_pipelines import recipe_pipeline
from hf_clamu.tasks import TaskDataset

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 257,
    "max_position_embeddings": 32,
}
T5 = {"model_type": "t5", "vocab_size": 257, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}


def _words(tiny):
    rows = [
        {"user": f"user_{user}", "words": [f"w{number}", "of", str(user)][: 2 + number % 2], "number": number}
        for user in range(4)
        for number in range(7)
    ]
    tags = [["OAB"[(row["number"] + place) % 3] for place, _ in enumerate(row["words"])] for row in rows]
    columns = {"user": [row["user"] for row in rows], "words": [row["words"] for row in rows], "tags": tags}
    return TaskDataset.from_dataset(
        # Of some examples the last word falls off the end.
        Dataset.from_dict(columns),
        task_column="user",
        tokens_column="words",
        tags_column="tags",
        validation_fraction=0.3,
        max_length=4,
    )


def _answers(tiny):
    rows = tiny.rows("text")
    return TaskDataset.from_dataset(
        Dataset.from_dict(rows),
        task_column="user",
        prompt_column="text",
        completion_column="label",
        kind="seq2seq-lm",
        validation_fraction=0.3,
    )


KINDS = {
    "text": (None, None, "AutoModelForSequenceClassification"),
    "image": (None, None, "AutoModelForImageClassification"),
    "lm": (None, None, "AutoModelForCausalLM"),
    "words": (BERT, _words, "AutoModelForTokenClassification"),
    "seq2seq": (T5, _answers, "AutoModelForSeq2SeqLM"),
}


@pytest.fixture(scope="session")
def trained(tiny):
    """A merged model and its tasks, by kind."""
    made = {}

    def train(kind):
        if kind not in made:
            base, make_tasks, _ = KINDS[kind]
            tasks = tiny.tasks(kind) if make_tasks is None else make_tasks(tiny)
            # Far enough from the base that the clusters answer differently.
            like = "image" if kind == "image" else "lm"
            made[kind] = tiny.train(like, tasks, base or tiny.config(kind), finetune_steps=8), tasks
        return made[kind]

    return train


@torch.no_grad()
def _by_hand(plain, kind, example):
    """Right answers and predictions of one example (numbers), or the answer's probability, without batches."""
    inputs = {name: value[None] for name, value in example.items() if name != "labels"}
    labels = example["labels"]
    if kind == "seq2seq":
        log_p = plain(**inputs, labels=labels[None]).logits[0].double().log_softmax(-1)
        return math.exp(float(sum(log_p[place, label] for place, label in enumerate(labels))) / len(labels))
    logits = plain(**inputs).logits[0].double()
    if kind == "lm":
        places = [place for place, label in enumerate(labels) if label != -100]
        log_p = logits.log_softmax(-1)
        return math.exp(float(sum(log_p[place - 1, labels[place]] for place in places)) / len(places))
    if kind == "words":
        return [(int(r), int(p)) for r, p in zip(labels, logits.argmax(-1), strict=True) if r != -100]
    return int(labels), int(logits.argmax())


def _expected(plain, kind, examples):
    found = [_by_hand(plain, kind, example) for example in examples]
    if kind in ("lm", "seq2seq"):
        return {"answer_probability": sum(found) / len(found)}
    if kind == "words":
        shares = [sum(right == said for right, said in words) / len(words) for words in found]
        accuracy, pairs = sum(shares) / len(shares), [pair for words in found for pair in words]
    else:
        accuracy, pairs = sum(right == said for right, said in found) / len(found), found
    scores = []
    for label in sorted({label for pair in pairs for label in pair}):
        hits = sum(right == said == label for right, said in pairs)
        scores.append(2 * hits / (sum(right == label for right, _ in pairs) + sum(said == label for _, said in pairs)))
    return {"accuracy": accuracy, "macro_f1": sum(scores) / len(scores)}


@pytest.mark.parametrize("kind", KINDS)
def test_each_task_is_measured_under_its_own_cluster(kind, trained, tmp_path):
    model, tasks = trained(kind)
    model.set_cluster(1)
    report = evaluate_model(model, tasks, split="validation")
    assert model.cluster == 1
    auto = getattr(transformers, KINDS[kind][2])
    expected, groups = {}, {}
    for task_id in tasks.task_ids:
        cluster = model.cluster_of(task_id)
        groups.setdefault(cluster, []).append(task_id)
        if not (tmp_path / str(cluster)).exists():
            model.export(tmp_path / str(cluster), cluster=cluster)
        plain = auto.from_pretrained(tmp_path / str(cluster))
        examples = tasks.encode(task_id, model.processor).validation
        assert report.num_examples[task_id] == len(examples) > 0
        expected[task_id] = _expected(plain, kind, examples)
        assert report.tasks[task_id] == pytest.approx(expected[task_id], rel=1e-5)
    for name, summary in report.metrics.items():
        values = [expected[task_id][name] for task_id in tasks.task_ids]
        assert summary.mean == pytest.approx(statistics.mean(values), rel=1e-5)
        assert summary.spread == pytest.approx(statistics.pstdev(values), rel=1e-4, abs=1e-7)
        for cluster, members in groups.items():
            values = [expected[task_id][name] for task_id in members]
            assert report.clusters[cluster][name].mean == pytest.approx(statistics.mean(values), rel=1e-5)
    assert sorted(report.clusters) == sorted(groups)
    assert (report.score, report.spread) == (
        *(report.metrics[report.metric].mean, report.metrics[report.metric].spread),
    )
    assert report.to_dict()["num_examples"] == sum(report.num_examples.values())


@pytest.mark.parametrize("kind", ["text", "lm"])
def test_serving_and_split(kind, trained):
    model, tasks = trained(kind)
    found = {
        (serving, split): evaluate_model(model, tasks, split=split, serving=serving)
        for serving in ("own", "global", "base", 0)
        for split in ("train", "all")
    }
    assert all(
        sum(report.num_examples.values()) == (25 if split == "train" else 35) for (_, split), report in found.items()
    )
    if kind == "lm":
        assert len({report.score for report in found.values()}) == len(found)
        zero = model.clusters[0]
        assert all(found[0, "all"].tasks[task_id] == found["own", "all"].tasks[task_id] for task_id in zero)


def test_validation_rows_of_the_data_set_itself(trained, tiny):
    model, _tasks = trained("text")
    rows = Dataset.from_dict(tiny.rows("text"))
    settings = {"task_column": "user", "text_column": "text", "label_column": "label"}
    settings |= {"label_names": ["bad", "good", "mixed"], "cluster_column": "group"}
    own = TaskDataset.from_dataset(DatasetDict(train=rows, test=rows.select(range(0, 35, 2))), **settings)
    assert own.rows("user_0", model.processor, "validation").num_rows == 4
    assert own.rows("user_0", model.processor, "all").num_rows == 11
    report = evaluate_model(model, own, split="validation")
    assert sum(report.num_examples.values()) == 18


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_that_are_encoded_in_their_order(kind, trained):
    model, tasks = trained(kind)
    for task_id in tasks.task_ids:
        encoded = tasks.encode(task_id, model.processor)
        for split, examples in (("train", encoded.train), ("validation", encoded.validation)):
            rows = tasks.rows(task_id, model.processor, split)
            again = TaskDataset.from_dataset(
                rows.add_column("who", ["x"] * len(rows)),
                **{
                    **{name: value for name, value in tasks.spec.to_dict().items() if value is not None},
                    "task_column": "who",
                    "validation_fraction": 0.0,
                    "cluster_column": None,
                },
            ).encode("x", model.processor)
            assert len(again.train) == len(examples) > 0
            for left, right in zip(again.train, examples, strict=True):
                assert left.keys() == right.keys()
                assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", ["text", "words", "image"])
def test_batches_do_not_show(kind, trained):
    model, tasks = trained(kind)
    model.set_cluster(0)
    rows = tasks.rows("user_0" if kind != "image" else tasks.task_ids[0], model.processor, "all")
    inputs = list(rows[tasks.spec.text_column or tasks.spec.tokens_column or tasks.spec.image_column])
    pipe = recipe_pipeline(model)
    together, alone = pipe(inputs), [pipe([one])[0] for one in inputs]
    if kind == "words":
        assert together == alone
        assert {len(tags) for tags in together} == {2, 3}
        assert any(tag is None for tags in together for tag in tags), "some words must fall off the end"
        assert {tag for tags in together for tag in tags} <= {"A", "B", "O", None}
        return
    best = [found[0] if isinstance(found, list) else found for found in together]
    one_by_one = [found[0] if isinstance(found, list) else found for found in alone]
    assert [found["label"] for found in best] == [found["label"] for found in one_by_one]
    assert [found["score"] for found in best] == pytest.approx([found["score"] for found in one_by_one], rel=1e-5)


def test_a_picture_is_its_numbers(trained):
    model, tasks = trained("image")
    pixels = tasks.rows(tasks.task_ids[0], None, "all")[0]["image"]
    numbers = torch.tensor(pixels).mul(8).to(torch.uint8).numpy()
    by_picture, by_numbers = recipe_pipeline(model)([PIL.Image.fromarray(numbers), numbers.tolist()])
    assert by_picture == by_numbers


def test_no_examples_and_no_tasks(trained, tiny):
    model, _tasks = trained("text")
    bare = TaskDataset.from_dataset(
        Dataset.from_dict(tiny.rows("text")),
        task_column="user",
        text_column="text",
        label_column="label",
        cluster_column="group",
    )
    model.set_cluster(2)
    with pytest.raises(TaskDataError, match=r"None of the \d tasks has validation examples"):
        evaluate_model(model, bare, split="validation")
    assert model.cluster == 2
    others = Dataset.from_dict({"user": ["nobody"], "text": ["x"], "label": ["bad"]})
    strange = TaskDataset.from_dataset(others, task_column="user", text_column="text", label_column="label")
    with pytest.raises(TaskDataError, match="None of the 1 tasks of the data is merged"):
        evaluate_model(model, strange)


def test_evaluators_take_no_other_pipelines(trained):
    model, _ = trained("text")
    with pytest.raises(RecipeError, match="There is no evaluator for 'text-generation'"):
        evaluator("text-generation")
    with pytest.raises(RecipeError, match="Expected a pipeline for 'image-classification', found 'text-class"):
        evaluator("image-classification").compute(
            recipe_pipeline(model), Dataset.from_dict({"image": [[0]], "label": [0]}), metric=object()
        )
