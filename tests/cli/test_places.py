"""Where a command writes to: places that cannot be are refused before anything is trained, and nothing is lost."""

from __future__ import annotations

import shutil
import threading
import time

import pytest

from hf_clamu.storage import Journal

TRAIN = ("train", "text.yaml", "--output")
UNMERGE = ("unmerge", "text", "user_1", "--output")
WAITING = 30


@pytest.fixture
def places(work):
    """Places that no folder can be brought to."""
    (work / "file").write_text("mine", encoding="utf-8")
    (work / "loop").symlink_to("loop")
    return work


def _never_trains(monkeypatch):
    # By a part that is not ours: whoever gets as far as the model sees this.
    import transformers

    def reached(*args, **kwargs):
        raise ZeroDivisionError("it was trained")

    monkeypatch.setattr(transformers.GPT2ForSequenceClassification, "forward", reached)


@pytest.mark.parametrize("command", [TRAIN, UNMERGE, ("export", "text", "--output")], ids=lambda words: words[0])
@pytest.mark.parametrize("output", ["file", "file/model", "loop", "m" * 300])
def test_places_that_cannot_be(clamu, places, tiny, monkeypatch, command, output):
    _never_trains(monkeypatch)
    before = sorted(path.name for path in places.iterdir())
    found = clamu(*command, output)
    assert (found.code, "Choose another place." in found.error) == (2, True), found.error
    assert (places / "file").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in places.iterdir()) == before


def test_receipts_that_cannot_be(clamu, places, tiny, monkeypatch):
    _never_trains(monkeypatch)
    before = tiny.digests(places / "text")
    for receipts in ("file", "file/receipts"):
        found = clamu("unmerge", "text", "user_1", "--receipts", receipts)
        assert (found.code, "Choose another place." in found.error) == (2, True), found.error
    assert tiny.digests(places / "text") == before


def _appears(work, output):
    """Bring another model to a place as soon as a command has trained something for it."""
    shutil.copytree(work / "lm", work / "other")

    def wait():
        deadline = time.monotonic() + WAITING
        while time.monotonic() < deadline:
            if any((work / f".{output}.journal").glob("*.part")):
                (work / "other").rename(work / output)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("command", [TRAIN, UNMERGE], ids=lambda words: words[0])
def test_a_model_that_appears_meanwhile_is_not_replaced(clamu, work, tiny, monkeypatch, command):
    monkeypatch.setenv("CLAMU_JOURNAL_SECONDS", "0")
    lm = tiny.digests(work / "lm")
    thread = _appears(work, "late")
    found = clamu(*command, "late")
    thread.join()
    assert "late holds another state" in found.err
    assert tiny.digests(work / "late") == lm
    # What was trained is not lost.
    (work / "late").rename(work / "moved")
    assert clamu(*command, "late").code == 0
    assert clamu(*command, "again").code == 0
    assert tiny.digests(work / "late") == tiny.digests(work / "again")


def test_overwrite_replaces_a_model_that_appears_meanwhile(clamu, work, tiny, monkeypatch):
    monkeypatch.setenv("CLAMU_JOURNAL_SECONDS", "0")
    thread = _appears(work, "late")
    assert clamu(*TRAIN, "late", "--overwrite").code == 0
    thread.join()
    assert tiny.digests(work / "late") == tiny.digests(work / "text")


def test_long_names(clamu, work, tiny):
    name = "m" * 250
    assert clamu(*TRAIN, name).code == 0
    assert tiny.digests(work / name) == tiny.digests(work / "text")
    assert clamu("unmerge", name, "user_1").code == 0
    assert not any(path.name.startswith(".m") for path in work.iterdir())


def test_long_names_exclude_each_other(clamu, work):
    from hf_clamu.operations.lifecycle.pending import journal_beside

    first, second, short = work / ("ü" * 120 + "1"), work / ("ü" * 120 + "2"), work / "text"
    assert journal_beside(short).name == ".text.journal"
    assert len({journal_beside(place) for place in (first, second)}) == 2
    held, done = threading.Event(), threading.Event()

    def hold():
        with Journal(journal_beside(first)).locked():
            held.set()
            done.wait(WAITING)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(WAITING)
    found = clamu(*TRAIN, first.name, "--json")
    assert clamu(*TRAIN, second.name).code == 0
    done.set()
    thread.join()
    assert (found.code, found.json["error"]["type"]) == (2, "RunInProgressError")
    assert clamu(*TRAIN, first.name).code == 0


def test_an_interrupted_push_says_what_may_be_there():
    from hf_clamu.cli import interruption

    interruption.reset()
    assert "nothing was changed" in interruption.interruption_message("unmerge")
    interruption.expect_result("org/model")
    said = interruption.interruption_message("unmerge")
    interruption.reset()
    assert "nothing was changed" not in said
    assert "org/model; it may be there" in said
    assert "clamu erase org/model" in said
