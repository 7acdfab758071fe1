"""The folder that keeps what is finished: private, read in part, overwritten where vectors are, and locked by one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import hf_clamu
from hf_clamu import RecipeError, RunInProgressError
from hf_clamu.storage import Journal

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(hf_clamu.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
SUM = {"w": torch.arange(1000, dtype=torch.int32) + 1}


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal")
    journal.open("run")
    return journal


def _run(code, *words):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


# -- who may read it -------------------------------------------------------------------------------------------------


def test_nobody_else_can_read_it(journal):
    old = os.umask(0)
    try:
        with journal.locked():
            journal.write_note({"salt": "1"})
            part = journal.write("sum", {"a": 1}, SUM)
            lock = journal.folder.with_name("journal.lock")
            modes = [_mode(path) for path in (journal.folder, part.path, journal.folder / "note.json", lock)]
    finally:
        os.umask(old)
    assert modes == [0o700, 0o600, 0o600, 0o600]


def test_a_folder_that_others_could_read_is_closed(journal):
    journal.folder.mkdir(mode=0o755)
    journal.write_note({})
    assert _mode(journal.folder) == 0o700


def test_a_link_is_not_followed(journal, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    for name in ("0123456789abcdef-x.part", ".part.mine", "note.json"):
        (victim / name).write_text("{}", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in victim.iterdir()}
    journal.folder.symlink_to(victim)
    assert journal.read_note() is None
    assert journal.parts("sum") == []
    journal.clear()
    journal.delete_note()
    for act in (
        lambda: journal.write_note({}),
        lambda: journal.write("sum", {}, SUM),
        lambda: journal.locked().__enter__(),
    ):
        with pytest.raises(RecipeError, match="is a symbolic link"):
            act()
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == before


def test_links_inside_are_not_followed(journal, tmp_path):
    victim = tmp_path / "victim"
    (victim / "inner").mkdir(parents=True)
    (victim / "file").write_text("kept", encoding="utf-8")
    journal.make()
    for name in ("a.part", "b.sum.part", ".part.c", ".note.json.partial"):
        (journal.folder / name).symlink_to(victim / "file")
    (journal.folder / ".part.d").symlink_to(victim / "inner")
    journal.write_note({"a": 1})
    journal.clear()
    assert not journal.folder.exists()
    assert (victim / "file").read_text(encoding="utf-8") == "kept"
    assert (victim / "inner").is_dir()


# -- parts -----------------------------------------------------------------------------------------------------------


def test_sums_are_overwritten_and_masks_are_not(journal, tmp_path):
    kept = {}
    for name, is_sum in (("sum", True), ("old sum", True), ("mask", False)):
        part = journal.write(name, {name: 1}, SUM, is_sum=is_sum)
        kept[name] = tmp_path / name
        os.link(part.path, kept[name])  # what somebody would find who reads the device
        if name == "old sum":
            journal.remove([part])
    journal.clear()
    assert not journal.folder.exists()
    assert not any(kept["sum"].read_bytes())
    assert not any(kept["old sum"].read_bytes())
    assert any(kept["mask"].read_bytes())


def test_parts_of_others_are_not_opened(journal):
    ours = journal.write("ours", {"a": 1}, SUM)
    for run, stage in (("run", "theirs"), ("another", "ours")):
        journal.open(run)
        part = journal.write(stage, {"b": 2}, SUM)
        part.path.unlink()
        os.mkfifo(part.path.with_name(part.path.name[:20] + "0" + part.path.name[21:]))  # whoever opens it waits
    code = (
        "import sys; from pathlib import Path; from hf_clamu.storage import Journal\n"
        "j = Journal(Path(sys.argv[1])); j.open('run'); print([p.path.name for p in j.parts('ours')])"
    )
    assert _run(code, journal.folder).stdout.strip() == str([ours.path.name])


def test_a_part_under_another_name_is_not_used(journal):
    part = journal.write("sum", {"a": 1}, SUM)
    other = journal.write("other", {"a": 1}, SUM)
    part.path.replace(part.path.with_name(other.path.name))
    assert journal.parts("other") == journal.parts("sum") == []


def test_the_folder_is_listed_once_for_all_stages(journal):
    first = journal.write("first", {"a": 1}, SUM)
    assert journal.parts("first") == [first]
    second = journal.write("second", {"a": 2}, SUM)
    other = Journal(journal.folder)
    other.open("run")
    third = other.write("third", {"a": 3}, SUM)
    assert [journal.parts(stage) for stage in ("first", "second", "third")] == [[first], [second], []]
    journal.remove([first])
    assert journal.parts("first") == []
    journal.open("run")
    assert [journal.parts(stage) for stage in ("first", "second", "third")] == [[], [second], [third]]
    journal.clear()
    assert journal.parts("second") == []


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "text", [DEEP, '{"a": ' + DEEP + "}", "{", "", '{"a": NaN}', '{"a": "\\ud800"}', '{"a": 1, "a": 2}', "\x00"]
)
def test_a_note_that_nobody_here_wrote(journal, text):
    journal.make()
    (journal.folder / "note.json").write_text(text, encoding="utf-8")
    assert journal.read_note() is None


# -- the lock --------------------------------------------------------------------------------------------------------

# Plays A, B or C: each does its steps when the file that it waits for is there.
_PLAYER = """
import sys, time
from pathlib import Path
from hf_clamu.errors import RunInProgressError
from hf_clamu.storage import Journal
who, folder = sys.argv[1], Path(sys.argv[2])
journal = Journal(folder / "journal")
def wait(name):
    deadline = time.monotonic() + 100
    while not (folder / name).exists():
        assert time.monotonic() < deadline, name
        time.sleep(0.01)
