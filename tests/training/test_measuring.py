from __future__ import annotations

import math

import pytest
import torch
import transformers

from hf_clamu.errors import RecipeError
from hf_clamu.training import LiveModel, Measurement, measure, measuring, seeded, task_feature

IMAGES = "image-classification"


def test_accuracy_and_loss_by_hand(vit, encoded):
    examples = encoded["owner_00"].train
    losses, hits = [], []
    with torch.no_grad():
        for example in examples:
            logits = vit.model(pixel_values=example["pixel_values"][None]).logits[0].double()
            label = int(example["labels"])
            losses.append(float(torch.logsumexp(logits, 0) - logits[label]))
            hits.append(int(logits.argmax()) == label)
    found = measure(vit, examples, IMAGES)
    assert found.loss == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert found.score == sum(hits) / len(hits)


def test_accuracy_counts_right_answers(build, encoded):
    model = build["vit"]()
    examples = encoded["owner_00"].train
    label = int(examples[0]["labels"])
    with torch.no_grad():
        model.classifier.bias[label] += 100.0
    share = sum(int(example["labels"]) == label for example in examples) / len(examples)
    assert 0 < share < 1
    assert measure(LiveModel(model), examples, IMAGES).score == pytest.approx(share)


def test_answer_probability_by_hand(gpt2, completions):
    examples = completions["ann"].train
    assert len({len(example["input_ids"]) for example in examples}) > 1, "padding must take part"
    losses, scores = [], []
    with torch.no_grad():
        for example in examples:
            ids = example["input_ids"]
            log_p = gpt2.model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
            answer = [place for place in range(len(ids)) if int(example["labels"][place]) != -100]
            assert int(ids[-1]) == 256
            assert answer[-1] == len(ids) - 1, "the end of the answer counts"
            total = sum(float(log_p[place - 1, int(ids[place])]) for place in answer)
            losses.append(-total / len(answer))
            scores.append(math.exp(total) ** (1 / len(answer)))
    found = measure(gpt2, examples, "causal-lm")
    assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert found.score == pytest.approx(sum(scores) / len(scores), rel=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_the_split_into_batches_does_not_show(monkeypatch, vit, gpt2, encoded, completions, size):
    trials = [(vit, encoded["owner_01"].train, IMAGES), (gpt2, completions["bob"].train, "causal-lm")]
    whole = [(measure(live, examples, kind), task_feature(live, examples)) for live, examples, kind in trials]
    monkeypatch.setattr(measuring, "EVALUATION_BATCH", size)
    for (live, examples, kind), (measurement, feature) in zip(trials, whole, strict=True):
        assert len(examples) > size
        found = measure(live, examples, kind)
        assert isinstance(found, Measurement)
        assert found.loss == pytest.approx(measurement.loss, rel=1e-5)
        assert found.score == pytest.approx(measurement.score, rel=1e-5)
        torch.testing.assert_close(task_feature(live, examples), feature, rtol=1e-4, atol=1e-6)


def test_dropout_is_off_while_measuring(build, encoded):
    live = LiveModel(build["vit"](dropout=0.5))
    live.model.train()
    first = measure(live, encoded["owner_00"].train, IMAGES)
    assert measure(live, encoded["owner_00"].train, IMAGES) == first
    assert first == measure(LiveModel(build["vit"]()), encoded["owner_00"].train, IMAGES)


def _check_feature(found: torch.Tensor, rows: list[torch.Tensor]) -> None:
    assert found.dtype == torch.float32
    assert found.shape == (16,)
    torch.testing.assert_close(found, torch.stack(rows).mean(0), rtol=1e-4, atol=1e-6)
    assert found.abs().max() > 1e-3


@torch.no_grad()
def test_feature_of_images_is_the_first_token(vit, encoded):
    examples = encoded["owner_00"].train
    rows = [vit.model.vit(example["pixel_values"][None]).last_hidden_state[0, 0] for example in examples]
    _check_feature(task_feature(vit, examples), rows)


@torch.no_grad()
def test_feature_of_a_model_with_pooling_is_its_pooling(build, labelled):
    live = LiveModel(build["bert"](), pad_token_id=256)
    examples = labelled["ann"].train
    rows = [live.model.bert(input_ids=example["input_ids"][None]).pooler_output[0] for example in examples]
    _check_feature(task_feature(live, examples), rows)


@torch.no_grad()
def test_feature_of_a_language_model_is_the_last_token(gpt2, completions):
    examples = completions["ann"].train
    rows = [
        gpt2.model.transformer(input_ids=example["input_ids"][None]).last_hidden_state[0, -1] for example in examples
    ]
    _check_feature(task_feature(gpt2, examples), rows)


@torch.no_grad()
def test_feature_of_a_clip_is_the_pooling_of_its_vision_tower(encoded):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        vision_config={**sizes, "image_size": 8, "patch_size": 4, "num_channels": 1},
        text_config={**sizes, "vocab_size": 9, "bos_token_id": 7, "eos_token_id": 8},
    )
    with seeded(5):
        model = transformers.CLIPForImageClassification(config).eval()
    examples = encoded["owner_00"].train
    rows = [model.vision_model(example["pixel_values"][None]).pooler_output[0] for example in examples]
    _check_feature(task_feature(LiveModel(model), examples), rows)


@torch.no_grad()
def test_feature_of_a_convolutional_model_is_its_pooling(build, encoded):
    model = build["resnet"]()
    examples = encoded["owner_00"].train
    rows = [model.resnet(example["pixel_values"][None]).pooler_output[0, :, 0, 0] for example in examples]
    found = task_feature(LiveModel(model), examples)
    assert found.shape == (8,)
    torch.testing.assert_close(found, torch.stack(rows).mean(0), rtol=1e-4, atol=1e-6)


def test_a_model_without_features_says_what_else_there_is(build, encoded):
    class Bare(transformers.PreTrainedModel):
        config_class = transformers.ViTConfig

        def __init__(self, config):
            super().__init__(config)
            self.head = torch.nn.Linear(64, 2)
            self.post_init()

        def forward(self, pixel_values):
            return transformers.modeling_outputs.ImageClassifierOutput(logits=self.head(pixel_values.flatten(1)))

    with pytest.raises(RecipeError, match=r"Bare has neither\. Choose a clustering other than"):
        task_feature(LiveModel(Bare(transformers.ViTConfig())), encoded["owner_00"].train)
