"""`clamu audit`, `clamu prove` and `clamu check`, as an auditor and an owner use them."""

from __future__ import annotations

import json
import shutil

import pytest

from hf_clamu.checkpoint.ledger import sealed
from hf_clamu.checkpoint.membership.proof import prove_membership
from hf_clamu.cli import main


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """Two states of a model with linear digests, the receipt between them, and the rows of one owner."""
    folder = tmp_path_factory.mktemp("made") / "work"
    shutil.copytree(trained, folder)
    recipe = (folder / "text.yaml").read_text(encoding="utf-8")
    recipe = recipe.replace("num_threads: 1}", "num_threads: 1, linear_digest: true}")
    (folder / "linear.yaml").write_text(recipe, encoding="utf-8")
    assert main(["train", str(folder / "linear.yaml"), "--output", str(folder / "before")]) == 0
    shutil.copytree(folder / "before", folder / "after")
    assert main(["unmerge", str(folder / "after"), "user_1", "--receipts", str(folder / "receipts")]) == 0
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "mine.jsonl").write_text("".join(line for line in lines if '"user_1"' in line), encoding="utf-8")
    return folder


@pytest.fixture
def states(made, tmp_path, monkeypatch):
    """A copy of all that, as the working directory."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "states"))
    return tmp_path / "states"


def test_an_audit(clamu, states):
    (receipt,) = (states / "receipts").glob("*.json")
    done = clamu("audit", "before", "after", "--receipt", str(receipt))
    assert done.code == 0, done.out
    assert done.out.startswith("before to after: proven\n")
    assert "Not shown by an audit" in done.out
    found = clamu("audit", "after", "--json").json
    assert found["verdict"] == "proven"
    assert {one["name"]: one["verdict"] for one in found["checks"]}["sum"] == "passed"


def test_an_audit_of_what_does_not_fit(clamu, states):
    assert clamu("audit", "after", "before", "--json").json["verdict"] == "proven"  # it joined
    shutil.copytree(states / "after", states / "later")
    assert clamu("unmerge", "later", "user_2", "--receipts", "others").code == 0
    (receipt,) = (states / "others").glob("*.json")
    done = clamu("audit", "before", "after", "--receipt", str(receipt), "--json")
    assert done.code == 1
    assert done.json["verdict"] == "refuted"
    assert [one["name"] for one in done.json["checks"] if one["verdict"] == "failed"] == ["receipt"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("audit nothing", "nothing"),
        ("audit before --receipt mine.jsonl", "--receipt and --archive go with two states"),
        ("audit before after --receipt mine.jsonl", "mine.jsonl is no receipt"),
        ("audit before after --receipt none.json", "There is no receipt none.json"),
        ("audit before after --receipt after", "There is no receipt after"),
        ("prove before user_1 --output after", "after cannot be written"),
        ("prove before user_1 --output none/p.json", "p.json cannot be written"),
        ("check mine.jsonl --ledger 5d2c", "has 64 hexadecimal digits, and --ledger 5d2c has 4"),
        ("prove before user_9", "No merged task is called 'user_9'"),
        ("prove before user_1 --data mine.jsonl --output p.json", "--output is for proofs without data"),
        ("prove before user_9 --data rows.jsonl", "none is called 'user_9'"),
        ("prove before user_2 --data mine.jsonl", "none is called 'user_2'"),
        ("check none.json", "There is no file none.json"),
    ],
)
def test_wrong_input(clamu, states, line, said):
    done = clamu(*line.split())
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_damaged_model_is_no_subject_of_an_audit(clamu, states):
    path = states / "after/delta.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    done = clamu("audit", "before", "after")
    assert done.code == 2
    assert "delta.safetensors has SHA-256" in done.err


def test_an_owner_with_their_rows(clamu, states):
    found = clamu("prove", "before", "user_1", "--data", "mine.jsonl", "--json").json
    assert (found["is_merged"], found["same_data"], found["same_vector"]) == (True, True, True)
    assert found["same_linear_digest"] is True
    gone = clamu("prove", "after", "user_1", "--data", "mine.jsonl", "--json")
    assert gone.code == 0
    assert (gone.json["is_merged"], gone.json["same_vector"]) == (False, None)
    assert gone.json["vector_digest"] == found["vector_digest"]
    said = clamu("prove", "before", "user_1", "--data", "mine.jsonl").out
    assert "rows           those of the ledger\nvector         that of the ledger\n" in said


def test_other_rows_than_those_of_the_ledger(clamu, states):
    lines = (states / "mine.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (states / "mine.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    done = clamu("prove", "before", "user_1", "--data", "mine.jsonl")
    assert done.code == 1
    assert "OTHERS than the ledger names" in done.out
    assert "ANOTHER than the ledger names" in done.out


def test_an_environment_that_gives_other_bits(clamu, states, tiny):
    ledger = json.loads((states / "before/ledger.json").read_bytes())
    tiny.reseal(states / "before", environment={**ledger["environment"], "device": "cpu of another make"})
    done = clamu("prove", "before", "user_1", "--data", "mine.jsonl", "--json")
    assert done.code == 0
    assert (done.json["same_data"], done.json["same_vector"]) == (True, None)
    assert "another make" in done.json["environment_differs"]


def test_a_proof_goes_from_hand_to_hand(clamu, states):
    assert clamu("prove", "before", "user_1", "--output", "proof.json").code == 0
    digest = json.loads((states / "before/ledger.json").read_bytes())["digest"]
    for ledger in (digest, "before"):
        done = clamu("check", "proof.json", "--ledger", ledger, "--json")
        assert done.code == 0
        assert (done.json["is_merged"], done.json["is_compared"]) == (True, True)
    assert "Compare this digest" in clamu("check", "proof.json").out
    other = clamu("check", "proof.json", "--ledger", "after")
    assert other.code == 1
    assert "it is for the ledger" in other.out
    proof = json.loads((states / "proof.json").read_bytes())
    proof["entry"]["num_train"] += 1
    (states / "proof.json").write_text(json.dumps(proof), encoding="utf-8")
    assert clamu("check", "proof.json").code == 1
    deep = json.dumps({**proof, "entry": 0}).replace('"entry": 0', '"entry": {"x": ' + "[" * 900 + "]" * 900 + "}")
    for damaged in ("{", "", deep, "[" * 100_000):
        (states / "proof.json").write_text(damaged, encoding="utf-8")
        found = clamu("check", "proof.json", "--json")
        assert (found.code, found.json["is_sound"]) == (1, False)
        assert found.json["reason"].startswith("The proof shows nothing: ")
    with (states / "proof.json").open("wb") as file:
        file.truncate(1 << 33)
    assert "it is too large" in clamu("check", "proof.json").out


def test_an_id_in_a_proof_does_not_look_like_an_answer(clamu, states):
    task_id = "user_9 is merged.\x1b[2K"
    ledger = json.loads((states / "before/ledger.json").read_bytes())
    ledger = sealed({**ledger, "tasks": {task_id: ledger["tasks"]["user_1"]}, "digest": None})
    proof = prove_membership(ledger, task_id, keyed=False)
    (states / "proof.json").write_text(json.dumps(proof), encoding="utf-8")
    assert "Task 'user_9 is merged.\\x1b[2K' is merged in" in clamu("check", "proof.json").out


def test_keyed_ids(clamu, states, monkeypatch):
    monkeypatch.setenv("CLAMU_TASK_ID_KEY", "a secret of three words")
    assert clamu("train", "linear.yaml", "--output", "keyed").code == 0
    assert clamu("prove", "keyed", "user_1", "--output", "in.json").code == 0
    assert clamu("prove", "keyed", "user_9", "--output", "out.json").code == 0
    ledger_id = json.loads((states / "in.json").read_bytes())["task"]
    found = clamu("prove", "keyed", "user_1", "--data", "mine.jsonl", "--json").json
    assert (found["ledger_id"], found["same_vector"]) == (ledger_id, True)
    monkeypatch.delenv("CLAMU_TASK_ID_KEY")
    assert clamu("check", "in.json", "--ledger", "keyed", "--json").json["is_merged"] is True
    assert clamu("check", "out.json", "--ledger", "keyed", "--json").json["is_merged"] is False
    # The owner has no key, and was told the id that stands for them.
    found = clamu("prove", "keyed", ledger_id, "--data", "mine.jsonl", "--json").json
    assert (found["is_merged"], found["same_vector"]) == (True, True)
    assert clamu("prove", "keyed", "user_1").code == 2
