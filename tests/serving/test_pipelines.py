"""Pipelines per cluster and per task, against transformers' own over plain checkpoints of the clusters."""

from __future__ import annotations

import copy
import json
import logging
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from datasets import Dataset
from transformers.pipelines.pt_utils import KeyDataset

import hf_clamu
from hf_clamu import (
    ClamuModel,
    ClamuPipeline,
    ClamuTrainer,
    ClusterNotFoundError,
    IncompatibleBaseError,
    TaskDataset,
    TaskNotFoundError,
)
from hf_clamu.base_models.processors import save_processor
from hf_clamu.serving.prediction import predict
from hf_clamu.serving.recipe_pipelines import recipe_pipeline

TEXTS = ["great 3 of 4", "dull 1 of 0", "fair", "broken 6 of 2", "whole 2 of 1"]
PIPELINES = {
    "text": "text-classification",
    "lm": "text-generation",
    "words": "token-classification",
    "image": "image-classification",
}
OPTIONS = {
    "text": {"top_k": None},
    "lm": {"max_new_tokens": 6, "do_sample": False},
    "words": {},
    "image": {"top_k": 10},
}


def _images():
    generator = np.random.default_rng(3)
    return [PIL.Image.fromarray(generator.integers(0, 17, (8, 8), dtype=np.uint8)) for _ in range(5)]


def _inputs(kind):
    return _images() if kind == "image" else TEXTS


class _Grey:
    """What a model without an image processor was trained with: one channel, numbers as they are."""

    def __call__(self, images, return_tensors):
        pixels = torch.from_numpy(np.asarray(images, dtype=np.float32)[None, None, :, :, 0].copy())
        return transformers.BatchFeature({"pixel_values": pixels})


@pytest.fixture(scope="module")
def expected(saved_kind, exported):
    """Gives the answers of a plain checkpoint of a cluster, one for each input."""
    known = {}

    def answers_of(kind, cluster, *, stock=False, **options):
        key = (kind, cluster, stock, *options.items())
        if key not in known:
            model = str(exported(kind, cluster))
            if kind == "image":
                options["image_processor"] = _Grey()
            else:
                options["tokenizer"] = str(saved_kind(kind))
            pipe = transformers.pipeline(PIPELINES[kind], model=model, device="cpu", **options)
            if kind == "words" and not stock:  # as in training
                known[key] = pipe([text.split() for text in TEXTS], is_split_into_words=True, delimiter=" ")
            else:
                known[key] = pipe(list(_inputs(kind)), **OPTIONS[kind])
        return known[key]

    return answers_of


def _pipe(kind, model, **options):
    return hf_clamu.pipeline(PIPELINES[kind], model, device="cpu", **options)


# -- one cluster after the other -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PIPELINES)
def test_each_cluster_answers_as_its_plain_checkpoint(kind, saved_kind, expected):
    inputs = _inputs(kind)
    pipe = _pipe(kind, saved_kind(kind))
    assert isinstance(pipe, ClamuPipeline)
    assert isinstance(pipe.model, ClamuModel)
    for cluster in (2, 0, 0, None, 1):
        named = {} if cluster is None else {"cluster": cluster}
        assert pipe(inputs, **named, **OPTIONS[kind]) == expected(kind, cluster)
        assert pipe.model.cluster == cluster
        assert pipe(inputs[1], **named, **OPTIONS[kind]) == expected(kind, cluster)[1]
    assert expected(kind, 0) != expected(kind, 1)
    assert expected(kind, 0) != expected(kind, None)


