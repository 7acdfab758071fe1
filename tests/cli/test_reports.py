"""`clamu train --report-to`: the command and the recipe, and folders that the model would need."""

from __future__ import annotations

from event_files import losses_in, needs_tensorboard


@needs_tensorboard
def test_the_command_and_the_recipe_report_the_same_and_the_model_does_not_change(clamu, work, tiny):
    told = ("--report-to", "tensorboard", "--logging-dir", "logs")
    assert clamu("train", "text.yaml", "--output", "told", *told).code == 0
    assert tiny.digests(work / "told") == tiny.digests(work / "text")
    losses = losses_in(work / "logs/clamu")
    assert {task_id: len(seen) for task_id, seen in losses.items()} == {f"user_{number}": 2 for number in range(4)}
    (work / "recipes").mkdir()
    recipe = (work / "text.yaml").read_text(encoding="utf-8").replace("rows.jsonl", "../rows.jsonl")
    recipe += "report_to: [tensorboard]\nlogging_dir: ../by-recipe\n"
    (work / "recipes/text.yaml").write_text(recipe, encoding="utf-8")
    assert clamu("train", "recipes/text.yaml", "--output", "other").code == 0
    assert losses_in(work / "by-recipe/clamu") == losses
    # The command goes before the recipe.
    assert clamu("train", "recipes/text.yaml", "--output", "third", "--logging-dir", "elsewhere").code == 0
    assert losses_in(work / "elsewhere/clamu") == losses


@needs_tensorboard
def test_logs_in_the_folder_of_the_model_are_refused_before_anything_is_trained(clamu, work):
    for logs, output in (("new/logs", "new"), (".", "clamu")):
        found = clamu("train", "text.yaml", "--output", output, "--report-to", "tensorboard", "--logging-dir", logs)
        assert found.code == 2
        assert "inside the folder of the model" in found.error
        assert not (work / output).exists()


def test_unknown_trackers_are_refused(clamu, work):
    found = clamu("train", "text.yaml", "--output", "new", "--report-to", "wand")
    assert found.code == 2
    assert "unknown tracker 'wand'. Did you mean 'wandb'?" in found.error
    found = clamu("train", "text.yaml", "--output", "new", "--logging-dir", "logs")
    assert "report_to names no tracker that could write there" in found.error
    assert not (work / "new").exists()