def tell(name):
    (folder / name).touch()
try:
    if who == "A":
        with journal.locked():
            journal.write_note({"a": 1})
            tell("A is in")
            wait("B was refused")
            journal.clear()
            tell("A cleared")
            wait("B was refused again")
        tell("A is out")
    elif who == "B":
        for before, after in (("A is in", "B was refused"), ("A cleared", "B was refused again")):
            wait(before)
            try:
                with journal.locked():
                    print("B came in beside A")
            except RunInProgressError:
                tell(after)
        wait("A is out")
        with journal.locked():
            tell("B is in")
            wait("C is through")
    else:
        wait("B is in")
        with journal.locked():
            print("C came in beside B")
except RunInProgressError:
    print(who, "was refused")
finally:
    tell(who + " is through")
"""


def test_nobody_comes_in_beside_a_run_that_has_cleared_its_journal(tmp_path):
    players = {
        who: subprocess.Popen(
            [sys.executable, "-c", _PLAYER, who, str(tmp_path)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        for who in "ABC"
    }
    said = {who: player.communicate(timeout=120)[0].strip() for who, player in players.items()}
    assert said == {"A": "", "B": "", "C": "C was refused"}
    assert not [path for path in tmp_path.iterdir() if "journal" in path.name]


# Many processes count in a file that none of them may read and write at the same time as another.
_COUNTER = """
import sys, time
from pathlib import Path
from hf_clamu.errors import RunInProgressError
from hf_clamu.storage import Journal
folder, count = Path(sys.argv[1]), 0
while count < 40:
    try:
        with Journal(folder / "journal").locked():
            number = int((folder / "count").read_text())
            time.sleep(0.0005)
            (folder / "count").write_text(str(number + 1))
            count += 1
    except RunInProgressError:
        time.sleep(0.0001)
"""


def test_a_lock_that_goes_after_each_use_excludes(tmp_path):
    (tmp_path / "count").write_text("0", encoding="utf-8")
    players = [
        subprocess.Popen([sys.executable, "-c", _COUNTER, str(tmp_path)], env=ENVIRONMENT, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for player in players:
        assert player.communicate(timeout=120)[1] == b""
    assert (tmp_path / "count").read_text(encoding="utf-8") == "120"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_block_inside_another_is_let_in_and_another_thread_is_not(journal):
    refused = []

    def other():
        try:
            with Journal(journal.folder).locked():
                pass
        except RunInProgressError:
            refused.append(True)

    with journal.locked(), Journal(journal.folder).locked():
        with journal.locked():
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused == [True]
    with journal.locked():
        pass


def test_a_link_and_the_real_name_exclude_each_other(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    code = (
        "import sys; from pathlib import Path; from hf_clamu.storage import Journal\n"
        "with Journal(Path(sys.argv[1])).locked(): pass"
    )
    with Journal(tmp_path / "real" / "journal").locked():
        assert "RunInProgressError" in _run(code, tmp_path / "link" / "journal").stderr


def test_the_last_word_of_a_run_that_was_killed(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from hf_clamu.storage import Journal\n"
        "j = Journal(Path(sys.argv[1]))\n"
        "with j.locked():\n"
        "    j.lock.write_message({'command': 'x' * 10})\n"
        "    j.lock.write_message({'command': 'y'})\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    journal = Journal(tmp_path / "journal")
    assert _run(code, journal.folder).returncode == -9
    with journal.locked():
        assert journal.lock.read_message() == {"command": "y"}
    with journal.locked():
        assert journal.lock.read_message() is None
    (tmp_path / "journal.lock").write_text(DEEP, encoding="utf-8")
    with journal.locked():
        assert journal.lock.read_message() is None