@pytest.mark.parametrize("kind", PIPELINES)
def test_batches_are_those_of_the_plain_checkpoint(kind, saved_kind, expected):
    pipe = _pipe(kind, str(saved_kind(kind)), cluster=1, batch_size=2)
    assert pipe(list(_inputs(kind)), **OPTIONS[kind]) == expected(kind, 1, batch_size=2)


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_batch_of_many_tasks_is_answered_in_order(kind, saved_kind, expected):
    pipe = _pipe(kind, saved_kind(kind), cluster=1)
    tasks = list(pipe.model.tasks)
    asked = [tasks[-1], tasks[0], None, tasks[1], tasks[0]]
    clusters = [1 if task is None else pipe.model.cluster_of(task) for task in asked]
    assert len(set(clusters)) > 1
    found = pipe(_inputs(kind), task=asked, **OPTIONS[kind])
    assert found == [expected(kind, cluster)[index] for index, cluster in enumerate(clusters)]
    # Then who served before.
    assert pipe(_inputs(kind), **OPTIONS[kind]) == expected(kind, 1)


def test_clusters_are_brought_once_for_a_batch(saved_text, monkeypatch):
    pipe = _pipe("text", saved_text)
    brought = []
    bring = ClamuModel.set_cluster

    def counted(model, cluster=None, *, task=None):
        brought.append(cluster)
        return bring(model, cluster, task=task)

    monkeypatch.setattr(ClamuModel, "set_cluster", counted)
    tasks = list(pipe.model.tasks) * 3
    pipe(["great"] * len(tasks), task=tasks)
    assert sorted(brought) == [0, 1, 2]


def test_columns_of_a_dataset_are_rows(saved_text, expected):
    pipe = _pipe("text", saved_text)
    rows = Dataset.from_dict({"text": TEXTS, "user": [pipe.model.tasks[index] for index in range(5)]})
    answers = [expected("text", pipe.model.cluster_of(task))[index] for index, task in enumerate(rows["user"])]
    assert pipe(rows["text"], task=rows["user"], top_k=None) == answers
    assert pipe(KeyDataset(rows, "text"), task=rows["user"], top_k=None) == answers
    assert pipe(tuple(TEXTS), task=tuple(rows["user"]), top_k=None) == answers
    assert pipe([], task=[]) == []


@pytest.mark.parametrize("how", ["generator", "dataset"])
def test_lazy_answers_keep_their_cluster(how, saved_text, expected):
    pipe = _pipe("text", saved_text)
    task = pipe.model.clusters[2][0]

    def stream():
        return (text for text in TEXTS) if how == "generator" else KeyDataset([{"text": t} for t in TEXTS], "text")

    first, second = pipe(stream(), task=task, top_k=None), pipe(stream(), cluster=0, top_k=None)
    third = pipe(stream(), batch_size=2, top_k=None)
    if how == "dataset":
        assert len(first) == 5
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        assert one == expected("text", 2)[index]
        assert other == expected("text", 0)[index]
        assert pipe(TEXTS[0], cluster=1, top_k=None) == expected("text", 1)[0]
    assert list(third) == expected("text", None, batch_size=2)


def test_who_serves_by_default(saved_text, expected):
    model = ClamuModel.from_pretrained(saved_text)
    task = model.clusters[2][0]
    for options, cluster in (({}, None), ({"cluster": 1}, 1), ({"task": task}, 2), ({"cluster": 0}, 0)):
        pipe = _pipe("text", model, **options)
        assert model.cluster == cluster
        pipe(TEXTS, cluster=1)
        assert pipe(TEXTS, top_k=None) == expected("text", cluster)
    # Two over one model.
    first, second = _pipe("text", model, cluster=0), _pipe("text", model, cluster=1)
    assert first(TEXTS, top_k=None) == expected("text", 0)
    assert second(TEXTS, top_k=None) == expected("text", 1)
    assert first(TEXTS, top_k=None) == expected("text", 0)


