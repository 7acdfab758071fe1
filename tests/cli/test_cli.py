"""The commands as a user runs them: results, exit codes, one JSON object or one readable line, never a traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_clamu

COMMANDS = ("demo", "train", "merge", "info", "predict", "evaluate", "export", "unmerge", "add", "update", "verify")
UNKNOWN = "No merged task is called 'usr_1'; 4 are merged. It was never merged, or is forgotten already. List"


def _process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hf_clamu.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


# -- in processes of their own ---------------------------------------------------------------------------------------


def test_help_names_every_command_and_imports_nothing_heavy(tmp_path):
    code = (
        "import json, sys\nfrom hf_clamu.cli import main\ncode = main(['--help'])\n"
        "sys.stderr.write(json.dumps([code, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    exit_code, modules = json.loads(done.stderr)
    assert exit_code == 0
    assert all(name in done.stdout for name in COMMANDS)
    loaded = {name.split(".")[0] for name in modules}
    assert "typer" in loaded
    assert loaded & {"torch", "transformers", "peft", "datasets", "numpy", "sklearn", "huggingface_hub"} == set()


def test_a_process_trains_and_prints_one_object(trained, tmp_path, tiny):
    output = tmp_path / "model"
    done = _process("train", "text.yaml", "--output", str(output), "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_tasks"] == 4
    assert found["output"] == str(output)
    total, used = found["seconds"].pop("total"), found["resources"]
    stages = {"add", "attach", "cluster", "encode", "features", "finetune", "load", "localize", "save", "score"}
    assert found["seconds"].keys() == stages
    assert 0 < sum(found["seconds"].values()) <= total
    assert used["tasks_per_second"] == pytest.approx(4 / total)
    assert used["bytes_written"] == sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    assert used["peak_memory_bytes"] > 2**26
    # Another process, the same bytes.
    assert tiny.digests(output) == tiny.digests(trained / "text")


def test_a_process_refuses_with_its_exit_code(tmp_path):
    done = _process("train", "nowhere.yaml", "--output", "out", "--json", cwd=tmp_path)
    assert done.returncode == 2
    message = "There is no recipe nowhere.yaml. Give a YAML file with base_model, data and arguments."
    assert json.loads(done.stdout) == {"error": {"type": "RecipeError", "message": message}}
    assert done.stderr == f"clamu: {message}\n"


def test_a_hub_that_cannot_be_reached_is_named_without_retries(tmp_path, work, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    text = (work / "text.yaml").read_text(encoding="utf-8")
    text = re.sub(r"base_model: .*\n", "base_model: org/base\n", text)
    (work / "hub.yaml").write_text(text, encoding="utf-8")
    done = _process("train", "hub.yaml", "--output", "out", cwd=work)
    assert done.returncode == 2
    assert "Cannot load org/base: there is no such folder here, it is not in the cache, and this" in done.stderr
    assert "cannot reach the Hub" in done.stderr
    assert "or give a folder" in done.stderr
    assert "Retry" not in done.stderr
    done = _process("info", "demo/model", cwd=work)
    assert done.returncode == 2
    assert "There is no such folder here, and not found on the Hub: demo/model." in done.stderr
    assert "cannot reach the Hub" in done.stderr
    assert "HF_HUB_OFFLINE=1" in done.stderr


# -- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS), ["--version"]])
def test_help_and_version(clamu, arguments):
    found = clamu(*arguments)
    assert found.code == 0
    assert found.err == ""
    assert found.out == f"clamu {hf_clamu.__version__}\n" if "--version" in arguments else "Usage" in found.out


def test_train_says_what_it_made(clamu, work, tiny):
    found = clamu("train", "text.yaml", "--output", "again")
    assert found.code == 0
    assert found.out.startswith("Merged 4 tasks into again: 2 clusters, alpha 1, ")
    assert tiny.digests(work / "again") == tiny.digests(work / "text")


def test_train_ends_with_the_scores_that_the_card_has(clamu, work):
    found = clamu("train", "text.yaml", "--output", "again", "--preset", "per-task", "--json").json
    config = json.loads((work / "again/config.json").read_bytes())
    assert config["arguments"]["localization"] == "sift"
    assert found["scores"] == config["scores"]["mean"]
    assert set(found["scores"]) == {"base", "global", "own"}
    shown = clamu("train", "text.yaml", "--output", "text", "--overwrite", "--preset", "one-model").out
    assert "Scores on the validation rows: base " in shown
    assert "own" not in shown


def test_train_warns_if_nothing_was_learned(clamu, work):
    recipe = (work / "text.yaml").read_text(encoding="utf-8").replace("1.0e-2", "1.0e-9")
    (work / "low.yaml").write_text(recipe, encoding="utf-8")
    found = clamu("train", "low.yaml", "--output", "low", "--json")
    assert found.json["scores"]["own"] == found.json["scores"]["base"]
    assert found.json["remark"].startswith("Nothing was learned that shows on the validation rows (base ")
    assert found.json["remark"] in found.err


def test_train_reads_other_data_and_leaves_tasks_out(clamu, work):
    (work / "rows.jsonl").rename(work / "elsewhere.jsonl")
    left_out = ["--without", "user_1", "--without", "user_3"]
    found = clamu("train", "text.yaml", "--output", "less", "--data", "elsewhere.jsonl", *left_out, "--json")
    assert found.json["num_tasks"] == 2
    assert sum(map(len, clamu("info", "less", "--json").json["clusters"])) == 2


def test_train_in_shards_and_requests_after_it(clamu, work, tiny):
    assert clamu("train", "text.yaml", "--output", "sharded", "--max-shard-size", "4KB").code == 0
    assert (work / "sharded/delta.safetensors.index.json").is_file()
    assert clamu("unmerge", "sharded", "user_1").code == 0
    less = ["--max-shard-size", "4KB", "--without", "user_1"]
    assert clamu("train", "text.yaml", "--output", "less", *less).code == 0
    assert tiny.digests(work / "sharded") == tiny.digests(work / "less")
    assert clamu("verify", "less").code == 0


def test_train_replaces_only_when_told(clamu, work, tiny):
    before = tiny.digests(work / "text")
    assert "--overwrite" in clamu("train", "text.yaml", "--output", "text", "--without", "user_0").error
    assert tiny.digests(work / "text") == before
    assert clamu("train", "text.yaml", "--output", "text", "--without", "user_0", "--overwrite").code == 0
    assert clamu("info", "text", "--json").json["num_tasks"] == 3


def test_info(clamu, work):
    found = clamu("info", "text", "--json").json
    assert found["architecture"] == "GPT2ForSequenceClassification"
    assert sorted(task for members in found["clusters"] for task in members) == [f"user_{n}" for n in range(4)]
    assert found["source"]["files"] == "rows.jsonl"
    assert found["arguments"]["learning_rate"] == 0.01
    text = clamu("info", "text").out
    assert f"state {found['state_digest']}" in text
    assert all(f"user_{n}" in text for n in range(4))


def test_info_cuts_long_lists_of_members_and_json_does_not(clamu, work):
    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [{**row, "user": f"{row['user']}_{number % 2}"} for number, row in enumerate(rows)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = (work / "text.yaml").read_text(encoding="utf-8")
    text = text.replace("num_clusters: 2", "num_clusters: 1, localization: global")
    (work / "text.yaml").write_text(text, encoding="utf-8")
    assert clamu("train", "text.yaml", "--output", "many").code == 0
    assert [len(members) for members in clamu("info", "many", "--json").json["clusters"]] == [8]
    text = clamu("info", "many").out
    assert "user_0_0, user_0_1, user_1_0, user_1_1, user_2_0, user_2_1, … and 2 more (--members)" in text
    assert "user_3" not in text
    assert "user_2_1, user_3_0, user_3_1" in clamu("info", "many", "--members").out


def test_info_of_a_task(clamu, work):
    clusters, names = (clamu("info", "text", "--json").json[key] for key in ("clusters", "cluster_names"))
    found = clamu("info", "text", "--task", "user_2", "--json").json
    assert "user_2" in clusters[found["cluster"]]
    assert found["cluster_name"] == names[found["cluster"]]
    assert (found["num_train"], found["num_validation"]) == (4, 2)
    assert found["scores"].keys() == {"base", "global", "own"}
    assert (found["has_own_mask"], found["snapshot"], found["archive"]) == (False, None, None)
    text = clamu("info", "text", "--task", "user_2").out
    assert "4 to train on, 2 kept out" in text
    assert "no snapshot beside the model" in text
    told = clamu("info", "text", "--task", "User_2").error
    assert "No merged task is called 'User_2'; 4 are merged. Did you mean 'user_2'?" in told


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("train", "text.yaml", "--output", "x", "--preset", "per-tsk"), "Did you mean 'per-task'?"),
        (("plan", "text.yaml", "--ids", "stripe"), "Did you mean 'strip'?"),
        (("evaluate", "text", "--serving", "globl"), "Did you mean 'global'?"),
        (("train", "text.yaml", "--outputs", "x"), "--output"),
        (("evalute", "text"), "evaluate"),
        (("clustering: featurs",), "Did you mean 'features'?"),
        (("localization: sifft",), "Did you mean 'sift'?"),
        (("preset: cluster",), "Did you mean 'clusters'?"),
        (("finetune_step: 2",), "Did you mean 'finetune_steps'?"),
    ],
    ids=str,
)
def test_a_misspelled_name_brings_a_hint(clamu, work, command, hint):
    if len(command) == 1:
        text = (work / "text.yaml").read_text(encoding="utf-8").replace("num_clusters: 2", command[0])
        (work / "text.yaml").write_text(text, encoding="utf-8")
        command = ("train", "text.yaml", "--output", "x")
    told = clamu(*command)
    assert told.code == 2
    assert hint in told.error


def test_info_of_a_forgotten_task_names_its_receipt(clamu, work):
    assert clamu("unmerge", "text", "user_1", "user_3").code == 0
    (receipt,) = (work / "receipts").glob("*.json")
    told = clamu("info", "text", "--task", "user_1").error
    assert told.endswith(f"It is forgotten: see {receipt}.")
    assert "user_3" not in told
    assert "receipts" not in clamu("info", "text", "--task", "user_9").error
    values = json.loads(receipt.read_bytes())
    del values["private"]
    receipt.write_text(json.dumps(values), encoding="utf-8")
    assert "receipts" not in clamu("info", "text", "--task", "user_1").error


def test_info_says_what_is_kept_beside_a_model(clamu, work):
    text = (work / "text.yaml").read_text(encoding="utf-8").replace("num_clusters: 2", "preset: per-task")
    (work / "text.yaml").write_text(f"{text}snapshot: true\n", encoding="utf-8")
    assert clamu("train", "text.yaml", "--output", "kept", "--archive", "vectors").code == 0
    found = clamu("info", "kept", "--archive", "vectors", "--json").json
    assert found["snapshot"]["num_tasks"] == found["archive"]["num_tasks"] == 4
    assert "archive: vectors, of 4 of 4 tasks" in clamu("info", "kept", "--archive", "vectors").out
    one = clamu("info", "kept", "--task", "user_1", "--archive", "vectors", "--json").json
    assert (one["has_own_mask"], one["snapshot"], one["archive"]) == (True, True, True)
    assert one["mask_bytes"] > 0
    assert clamu("info", "kept", "--task", "user_1", "--archive", "none", "--json").json["archive"] is False


def test_info_finds_a_task_with_a_keyed_id(clamu, work, monkeypatch):
    monkeypatch.setenv("CLAMU_TASK_ID_KEY", "secret")
    assert clamu("train", "text.yaml", "--output", "keyed").code == 0
    found = clamu("info", "keyed", "--task", "user_2", "--json").json
    assert found["ledger_id"] in clamu("info", "keyed", "--json").json["clusters"][found["cluster"]]
    monkeypatch.delenv("CLAMU_TASK_ID_KEY")
    assert "without the key" in clamu("info", "keyed", "--task", "user_2").error


@pytest.mark.parametrize("kind", ["text", "image"])
def test_evaluate_the_validation_examples(clamu, work, kind):
    found = clamu("evaluate", kind, "--json").json
    assert (found["split"], found["serving"], found["metric"], found["num_tasks"]) == (
        *("validation", "own", "accuracy"),
        4,
    )
    assert 0 <= found["score"] <= 1
    assert sum(task["num_examples"] for task in found["tasks"].values()) == found["num_examples"]
    assert "all tasks" in clamu("evaluate", kind).out


def test_evaluate_a_part(clamu, work):
    clusters = clamu("info", "text", "--json").json["clusters"]
    found = clamu("evaluate", "text", "--cluster", "0", "--json").json
    assert (sorted(found["tasks"]), sorted(found["clusters"])) == (clusters[0], ["0"])
    assert list(clamu("evaluate", "text", "--task", "user_1", "--json").json["tasks"]) == ["user_1"]


def test_evaluate_given_rows(clamu, work):
    found = clamu("evaluate", "text", "--data", "rows.jsonl", "--serving", "base", "--json").json
    assert (found["split"], found["num_examples"]) == ("all", 24)
    found = clamu("evaluate", "text", "--data", "rows.jsonl", "--split", "train", "--serving", "global", "--json").json
    assert (found["split"], found["num_examples"]) == ("train", 16)


def test_evaluate_a_language_model(clamu, work):
    found = clamu("evaluate", "lm", "--split", "train", "--json").json
    assert (found["metric"], found["num_examples"]) == ("answer_probability", 24)
    assert "None of the 4 tasks has validation examples" in clamu("evaluate", "lm").error


def test_evaluate_passes_over_tasks_without_validation_rows(clamu, work):
    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [row for number, row in enumerate(rows) if row["user"] != "user_2" or number % 6 == 0]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    assert clamu("train", "text.yaml", "--output", "one-row").code == 0
    found = clamu("evaluate", "one-row", "--json")
    assert found.err == "1 of the 4 tasks have no validation examples, so they are not measured.\n"
    assert (found.json["num_tasks"], found.json["without_examples"]) == (3, ["user_2"])
    assert clamu("evaluate", "one-row", "--split", "train", "--json").json["without_examples"] == []


def test_predict_rows_each_by_its_cluster(clamu, work):
    clusters = clamu("info", "text", "--json").json["clusters"]
    answers = clamu("predict", "text", "--data", "rows.jsonl", "--json").json["predictions"]
    assert len(answers) == 24
    for number, answer in enumerate(answers):
        assert (answer["row"], answer["task"]) == (number, f"user_{number // 6}")
        assert answer["task"] in clusters[answer["cluster"]]
        assert answer["label"] in ("bad", "good")
        assert 0 <= answer["score"] <= 1


def test_predict_rows_of_a_forgotten_task_by_the_fallback(clamu, work):
    assert clamu("unmerge", "text", "user_1").code == 0
    told = clamu("predict", "text", "--data", "rows.jsonl").error
    assert all(part in told for part in ("Line 7 of rows.jsonl", "called 'user_1'", "--fallback"))
    for who in ("global", "base"):
        answers = clamu("predict", "text", "--data", "rows.jsonl", "--fallback", who, "--json").json["predictions"]
        assert [answer["served_by"] for answer in answers] == ["cluster"] * 6 + [who] * 6 + ["cluster"] * 12
        assert [answer["cluster"] is None for answer in answers] == [answer["served_by"] == who for answer in answers]
        found = clamu("predict", "text", "great 1", "--task", "user_1", "--fallback", who)
        assert found.out.endswith(f"({who})\n")
        assert found.err == "label\tscore\tserved by\n"
    base, merged = (
        clamu("predict", "text", "a b", "--task", "x", "--fallback", who, "--json").json["predictions"][0]["score"]
        for who in ("base", "global")
    )
    assert base != merged


def test_predict_says_where_nobody_chose_who_serves(clamu, work):
    told = clamu("predict", "text", "great 1", "dull 2", "--json")
    assert told.err.startswith("The global model serves 2 of 2 inputs, which name no task.")
    assert told.err.count("\n") == 1
    assert set(told.json) == {"predictions"}
    for chosen in (["great 1", "--task", "user_2"], ["great 1", "--cluster", "0"], ["--data", "rows.jsonl"]):
        assert clamu("predict", "text", *chosen, "--json").err == ""


def test_a_guessed_cluster_is_called_a_guess(clamu, work):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| ([\d.]+) % \| ([\d.]+) % \| [\d.]+ % \| [\d.]+ % \|", page.split("generated: routing")[1])
    gaps = [float(own) - float(guessed) for own, guessed in rows]
    assert len(gaps) > 2
    expected = (
        f" guesses the cluster of each input. In our measurements that falls {min(gaps):.0f} to {max(gaps):.0f} points"
    )
    ways = {
        "--cluster auto": ("predict", "text", "great 1", "--cluster", "auto"),
        "--fallback auto": ("predict", "text", "great 1", "--task", "nobody", "--fallback", "auto"),
        "--serving auto": ("evaluate", "text", "--serving", "auto"),
    }
    for option, command in ways.items():
        assert clamu(*command).err.startswith(f"{option}{expected}")


def test_evaluate_says_how_many_tasks_it_left_out(clamu, work):
    assert clamu("evaluate", "text").err == ""
    assert clamu("unmerge", "text", "user_1").code == 0
    found = clamu("evaluate", "text", "--json")
    assert found.err == "1 of the 4 tasks in the data are left out: not merged, or forgotten.\n"
    assert found.json["num_tasks"] == 3


def test_predicted_rows_are_named(clamu, work):
    told = clamu("predict", "text", "--data", "rows.jsonl")
    assert told.err == "row\ttask\tlabel\tscore\tserved by\n"
    lines = told.out.splitlines()
    assert len(lines) == 24
    assert {len(line.split("\t")) for line in lines} == {5}
    for number, line in enumerate(lines):
        assert line.split("\t")[:2] == [f"row {number}", f"user_{number // 6}"]


@pytest.mark.parametrize(("model", "columns"), [("text", "label\tscore"), ("lm", "completion")])
def test_columns_of_predictions_are_named_beside_stdout(clamu, work, model, columns):
    told = clamu("predict", model, "great 1", "--task", "user_0", "--max-new-tokens", "2")
    assert told.err == f"{columns}\tserved by\n"
    assert told.out.count("\t") == told.err.count("\t")


def test_predict_texts(clamu, work):
    names = clamu("info", "text", "--json").json["cluster_names"]
    assert clamu("predict", "text", "great 1", "dull 2").out.count("(global)") == 2
    assert clamu("predict", "text", "great 1", "--cluster", "1").out.endswith(f"(cluster {names[1]})\n")
    assert clamu("predict", "text", "great 1", "--cluster", names[1]).out.endswith(f"(cluster {names[1]})\n")
    own = clamu("predict", "text", "great 1", "--task", "user_2", "--json").json["predictions"]
    assert "user_2" in clamu("info", "text", "--json").json["clusters"][own[0]["cluster"]]


def test_predict_completions(clamu, work):
    found = clamu("predict", "lm", "great 1", "dull 2", "--max-new-tokens", "3", "--task", "user_0", "--json").json
    assert [set(answer) for answer in found["predictions"]] == [
        {"completion", "cluster", "cluster_name", "served_by"}
    ] * 2
    assert all(len(answer["completion"].encode()) <= 3 for answer in found["predictions"])


def test_predict_an_image_file(clamu, work):
    from PIL import Image

    Image.new("L", (8, 8), 7).save("digit.png")
    assert clamu("predict", "image", "digit.png").out.endswith("(global)\n")
    assert clamu("predict", "image", "digit.png", "--cluster", "0").err.startswith("The model has no image processor")
    # Turned by the camera: the same picture, stored upright.
    turned = Image.linear_gradient("L").resize((8, 8))
    turned.save("upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    upright, by_exif = (clamu("predict", "image", name, "--json").json for name in ("upright.png", "turned.png"))
    assert upright == by_exif
    Image.new("RGBA", (8, 8)).save("colour.png")
    assert "does not take an image of shape (4, 8, 8)" in clamu("predict", "image", "colour.png").error
    Image.new("L", (9, 9)).save("large.png")
    assert "Row 1" in clamu("predict", "image", "digit.png", "large.png").error


def test_the_ledgers_key_is_used_by_every_command(clamu, work, monkeypatch):
    monkeypatch.setenv("CLAMU_TASK_ID_KEY", "secret")
    assert clamu("train", "text.yaml", "--output", "keyed").code == 0
    one = ["--task", "user_1"]
    number = clamu("predict", "keyed", "great 1", *one, "--json").json["predictions"][0]["cluster"]
    assert clamu("evaluate", "keyed", *one, "--json").json["num_tasks"] == 1
    assert clamu("evaluate", "keyed", "--cluster", str(number)).code == 0
    assert clamu("export", "keyed", "--output", "plain", *one, "--json").json["cluster"] == number
    rows = clamu("predict", "keyed", "--data", "rows.jsonl", "--json").json["predictions"]
    assert {answer["cluster"] for answer in rows if answer["task"] == "user_1"} == {number}
    assert clamu("unmerge", "keyed", "user_1").code == 0
    assert "user_1" in clamu("evaluate", "keyed", *one).error
    assert clamu("verify", "keyed").code == 0


def test_adapters_of_whole_weights_say_what_they_lose(clamu, work):
    found = clamu("export", "text", "--output", "all", "--adapters", "all", "--rank", "1", "--json").json
    assert [one["cluster"] for one in found["adapters"]] == [None, 0, 1]
    assert all(0 < one["kept"] < one["reachable"] < 1 and one["apart"] > 0 for one in found["adapters"])
    said = clamu("export", "text", "--output", "one", "--adapters", "1", "--rank", "1").out
    assert said.startswith("Wrote the global model and 1 of the clusters as adapters to one.")
    assert f"{100 * found['adapters'][2]['kept']:.1f}% of the change kept" in said
    assert json.loads((work / "one/routes.json").read_bytes())["adapters"].keys() < {
        one["name"] for one in found["adapters"]
    }


@pytest.mark.parametrize("which", [[], ["--cluster", "1"], ["--task", "user_0"]])
def test_an_export_is_a_plain_model(clamu, work, which):
    import torch
    import transformers

    found = clamu("export", "text", "--output", "plain", *which, "--json").json
    plain = transformers.AutoModelForSequenceClassification.from_pretrained("plain")
    assert type(plain) is transformers.GPT2ForSequenceClassification
    tokenizer = transformers.AutoTokenizer.from_pretrained("plain")
    with torch.no_grad():
        scores = plain(**tokenizer("great 1", return_tensors="pt")).logits.softmax(-1)
    answer = clamu("predict", "text", "great 1", *which, "--json").json["predictions"][0]
    assert answer["cluster"] == found["cluster"]
    assert answer["label"] == plain.config.id2label[int(scores.argmax())]
    assert float(scores.max()) == pytest.approx(answer["score"], abs=1e-6)


# -- forgetting ------------------------------------------------------------------------------------------------------


def _receipts(folder: Path) -> list[dict]:
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]


def test_unmerge_in_place_and_elsewhere(clamu, work, tiny):
    before = tiny.digests(work / "text")
    found = clamu("unmerge", "text", "user_3", "user_1", "user_3", "--output", "apart", "--json").json
    assert found["output"] == "apart"
    assert tiny.digests(work / "text") == before
    assert clamu("unmerge", "text", "user_1").code == 0
    told = clamu("unmerge", "text", "user_3").out
    assert told.startswith("Forgot user_3 (subtracted); 2 of 3 tasks are left in text.")
    # One request or two, the same bytes as a build that never had them.
    left_out = ["--without", "user_1", "--without", "user_3"]
    assert clamu("train", "text.yaml", "--output", "rebuilt", *left_out).code == 0
    assert tiny.digests(work / "text") == tiny.digests(work / "apart") == tiny.digests(work / "rebuilt")
    assert clamu("verify", "text").code == clamu("verify", "apart").code == 0


def test_a_receipt_shows_no_id_outside_its_private_part(clamu, work):
    values = clamu("unmerge", "text", "user_3", "user_1", "--json").json
    path = Path(values["receipt_file"])
    assert path.parent == work / "receipts"
    (receipt,) = _receipts(work / "receipts")
    assert receipt == values["receipt"]
    assert sorted(receipt.pop("private")["salts"]) == ["user_1", "user_3"]
    shown = json.dumps(receipt)
    assert "user_" not in shown
    assert str(work) not in shown
    assert receipt["num_tasks"] == {"before": 4, "after": 2}
    assert receipt["digests"]["after"] == clamu("info", "text", "--json").json["state_digest"]
    assert len(receipt["tasks"]) == 2


def test_receipts_go_where_they_are_sent(clamu, work, tiny):
    assert clamu("unmerge", "text", "user_0", "--receipts", "audit/2026").code == 0
    assert len(_receipts(work / "audit/2026")) == 1
    before = tiny.digests(work / "text")
    # Nothing is forgotten where no receipt can be written.
    assert "rows.jsonl" in clamu("unmerge", "text", "user_1", "--receipts", "rows.jsonl").error
    assert tiny.digests(work / "text") == before


def test_verify_says_yes_or_no(clamu, work):
    found = clamu("verify", "text", "--json")
    assert (found.code, found.json["identical"], found.json["differences"]) == (0, True, [])
    card = work / "text" / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    found = clamu("verify", "text", "--json")
    assert (found.code, found.json["identical"], found.json["differences"]) == (1, False, ["README.md"])
    found = clamu("verify", "text")
    assert found.code == 1
    assert "DIFFERENT in README.md (" in found.out


def test_verify_writes_a_report_for_an_auditor(clamu, work, tiny):
    told = clamu("verify", "text", "--report", "audit.json")
    report = json.loads((work / "audit.json").read_bytes())
    digests = tiny.digests(work / "text")
    assert (told.code, report["verdict"], report["differences"]) == (0, "identical", [])
    assert report["saved"] == report["rebuilt"] == digests
    assert report["ledger_digest"] == digests["ledger.json"]
    assert report["state_digest"] == clamu("info", "text", "--json").json["state_digest"]
    assert report["environment"]["num_threads"] == 1
    assert f"state  {report['state_digest']}\nledger {report['ledger_digest']}\nReport: audit.json\n" in told.out
    first = (work / "audit.json").read_bytes()
    assert clamu("verify", "text", "--report", "audit.json").code == 0
    assert (work / "audit.json").read_bytes() == first
    (work / "text" / "README.md").write_text("mine\n", encoding="utf-8")
    assert clamu("verify", "text", "--report", "audit.json").code == 1
    report = json.loads((work / "audit.json").read_bytes())
    assert (report["verdict"], report["differences"]) == ("different", ["README.md"])
    assert report["saved"]["README.md"] != report["rebuilt"]["README.md"]


def test_verify_reports_that_nothing_could_be_compared(clamu, work):
    (work / "rows.jsonl").rename(work / "away.jsonl")
    told = clamu("verify", "text", "--report", "audit.json").error
    assert "The data file 'rows.jsonl' was not found" in told
    assert told.endswith(f"There is no snapshot of the rows either, at {work.resolve() / 'text.snapshot'}.")
    report = json.loads((work / "audit.json").read_bytes())
    assert (report["verdict"], report["error"]["type"]) == ("not verified", "TaskDataError")
    assert "state_digest" in report
    (work / "text" / "delta.safetensors").write_bytes(b"")
    assert clamu("verify", "text", "--data", "away.jsonl", "--report", "audit.json").code == 1
    report = json.loads((work / "audit.json").read_bytes())
    assert (report["verdict"], report["error"]["type"]) == ("not verified", "CheckpointFormatError")
    assert "--report" in clamu("verify", "text", "--report", "no/such/folder.json").error


def test_verify_names_files_that_no_build_writes(clamu, work):
    (work / "text" / "notes.txt").write_text("mine", encoding="utf-8")
    found = clamu("verify", "text")
    assert found.code == 1
    assert "DIFFERENT in notes.txt (an additional file that a build does not write)" in found.out
    assert clamu("verify", "text", "--json").json["additional"] == ["notes.txt"]


def test_verify_finds_tampered_weights_not_identical(clamu, work):
    weights = work / "text" / "delta.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    found = clamu("verify", "text", "--json")
    assert (found.code, found.json["error"]["type"]) == (1, "CheckpointFormatError")
    assert "delta.safetensors" in found.error
    assert clamu("predict", "text", "a").code == 2
    (work / "text" / "ledger.json").unlink()
    assert clamu("verify", "text").code == 2


def test_changed_data_stop_a_request_and_change_nothing(clamu, work, tiny):
    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[7]["text"] = "something else"  # of user_1
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    before = tiny.digests(work / "text")
    for arguments in (["unmerge", "text", "user_1"], ["unmerge", "text", "user_0"], ["verify", "text"]):
        found = clamu(*arguments)
        assert found.code == 1
        assert "'user_1'" in found.error
        assert ("is an option of clamu unmerge" in found.error) == (arguments[0] == "verify")
        assert clamu(*arguments, "--json").json["error"]["type"] == "DigestMismatchError"
    assert tiny.digests(work / "text") == before
    assert not (work / "receipts").exists()
    # The way out that the message names.
    found = clamu("unmerge", "text", "user_1", "--on-mismatch", "rebuild", "--json").json
    assert found["receipt"]["how"] == "rebuilt"
    assert clamu("verify", "text").code == 0


def test_another_environment_stops_a_request(clamu, work, tiny):
    ledger = json.loads((work / "text" / "ledger.json").read_bytes())
    tiny.reseal(work / "text", environment={**ledger["environment"], "device": "cpu of another make"})
    before = tiny.digests(work / "text")
    for arguments in (["unmerge", "text", "user_1"], ["verify", "text"]):
        found = clamu(*arguments)
        assert found.code == 1
        assert "cpu of another make" in found.error
    assert tiny.digests(work / "text") == before
    assert clamu("unmerge", "text", "user_1", "--on-mismatch", "rebuild").code == 0
    assert clamu("verify", "text").code == 0


# -- wrong use -------------------------------------------------------------------------------------------------------

RECIPES = {
    "syntax": ("data: {files: [", "cannot be read as YAML"),
    "a list": ("[1, 2]", "must be a mapping"),
    "nothing": ("", "must be a mapping"),
    "no data": ("base_model: gpt2\n", "lacks 'data'"),
    "unknown key": ("@tokenzier: bytes", "Did you mean 'tokenizer'?"),
    "unknown setting": ("num_clusters>num_cluster", "Did you mean 'num_clusters'?"),
    "word for a number": ("num_clusters: 2>num_clusters: two", "num_clusters must be a whole number, got 'two'"),
    "a number in quotes": ("1.0e-2>'1.0e-2'", "without quotes"),
    "out of range": ("mask_steps: 2>mask_steps: 0", "mask_steps must be at least 1"),
    "unknown choice": ("num_threads: 1>clustering: spectral", "clustering must be one of"),
    "no such data file": ("rows.jsonl>gone.jsonl", "'gone.jsonl' was not found"),
    "no such column": ("text_column: text>text_column: txet", "has no column 'txet'"),
    "no such model type": ("model_type: gpt2>model_type: gtp2", "Did you mean 'gpt2'?"),
    "no such tokenizer": ("tokenizer: bytes>tokenizer: nowhere", "'nowhere' could not be loaded"),
    "tokenizer of another type": ("tokenizer: bytes>tokenizer: 7", "must be a string"),
    "data section": ("files: rows.jsonl>file: rows.jsonl", "Did you mean 'files'?"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_wrong_recipes(clamu, work, name):
    change, expected = RECIPES[name]
    text = (work / "text.yaml").read_text(encoding="utf-8")
    if change.startswith("@"):
        text += change[1:] + "\n"
    elif ">" in change:
        old, new = change.split(">")
        assert old in text
        text = text.replace(old, new)
    else:
        text = change
    (work / "wrong.yaml").write_text(text, encoding="utf-8")
    found = clamu("train", "wrong.yaml", "--output", "out", "--json")
    assert found.code == 2
    assert expected in found.error
    assert found.json["error"]["message"] in found.error
    assert not (work / "out").exists()


TABLES = {
    "words.jsonl": b"this is no table\n",
    "numbers.json": b"[1, 2]",
    "empty.jsonl": b"",
    "binary.parquet": b"\x89PNG\r\n",
    "binary.csv": b"\xff\xfe\x00",
    "table.xlsx": b"PK",
    "columns.csv": b"a,b\n1,2\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_files_that_are_no_tables(clamu, work, name):
    (work / name).write_bytes(TABLES[name])
    for arguments in (
        ["train", "text.yaml", "--output", "out"],
        ["evaluate", "text"],
        ["predict", "text"],
        ["unmerge", "text", "user_0"],
        ["verify", "text"],
    ):
        found = clamu(*arguments, "--data", name)
        assert found.code == 2
        assert name in found.error or "column" in found.error or "has no 'text'" in found.error
    assert not (work / "out").exists()


WRONG = {
    # usage
    "inof text": "Did you mean 'info'?",
    "info": "Missing argument 'DIR'",
    "info text --jsno": "No such option: --jsno",
    "train text.yaml": "Missing option '--output'",
    "unmerge text": "either the tasks to forget or --from",
    "unmerge text user_1 --from rows.jsonl": "either the tasks to forget or --from",
    "unmerge text --from nowhere.jsonl": "nowhere.jsonl cannot be read",
    "unmerge text --from rows.jsonl": "line 1: a request needs an 'id'",
    "unmerge text user_1 --on-mismatch localize": "goes with --archive",
    "add text": "--new FILE",
    "add text user_1 --new rows.jsonl": "'user_1' is merged already",
    "add text --new nowhere.jsonl": "no data file nowhere.jsonl",
    "update text usr_1 --new rows.jsonl": "There is no task 'usr_1' among the 4 tasks of rows.jsonl.",
    "evaluate text --split test": "'validation', 'train', 'all'",
    "predict text a --cluster x": "no cluster 'x'",
    "predict lm a --max-new-tokens 0": "--max-new-tokens",
    "unmerge text user_1 --on-mismatch ignore": "'error', 'rebuild', 'localize'",
    # places
    "info nowhere": "nowhere is not a folder",
    "info rows.jsonl": "rows.jsonl is not a folder",
    "info other": "config.json is missing",
    "predict other a": "config.json is missing",
    "train nowhere.yaml --output out": "no recipe nowhere.yaml",
    "train other --output out": "cannot be read",
    "train text.yaml --output out --data nowhere.csv": "no data file nowhere.csv",
    "train text.yaml --output other": "not empty",
    "train text.yaml --output other --overwrite": "holds no ClAMU model",
    "train text.yaml --output rows.jsonl": "rows.jsonl is a file",
    "train text.yaml --output out --max-shard-size many": "max_shard_size must be a size with its unit",
    "train text.yaml --output out --max-shard-size 0GB": "max_shard_size must be a number of bytes",
    "export text --output other": "not empty",
    "unmerge text user_0 --output other": "not empty",
    "demo --output other": "not empty",
    "predict text --data nowhere.csv": "no data file nowhere.csv",
    "predict image nowhere.png": "'nowhere.png' is no image file",
    "predict image rows.jsonl": "'rows.jsonl' is no image file",
    # tasks and clusters
    "train text.yaml --output out --without usr_1": "no task 'usr_1' among the 4 tasks of rows.jsonl",
    "unmerge text usr_1": UNKNOWN,
    "unmerge text user_0 usr_1": UNKNOWN,
    "evaluate text --task usr_1": UNKNOWN,
    "predict text a --task usr_1": UNKNOWN,
    "export text --output out --task usr_1": UNKNOWN,
    "evaluate text --cluster 2": "no cluster 2; this model has 2",
    "predict text a --cluster -1": "no cluster '-1'",
    "export text --output out --cluster 2": "no cluster 2",
    "evaluate text --cluster 0 --task user_0": "not both",
    "predict text a --cluster 0 --task user_0": "not both",
    "export text --output out --cluster 0 --task user_0": "not both",
    "export text --output out --adapters all": "whole weights and no adapters. Give a rank (--rank 16)",
    "export text --output out --adapters 2 --rank 1": "no cluster 2; this model has 2",
    "export text --output out --adapters all --cluster 0": "leave --cluster and --task out",
    "export text --output out --rank 1": "give --adapters all, too",
    # inputs
    "predict text": "either inputs or --data",
    "predict text a --data rows.jsonl": "either inputs or --data",
    "predict image --data rows.jsonl": "has no 'image'",
    "predict text --data numbers.jsonl": "line 1, column 'text': expected a text, found 5",
    "predict lm --data numbers.jsonl": "line 1, column 'text': expected a text or messages, found 5",
    "predict text --data ids.jsonl": "No merged task is called '5'",
    "predict text --data strangers.jsonl": UNKNOWN,
    "predict text --data long.jsonl": "has 100 tokens, the model takes 48",
    "predict lm --data long.jsonl": "fills the model's 48 positions",
}


@pytest.fixture(scope="module")
def muddle(trained, tmp_path_factory, tiny):
    """A folder of wrong inputs beside the models; nothing in it may change."""
    import shutil

    folder = tmp_path_factory.mktemp("muddle") / "work"
    shutil.copytree(trained, folder)
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").write_text("mine", encoding="utf-8")
    rows = {
        "numbers": {"text": 5},
        "ids": {"user": 5, "text": "a"},
        "strangers": {"user": "usr_1", "text": "a"},
        "long": {"text": "x" * 100},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder, tiny.digests(folder)


@pytest.mark.parametrize("line", WRONG)
def test_wrong_use(clamu, muddle, monkeypatch, line, tiny):
    folder, before = muddle
    monkeypatch.chdir(folder)
    found = clamu(*line.split())
    assert found.code == 2
    assert WRONG[line] in found.error
    found = clamu(*line.split(), "--json")
    assert (found.code, set(found.json), set(found.json["error"])) == (2, {"error"}, {"type", "message"})
    assert tiny.digests(folder) == before


def test_a_damaged_model_is_named(clamu, work):
    path = work / "text" / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    # To verify, a damaged model is an answer: it is not what a build gives.
    for arguments, code in ((["info", "text"], 2), (["verify", "text"], 1), (["unmerge", "text", "user_0"], 2)):
        found = clamu(*arguments, "--json")
        assert (found.code, found.json["error"]["type"]) == (code, "CheckpointFormatError")
        assert "delta.safetensors" in found.error
