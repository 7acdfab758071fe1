from __future__ import annotations

import json

import pytest

from hf_clamu.errors import RecipeError
from hf_clamu.merging import PRESETS, ClamuArguments, LocalizationArguments


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": "5e-5"}, "learning_rate must be a number, got '5e-5'. Write it without quotes."),
        ({"learning_rate": None}, "learning_rate must be a number, got None."),
        ({"learning_rate": True}, "learning_rate must be a number, got True."),
        ({"max_grad_norm": "1"}, "max_grad_norm must be a number, got '1'. Write it without quotes."),
        ({"finetune_steps": "20"}, "finetune_steps must be a whole number, got '20'. Write it without quotes."),
        ({"finetune_steps": 2.0}, "finetune_steps must be a whole number, got 2.0."),
        ({"finetune_steps": True}, "finetune_steps must be a whole number, got True."),
        ({"num_clusters": "3"}, "num_clusters must be a whole number, got '3'."),
        ({"mask_steps": 2.5}, "mask_steps must be a whole number, got 2.5."),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5."),
        ({"num_threads": "2"}, "num_threads must be a whole number, got '2'."),
        ({"num_threads": 1.5}, "num_threads must be a whole number, got 1.5."),
        ({"bf16": "yes"}, "bf16 must be true or false, got 'yes'."),
        ({"bf16": 1}, "bf16 must be true or false, got 1."),
        ({"freeze": "*.wte.*"}, "freeze must be a list of patterns of parameter names, got '*.wte.*'."),
        ({"freeze": [3]}, "freeze must be a list of patterns of parameter names, got [3]."),
        ({"scaling": None}, "scaling must be a number, got None."),
        ({"scaling": True}, "scaling must be a number, got True."),
        ({"scaling": "4"}, "scaling must be a number above 0, 'sum' or 'auto', got '4'."),
        ({"scaling": 0}, "scaling must be a number above 0, 'sum' or 'auto', got 0.0."),
        ({"scaling": float("nan")}, "scaling must be a number above 0, 'sum' or 'auto', got nan."),
        ({"localization": "ties"}, "localization must be one of clamu, sift, tall, emr, global, got 'ties'."),
        ({"localization": 1}, "localization must be one of clamu, sift, tall, emr, global, got 1."),
        (
            {"clustering": ["none"]},
            "clustering must be one of features, task_vectors, stable_kmeans, anchored, public_rows, random, column, "
            "none",
        ),
        ({"lr_scheduler_type": 3}, "lr_scheduler_type must be one of constant, linear, cosine, got 3."),
        ({"mask_batch_size": 0}, "mask_batch_size must be at least 1, got 0."),
        ({"learning_rate": "high"}, "learning_rate must be a number, got 'high'."),
        ({"learning_rate": -1.0}, "learning_rate must be above 0, or 'auto', got -1.0."),
        ({"fraction_bits": 53}, "fraction_bits must be a whole number from 0 to 52, got 53."),
        ({"fraction_bits": "28"}, "fraction_bits must be a whole number, got '28'."),
        ({"integer_bits": 16}, "integer_bits must be 8 or 32, got 16."),
    ],
)
def test_unusable_values_are_refused_with_a_sentence(values, message):
    with pytest.raises(RecipeError) as error:
        ClamuArguments.from_dict(values)
    assert str(error.value).startswith(message)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"Unknown setting 'num_cluster' in arguments\. Did you mean 'num_clusters'"):
        ClamuArguments.from_dict({"num_cluster": 3})
    with pytest.raises(RecipeError, match=r"Known ones: adam_beta1, .*weight_decay"):
        ClamuArguments.from_dict({"xyz": 3})


def test_settings_survive_json():
    arguments = ClamuArguments(freeze=["a.*"], scaling="auto", num_threads=2, learning_rate=1e-3)
    assert arguments.freeze == ("a.*",)
    assert ClamuArguments.from_dict(json.loads(json.dumps(arguments.to_dict()))) == arguments


def test_equal_settings_are_written_alike():
    whole = ClamuArguments(learning_rate=1, weight_decay=0, scaling=1, freeze=[])
    plain = ClamuArguments(learning_rate=1.0, scaling=1.0)
    assert whole == plain
    assert json.dumps(whole.to_dict()) == json.dumps(plain.to_dict())


def test_every_setting_is_described():
    described = ClamuArguments.describe()
    settings = list(ClamuArguments().to_dict())
    settings.remove("integer_bits")  # of the file format
    assert list(described) == ["preset", *settings]
    assert all(text.endswith(".") and len(text) > 10 for text in described.values())
    for name, preset in PRESETS.items():
        values = ", ".join(f"{setting} {value}" for setting, value in preset.settings.items())
        assert f"{name} ({preset.summary}: {values}" in described["preset"]


def test_the_stage_alone_checks_ranges_too():
    with pytest.raises(RecipeError, match="scaling must be a number above 0"):
        LocalizationArguments(scaling=-1.0)