def test_keywords_are_those_of_transformers(saved_text, expected):
    pipe = hf_clamu.pipeline("sentiment-analysis", model=saved_text, dtype="float32", device_map="cpu", cluster=0)
    assert pipe.inner.task == "text-classification"
    assert pipe.tokenizer.pad_token_id == 256
    assert pipe(TEXTS, top_k=None) == expected("text", 0)
    half = _pipe("text", saved_text, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16


def test_transformers_own_pipeline_serves_the_selected_cluster(saved_kind, expected):
    for kind in ("text", "lm", "words"):
        pipe = transformers.pipeline(PIPELINES[kind], model=str(saved_kind(kind)), device="cpu")
        for cluster in (None, 2):
            pipe.model.set_cluster(cluster)
            assert pipe(list(TEXTS), **OPTIONS[kind]) == expected(kind, cluster, stock=True)


# -- tasks that are not merged ---------------------------------------------------------------------------------------


def test_a_forgotten_task_raises_or_falls_back(tiny, saved_text, expected, tmp_path):
    model = ClamuModel.from_pretrained(saved_text)
    by_task, falling = _pipe("text", model, task="user_1"), _pipe("text", model, task="user_1", fallback="base")
    assert by_task(TEXTS, top_k=None) == expected("text", model.cluster_of("user_1"))
    model.unmerge_task("user_1", data=tiny.tasks("text"))
    for ask in (
        lambda: by_task(TEXTS),
        lambda: by_task(TEXTS, task="user_1"),
        lambda: by_task(TEXTS[:2], task=["user_0", "user_1"]),
        lambda: by_task((text for text in TEXTS), task="user_1"),
        lambda: _pipe("text", model, task="user_1"),
    ):
        with pytest.raises(TaskNotFoundError, match="user_1"):
            ask()
    assert falling(TEXTS, top_k=None) == expected("text", "base")
    model.export(tmp_path / "global")
    model.export(tmp_path / "own", task="user_3")
    plain = [
        transformers.pipeline(PIPELINES["text"], model=str(tmp_path / name), device="cpu")
        for name in ("global", "own")
    ]
    assert _pipe("text", model, fallback="global")(TEXTS, task="user_1", top_k=None) == plain[0](TEXTS, top_k=None)
    mixed = falling(TEXTS[:3], task=["user_1", "user_3", "never"], top_k=None)
    assert mixed == [expected("text", "base")[0], plain[1](TEXTS, top_k=None)[1], expected("text", "base")[2]]
    # The default of the others is still there.
    assert by_task(TEXTS, task="user_3", top_k=None) == plain[1](TEXTS, top_k=None)


def test_nothing_is_answered_if_one_task_is_missing(saved_text):
    pipe = _pipe("text", saved_text, cluster=1)
    with pytest.raises(TaskNotFoundError, match="No merged task is called 'usr_4'"):
        pipe(TEXTS[:2], task=["user_0", "usr_4"])
    assert pipe.model.cluster == 1


def test_no_fallback_without_the_key_of_the_ledger(tiny, tmp_path):
    trainer = ClamuTrainer(
        tiny.config("text"),
        tiny.tasks("text"),
        tiny.arguments(localization="global", clustering="none"),
        processing_class=tiny.processor("text"),
        task_id_key="secret",
        progress=lambda items, description: items,
    )
    trainer.train().save_pretrained(tmp_path / "m")
    with pytest.raises(TaskNotFoundError, match="without the key"):
        _pipe("text", tmp_path / "m", task="user_1", fallback="global")
    pipe = _pipe("text", tmp_path / "m", task="user_1", task_id_key="secret", fallback="base")
    assert pipe.model.cluster == pipe.model.cluster_of("user_1")
    pipe(TEXTS, task="user_9")
    assert pipe.model.cluster is None


# -- encoder-decoders ------------------------------------------------------------------------------------------------


def _written(saved_kind, model, texts, **options):
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved_kind("seq2seq"))
    found = [model.generate(**tokenizer(text, return_tensors="pt"), **options) for text in texts]
    decoded = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in found]
    return [[{"generated_text": text} for text in answer] for answer in decoded]


