"""`clamu report`: the evidence of a request, as a page, for programs and as a bill of materials."""

from __future__ import annotations

import json
import shlex
import shutil
import stat
from html.parser import HTMLParser

import pytest

from hf_clamu.cli import main

# The conftest's six rows a task, four of them trained on: two tasks have enough.
ATTACK = ("--task", "user_3", "--data", "rows.jsonl", "--held-out", "held.jsonl", "--json")


@pytest.fixture(scope="module")
def desk(trained, tmp_path_factory):
    """A model that two requests were carried out on by the queue, and what it was before each."""
    folder = tmp_path_factory.mktemp("desk") / "work"
    shutil.copytree(trained, folder)
    recipe = (folder / "text.yaml").read_text(encoding="utf-8")
    recipe = recipe.replace("num_threads: 1}", "num_threads: 1, linear_digest: true}")
    (folder / "linear.yaml").write_text(recipe, encoding="utf-8")
    model = str(folder / "model")
    assert main(["train", str(folder / "linear.yaml"), "--output", model]) == 0
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    held = [{**json.loads(line), "text": f"{json.loads(line)['text']}, too"} for line in lines]
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held), encoding="utf-8")
    requests = (("first letter", ["user_1"], "audit"), ("second letter", ["user_2", "user_3"], "rebuild"))
    for name, tasks, how in requests:
        shutil.copytree(model, folder / f"before-{tasks[0]}")
        assert main(["queue", "add", model, *tasks, "--id", name]) == 0
        assert main(["queue", "run", model, "--verify", how]) == 0
    return folder


@pytest.fixture
def work(desk, tmp_path, monkeypatch):
    """A copy of all that, as the working directory."""
    monkeypatch.chdir(shutil.copytree(desk, tmp_path / "work"))
    return tmp_path / "work"


class _Commands(HTMLParser):
    """The texts in <pre>, as a reader copies them."""

    def __init__(self, text):
        super().__init__()
        self.found, self.inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "pre":
            self.inside = True
            self.found.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "pre"

    def handle_data(self, data):
        if self.inside:
            self.found[-1] += data


def test_the_last_request(clamu, work):
    done = clamu("report", "model", "--output", "page.html", "--json")
    assert done.code == 0, done.err
    assert done.json["summary"][0]["verdict"] == "shown"
    assert "building it again" in done.json["summary"][0]["text"]
    page = (work / "page.html").read_text(encoding="utf-8")
    assert "second letter" in page
    assert "user_" not in page
    assert stat.S_IMODE((work / "page.html").stat().st_mode) == 0o600


def test_the_commands_on_the_page_work(clamu, work):
    assert clamu("report", "model", "--before", "before-user_2", "--output", "page.html").code == 0
    commands = _Commands((work / "page.html").read_text(encoding="utf-8")).found
    told = [shlex.split(command) for command in commands if command.startswith("clamu ")]
    assert [words[1] for words in told] == ["verify", "audit", "audit", "receipts", "report"]
    for words in told:
        done = clamu(*words[1:])
        assert done.code == 0, (words, done.err)
    assert (work / "evidence.html").is_file()


def test_an_earlier_request(clamu, work):
    done = clamu("report", "model", "--request", "first letter", "--output", "first.json", "--with-ids")
    assert done.code == 0, done.err
    values = json.loads((work / "first.json").read_text(encoding="utf-8"))
    assert values["ids"] == ["user_1"]
    assert [one["num_named"] for one in values["later"]] == [2]
    assert "second letter" not in json.dumps(values)  # which may name another owner
    assert values["later"][0]["digests"]["after"] == values["model"]["state_digest"]
    # The audit of the change was recorded by the queue, the rebuild is of the present state.
    assert {(one["kind"], one["result"].get("of"), one["is_now"]) for one in values["findings"]} == {
        ("audit", "model", True),
        ("audit", "change", False),
        ("verification", None, False),
    }
    by_file = clamu("report", "model", "--request", values["receipt"]["file"], "--output", "again.json", "--with-ids")
    assert by_file.code == 0
    again = json.loads((work / "again.json").read_text(encoding="utf-8"))
    assert {**again, "checked": ""} == {**values, "checked": ""}


