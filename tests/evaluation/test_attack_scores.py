"""What attacks make of a row, against slow loops and against decoding token by token."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
import transformers

from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.evaluation.attacks.scores import (
    ATTACKS,
    chosen_attacks,
    extraction_strength,
    guided,
    membership_scores,
    predictions,
)
from hf_clamu.tasks import task_kinds
from hf_clamu.training import seeded

TEXT = "blue whale"


def _row(text=TEXT, prompt="What? "):
    ids = byte_tokenizer()(prompt + text)["input_ids"]
    labels = [-100] * len(prompt) + ids[len(prompt) :]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.ones(len(ids))}


def _predicted(row, logits):
    return next(predictions(logits[None], row["labels"][None], "causal-lm"))


@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0])  # from unsure to certain, where probabilities are 0
def test_scores_of_a_text_are_those_of_slow_loops(scale):
    row = _row()
    logits = scale * torch.randn(len(row["labels"]), 257, generator=torch.Generator().manual_seed(1))
    found = membership_scores(*_predicted(row, logits), row, "causal-lm", byte_tokenizer())
    of_right, normalised = [], []
    for place, label in enumerate(row["labels"].tolist()):
        if label == -100:
            continue
        values = logits[place - 1].double().tolist()
        top = max(values)
        total = math.log(math.fsum(math.exp(value - top) for value in values)) + top
        log_p = [value - total for value in values]
        mean = math.fsum(math.exp(one) * one for one in log_p)
        square = math.fsum(math.exp(one) * one * one for one in log_p)
        of_right.append(log_p[label])
        normalised.append((log_p[label] - mean) / math.sqrt(max(square - mean**2, 1e-6)))
    assert len(of_right) == len(TEXT)
    least = len(TEXT) // 5
    assert found["loss"] == pytest.approx(sum(of_right) / len(TEXT), rel=1e-9)
    assert found["min-k"] == pytest.approx(sum(sorted(of_right)[:least]) / least, rel=1e-9)
    assert found["min-k++"] == pytest.approx(sum(sorted(normalised)[:least]) / least, rel=1e-5)
    assert found["zlib"] == pytest.approx(found["loss"] / len(zlib.compress(TEXT.encode())), rel=1e-12)


def test_a_classifier_has_its_loss_alone():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 2])
    for kind in ("sequence-classification", "image-classification"):
        rows = list(predictions(logits, labels, kind))
        found = [membership_scores(*row, {}, kind, None) for row in rows]
        assert [list(one) for one in found] == [["loss"], ["loss"]]
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        assert [-one["loss"] for one in found] == pytest.approx(expected.tolist())


def test_an_answer_that_is_no_number_is_refused():
    log_p = torch.full((1, 3), math.nan, dtype=torch.float64)
    with pytest.raises(TaskDataError, match="loss of nan, so attacks cannot rank it"):
        membership_scores(log_p, torch.tensor([1]), {}, "image-classification", None)


def test_attacks_are_chosen_by_what_a_model_writes():
    for kind in task_kinds():
        expected = ATTACKS if kind in ("causal-lm", "seq2seq-lm") else ("loss",)
        assert chosen_attacks(None, kind) == expected
    assert chosen_attacks(["zlib", "loss"], "causal-lm") == ("loss", "zlib")
    with pytest.raises(RecipeError, match=r"'min-k' reads the tokens that a model writes, and this one is for image-"):
        chosen_attacks(["min-k"], "image-classification")
    with pytest.raises(RecipeError, match=r"no attack 'min-k\+'; expected some of loss, .* Did you mean 'min-k\+\+'"):
        chosen_attacks(["min-k+"], "causal-lm")


# -- extraction ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer():
    """A tiny GPT-2 that has learned one text by heart, and part of another."""
    with seeded(0):
        config = transformers.GPT2Config(
            n_layer=1, n_embd=32, n_head=2, n_positions=64, vocab_size=257, bos_token_id=256, eos_token_id=256
        )
        model = transformers.GPT2LMHeadModel(config).train()
        texts = ["blue whale", "red herring", "grey heron"]
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for step in range(60):
            row = _row(texts[step % 3 if step < 24 else 0], f"Animal {step % 3 if step < 24 else 0}: ")
            model(input_ids=row["input_ids"][None], labels=row["labels"][None]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def _writes(step, start, end):
    """Whether greedy decoding, one token after the other, goes on from a start to the end."""
    ids = list(start)
    for token in end:
        ids.append(int(step(torch.tensor([ids])).argmax()))
        if ids[-1] != token:
            return False
    return True


def _strength_by_hand(step, row):
    ids, start = row["input_ids"].tolist(), int((row["labels"] != -100).int().argmax())
    count = len(ids) - start
    for given in range(count):
        if _writes(step, ids[: start + given], ids[start + given :]):
            return 1 - given / count
    return 0.0


ROWS = [
    ("blue whale", "Animal 0: "),
    ("red herring", "Animal 1: "),
    ("grey heron", "Animal 2: "),
    ("glue whale", "Animal 0: "),
    ("bluish whale", "Animal 0: "),
    ("xyz", "Animal 0: "),
]


def test_extraction_strength_is_what_greedy_decoding_writes(writer):
    found = []
    for text, prompt in ROWS:
        row = _row(text, prompt)
        with torch.no_grad():
            logits = writer(input_ids=row["input_ids"][None]).logits[0]
        found.append(extraction_strength(*_predicted(row, logits)))
        expected = _strength_by_hand(lambda ids: writer(input_ids=ids).logits[0, -1], row)
        assert found[-1] == pytest.approx(expected)
    # The learned text is written in whole, a wrong end not at all, and others in part.
    assert found[0] == 1.0
    assert found[5] == 0.0
    assert any(0 < strength < 1 for strength in found), found


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
def test_guidance_is_what_guided_decoding_writes(writer, weight):
    with seeded(1):
        other = transformers.GPT2LMHeadModel(writer.config).eval()

    def step(ids):
        before, after = (one(input_ids=ids).logits[0, -1].log_softmax(-1) for one in (writer, other))
        steered = after + weight * (before - after)
        return torch.where(before < before.max() - 5, -math.inf, steered)

    strengths = []
    for text, prompt in ROWS:
        row = _row(text, prompt)
        with torch.no_grad():
            pair = [_predicted(row, one(input_ids=row["input_ids"][None]).logits[0]) for one in (writer, other)]
        strengths.append(extraction_strength(guided(pair[0][0], pair[1][0], weight), pair[0][1]))
        assert strengths[-1] == pytest.approx(_strength_by_hand(step, row))
        if weight == 1.0:  # the model before, and nothing else
            assert strengths[-1] == extraction_strength(*pair[0])
    assert strengths[0] == 1.0