def test_an_encoder_decoder_writes_what_its_plain_checkpoint_writes(saved_kind, exported):
    pipe = hf_clamu.pipeline("text2text-generation", saved_kind("seq2seq"), device="cpu", max_new_tokens=4)
    written = {}
    for cluster in (None, 0, 1, 2):
        plain = transformers.AutoModelForSeq2SeqLM.from_pretrained(exported("seq2seq", cluster))
        named = {} if cluster is None else {"cluster": cluster}
        written[cluster] = _written(saved_kind, plain, TEXTS, max_new_tokens=4)
        assert pipe(TEXTS, **named) == written[cluster]
        assert pipe(TEXTS[0], **named) == written[cluster][0]
        beams = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 3}
        assert pipe(TEXTS[:2], **named, **beams) == _written(saved_kind, plain, TEXTS[:2], **beams)
        batches = pipe(TEXTS, batch_size=3, **named)
        assert [len(answer) for answer in batches] == [1] * 5
    assert written[1] != written[2]
    assert any(answer[0]["generated_text"] for answer in written[2])
    tasks = [pipe.model.clusters[cluster][0] for cluster in (2, 1, 2, 0, 1)]
    assert pipe(TEXTS, task=tasks) == [written[cluster][index] for index, cluster in enumerate((2, 1, 2, 0, 1))]
    assert list(pipe((text for text in TEXTS), cluster=2)) == written[2]


def test_the_length_of_what_an_encoder_decoder_writes(saved_kind, monkeypatch):
    pipe = hf_clamu.pipeline("text2text-generation", saved_kind("seq2seq"), device="cpu", cluster=2)
    assert pipe("great", max_length=3)[0]["generated_text"] == pipe("great", max_new_tokens=2)[0]["generated_text"]
    asked = []

    def generate(**options):
        asked.append({name: value for name, value in options.items() if "length" in name or "tokens" in name})
        return torch.tensor([[256, 65]])

    monkeypatch.setattr(pipe.model, "generate", generate)
    pipe("great")
    pipe("great", max_length=7)
    pipe.model.generation_config.max_new_tokens = 5
    pipe("great")
    # transformers' own default is 20 tokens, which cuts answers short.
    assert asked == [{"max_new_tokens": 256}, {"max_length": 7}, {}]


# -- processors ------------------------------------------------------------------------------------------------------


def test_pixels_are_taken_as_in_training(saved_image, tmp_path):
    pipe = _pipe("image", saved_image)
    pixels = torch.from_numpy(np.asarray(_images()[0], dtype=np.float32)[None, None])
    with torch.no_grad():
        scores = pipe.model(pixel_values=pixels).logits.softmax(-1)[0]
    names = pipe.model.config.id2label
    found = {answer["label"]: answer["score"] for answer in pipe(_images()[0], top_k=10)}
    assert found == pytest.approx({names[index]: float(score) for index, score in enumerate(scores)}, rel=1e-5)
    # From a file, and as numbers.
    _images()[0].save(tmp_path / "image.png")
    assert pipe(str(tmp_path / "image.png"), top_k=10) == pipe(_images()[0], top_k=10)
    assert pipe(np.asarray(_images()[0]), top_k=10) == pipe(_images()[0], top_k=10)
    with pytest.raises(ValueError, match=r"size \(9"):
        pipe(PIL.Image.new("L", (9, 9)))


def test_an_image_processor_is_used(saved_image):
    asked = []

    def processor(images, return_tensors):
        asked.append(images.size)
        return _Grey()(images, return_tensors)

    pipe = _pipe("image", saved_image, image_processor=processor)
    assert pipe(_images(), top_k=10) == _pipe("image", saved_image)(_images(), top_k=10)
    assert asked == [(8, 8)] * 5


def test_a_saved_image_processor_is_found(tiny, tmp_path):
    size = {"height": 8, "width": 8}
    processor = transformers.models.vit.image_processing_pil_vit.ViTImageProcessorPil(size=size)
    tasks = tiny.tasks("image")
    base = {**tiny.config("image"), "num_channels": 3}
    tiny.train("image", tasks, base, processor, finetune_steps=1, mask_steps=1).save_pretrained(tmp_path / "m")
    model = ClamuModel.from_pretrained(tmp_path / "m")
    model.export(tmp_path / "plain", cluster=1)
    picture = PIL.Image.fromarray(np.random.default_rng(4).integers(0, 256, (13, 17, 3), dtype=np.uint8))
    plain = transformers.pipeline("image-classification", model=str(tmp_path / "plain"), device="cpu")
    assert _pipe("image", model, cluster=1)(picture) == plain(picture)
    assert len(plain(picture)) == 5


