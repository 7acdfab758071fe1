"""An archive in a private repository or bucket: the bytes of a folder's, and nothing of a forgotten task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from archive_places import BucketPlace, RepositoryPlace, is_bare, vector_name, vector_names
from hub_client import ClientError

from hf_clamu import ArchiveError
from hf_clamu.hub.archive import HubArchive, archive_at, is_on_hub

PLACES = (RepositoryPlace, BucketPlace)


@pytest.fixture(params=PLACES, ids=lambda kind: kind.__name__)
def place(request, double):
    return request.param(double)


@pytest.fixture
def repository(double):
    return RepositoryPlace(double)


def _faults(field):
    """Each place with each of its faults."""
    cases = [(kind, *fault) for kind in PLACES for fault in getattr(kind, field)]
    return pytest.mark.parametrize(
        ("place", "fault", "number"),
        [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}") for case in cases],
        indirect=["place"],
    )


def _build(steps, place, folder):
    steps("build", place.uri, folder)
    return folder


@pytest.fixture
def built(steps, place, tmp_path):
    return _build(steps, place, tmp_path / "model")


def test_a_build_uploads_once_into_a_private_place(tiny, double, place, built, expected, home):
    assert place.owner.private
    assert set(place.vectors) == vector_names(built)
    assert len(place.vectors) == 5
    assert double.count(place.writes) == 1
    assert (*double.repos, *double.buckets) == (place.name,)
    assert tiny.digests(built) == tiny.digests(expected / "all")
    assert is_bare(home)


def test_what_is_forgotten_is_gone_at_once(tiny, client, double, steps, place, built, expected, home, tmp_path):
    gone = vector_name(built, "user_1")
    remembered = place.remember(client, gone, tmp_path)
    before = double.count(place.reads)
    (receipt,) = steps("request", built, tmp_path / "ours", place.uri, unmerge="user_1")
    # Of five vectors one was read, and the answer is the build without the task.
    assert double.count(place.reads) - before == 1
    assert tiny.digests(tmp_path / "ours") == tiny.digests(expected / "without")
    assert (receipt["archive"], receipt["vectors_from"]) == ("destroyed", "archive")
    assert set(place.vectors) == vector_names(built) - {gone}
    place.require_gone(client, remembered, home)
    assert is_bare(home)
    # What stays serves the next request.
    steps("request", tmp_path / "ours", tmp_path / "less", place.uri, unmerge="user_2")
    assert len(place.vectors) == 3


def test_a_task_that_comes_back_is_kept(tiny, steps, place, built, expected, tmp_path):
    steps("request", built, tmp_path / "ours", place.uri, unmerge="user_1", add="user_1")
    assert set(place.vectors) == vector_names(built)
    assert tiny.digests(tmp_path / "ours") == tiny.digests(expected / "all")


def test_a_public_place_is_refused_before_anything_is_trained(steps, place, built, tmp_path):
    place.owner.private = False
    for step, args, options in (
        ("build", (place.uri, tmp_path / "again"), {}),
        ("request", (built, tmp_path / "ours", place.uri), {"unmerge": "user_1"}),
    ):
        with pytest.raises(ClientError, match=rf"{place.name} is public.*Nothing was changed.*name another") as caught:
            steps(step, *args, **options)
        assert "HubError" in caught.value.kinds
    assert len(place.vectors) == 5
    assert not (tmp_path / "again").exists()


def test_a_place_of_something_else_is_refused(steps, place, built, tmp_path):
    place.put("README.md", vector_name(built, "user_2"))
    place.put("runs/log.txt", vector_name(built, "user_2"))
    with pytest.raises(ClientError, match=rf"holds more than an archive \(runs/log.txt\), and {place.risk}"):
        steps("request", built, tmp_path / "ours", place.uri, unmerge="user_1")
    assert vector_name(built, "user_1") in place.vectors


def test_a_request_makes_no_place(steps, place, built, tmp_path):
    with pytest.raises(ClientError, match=place.missing):
        steps("request", built, tmp_path / "ours", place.uri.replace(place.name, "org/typo"), unmerge="user_1")
    assert place.names == [place.name]


def test_a_vector_of_somebody_else_is_refused(steps, place, built, tmp_path):
    place.put(vector_name(built, "user_1"), vector_name(built, "user_2"))
    with pytest.raises(ClientError, match=rf"task 'user_1' in {place.uri}/.* is not the one") as caught:
        steps("request", built, tmp_path / "ours", place.uri, unmerge="user_1")
    assert "ArchiveError" in caught.value.kinds


@_faults("upload_faults")
def test_an_upload_that_fails_is_made_up_for(tiny, double, steps, place, expected, home, fault, number, tmp_path):
    double.arm(fault, "status", status=number)
    with pytest.raises(ClientError, match="Cannot write to the archive") as caught:
        steps("build", place.uri, tmp_path / "model", journal=str(tmp_path / "journal"))
    assert ("this token does not permit it" in str(caught.value)) is (number == 403)
    assert place.vectors == {}
    assert not (tmp_path / "model").exists()
    assert not is_bare(home)
    steps("build", place.uri, tmp_path / "model", journal=str(tmp_path / "journal"))
    assert set(place.vectors) == vector_names(tmp_path / "model")
    assert tiny.digests(tmp_path / "model") == tiny.digests(expected / "all")
    assert is_bare(home)


def _interrupted(steps, place, built, tmp_path):
    """Unmerge `user_1`, whose vector cannot be destroyed; return the journal, and what it announces."""
    with pytest.raises(ClientError, match=r"The model is saved, but an archived vector .* could not be destroyed"):
        steps("request", built, tmp_path / "ours", place.uri, unmerge="user_1")
    journal = tmp_path / "ours.journal"
    (change,) = json.loads((journal / "note.json").read_bytes())["changes"]
    assert change["archive_dir"] == place.uri
    return journal, change


@_faults("destruction_faults")
def test_a_destruction_that_fails_is_settled_later(client, double, steps, place, built, home, fault, number, tmp_path):
    gone = vector_name(built, "user_1")
    remembered = place.remember(client, gone, tmp_path)
    double.arm(fault, "status", status=403, skip=number)
    journal, change = _interrupted(steps, place, built, tmp_path)
    # As the next command does, in a process that knows nothing but the journal.
    assert steps("settle", journal, change["after"], place.uri, tmp_path / "receipts") is True
    assert gone not in place.vectors
    place.require_gone(client, remembered, home)


@pytest.mark.parametrize("what", ["public", "holds more", "a model"])
def test_no_other_repository_is_emptied(double, steps, repository, what, tmp_path):
    built = _build(steps, repository, tmp_path / "model")
    name = vector_name(built, "user_1")
    double.arm("commit", "status", status=403)
    journal, change = _interrupted(steps, repository, built, tmp_path)
    # What is at the place of the archive by now.
    repo = repository.owner
    repo.private = what != "public"
    if what != "public":
        double.push(repository.name, {"config.json" if what == "a model" else "notes.txt": b"{}"})
    before = (dict(repo.branches), repo.history(repo.branches["main"]), set(repo.lfs))
    message = "is public" if what == "public" else "holds more than an archive"
    with pytest.raises(ClientError, match=message):
        steps("settle", journal, change["after"], repository.uri, tmp_path / "receipts")
    assert (dict(repo.branches), repo.history(repo.branches["main"]), set(repo.lfs)) == before
    assert name in repository.vectors
    assert (journal / "note.json").is_file()


def test_a_note_cannot_name_a_place(double, steps, place, built, tmp_path):
    double.arm(place.destruction_faults[0][0], "status", status=403)
    journal, change = _interrupted(steps, place, built, tmp_path)
    before = (place.vectors, double.count(place.writes))
    # Another archive is named, or none: the one in the note stays as it is.
    assert steps("settle", journal, change["after"], tmp_path / "folder", tmp_path / "receipts") is True
    assert steps("command", "info", tmp_path / "ours") == 0
    assert (place.vectors, double.count(place.writes)) == before


@pytest.mark.parametrize("kind", PLACES)
def test_places(kind):
    archive = archive_at(kind.uri)
    assert isinstance(archive, HubArchive)
    assert archive.uri == kind.uri
    assert is_on_hub(kind.uri)
    assert not is_on_hub(kind.name)
    assert archive_at(kind.uri, retains_forgotten=True).retains_forgotten


def test_what_is_no_place():
    assert archive_at(None) is None
    # No repository has this folder.
    assert archive_at(BucketPlace.uri).folder.name == "buckets--org--vectors"
    linked = Path(RepositoryPlace.uri)
    for wrong in ("hf://org", "hf://org/a/b", "hf://buckets/org", "hf://buckets/org/a/b", "hf:/org/name", linked):
        with pytest.raises(ArchiveError, match="hf://ORG/NAME"):
            archive_at(wrong)


def test_a_recipe_names_one():
    from hf_clamu.recipe import Recipe

    values = {"base_model": "gpt2", "data": {"name": "digits"}}
    assert Recipe.from_dict({**values, "archive": RepositoryPlace.uri}).archive_place() == RepositoryPlace.uri
    assert Recipe.from_dict({**values, "archive": "kept"}, folder=Path("there")).archive_place() == Path("there/kept")


def test_commands_take_one(tiny, steps, place, home, recipe, tmp_path):
    model = tmp_path / "model"
    assert steps("command", "train", recipe, "--output", model, "--archive", place.uri) == 0
    gone = vector_name(model, "user_1")
    assert gone in place.vectors
    assert steps("command", "info", model, "--archive", place.uri) == 0
    # With --output the model in DIR still has the task.
    apart = ("--output", tmp_path / "apart")
    assert steps("command", "unmerge", model, "user_1", "--archive", place.uri, *apart) == 0
    assert gone in place.vectors
    assert steps("command", "unmerge", model, "user_1", "--archive", place.uri) == 0
    assert set(place.vectors) == vector_names(model)
    assert tiny.digests(model) == tiny.digests(tmp_path / "apart")
    receipts = [json.loads(path.read_bytes()) for path in (tmp_path / "receipts").glob("*unmerge*.json")]
    assert sorted(receipt["archive"] for receipt in receipts) == ["destroyed", "kept"]
    assert is_bare(home)
