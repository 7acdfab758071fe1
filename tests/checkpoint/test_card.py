"""The model card: what the Hub reads, what people read, and what it does not tell."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard

from hf_clamu import ClamuModel, ClamuTrainer, Recipe, RecipeError, TaskDataset
from hf_clamu.base_models.loading import load_base
from hf_clamu.checkpoint.card.model_card import model_card
from hf_clamu.checkpoint.card.settings import CardSettings
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.evaluation import evaluate_model
from hf_clamu.operations.configuration import initial_config
from hf_clamu.training import silent_progress


def _card(tiny, folder, kind="text", tasks=None, card=None, **changes):
    trainer = ClamuTrainer(
        tiny.config(kind),
        tiny.tasks(kind) if tasks is None else tasks,
        tiny.arguments(**changes),
        processing_class=tiny.processor(kind),
        card=card,
        progress=silent_progress,
    )
    trainer.train().save_pretrained(folder)
    return ModelCard.load(folder / "README.md")


def test_what_the_hub_reads(saved_text):
    data = ModelCard.load(saved_text / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.license) == ("hf-clamu", "text-classification", None)
    assert data.tags == ["clamu", "model-merging", "machine-unlearning", "peft"]
    (result,) = data.eval_results
    scores = json.loads((saved_text / "config.json").read_bytes())["scores"]
    assert (result.metric_type, result.dataset_split) == ("accuracy", "validation")
    assert result.metric_value == round(scores["mean"]["own"], 4)


def test_the_card_says_what_a_request_needs(tiny, saved_text, tmp_path):
    text = (saved_text / "README.md").read_text(encoding="utf-8")
    assert "`pip install .`" in text
    assert "# needs the rows of all merged tasks, or a snapshot of them" in text
    settings = {"localization": "sift", "clustering": "none", "score_validation": False}
    alone = _card(tiny, tmp_path / "alone", **settings).text
    assert "# needs the rows of this task, a snapshot of them, or an archive with its vector" in alone
    # What it says is enough.
    model = ClamuModel.from_pretrained(tmp_path / "alone")
    model.unmerge_task("user_1", data=tiny.tasks("text").select(["user_1"]))
    assert "user_1" not in model.tasks


@pytest.mark.parametrize("kind", ["text", "image", "lm"])
def test_the_scores_are_those_of_an_evaluation(kind, tiny, tmp_path):
    model = tiny.train(kind)
    model.save_pretrained(tmp_path / "m")
    scores = json.loads((tmp_path / "m/config.json").read_bytes())["scores"]
    lines = (tmp_path / "m/README.md").read_text(encoding="utf-8").splitlines()
    for serving in ("base", "global", "own"):
        report = evaluate_model(model, tiny.tasks(kind), split="validation", serving=serving)
        assert scores["mean"][serving] == pytest.approx(report.score, rel=1e-5)
        for number, summaries in report.clusters.items():
            assert scores["clusters"][number][serving] == pytest.approx(summaries[report.metric].mean, rel=1e-5)
            shown = f"{100 * scores['clusters'][number][serving]:.1f} %"
            assert any(line.startswith(f"| {number} |") and shown in line for line in lines)


def test_tasks_are_named_only_if_the_user_says_so(tiny, saved_text, tmp_path):
    assert "user_" not in (saved_text / "README.md").read_text(encoding="utf-8")
    text = str(_card(tiny, tmp_path / "m", card={"task_ids": True}))
    members = ClamuModel.from_pretrained(tmp_path / "m").clusters[0]
    assert " | ".join(["members", ""]).strip() in text
    assert f"| {', '.join(f'`{task_id}`' for task_id in members)} |" in text


def test_settings(tiny, tmp_path):
    settings = CardSettings(license="mit", language="en", datasets=["org/reviews"], tags=("reviews",))
    card = _card(tiny, tmp_path / "m", card=settings, scaling="auto", localization="tall")
    assert (card.data.license, card.data.language, card.data.datasets) == ("mit", ["en"], ["org/reviews"])
    assert card.data.tags[-1] == "reviews"
    assert card.data.eval_results[0].dataset_type == "org/reviews"
    assert "They also chose alpha and lambda." in card.text
    model = ClamuModel.from_pretrained(tmp_path / "m")
    assert CardSettings.from_dict(model.clamu_config.card) == settings
    # They outlive a request.
    model.unmerge_task("user_1", data=tiny.tasks("text")).save_pretrained(tmp_path / "m")
    assert ModelCard.load(tmp_path / "m/README.md").data.license == "mit"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"licence": "mit"}, "Did you mean 'license'"),
        ({"license": 1}, "license must be a string"),
        ({"language": 3}, "language must be a list of strings"),
        ({"tags": [""]}, "tags must be a list of strings"),
        ({"base_model": "../base"}, "base_model must be the id of a model on the Hub"),
        ({"base_model": 1}, "base_model must be the id of a model on the Hub"),
        ({"task_ids": "yes"}, "task_ids must be true or false"),
    ],
)
def test_wrong_settings(values, message):
    with pytest.raises(RecipeError, match=message):
        CardSettings.from_dict(values)


def test_a_recipe_has_them_too():
    recipe = Recipe.from_dict({"base_model": "x", "data": {"files": "y"}, "card": {"license": "mit"}})
    assert recipe.card == {"license": "mit"}
    with pytest.raises(RecipeError, match="card must be a mapping"):
        Recipe.from_dict({"base_model": "x", "data": {"files": "y"}, "card": "mit"})


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_snippet_for_peft_runs(saved_text):
    text = (saved_text / "README.md").read_text(encoding="utf-8")
    (code,) = [one for one in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "PeftModel" in one]
    names = {}
    exec(code.replace("ORG/NAME", saved_text.as_posix()), names)
    given = torch.tensor([[72, 101, 108]])
    ours = ClamuModel.from_pretrained(saved_text).set_cluster(0)
    assert torch.equal(names["model"](input_ids=given).logits, ours(input_ids=given).logits)


def test_the_snippet_for_peft_names_a_base_on_the_hub(saved_text):
    values = json.loads((saved_text / "config.json").read_bytes())
    values["base_model"] |= {"name_or_path": "org/base", "revision": "0" * 40, "embedded": False}
    card = model_card(replace(read_checkpoint(saved_text), config=ClamuConfig(**values), source=None))
    assert f'from_pretrained("org/base", revision="{"0" * 40}", num_labels=3)' in card
    data = ModelCard(card).data
    assert (data.base_model, data.base_model_relation) == ("org/base", "finetune")


def test_an_embedded_base_is_named_only_by_its_user(tiny, saved_text, tmp_path):
    data = ModelCard.load(saved_text / "README.md").data
    assert (data.base_model, data.get("base_model_relation")) == (None, None)
    assert "base_model" not in ClamuModel.from_pretrained(saved_text).clamu_config.card
    card = _card(tiny, tmp_path / "m", card={"base_model": "org/base"})
    assert (card.data.base_model, card.data.base_model_relation) == ("org/base", "finetune")
    assert "tasks merged into org/base" in card.text
    assert "is inside, in `base_model/`" in card.text
    model = ClamuModel.from_pretrained(tmp_path / "m")
    model.unmerge_task("user_1", data=tiny.tasks("text")).save_pretrained(tmp_path / "m")
    assert ModelCard.load(tmp_path / "m/README.md").data.base_model == "org/base"


def test_a_base_from_the_hub_has_one_name(tiny):
    tasks = tiny.tasks("text")
    base = load_base(tiny.config("text"), tasks.spec, num_labels=3, processor=tiny.processor("text"))
    base = replace(base, name_or_path="org/base", revision="0" * 40, embedded=False)
    same = initial_config(base, tasks, tiny.arguments(), CardSettings(base_model="org/base"))
    assert same.card["base_model"] == same.base_model["name_or_path"] == "org/base"
    with pytest.raises(
        RecipeError, match="base_model is org/other, but the base model was loaded from the Hub as org/"
    ):
        initial_config(base, tasks, tiny.arguments(), CardSettings(base_model="org/other"))


def test_what_transformers_remembers_of_a_base_is_no_proof(tiny, saved_text):
    values = json.loads((saved_text / "config.json").read_bytes())
    values["base_config"]["_name_or_path"] = "org/base"
    card = model_card(replace(read_checkpoint(saved_text), config=ClamuConfig(**values), source=None))
    assert "org/base" not in card


def test_a_global_model_has_no_masks_to_load(tiny, tmp_path):
    text = str(_card(tiny, tmp_path / "m", localization="global"))
    assert "subfolder" not in text
    assert "| masks | 0 bytes" in text


def test_a_model_that_forgot_all_has_a_card(tiny, tmp_path):
    model = tiny.train("text")
    model.unmerge_task(model.tasks).save_pretrained(tmp_path / "m")
    card = ModelCard.load(tmp_path / "m/README.md")
    assert card.data.eval_results is None
    assert "# ClAMU: 0 tasks merged" in card.text


def test_ids_cannot_break_the_table(tiny, tmp_path):
    odd = Dataset.from_dict({"user": ["a|b`c\nd"] * 2, "text": ["x", "y"], "label": ["bad", "good"]})
    tasks = TaskDataset.from_dataset(odd, task_column="user", text_column="text", label_column="label")
    text = str(_card(tiny, tmp_path / "m", tasks=tasks, card={"task_ids": True}))
    assert "| `a\\|b'c d` |" in text
