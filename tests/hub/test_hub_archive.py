"""An archive in a private repository: the bytes of a folder's, and nothing of a forgotten task afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_client import ClientError

from hf_clamu import ArchiveError
from hf_clamu.hub.archive import archive_at, is_on_hub
from hf_clamu.storage import Archive

REPO = "org/private-archive"
PLACE = f"hf://{REPO}"


@pytest.fixture
def built(steps, tmp_path):
    steps("build", PLACE, tmp_path / "model")
    return tmp_path / "model"


def _vectors(double):
    repo = double.repos[REPO]
    files = repo.commits[repo.branches["main"]].files
    return {name: entry.lfs for name, entry in files.items() if name.endswith(".safetensors")}


def _name(folder, task_id):
    entry = json.loads((folder / "ledger.json").read_bytes())["tasks"][task_id]
    return Archive.file_name(task_id, entry["vector_digest"])


def _is_bare(home):
    return [path for path in home.rglob("*") if path.is_file()] == []


def test_a_build_uploads_once_into_a_private_repository(tiny, double, built, expected, home):
    assert double.repos[REPO].private
    assert set(_vectors(double)) == {_name(built, f"user_{number}") for number in range(5)}
    assert double.count("commit") == 1
    assert tiny.digests(built) == tiny.digests(expected / "all")
    assert _is_bare(home)


def test_what_is_forgotten_is_gone_with_its_history(tiny, double, steps, built, expected, home, tmp_path):
    gone = _name(built, "user_1")
    lost = _vectors(double)[gone]
    old = double.repos[REPO].branches["main"]
    before = double.count("storage")
    (receipt,) = steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    # Of five vectors one was read, and the answer is the build without the task.
    assert double.count("storage") - before == 1
    assert tiny.digests(tmp_path / "ours") == tiny.digests(expected / "without")
    assert (receipt["archive"], receipt["vectors_from"]) == ("destroyed", "archive")
    repo = double.repos[REPO]
    assert gone not in _vectors(double)
    assert len(_vectors(double)) == 4
    assert repo.history(repo.branches["main"]) == [repo.branches["main"]] != [old]
    assert lost not in repo.lfs
    assert set(repo.lfs) == set(_vectors(double).values())
    assert _is_bare(home)
    # What stays serves the next request.
    steps("request", tmp_path / "ours", tmp_path / "less", PLACE, unmerge="user_2")
    assert len(_vectors(double)) == 3


def test_a_task_that_comes_back_is_kept(tiny, double, steps, built, expected, tmp_path):
    names = set(_vectors(double))
    steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1", add="user_1")
    assert set(_vectors(double)) == names
    assert tiny.digests(tmp_path / "ours") == tiny.digests(expected / "all")


def test_a_public_repository_is_refused_before_anything_is_trained(client, double, steps, built, tmp_path):
    double.repos[REPO].private = False
    for step, args, options in (
        ("build", (PLACE, tmp_path / "again"), {}),
        ("request", (built, tmp_path / "ours", PLACE), {"unmerge": "user_1"}),
    ):
        with pytest.raises(ClientError, match=r"org/private-archive is public.*Nothing was changed") as caught:
            steps(step, *args, **options)
        assert "HubError" in caught.value.kinds
    assert len(_vectors(double)) == 5
    assert not (tmp_path / "again").exists()


def test_a_repository_of_something_else_is_refused(double, steps, built, tmp_path):
    double.push(REPO, {"config.json": b"{}"})
    with pytest.raises(ClientError, match=r"holds more than an archive \(config.json\)"):
        steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")


def test_a_request_makes_no_repository(double, steps, built, tmp_path):
    with pytest.raises(ClientError, match="there is no such model on the Hub"):
        steps("request", built, tmp_path / "ours", "hf://org/typo", unmerge="user_1")
    assert list(double.repos) == [REPO]


def test_a_damaged_vector_is_refused(double, steps, built, tmp_path):
    double.push(REPO, {_name(built, "user_1"): double.content(REPO, _name(built, "user_2"))})
    with pytest.raises(ClientError, match=r"task 'user_1' in hf://org/private-archive/.* is not the one") as caught:
        steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    assert "ArchiveError" in caught.value.kinds


def test_an_upload_that_fails_is_made_up_for(tiny, double, steps, expected, home, tmp_path):
    double.arm("commit", "status", status=403)
    with pytest.raises(ClientError, match="Cannot write to the archive"):
        steps("build", PLACE, tmp_path / "model", journal=str(tmp_path / "journal"))
    assert not (tmp_path / "model").exists()
    assert not _is_bare(home)
    steps("build", PLACE, tmp_path / "model", journal=str(tmp_path / "journal"))
    assert len(_vectors(double)) == 5
    assert tiny.digests(tmp_path / "model") == tiny.digests(expected / "all")
    assert _is_bare(home)


@pytest.mark.parametrize("kind", ["commit", "squash", "lfs_delete"])
def test_a_destruction_that_fails_is_settled_later(double, steps, built, kind, tmp_path):
    gone = _name(built, "user_1")
    lost = _vectors(double)[gone]
    double.arm(kind, "status", status=403)
    with pytest.raises(ClientError, match=r"The model is saved, but an archived vector .* could not be destroyed"):
        steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    # As the next command does, in a process that knows nothing but the journal.
    journal = tmp_path / "ours.journal"
    (change,) = json.loads((journal / "note.json").read_bytes())["changes"]
    assert change["archive_dir"] == PLACE
    assert steps("settle", journal, change["after"], PLACE, tmp_path / "receipts") is True
    repo = double.repos[REPO]
    assert gone not in _vectors(double)
    assert lost not in repo.lfs
    assert repo.history(repo.branches["main"]) == [repo.branches["main"]]


@pytest.mark.parametrize("what", ["public", "holds more", "a model"])
def test_no_other_repository_is_emptied(double, steps, built, what, tmp_path):
    name = _name(built, "user_1")
    double.arm("commit", "status", status=403)
    with pytest.raises(ClientError, match="could not be destroyed"):
        steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    journal = tmp_path / "ours.journal"
    (change,) = json.loads((journal / "note.json").read_bytes())["changes"]
    # What is at the place of the archive by now.
    double.repos[REPO].private = what != "public"
    if what != "public":
        double.push(REPO, {"config.json" if what == "a model" else "notes.txt": b"{}"})
    repo = double.repos[REPO]
    before = (dict(repo.branches), repo.history(repo.branches["main"]), set(repo.lfs))
    message = "is public" if what == "public" else "holds more than an archive"
    with pytest.raises(ClientError, match=message):
        steps("settle", journal, change["after"], PLACE, tmp_path / "receipts")
    assert (dict(repo.branches), repo.history(repo.branches["main"]), set(repo.lfs)) == before
    assert name in _vectors(double)
    assert (journal / "note.json").is_file()


def test_a_note_cannot_name_a_repository(double, steps, built, tmp_path):
    double.arm("commit", "status", status=403)
    with pytest.raises(ClientError, match="could not be destroyed"):
        steps("request", built, tmp_path / "ours", PLACE, unmerge="user_1")
    journal = tmp_path / "ours.journal"
    (change,) = json.loads((journal / "note.json").read_bytes())["changes"]
    before = (dict(double.repos[REPO].branches), set(_vectors(double)), double.count("commit"))
    # Another archive is named, or none: the one in the note stays as it is.
    assert steps("settle", journal, change["after"], tmp_path / "folder", tmp_path / "receipts") is True
    assert steps("command", "info", tmp_path / "ours") == 0
    assert (dict(double.repos[REPO].branches), set(_vectors(double)), double.count("commit")) == before


def test_places():
    assert is_on_hub(PLACE)
    assert not is_on_hub("org/private-archive")
    assert archive_at(PLACE).uri == PLACE
    assert archive_at(PLACE, retains_forgotten=True).retains_forgotten
    assert archive_at(None) is None
    for wrong in ("hf://org", "hf://org/a/b", "hf://buckets/org", "hf://buckets/org/a/b", "hf:/org/name", Path(PLACE)):
        with pytest.raises(ArchiveError, match="hf://ORG/NAME"):
            archive_at(wrong)


def test_a_recipe_names_one():
    from hf_clamu.recipe import Recipe

    values = {"base_model": "gpt2", "data": {"name": "digits"}}
    assert Recipe.from_dict({**values, "archive": PLACE}).archive_place() == PLACE
    assert Recipe.from_dict({**values, "archive": "kept"}, folder=Path("there")).archive_place() == Path("there/kept")


def test_commands_take_one(tiny, double, steps, home, recipe, tmp_path):
    model = tmp_path / "model"
    assert steps("command", "train", recipe, "--output", model, "--archive", PLACE) == 0
    gone = _name(model, "user_1")
    assert gone in _vectors(double)
    # With --output the model in DIR still has the task.
    apart = ("--output", tmp_path / "apart")
    assert steps("command", "unmerge", model, "user_1", "--archive", PLACE, *apart) == 0
    assert gone in _vectors(double)
    assert steps("command", "unmerge", model, "user_1", "--archive", PLACE) == 0
    assert gone not in _vectors(double)
    assert tiny.digests(model) == tiny.digests(tmp_path / "apart")
    receipts = [json.loads(path.read_bytes()) for path in (tmp_path / "receipts").glob("*unmerge*.json")]
    assert sorted(receipt["archive"] for receipt in receipts) == ["destroyed", "kept"]
    assert _is_bare(home)
