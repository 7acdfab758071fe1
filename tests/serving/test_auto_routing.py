"""`cluster="auto"`: each input by the cluster that is nearest to it by the base model's features."""

from __future__ import annotations

import functools
import json
from statistics import fmean

import numpy as np
import PIL.Image
import pytest
import torch
from in_threads import together

import hf_clamu
from hf_clamu import ClamuModel, RecipeError, TaskNotFoundError
from hf_clamu.evaluation import evaluate_model
from hf_clamu.serving.auto_routing import input_example, nearest_clusters
from hf_clamu.serving.prediction import predict
from hf_clamu.tasks import digits
from hf_clamu.training import LiveModel, example_features, losses_and_scores, prompts_of, task_feature

TEXTS = ["great 3 of 4", "dull 1 of 0", "fair", "broken 6 of 2", "whole 2 of 1", "a", "zz 7"]
PIPELINES = {
    "text": "text-classification",
    "lm": "text-generation",
    "words": "token-classification",
    "image": "image-classification",
    "seq2seq": "text2text-generation",
}
OPTIONS = {
    "text": {"top_k": None},
    "lm": {"max_new_tokens": 4, "do_sample": False},
    "words": {},
    "image": {"top_k": 10},
    "seq2seq": {"max_new_tokens": 4},
}


@pytest.fixture(scope="module")
def model_of(saved_kind):
    """Gives a model of a kind; what is selected may be anything."""
    return functools.cache(lambda kind: ClamuModel.from_pretrained(saved_kind(kind)))


def _inputs(kind):
    if kind != "image":
        return TEXTS
    rows = digits(num_tasks=4)
    images = [np.array(rows[place]["image"]) * 16 for place in range(1, 200, 30)]
    return [PIL.Image.fromarray(image.astype(np.uint8)) for image in images]


def _by_hand(model, kind, tiny, values):
    """The clusters of the tasks whose features, made of their rows, are nearest."""
    model.set_base()
    live = LiveModel(model, pad_token_id=256)
    spec = model.merged.checkpoint.task_spec
    means = []
    for task_id in model.tasks:
        train = tiny.tasks(kind).encode(task_id, model.processor).train
        means.append(task_feature(live, prompts_of(train, spec.kind)).double())
    tasks = torch.stack(means)
    inputs = torch.stack([example_features(live, [input_example(model, one)])[0].double() for one in values])
    tasks, inputs = tasks - tasks.mean(0), inputs - tasks.mean(0)
    found = []
    for one in inputs:
        cosines = [torch.nn.functional.cosine_similarity(one, other, dim=0) for other in tasks]
        found.append(model.cluster_of(model.tasks[int(torch.stack(cosines).argmax())]))
    return found


@pytest.mark.parametrize("kind", PIPELINES)
def test_each_input_is_answered_by_the_cluster_of_the_nearest_task(kind, model_of, tiny):
    model, inputs = model_of(kind), list(_inputs(kind))
    expected = _by_hand(model, kind, tiny, inputs)
    assert len(set(expected)) > 1
    pipe = hf_clamu.pipeline(PIPELINES[kind], model, cluster="auto", device="cpu")
    named = [pipe([one], cluster=cluster, **OPTIONS[kind])[0] for one, cluster in zip(inputs, expected, strict=True)]
    assert pipe(inputs, **OPTIONS[kind]) == named
    assert list(pipe(iter(inputs), **OPTIONS[kind])) == named
    alone = pipe(inputs[1], **OPTIONS[kind])
    assert model.cluster == expected[1]
    assert alone == pipe(inputs[1], cluster=expected[1], **OPTIONS[kind])
    assert pipe(inputs[:1], cluster=(expected[0] + 1) % 3, **OPTIONS[kind]) is not None
    assert model.cluster == (expected[0] + 1) % 3, "a call may name another cluster"


@pytest.mark.parametrize("kind", PIPELINES)
def test_rows_are_predicted_by_the_nearest_cluster(kind, model_of, tiny):
    model, inputs = model_of(kind), list(_inputs(kind))
    spec = model.merged.checkpoint.task_spec
    column = spec.image_column or spec.tokens_column or spec.prompt_column or spec.text_column
    values = [text.split() for text in inputs] if kind == "words" else inputs
    texts = [spec.template.replace("{prompt}", text) for text in inputs] if kind in ("lm", "seq2seq") else inputs
    expected = _by_hand(model, kind, tiny, texts)
    model.set_cluster(2)
    rows = [{column: value, spec.task_column: "nobody"} for value in values]
    answers = predict(model, rows, cluster="auto", max_new_tokens=3)
    assert [answer["cluster"] for answer in answers] == expected
    assert {answer["served_by"] for answer in answers} == {"cluster"}
    assert model.cluster == 2
    for row, cluster, answer in zip(rows, expected, answers, strict=True):
        alone = predict(model, [row], cluster=cluster, max_new_tokens=3)[0]
        assert alone.keys() == answer.keys()
        assert alone.get("label") == answer.get("label")
    mixed = [{**rows[0], spec.task_column: model.tasks[0]}, rows[1], {column: values[2]}]
    found = predict(model, mixed, fallback="auto", max_new_tokens=3)
    assert [one["cluster"] for one in found] == [model.cluster_of(model.tasks[0]), expected[1], None]
    with pytest.raises(TaskNotFoundError, match="'nobody'"):
        predict(model, mixed, max_new_tokens=3)


