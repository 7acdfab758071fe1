"""Metrics without network, in memory."""

from __future__ import annotations

import math

import evaluate
import pytest

from hf_clamu.evaluation import METRICS, Accuracy, AnswerProbability, MacroF1


def test_accuracy_of_words_counts_each_example_the_same():
    found = Accuracy().compute(predictions=[[0, 0, 0, 0], [1]], references=[[0, 1, 1, 1], [1]])
    assert found == {"accuracy": (1 / 4 + 1) / 2}


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [
        ([0, 1, 1], [0, 1, 1], 1.0),
        ([0, 0, 0], [0, 1, 1], (2 * 1 / (2 * 1 + 2) + 0) / 2),  # label 1 is never predicted
        ([2, 1, 1], [1, 1, 1], (2 * 2 / (2 * 2 + 1) + 0) / 2),  # label 2 is predicted and never right
        ([[0, 1], [1]], [[0, 1], [0]], (2 / 3 + 2 / 3) / 2),
    ],
)
def test_macro_f1_by_hand(predictions, references, expected):
    assert MacroF1().compute(predictions=predictions, references=references)["macro_f1"] == pytest.approx(expected)


def test_answer_probability_is_the_mean_of_probabilities_not_of_logarithms():
    found = AnswerProbability().compute(predictions=[math.log(0.9), math.log(0.1)])
    assert found["answer_probability"] == pytest.approx(0.5)


def test_they_are_metrics_of_evaluate_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    for name, make in METRICS.items():
        metric = make()
        assert isinstance(metric, evaluate.Metric)
        values = {"predictions": [0.0]} if name == "answer_probability" else {"predictions": [1], "references": [1]}
        metric.add_batch(**values)
        assert metric.compute() == {name: 1.0}
    assert list(tmp_path.iterdir()) == []


def test_they_combine():
    found = evaluate.combine([Accuracy(), MacroF1()]).compute(predictions=[0, 1], references=[0, 0])
    assert found == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}
