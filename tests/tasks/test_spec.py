from __future__ import annotations

import json

import pytest

from hf_clamu.errors import RecipeError
from hf_clamu.tasks import TaskSpec

TEXT = {"task_column": "user", "text_column": "text", "label_column": "label"}


def test_round_trip_through_json():
    spec = TaskSpec(kind="causal-lm", **TEXT, label_names=("a", "b"), template="Q: {prompt} {x}", max_length=9)
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_whole_and_real_zero_are_written_alike():
    assert json.dumps(TaskSpec.from_dict({**TEXT, "validation_fraction": 0}).to_dict()) == json.dumps(
        TaskSpec.from_dict(TEXT).to_dict()
    )


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"text_column": "t", "label_column": "l"}, "sequence-classification"),
        ({"text_column": "t", "label_column": "l", "kind": "causal-lm"}, "causal-lm"),
        ({"prompt_column": "p", "completion_column": "c"}, "causal-lm"),
        ({"prompt_column": "p", "completion_column": "c", "kind": "seq2seq-lm"}, "seq2seq-lm"),
        ({"text_column": "t", "label_column": "l", "kind": "seq2seq-lm"}, "seq2seq-lm"),
        ({"tokens_column": "w", "tags_column": "t"}, "token-classification"),
        ({"image_column": "i", "label_column": "l"}, "image-classification"),
    ],
)
def test_kind_follows_from_the_columns(columns, kind):
    assert TaskSpec.from_dict({"task_column": "user", **columns}).kind == kind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_colum": "x"}, "text_colum.*Did you mean 'text_column'"),
        ({"task_column": None}, "task_column is missing"),
        ({"task_column": ""}, "task_column must be the name"),
        ({"label_column": None}, r"needs text_column \+ label_column.*found text_column"),
        ({"image_column": "image"}, "no other content column"),
        ({"text_column": None}, "tell no kind of task"),
        ({"kind": "regression"}, "Unknown kind 'regression'"),
        ({"kind": "token-classification"}, r"needs tokens_column \+ tags_column and.*found text_column, label_column"),
        ({"tags_column": "tags"}, "no other content column; found text_column, label_column, tags_column"),
        ({"tokens_column": ""}, "tokens_column must be the name"),
        ({"template": "no slot"}, "exactly once"),
        ({"template": "{prompt}{prompt}"}, "exactly once"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": True}, "max_length"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"validation_fraction": float("nan")}, "validation_fraction"),
        ({"split_seed": "0"}, "split_seed"),
        ({"label_names": "ab"}, "label_names must be a list"),
        ({"label_names": [0, 1]}, "label_names must be a list"),
        ({"label_names": []}, "label_names must be a list"),
        ({"label_names": ["a", "b", "a"]}, "given twice: a"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        TaskSpec.from_dict({**TEXT, **change})


def test_later_fields_leave_the_bytes_of_other_kinds_alone():
    # The golden list is that of the first saved models.
    names = (
        "kind task_column text_column prompt_column completion_column image_column label_column id_column "
        "cluster_column label_names template max_length validation_fraction split_seed"
    )
    assert list(TaskSpec.from_dict(TEXT).to_dict()) == names.split()
    words = {"task_column": "user", "tokens_column": "words", "tags_column": "tags", "label_names": ["O"]}
    spec = TaskSpec.from_dict(words)
    assert (spec.to_dict()["tokens_column"], spec.to_dict()["tags_column"]) == ("words", "tags")
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_label_names_need_a_label_column():
    with pytest.raises(RecipeError, match="without a label_column"):
        TaskSpec.from_dict({"task_column": "u", "prompt_column": "p", "completion_column": "c", "label_names": ["a"]})