def test_a_tokenizer_of_the_callers_is_used(saved_text, expected):
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved_text)
    assert _pipe("text", saved_text, tokenizer=tokenizer).tokenizer is tokenizer


def test_a_model_without_a_tokenizer(tiny, saved_text, tmp_path):
    folder = shutil.copytree(saved_text, tmp_path / "model")
    ledger = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
        del ledger["files"][path.name]
    (folder / "ledger.json").write_text(json.dumps(ledger), encoding="utf-8")
    tiny.reseal(folder)
    model = ClamuModel.from_pretrained(folder)
    assert model.processor is None
    with pytest.raises(IncompatibleBaseError, match="give tokenizer="):
        _pipe("text", model)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["text", "words"])
def test_all_who_serve_cut_and_pad_as_training_does(kind, side, tiny):
    texts = ["great 1 of 2 and longer", "dull", "fair 0"]
    rows = tiny.rows("text")
    columns = {"text_column": "text", "label_column": "label"}
    if kind == "words":
        rows["words"] = [text.split() for text in rows["text"]]
        rows["tags"] = [["word" if word.isalpha() else "number" for word in words] for words in rows["words"]]
        columns = {"tokens_column": "words", "tags_column": "tags"}
    tasks = TaskDataset.from_dataset(Dataset.from_dict(rows), task_column="user", **columns, max_length=6)
    processor = tiny.processor("text")
    processor.padding_side = side
    config = tiny.config("text")
    model = tiny.train("text", tasks, config, processor)
    answers = [_pipe(kind, model, cluster=1, batch_size=size)(texts) for size in (1, 3)]
    by_rows = predict(model, [{"text": text, "words": text.split()} for text in texts], cluster=1)
    with model.serving(1):
        measured = recipe_pipeline(model)([text.split() for text in texts] if kind == "words" else texts)
    if kind == "text":
        for found in (*answers, measured):
            assert [answer["label"] for answer in found] == [answer["label"] for answer in by_rows]
            assert [answer["score"] for answer in found] == pytest.approx(
                [answer["score"] for answer in by_rows], rel=1e-5
            )
        # Longer than the cut, nothing changes; where a call says otherwise, it does.
        pipe = _pipe(kind, model, cluster=1)
        assert pipe(texts[0]) == pipe(texts[0][:6])
        assert pipe(texts[0], truncation=False) != pipe(texts[0])
        assert pipe({"text": texts[0]}) == pipe(texts[0])[0]
        return
    assert measured == [answer["tags"] for answer in by_rows]
    for found in answers:
        for text, entities, tags in zip(texts, found, measured, strict=True):
            starts = {entity["start"]: entity["entity"] for entity in entities}
            places = [text.find(word) for word in text.split()]
            assert [starts.get(place) for place in places] == tags
    spaced = _pipe(kind, model, cluster=1)("fair   0")
    assert [entity["score"] for entity in spaced] == [entity["score"] for entity in answers[0][2]]
    assert spaced[-1]["start"] == 7