@pytest.mark.parametrize("kind", ["text", "image", "lm", "seq2seq"])
def test_a_report_measures_each_example_by_the_nearest_cluster(kind, model_of, tiny):
    model, tasks = model_of(kind), tiny.tasks(kind)
    report = evaluate_model(model, tasks, serving="auto")
    spec, live = model.merged.checkpoint.task_spec, LiveModel(model, pad_token_id=256)
    for task_id in model.tasks[:2]:
        encoded = tasks.encode(task_id, model.processor)
        examples = [*encoded.train, *encoded.validation]
        scores = []
        for example in examples:
            model.set_cluster(nearest_clusters(model, prompts_of([example], spec.kind))[0])
            scores += losses_and_scores(live, [example], spec.kind)[1]
        assert report.tasks[task_id][report.metric] == pytest.approx(fmean(scores), rel=1e-4)
    assert report.num_examples == evaluate_model(model, tasks).num_examples


def test_a_report_on_words(model_of, tiny):
    assert 0 < evaluate_model(model_of("words"), tiny.tasks("words"), serving="auto").score <= 1


def test_who_is_not_merged_may_be_routed(model_of):
    pipe = hf_clamu.pipeline("text-classification", model_of("text"), fallback="auto", device="cpu")
    routed = pipe(TEXTS, cluster="auto", top_k=None)
    assert pipe(TEXTS, task="nobody", top_k=None) == routed
    own = pipe.model.tasks[3]
    mixed = pipe(TEXTS[:2], task=["nobody", own], top_k=None)
    assert mixed == [routed[0], pipe(TEXTS[1:2], task=own, top_k=None)[0]]


@pytest.mark.usefixtures("many_switches_of_threads")
def test_threads_share_a_routed_pipeline(model_of):
    pipe = hf_clamu.pipeline("text-classification", model_of("text"), cluster="auto", device="cpu")
    expected = {None: pipe(TEXTS), 0: pipe(TEXTS, cluster=0), 1: pipe(TEXTS, cluster=1)}

    def ask(cluster):
        for _ in range(5):
            assert pipe(TEXTS, cluster=cluster) == expected[cluster]

    assert together(*(functools.partial(ask, cluster) for cluster in (None, 0, 1, None))) == []


@pytest.mark.parametrize("clustering", ["none", "random", "task_vectors"])
def test_features_go_with_their_task(clustering, tiny, tmp_path):
    tasks = tiny.tasks("text")
    model = tiny.train("text", clustering=clustering)
    gone = model.tasks[1]
    model.unmerge_task(gone, data=tasks).save_pretrained(tmp_path / "unmerged")
    tiny.train("text", tasks.without([gone]), clustering=clustering).save_pretrained(tmp_path / "built")
    assert tiny.digests(tmp_path / "unmerged") == tiny.digests(tmp_path / "built")
    loaded = ClamuModel.from_pretrained(tmp_path / "unmerged")
    model.set_base()
    train = tasks.encode(loaded.tasks[0], model.processor).train
    expected = task_feature(LiveModel(model, pad_token_id=256), train)
    torch.testing.assert_close(loaded.merged.checkpoint.routing_features[0], expected, rtol=1e-5, atol=1e-5)


def test_a_model_without_features_says_so(tiny, model_of, tmp_path):
    model = tiny.train("text", clustering="random", keep_features=False)
    for act in (
        lambda: hf_clamu.pipeline("text-classification", model, cluster="auto", device="cpu"),
        lambda: hf_clamu.pipeline("text-classification", model, fallback="auto", device="cpu"),
        lambda: predict(model, [{"text": "fair"}], cluster="auto"),
        lambda: evaluate_model(model, tiny.tasks("text"), serving="auto"),
    ):
        with pytest.raises(RecipeError, match=r"this model keeps none .* name a cluster or a task"):
            act()
    model.unmerge_task(list(model.tasks), data=tiny.tasks("text"))
    with pytest.raises(RecipeError, match="keeps none"):
        predict(model, [{"text": "fair"}], cluster="auto")


def test_a_model_without_masks_says_so(tiny):
    model = tiny.train("text", localization="global")
    assert model.clusters
    with pytest.raises(RecipeError, match=r"has none \(localization 'global'\): one model answers"):
        predict(model, [{"text": "fair"}], cluster="auto")


def test_a_prompt_is_routed_without_its_completion(model_of):
    model = model_of("lm")
    checkpoint = model.merged.checkpoint
    assert checkpoint.state.task_features.shape == checkpoint.routing_features.shape
    assert not torch.equal(checkpoint.state.task_features, checkpoint.routing_features)


def test_other_inputs_are_refused(model_of):
    pipe = hf_clamu.pipeline("text-classification", model_of("text"), cluster="auto", device="cpu")
    with pytest.raises(hf_clamu.TaskDataError, match="takes a text, found"):
        pipe({"text": "fair", "text_pair": "dull"})
    assert pipe({"text": "fair"}) == pipe(["fair"])[0]


def test_the_command_line(saved_text, capsys):
    from hf_clamu.cli.app import main

    rows = {"user": "nobody", "text": "fair"}
    path = saved_text.parent / "rows.jsonl"
    path.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    answers = []
    for options in (["fair", "--cluster", "auto"], ["--data", str(path), "--fallback", "auto"]):
        assert main(["predict", str(saved_text), *options, "--json"]) in (0, None)
        answers.append(json.loads(capsys.readouterr().out)["predictions"][0])
    assert answers[0]["cluster"] == answers[1]["cluster"] is not None
