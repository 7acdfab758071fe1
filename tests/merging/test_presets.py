"""Presets: plain settings by a name, the same bytes as those settings, and what is not meant to go together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hf_clamu import ClamuTrainer, Recipe, RecipeError
from hf_clamu.merging import METHOD_SETTINGS, PRESETS, ClamuArguments
from hf_clamu.training import silent_progress

EXPLICIT = {
    "per-task": {"localization": "sift", "clustering": "none", "scaling": 1},
    "clusters": {
        "localization": "clamu",
        "clustering": "stable_kmeans",
        "num_clusters": 20,
        "scaling": 8.0,
        "mask_steps": 150,
        "mask_gradient_norm": "unit",
        "mask_factors": "tensor",
    },
    "adapters": {"localization": "sift", "clustering": "none", "scaling": 1},
    "one-model": {"localization": "global", "clustering": "random", "num_clusters": 1, "scaling": "auto"},
}
# What `clusters` meant before it was changed; recipes without a preset keep to it.
BEFORE = {"scaling": 4.0, "mask_steps": 50, "mask_gradient_norm": "raw", "mask_factors": "none"}
QUICK = {"finetune_steps": 2, "mask_steps": 2, "learning_rate": 0.01, "batch_size": 3, "num_threads": 1}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_settings(name):
    arguments = ClamuArguments(preset=name)
    assert arguments == ClamuArguments(**EXPLICIT[name])
    assert "preset" not in arguments.to_dict()
    assert ClamuArguments.from_dict(arguments.to_dict()) == arguments
    assert ClamuArguments.from_dict({"preset": name}) == arguments


def test_every_preset_has_settings_of_its_own():
    assert set(EXPLICIT) == set(PRESETS)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "per-task"),
        ({"learning_rate": 1e-3, "scaling": 1.0}, "per-task"),
    ],
)
def test_without_a_preset_the_named_settings_tell(given, name):
    assert ClamuArguments(**given) == ClamuArguments(preset=name, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"clustering": "column"},
        {"clustering": "features"},
        {"clustering": "anchored", "scaling": 2.0},
        {"localization": "emr", "clustering": "random", "mask_steps": 7},
        {"num_clusters": 3, "clustering": "none", "mask_factors": "tensor"},
    ],
)
def test_without_a_preset_clusters_are_what_they_were(given):
    assert ClamuArguments(**given) == ClamuArguments(preset="clusters", **{**BEFORE, **given})


@pytest.mark.parametrize("given", [{"num_clusters": 20}, {"localization": "clamu"}, {"localization": "emr"}])
def test_without_a_preset_clusters_are_of_features_as_they_were_before_presets(given):
    assert ClamuArguments(**given) == ClamuArguments(preset="clusters", clustering="features", **BEFORE, **given)


def test_settings_that_are_given_win():
    arguments = ClamuArguments(preset="per-task", clustering="column", scaling=2.0, num_clusters=3)
    assert (arguments.localization, arguments.clustering, arguments.scaling) == ("sift", "column", 2.0)
    assert arguments.num_clusters == 3
    assert ClamuArguments(preset="clusters", num_clusters=5).num_clusters == 5


@pytest.mark.parametrize("name", ["per-task", "adapters", "one-model"])
def test_a_number_of_clusters_does_not_go_with_a_preset_that_has_none(name):
    with pytest.raises(RecipeError, match=r"no clusters .* num_clusters is 5\. Leave it out, or choose preset 'clu"):
        ClamuArguments(preset=name, num_clusters=5)


@pytest.mark.parametrize("name", ["per task", "pertask", 3, ["per-task"]])
def test_unknown_presets_are_refused(name):
    with pytest.raises(RecipeError, match="preset must be one of per-task, clusters, adapters, one-model, got"):
        ClamuArguments(preset=name)


def test_unknown_settings_are_refused_in_python_too():
    with pytest.raises(RecipeError, match=r"Unknown setting 'num_cluster' in ClamuArguments\. Did you mean 'num_cl"):
        ClamuArguments(num_cluster=3)


def test_a_changed_copy_keeps_settings_and_adapter():
    arguments = ClamuArguments(preset="adapters")
    changed = replace(arguments, batch_size=7)
    assert changed.batch_size == 7
    assert changed.localization == arguments.localization
    assert (
        changed.default_peft_config
        == arguments.default_peft_config
        == {
            "peft_type": "LORA",
            "r": 8,
            "target_modules": "all-linear",
        }
    )
    assert ClamuArguments(preset="per-task").default_peft_config is None


def test_a_preset_of_the_command_line_replaces_the_method_of_a_recipe_and_nothing_else():
    others = {"finetune_steps": 7, "learning_rate": 1e-3}
    method = {"localization": "emr", "clustering": "random", "num_clusters": 3, "scaling": "sum"}
    assert set(method) == set(METHOD_SETTINGS)
    recipe = Recipe(base_model="base", data={}, arguments={**others, **method, "preset": "clusters"})
    assert recipe.with_preset(None) is recipe
    assert recipe.with_preset("per-task").clamu_arguments() == ClamuArguments(preset="per-task", **others)


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    """Gives the folder of a model by its settings."""

    def build(settings, *, without=(), **options):
        folder = tmp_path_factory.mktemp("presets") / "model"
        tasks = tiny.tasks("text").without(without)
        arguments = ClamuArguments(**{**settings, **QUICK})
        options |= {"processing_class": tiny.processor("text"), "progress": silent_progress}
        ClamuTrainer(tiny.config("text"), tasks, arguments, **options).train().save_pretrained(folder)
        return folder

    return build


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_the_bytes_of_its_settings_and_forgets_exactly(tiny, built, name):
    from hf_clamu import ClamuModel

    peft = {"peft_type": "LORA", "r": 8, "target_modules": "all-linear"} if name == "adapters" else None
    folder = built({"preset": name})
    assert tiny.digests(folder) == tiny.digests(built(EXPLICIT[name], peft_config=peft))
    model = ClamuModel.from_pretrained(folder)
    model.unmerge_task("user_2", data=tiny.tasks("text")).save_pretrained(folder.parent / "unmerged")
    assert tiny.digests(folder.parent / "unmerged") == tiny.digests(built({"preset": name}, without=["user_2"]))
