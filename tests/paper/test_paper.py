"""`python -m examples.paper`: the smoke scale from end to end, and what can be worked out by hand."""

import inspect
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from examples.paper.__main__ import main
from examples.paper.advice import advised
from examples.paper.bases import BASES, load_setting_base
from examples.paper.claims import Claim, claims_of
from examples.paper.costs import mean_retained, unlearning_cost
from examples.paper.measured import LABELS, Measured, Value
from examples.paper.measures import first_answers
from examples.paper.methods import _Run, run_cell
from examples.paper.paper_tables import GPT2_XL_WEIGHTS, forgetting
from examples.paper.quoted import quoted_rows
from examples.paper.runner import measure_cells
from examples.paper.scale import CLUSTERING, METHODS, SCALES, Cell, Scale
from examples.paper.sections import TITLES
from examples.paper.sources import SOURCES, load_setting_tasks
from examples.paper.study import Study
from hf_clamu import ClamuTrainer
from hf_clamu.errors import RecipeError
from hf_clamu.merging import PRESETS
from hf_clamu.training import deterministic, silent_progress


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Everything of the smoke scale: where its results and its page are."""
    folder = tmp_path_factory.mktemp("paper")
    docs = Path(__file__).parents[2] / "docs"
    committed = {path: path.read_bytes() for path in (docs / "paper.md", *(docs / "images" / "paper").iterdir())}
    assert main(["all", "--scale", "smoke", "--output", str(folder / "results"), "--jobs", "1"]) == 0
    # No scale writes docs/ unless it is asked to.
    assert {path: path.read_bytes() for path in committed} == committed
    return folder


def test_questions_are_measured_if_they_are_named(ran, tmp_path):
    texts = [
        f"why is my {thing} {state} {n}?,{thing}_{state}"
        for thing in ("card", "cash", "pin")
        for state in ("lost", "late")
        for n in range(40)
    ]
    for name, part in (("train", texts[::2]), ("test", texts[1::2])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,category", *part]), encoding="utf-8")
    words = ["--scale", "smoke", "--output", str(ran / "results"), "--page", str(tmp_path / "paper.md"), "--jobs", "1"]
    assert "Beyond the paper" not in (ran / "results" / "smoke" / "paper.md").read_text()
    assert main(["banking77", "report", *words, "--data", f"banking77={tmp_path}"]) == 0
    page = (tmp_path / "paper.md").read_text()
    table = page.partition("## Beyond the paper: customers' questions")[2]
    assert "| forgotten of 6 | 0 | 1 | 3 | 5 |" in table
    assert all(f"| {LABELS[method]} | " in table for method in Scale.load("smoke").experiments["banking77"].methods)
    assert "## Table 4: Reddit" in page


@pytest.fixture(scope="module")
def study(ran):
    """A setting of it, whose tasks are finetuned already."""
    setting = Scale.load("smoke").settings["images_label"]
    work = ran / "results" / "smoke" / "work" / f"images_label-0-{setting.digest[:12]}"
    with deterministic(1):
        yield Study(setting, 0, work, {}, silent_progress)


def test_the_page_has_every_table_and_figure(ran):
    page = (ran / "results" / "smoke" / "paper.md").read_text()
    scale = Scale.load("smoke")
    assert "## Table 4: Reddit" in page
    assert "## Table 5: Sent140" in page
    measured = {name: one for name, one in scale.experiments.items() if one.in_all}
    for name, experiment in measured.items():
        assert f"`python -m examples.paper {name} --scale smoke`" in page
        assert all(scale.settings[setting].title in page for setting in experiment.settings)
    assert scale.experiments.keys() - measured.keys() == {"banking77"}
    for method in METHODS:
        assert LABELS[method] in page
    assert "374.5 times" in page
    advice = page.partition("## Which method to take")[2].partition("\n## ")[0]
    settings = ("images_label", "users_cls", "users_lm", "reddit_cls", "reddit_lm")
    assert all(f"| {scale.settings[setting].title}, 4 tasks | " in advice for setting in settings)
    images = sorted(path.name for path in (ran / "results" / "smoke" / "images" / "paper").iterdir())
    assert images == ["figure2.png", "figure3.png", "figure4.png", "figure5.png", "table1.png"]
    assert all(f"](images/paper/{name})" in page for name in images)
    # Each request was compared with a build, byte for byte.
    assert re.findall(r"\| (\d+), (\S+) \|", page) == [("2", "yes")] * 3


def test_results_say_what_they_depend_on(ran):
    path = ran / "results" / "smoke" / "cells" / "images_label-0.json"
    found = json.loads(path.read_text())
    setting = Scale.load("smoke").settings["images_label"]
    assert found["setting_digest"] == setting.digest
    assert found["seed"] == 0
    assert found["environment"]["num_threads"] == 1
    for cell in found["cells"].values():
        assert cell["score"] == pytest.approx(sum(cell["scores"].values()) / len(cell["scores"]))
        assert 0 <= cell["score"] <= 1


def test_what_is_measured_is_not_measured_again(ran, capsys):
    scale = Scale.load("smoke")
    measured = [experiment for experiment in scale.experiments.values() if experiment.in_all]
    cells = [cell for experiment in measured for cell in scale.cells(experiment)]
    measure_cells(scale, cells, ran / "results" / "smoke", {}, 1)
    assert capsys.readouterr().out == ""


def test_results_of_another_recipe_are_not_used(ran, tmp_path):
    shutil.copytree(ran / "results" / "smoke" / "cells", tmp_path / "cells")
    scale = Scale.load("smoke")
    changed = scale.settings["images_label"].__class__(
        **{**vars(scale.settings["images_label"]), "arguments": {"finetune_steps": 3}}
    )
    assert Measured(scale, tmp_path).missing(scale.experiments["table2"]) == []
    scale.settings["images_label"] = changed
    left = Measured(scale, tmp_path).missing(scale.experiments["table2"])
    assert len(left) == len(list(scale.cells(scale.experiments["table2"])))


def test_timed_requests_of_another_recipe_are_not_used(ran):
    scale = Scale.load("smoke")
    measured = Measured(scale, ran / "results" / "smoke")
    assert measured.extra("cost").keys() == {"images_label"}
    scale.experiments["cost"] = replace(scale.experiments["cost"], requests=3)
    assert measured.extra("cost") == {}


def test_what_the_paper_states_is_beside_ours(ran):
    scale = Scale.load("smoke")
    measured = Measured(scale, ran / "results" / "smoke")
    rows = {row[1]: row[2] for row in quoted_rows(measured)}
    assert rows["374.5x"] == "374.5x, counted"
    # Three of four tasks are left, and TALL trains each again.
    assert rows["up to 250x (500 tasks)"] == "3x, counted (TALL and EMR, 4 tasks)"
    gains = [
        100 * (measured.value(setting, 4, "sift").mean - measured.value(setting, 4, "average").mean)
        for setting in ("images_label", "users_cls", "users_lm")
    ]
    assert rows["5 to 80"] == f"{min(gains):.1f} to {max(gains):.1f}"
    assert rows["12 to 30"] == _range(
        [
            _score(measured, "images_label", "clamu", count, "features")
            - _score(measured, "images_label", "clamu", count, "random")
            for count in (2, 3)
        ]
    )
    assert rows["5 to 20"] == _range(
        [
            _score(measured, setting, "clamu", 2) - _score(measured, setting, method, 2)
            for setting in ("images_label", "users_cls", "users_lm")
            for method in ("tall", "emr")
        ]
    )
    page = (ran / "results" / "smoke" / "paper.md").read_text()
    assert all(f"| {number} | {ours} |" in page for number, ours in rows.items())


def _score(measured, setting, method, num_clusters, clustering=CLUSTERING):
    return 100 * measured.value(setting, 4, method, num_clusters=num_clusters, clustering=clustering).mean


def _range(points):
    return f"{round(min(points))} to {round(max(points))}"


def test_the_papers_tables_stand_beside_ours(ran):
    page = (ran / "results" / "smoke" / "paper.md").read_text()
    parts = {part.partition(":")[0]: part for part in page.split("\n## ")}

    def rows(part, label):
        lines = [line.strip("| ").split(" | ") for line in parts[part].split("\n") if line.startswith("| ")]
        return [cells[1:] for cells in lines if cells[0] == label]

    assert rows("Table 1", "ClAMU")[0][2:] == "100 94 40 35 100 100 100 100".split()
    assert rows("Table 1", "merged tasks")[0][2] == "paper, small: 2"
    # The classification head comes first, then the other; ours by three clusterings come before the paper's.
    assert [row[3:] for row in rows("Table 4", "TALL")] == [["40.1", "25.1"], ["45.7", "27.8"]]
    assert [row[3:] for row in rows("Table 5", "local models")] == [["69.4", "67.8"], ["66.3", "63.2"]]
    assert rows("Table 4", "zero-shot")[0][3:] == ["–", "–"]
    # Ours under stable_kmeans, features and random clusters: every cell was measured.
    assert all("–" not in row[:3] for name in ("Table 4", "Table 5") for row in rows(name, "EMR"))
    # What the paper counts, and what our formulas give for its sizes.
    assert rows("Table 2", "375")[0][:6] == ["70.8", "7.5K", "7,500", "83.9", "188K", "187,500"]
    counted, accuracies = rows("Table 3", "250")
    assert counted == ["10K", "10,000", "40", "53", "52.9", "54.9", "9.8", "9.8", "10.1"]
    assert accuracies[:3] == ["63.4", "79.4", "71.2"]
    assert rows("Table 6", "(i) images, all labels per task")[0][-4:] == ["500", "100", "10 to 47", "102"]


def test_a_table_with_more_rows_than_the_papers():
    columns, rows = forgetting((["here"], [[str(row)] for row in range(7)]))
    assert len(columns) == len(rows[0]) == len(rows[6]) == 8
    assert (rows[5][0], rows[5][-1]) == ("499", "5")
    assert rows[6] == ["–"] * 7 + ["6"]


def test_gpt2_xl_is_as_large_as_counted():
    config = AutoConfig.for_model("gpt2", n_embd=1600, n_layer=48, n_head=25)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == GPT2_XL_WEIGHTS


def test_docs_are_written_by_report_alone(capsys):
    with pytest.raises(SystemExit):
        main(["table6", "--scale", "smoke", "--docs"])
    assert "--docs goes with report or all" in capsys.readouterr().err


def test_a_measured_cell_is_measured_the_same_again(ran, study):
    found = json.loads((ran / "results" / "smoke" / "cells" / "images_label-0.json").read_text())["cells"]
    for key in (
        "4/-/0/ties",
        "4/features/2/clamu",
        "4/stable_kmeans/2/clamu_tuned",
        "4/stable_kmeans/2/lora_2",
        "4/-/0/sift",
        "4/random/2/sisa",
    ):
        num_tasks, clustering, count, method = key.split("/")
        cell = Cell.of("images_label", 0, int(num_tasks), clustering.replace("-", ""), int(count), method)
        assert cell.key == key
        with deterministic(1):
            assert run_cell(study, cell).to_dict()["scores"] == found[key]["scores"]


def test_an_adapter_is_as_large_as_its_weights_and_leaves_the_model_as_it_was(study):
    run = _Run(study, Cell.of("images_label", 0, 4, CLUSTERING, 2, "lora_2"))
    run.workspace.reset()
    before = {name: weight.clone() for name, weight in run.workspace.model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in run.workspace.model.named_parameters()}
    outcome = run.outcome()
    run.workspace.reset()
    after = run.workspace.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert {name: parameter.requires_grad for name, parameter in run.workspace.model.named_parameters()} == flags
    linear = [module for module in run.workspace.model.modules() if isinstance(module, torch.nn.Linear)]
    own = sum(2 * (module.in_features + module.out_features) for module in linear)
    assert outcome.num_clusters == 2
    assert outcome.storage == pytest.approx(1 + 2 * own / run.workspace.num_parameters)


def test_masks_are_counted_with_their_factors(study):
    run = _Run(study, Cell.of("images_label", 0, 4, CLUSTERING, 2, "clamu"))
    storage = 1 + 2 / 32 + 2 * len(run.workspace.parameters) / run.workspace.num_parameters
    assert run.outcome().storage == pytest.approx(storage)


def test_clusters_are_those_of_a_build(study):
    arguments = replace(study.arguments, num_clusters=2)
    base = load_setting_base(study.setting, study.tasks, study.folder.parent / "bases", 0, {})
    trainer = ClamuTrainer(base.model, study.tasks, arguments, processing_class=None, progress=silent_progress)
    model = trainer.train()
    assert study.clusters(tuple(sorted(study.tasks)), CLUSTERING, 2) == model.clusters


def test_tuning_and_reporting_see_different_examples(study):
    trainer = study.pool().trainer
    for task_id in study.tasks:
        tuning, reported = trainer.encoded(task_id).validation, trainer.reported(task_id)
        assert len(tuning) + len(reported) == len(study.tasks.encode(task_id, None).validation)
        seen = {example["pixel_values"].numpy().tobytes() for example in (*tuning, *trainer.encoded(task_id).train)}
        assert not any(example["pixel_values"].numpy().tobytes() in seen for example in reported)


def test_fewer_tasks_are_the_start_of_more(study):
    assert set(study.subset(2)) < set(study.subset(4))
    with pytest.raises(ValueError, match="7 tasks are asked for, and 6 are there"):
        study.subset(7)


def test_ties_by_hand(study):
    run = _Run(study, Cell.of("images_label", 0, 3, "", 0, "ties"))
    vectors = [torch.cat([n.reshape(-1) for n in study.pool().vector(one).steps.values()]) for one in run.task_ids]
    trimmed = []
    for n in vectors:
        least = n.abs().sort().values[int(len(n) * 0.8) - 1]
        trimmed.append(torch.where(n.abs() > least, n, 0))
        assert (trimmed[-1] != 0).float().mean().item() == pytest.approx(0.2, abs=1e-3)
    stacked = torch.stack(trimmed).long()
    agrees = torch.sign(stacked) == torch.sign(stacked.sum(0))
    expected = torch.where(agrees, stacked, 0).sum(0)
    elected = run.sum_of(run.trimmed())
    agreed = run.sum_of(
        {name: torch.where(torch.sign(n) == torch.sign(elected[name]), n, 0) for name, n in vector.items()}
        for vector in run.trimmed()
    )
    assert torch.equal(torch.cat([n.reshape(-1) for n in agreed.values()]), expected)


def test_sift_vectors_have_one_sign_per_weight(study):
    vectors = [study.pool("sift").vector(one).steps for one in study.subset(4)]
    for name in vectors[0]:
        stacked = torch.stack([vector[name] for vector in vectors])
        assert not ((stacked > 0).any(0) & (stacked < 0).any(0)).any()
    free = [study.pool().vector(one).steps for one in study.subset(4)]
    stacked = torch.stack([torch.cat([n.reshape(-1) for n in vector.values()]) for vector in free])
    assert ((stacked > 0).any(0) & (stacked < 0).any(0)).any()


def test_labels_that_begin_alike_are_refused():
    def example(*tokens):
        return {"labels": torch.tensor([-100, -100, *tokens])}

    assert first_answers([example(5, 7), example(6, 7), example(5, 7)]) == [5, 6]
    with pytest.raises(ValueError, match="2 labels begin with 1 different tokens"):
        first_answers([example(5, 7), example(5, 8)])


def test_costs_by_hand():
    settings = {"finetune_steps": 20, "mask_steps": 50, "num_tasks": 500, "retained": 250, "num_clusters": 4}

    def steps(method):
        cost = unlearning_cost(method, **settings)
        return cost.gradient, cost.parallel

    assert steps("clamu") == (250 * 20 + 4 * 50, 20 + 50)
    assert steps("sift") == steps("task_arithmetic") == (250 * 20, 20)
    assert steps("central") == (250 * 20, 250 * 20)
    assert steps("sisa") == (250 * 20, 250 * 20 / 4)
    assert steps("tall") == (250 * 20, 20)
    assert steps("lora_2") == (4 * 50, 50)
    assert steps("local") == (0, 0)
    one = unlearning_cost("sisa", **{**settings, "retained": 499})
    assert one.gradient == one.parallel == 499 * 20 / 4
    assert all(unlearning_cost(method, **{**settings, "retained": 500}).gradient == 0 for method in METHODS)
    assert mean_retained(500, 250) == 374.5


def test_the_preset_that_stores_least_is_taken_where_the_best_is_no_better():
    def value(*scores):
        return Value(values=scores)

    base, alike = value(0.1, 0.1), {"one-model": value(0.6, 0.7), "per-task": value(0.3, 0.4)}
    assert value(0.6, 0.8).error == pytest.approx(0.1)
    assert value(0.6).error == 0
    assert advised(base, {**alike, "clusters": value(0.6, 0.8)}) == "one-model"
    assert advised(base, {**alike, "clusters": value(0.79, 0.8)}) == "clusters"
    assert advised(base, {**alike, "clusters": value(0.6, 0.8), "per-task": value(0.9, 0.9)}) == "per-task"
    assert advised(value(0.9, 0.9), {**alike, "clusters": value(0.6, 0.8)}) == "no merging"


def test_a_claim_compares_means():
    claim = Claim(
        name="x",
        statement="x",
        setting="y",
        higher=("a", Value(values=(0.5, 0.9))),
        lower=("b", Value(values=(0.6, 0.7))),
    )
    assert claim.holds
    assert claim.num_seeds == 1
    assert Value(values=(0.25, 0.75)).percent() == "50.0 ± 25.0"


def test_claims_are_read_from_the_cells(ran):
    scale = Scale.load("smoke")
    measured = Measured(scale, ran / "results" / "smoke")
    found = claims_of("figure3", scale.experiments["figure3"], measured)
    assert [claim.name for claim in found] == ["sift_over_clamu"]
    assert found[0].higher[1] == measured.value("images_label", 4, "sift")
    assert found[0].lower[1] == measured.value("images_label", 4, "clamu", num_clusters=2)
    assert measured.value("images_label", 3, "sift") is None


@pytest.mark.parametrize("name", SCALES)
def test_recipes_of_all_scales_can_be_read(name):
    scale = Scale.load(name)
    for setting in scale.settings.values():
        assert setting.settings(0).scaling == PRESETS["clusters"].settings["scaling"]
        options = dict(setting.data)
        inspect.signature(SOURCES[options.pop("source")]).bind(seed=0, **options)
        if not isinstance(setting.base, str):
            options = dict(setting.base)
            inspect.signature(BASES[options.pop("source")]).bind(None, None, **options)
    assert scale.experiments.keys() == TITLES.keys()
    assert all(list(scale.cells(one)) for key, one in scale.experiments.items() if key not in ("table6", "cost"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["all", "--scale", "huge"], "There is no scale 'huge'. Choose one of smoke, local, small, paper"),
        (["all", "--scale", "{path}"], "unknown method 'clams'"),
    ],
)
def test_wrong_use(tmp_path, capsys, words, message):
    path = tmp_path / "own.yaml"
    path.write_text("about: x\nseeds: [0]\nsettings: {}\nexperiments: {a: {settings: [], methods: [clams]}}\n")
    assert main([word.format(path=path) for word in words]) == 2
    assert message in capsys.readouterr().err


def test_a_setting_may_have_seeds_of_its_own():
    scale = Scale.load("local")
    assert {cell.seed for cell in scale.cells(scale.experiments["banking77"])} == {0}
    assert {cell.seed for cell in scale.cells(scale.experiments["table1"])} == {0, 1, 2}
    assert replace(scale.settings["banking77"], seeds=(1,)).digest == scale.settings["banking77"].digest


def test_an_unknown_table(capsys):
    with pytest.raises(SystemExit):
        main(["table9", "--scale", "smoke"])
    assert "scale smoke has no 'table9'" in capsys.readouterr().err


def test_an_unknown_source_is_named():
    with pytest.raises(RecipeError, match="No source of tasks is called 'digit'"):
        load_setting_tasks({"source": "digit"}, 0, {})