def test_a_tokenizer_that_was_changed_stays_so_after_a_request(tiny, model):
    model.processor.padding_side = "left"
    model.unmerge_task("user_1", data=tiny.tasks("text"))
    assert model.processor.padding_side == "left"


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "kind", "other"),
    [
        ("text-generation", "text", "text-classification"),
        ("ner", "text", "text-classification"),
        ("text2text-generation", "lm", "text-generation"),
        ("text-generation", "seq2seq", "text2text-generation"),
        ("text-classification", "image", "image-classification"),
        ("image-classification", "words", "token-classification"),
    ],
)
def test_the_pipeline_of_another_head(asked, kind, other, saved_kind, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with pytest.raises(IncompatibleBaseError, match=f"which is for '{other}'"):
        hf_clamu.pipeline(asked, saved_kind(kind), device="cpu")
    assert [record for record in caplog.records if record.levelno > logging.WARNING] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cluster": 1, "task": "user_1"}, "not both"),
        ({"cluster": 1, "task": ["user_1"] * 5}, "not both"),
        ({"task": ["user_1"]}, "names 1 tasks for 5 inputs"),
    ],
)
def test_wrong_calls(options, message, saved_text):
    pipe = _pipe("text", saved_text, cluster=2)
    with pytest.raises(ValueError, match=message):
        pipe(TEXTS, **options)
    assert pipe.model.cluster == 2


def test_a_cluster_and_a_task_are_not_both_given(model):
    with pytest.raises(ValueError, match="not both"):
        predict(model, [{"text": "great"}], cluster=0, task="user_1")
    with pytest.raises(TaskNotFoundError, match=r"Row 1, column 'user': No merged task is called 'x'.*--fallback"):
        predict(model, [{"text": "great", "user": "user_1"}, {"text": "dull", "user": "x"}])


def test_many_tasks_need_many_inputs(saved_text):
    pipe = _pipe("text", saved_text)
    for inputs in ("great", (text for text in TEXTS), {"text": "great"}):
        with pytest.raises(ValueError, match="so the inputs must be a list"):
            pipe(inputs, task=["user_1"])


def test_wrong_pipelines(model):
    with pytest.raises(ValueError, match="fallback must be"):
        _pipe("text", model, fallback="none")
    with pytest.raises(ValueError, match="not both"):
        _pipe("text", model, cluster=1, task="user_1")
    with pytest.raises(ClusterNotFoundError, match="numbered from 0"):
        _pipe("text", model, cluster=3)
    for name, value in (("revision", "v1"), ("dtype", torch.bfloat16), ("local_files_only", True)):
        with pytest.raises(TypeError, match=f"{name}= is for loading"):
            _pipe("text", model, **{name: value})


# -- as an object ----------------------------------------------------------------------------------------------------


def test_a_copy_serves_alone(model, expected):
    pipe = _pipe("text", model, cluster=1)
    other = copy.deepcopy(pipe)
    assert other.model is not model
    other(TEXTS, cluster=0)
    assert model.cluster == 1
    assert other(TEXTS, top_k=None) == pipe(TEXTS, top_k=None) == expected("text", 1)
    assert not hasattr(pipe, "nothing")


@pytest.mark.parametrize("kind", ["text", "lm"])
def test_a_saved_pipeline_is_a_saved_model(kind, saved_kind, tiny, tmp_path):
    pipe = _pipe(kind, saved_kind(kind))
    pipe(list(TEXTS), batch_size=2, **OPTIONS[kind])
    pipe.save_pretrained(tmp_path / "m")
    assert tiny.digests(tmp_path / "m") == tiny.digests(saved_kind(kind))


def test_transformers_saves_its_tokenizer_over_ours(saved_text, expected, tmp_path):
    pipe = transformers.pipeline("text-classification", model=str(saved_text), device="cpu")
    pipe(list(TEXTS), batch_size=2, truncation=True, max_length=30)
    pipe.save_pretrained(tmp_path / "m")
    saved = (tmp_path / "m/tokenizer.json").read_bytes(), (tmp_path / "m/tokenizer_config.json").read_bytes()
    assert saved != ((saved_text / "tokenizer.json").read_bytes(), (saved_text / "tokenizer_config.json").read_bytes())
    assert _pipe("text", tmp_path / "m", cluster=1)(TEXTS, top_k=None) == expected("text", 1)
    # Another tokenizer is still noticed.
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved_text, padding_side="left")
    save_processor(tokenizer, tmp_path / "m")
    with pytest.raises(hf_clamu.CheckpointFormatError, match="Another tokenizer or processor is not saved over"):
        ClamuModel.from_pretrained(tmp_path / "m")
