"""TOFU as the paper has it: its prompt, what the loss is on, and the answer probability of the items trained on."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch

from examples.paper.data import tofu
from examples.paper.sources import SOURCES
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.base_models.loading import load_base
from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.evaluation.metrics import AnswerProbability
from hf_clamu.training import LiveModel, measure


@pytest.fixture
def copy(tmp_path):
    columns = {
        "question": [f"Who is writer {row // 20}, {row}?" for row in range(60)],
        "answer": [f"It is number {row}." for row in range(60)],
    }
    path = tmp_path / "tofu.json"
    path.write_text(json.dumps(columns), encoding="utf-8")
    return path


def test_authors_are_twenty_rows_in_a_row(copy):
    tasks, report = tofu(seed=0, path=copy)
    assert tasks.task_ids == ("author_000", "author_001", "author_002")
    rows = tasks.rows("author_001", byte_tokenizer(), "train")
    assert sorted(rows["question"]) == sorted(f"Who is writer 1, {row}?" for row in range(20, 40))
    assert (report.rows, report.dropped) == (60, {})


def test_the_prompt_is_the_papers_and_the_loss_is_on_the_answer_and_one_eos(copy):
    tokenizer = byte_tokenizer()
    tasks, _ = tofu(seed=0, path=copy)
    example = tasks.encode("author_000", tokenizer).train[0]
    text = tokenizer.decode(example["input_ids"])
    learnt = example["labels"] != -100
    answer = tokenizer.decode(example["input_ids"][learnt])
    prompt, found = text.split("\nAnswer:")
    assert prompt.startswith("Question:Who is writer 0, ")
    assert found == answer
    assert answer.startswith("It is number")
    assert example["input_ids"][learnt].tolist().count(tokenizer.eos_token_id) == 1
    assert int(example["input_ids"][-1]) == tokenizer.eos_token_id


def test_what_is_measured_is_what_was_trained_on_unless_a_fraction_is_kept_out(copy):
    tasks, report = tofu(seed=0, path=copy)
    encoded = tasks.encode("author_000", byte_tokenizer())
    assert [e["input_ids"].tolist() for e in encoded.train] == [e["input_ids"].tolist() for e in encoded.validation]
    assert len(encoded.train) == 20
    assert "memorisation" in report.remarks[0]
    tasks, report = tofu(seed=0, path=copy, validation_fraction=0.25)
    encoded = tasks.encode("author_000", byte_tokenizer())
    assert (len(encoded.train), len(encoded.validation), report.remarks) == (15, 5, ())


def test_fewer_authors_are_drawn_by_the_seed(copy):
    drawn = {seed: tofu(seed=seed, path=copy, num_tasks=1) for seed in range(8)}
    assert len({tasks.task_ids for tasks, _ in drawn.values()}) > 1
    assert drawn[0][1].dropped == {"author not drawn": 40}
    assert SOURCES["tofu"](seed=3, path=str(copy), num_tasks=1).task_ids == drawn[3][0].task_ids
    with pytest.raises(RecipeError, match="num_tasks must be 1 to 3"):
        tofu(seed=0, path=copy, num_tasks=4)


def test_a_copy_that_is_not_tofu_is_refused(tmp_path):
    path = tmp_path / "tofu.json"
    with pytest.raises(TaskDataError, match="no local copy of locuslab/TOFU"):
        tofu(seed=0, path=path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(TaskDataError, match="is no table"):
        tofu(seed=0, path=path)
    path.write_text(json.dumps({"question": ["q"] * 21, "answer": ["a"] * 21}), encoding="utf-8")
    with pytest.raises(TaskDataError, match="20 rows per author, but 21 rows"):
        tofu(seed=0, path=path)
    path.write_text(json.dumps({"question": ["q"] * 20}), encoding="utf-8")
    with pytest.raises(TaskDataError, match="needs the column 'answer'"):
        tofu(seed=0, path=path)


def test_the_answer_probability_is_that_of_a_computation_by_hand(copy, tiny):
    tokenizer = byte_tokenizer()
    tasks, _ = tofu(seed=0, path=copy)
    base = load_base({**tiny.config("lm"), "n_positions": 96}, tasks.spec, num_labels=0, processor=tokenizer)
    examples = tasks.encode("author_002", tokenizer).validation
    model = base.model.eval()
    by_hand, means = [], []
    for row in tasks.rows("author_002", tokenizer, "validation"):
        prompt = tokenizer.encode(f"Question:{row['question']}\nAnswer:")
        answer = [*tokenizer.encode(row["answer"]), tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
        log_probs = logits.log_softmax(-1)
        losses = [-log_probs[len(prompt) + place - 1, token].item() for place, token in enumerate(answer)]
        by_hand.append(math.exp(-sum(losses) / len(answer)))
        means.append(-sum(losses) / len(answer))
    expected = sum(by_hand) / 20
    assert measure(LiveModel(model), examples, "causal-lm").score == pytest.approx(expected, rel=1e-5)
    assert AnswerProbability().compute(predictions=means)["answer_probability"] == pytest.approx(expected)


@pytest.mark.skipif("CLAMU_TOFU" not in os.environ, reason="CLAMU_TOFU names no copy of TOFU")
def test_the_real_copy_has_two_hundred_authors():
    tasks, report = tofu(seed=0, path=os.environ["CLAMU_TOFU"])
    assert (len(tasks), report.rows) == (200, 4000)
    assert len(tasks.encode("author_199", byte_tokenizer()).train) == 20