def test_findings_from_files(clamu, work):
    shutil.rmtree("requests")
    (work / "verify.json").write_text(clamu("verify", "model", "--json").out, encoding="utf-8")
    (work / "audit.json").write_text(clamu("audit", "before-user_2", "model", "--json").out, encoding="utf-8")
    (work / "attack.json").write_text(clamu("attack", "model", "--task", "user_2", *ATTACK).out, encoding="utf-8")
    files = [word for kind in ("verify", "audit", "attack") for word in ("--finding", f"{kind}.json")]
    done = clamu("report", "model", *files, "--output", "all.json")
    assert done.code == 0, done.err
    values = json.loads((work / "all.json").read_text(encoding="utf-8"))
    assert [one["kind"] for one in values["findings"]] == ["audit", "verification", "audit", "attack"]
    assert "user_2" not in json.dumps(values)
    assert clamu("report", "model", *files, "--output", "all.html").code == 0
    assert "What attacks find" in (work / "all.html").read_text(encoding="utf-8")


def test_findings_of_something_else(clamu, work):
    (work / "other.json").write_text(clamu("verify", "text", "--json").out, encoding="utf-8")
    (work / "before.json").write_text(clamu("audit", "before-user_1", "model", "--json").out, encoding="utf-8")
    (work / "others.json").write_text(clamu("attack", "model", "--task", "user_1", *ATTACK).out, encoding="utf-8")
    (work / "failed.json").write_text('{"error": {"type": "ClamuError", "message": "no"}}', encoding="utf-8")
    (work / "half.json").write_text('{"files_compared": 3, "identical": true}', encoding="utf-8")
    (work / "none.json").write_text("{", encoding="utf-8")
    for name, said in {
        "other": "is about the state",
        "before": "is about another change",
        "others": "is about other tasks than this request",
        "failed": "says that the command failed",
        "half": "an entry is missing",
        "none": "is no JSON",
        "absent": "There is no file",
    }.items():
        done = clamu("report", "model", "--finding", f"{name}.json", "--output", "page.html")
        assert done.code == 2
        assert said in done.error
        assert not (work / "page.html").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--output page.pdf", "ends with .html"),
        ("--output none/page.html", "can be no file"),
        ("--output linear.html", "exists. Give another name"),
        ("--output model/page.html --overwrite", "would be a file of the model in model"),
        ("--output page.html --request nobody", "no receipt of a request 'nobody'"),
        ("--output page.html --receipts none", "There is no folder none"),
        ("--output page.html --receipts text", "No receipt in text leads to model"),
        ("--output page.html --before text", "started from"),
        ("--output page.html --before before-user_2 --request 'first letter'", "--before is for the last request"),
    ],
)
def test_wrong_input(clamu, work, line, said):
    (work / "linear.html").write_text("mine", encoding="utf-8")
    done = clamu("report", "model", *shlex.split(line))
    assert done.code == 2
    assert said in done.error
    assert not (work / "page.html").exists()
    assert (work / "linear.html").read_text(encoding="utf-8") == "mine"
    assert clamu("report", "model", "--output", "linear.html", "--overwrite").code == 0


def test_a_receipt_without_its_private_part(clamu, work):
    for path in (work / "receipts").glob("*.json"):
        values = json.loads(path.read_bytes())
        del values["private"]
        path.write_text(json.dumps(values), encoding="utf-8")
    assert "no private part" in clamu("report", "model", "--with-ids", "--output", "page.json").error
    assert clamu("report", "model", "--output", "page.json").code == 0
    values = json.loads((work / "page.json").read_text(encoding="utf-8"))
    assert values["num_merged_now"] is None
    assert any("merged again" in text for text in values["not_shown"])


def test_signed(clamu, work, keys):
    private, public = keys / "p256.pem", keys / "p256.pub"
    assert "is not signed" in clamu("report", "model", "--key", public, "--output", "page.html").error
    assert clamu("sign", "model", "--key", private).code == 0
    assert clamu("report", "model", "--key", public, "--output", "page.json").code == 0
    values = json.loads((work / "page.json").read_text(encoding="utf-8"))
    assert values["signature"]["key_id"] in values["signature"]["signed_by"]
    assert len(values["signature"]["statements"]) == 1
    assert values["signature"]["is_model_signed"] is True
