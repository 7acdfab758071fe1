"""Bringing a folder to its place: whatever it is, whoever is killed, and what rights it has then."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hf_clamu import ClamuModel, SaveConflictError
from hf_clamu.storage.replace import remove_abandoned, require_replaceable, staged_folder
from hf_clamu.storage.staging import scratch_folder

_KILLED = """
import os, signal, sys, ctypes
from pathlib import Path
from hf_clamu.storage import replace

class Without:  # as on macOS, or on a file system that cannot exchange
    pass

if sys.argv[2] == "without exchange":
    ctypes.CDLL = lambda *args, **kwargs: Without()
left = int(sys.argv[3])
moved = Path.replace

def move(self, target):
    global left
    if self.parent.name == "model" or self.parent.parent.name == "model":
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    return moved(self, target)

Path.replace = move
with replace.staged_folder(Path(sys.argv[1]), lambda name: name != "notes") as stage:
    (stage / "sub").mkdir()
    for name in ("a", "b", "sub/c"):
        (stage / name).write_text("new")
"""


def _files(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def _old(folder):
    (folder / "old").mkdir(parents=True)
    for name in ("a", "old/d", "notes"):
        (folder / name).write_text("old")


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_kill_while_files_are_moved_loses_nothing(tmp_path, moves):
    target = tmp_path / "m"
    _old(target)
    command = [sys.executable, "-c", _KILLED, str(target), "without exchange", str(moves)]
    done = subprocess.run(command, check=False)
    assert done.returncode == (-signal.SIGKILL if moves < 3 else 0)
    remove_abandoned(target)
    assert _files(target) == {"a": "new", "b": "new", "sub/c": "new", "notes": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert not [path for path in target.iterdir() if path.name.startswith(".")]


def test_a_reader_finishes_what_a_killed_writer_began(tiny, folder, model, tmp_path):
    """A killed writer's files are complete in the folder; whoever loads it next brings the rest to their places."""
    model.unmerge_task("user_1", data=tiny.tasks("text"))
    model.save_pretrained(tmp_path / "new")
    stage = folder / ".clamu.0123456789abcdef.new"
    stage.mkdir()
    (tmp_path / "new").rename(stage / "model")
    (folder / "masks/cluster_003").mkdir()
    (folder / "masks/cluster_003/adapter_config.json").write_text("{}")
    goes = ["masks/cluster_003/adapter_config.json", "masks/cluster_004/adapter_config.json"]
    (stage / "clamu-stage.json").write_text(json.dumps({"clamu_stage": 1, "goes": goes}))
    (stage / "model/ledger.json").replace(folder / "ledger.json")
    expected = {*tiny.digests(stage / "model"), "ledger.json"}
    assert "user_1" not in ClamuModel.from_pretrained(folder).tasks
    assert expected == tiny.digests(folder).keys()
    assert not stage.exists()


def test_a_marker_deletes_nothing_outside(folder, tmp_path):
    """Whoever hands somebody a model can hand them a stage inside it."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/key").write_text("mine")
    (folder / "out").symlink_to(tmp_path / "victim")
    stage = folder / ".clamu.0123456789abcdef.new"
    (stage / "model").mkdir(parents=True)
    goes = ["../victim/key", str(tmp_path / "victim/key"), "out/key", 5, "../victim"]
    (stage / "clamu-stage.json").write_text(json.dumps({"clamu_stage": 1, "goes": goes}))
    assert ClamuModel.from_pretrained(folder).tasks
    assert (tmp_path / "victim/key").read_text() == "mine"
    assert not stage.exists()


def test_folders_of_others_beside_a_model_stay(folder, model):
    for name in (".model.backup.new", ".model.0123456789abcdef.new", ".model.X.old"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "precious.txt").write_text("mine")
    model.save_pretrained(folder)
    remove_abandoned(folder)
    assert len(list(folder.parent.glob(".model.*/precious.txt"))) == 3


def test_a_stage_of_a_killed_writer_goes_and_that_of_a_live_one_stays(tmp_path):
    _old(tmp_path / "m")
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom hf_clamu.storage.replace import staged_folder\n"
        f"with staged_folder(Path({str(tmp_path / 'm')!r})) as stage:\n"
        "    (stage / 'secret').write_text('x')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = [path for path in tmp_path.iterdir() if path.name != "m"]
    with staged_folder(tmp_path / "m") as stage:
        assert not left.exists()
        remove_abandoned(tmp_path / "m")
        assert stage.is_dir()
    assert _files(tmp_path / "m") == {}


def test_a_stage_whose_writer_was_killed_at_its_marker_goes(tmp_path):
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom hf_clamu.storage import durable\n"
        "from hf_clamu.storage.replace import staged_folder\n"
        "durable.move_into_place = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"with staged_folder(Path({str(tmp_path / 'm')!r})):\n    pass\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert [path.name for path in left.iterdir()] == [".clamu-stage.json.partial"]
    remove_abandoned(tmp_path / "m")
    assert not left.exists()


def test_copies_of_killed_processes_go(tmp_path, monkeypatch):
    """What a killed push or verification left in the folder for temporary files holds a model."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code = (
        "import os, signal\nfrom hf_clamu.storage.staging import scratch_folder\n"
        "with scratch_folder('push') as folder:\n    (folder / 'ledger.json').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = tmp_path.iterdir()
    assert stat.S_IMODE(left.stat().st_mode) == 0o700
    with scratch_folder("verify") as mine:
        assert not left.exists()
        with staged_folder(tmp_path / "m"):
            assert mine.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_working_directory_stays(tiny, folder, model, monkeypatch):
    monkeypatch.chdir(folder)
    inode = os.stat(folder).st_ino
    (folder / "notes.txt").write_text("mine")
    model.unmerge_task(["user_0", "user_1", "user_2"], data=tiny.tasks("text"))
    model.save_pretrained(".")
    model.save_pretrained(folder.parent / "elsewhere")
    assert os.stat(".").st_ino == inode
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    assert tiny.digests(folder) == tiny.digests(folder.parent / "elsewhere")
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_folder_below_is_the_working_directory(folder, model, monkeypatch):
    (folder / "notes").mkdir()
    monkeypatch.chdir(folder / "notes")
    model.save_pretrained("..")
    assert Path.cwd() == folder / "notes"


@pytest.fixture
def volume(tmp_path):
    place = tmp_path / "volume"
    place.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the mount command")
    if done.returncode != 0:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_mount_point(tiny, model, volume):
    require_replaceable(volume)
    (volume / "lost+found").mkdir()
    (volume / "lost+found").rmdir()
    model.save_pretrained(volume)
    loaded = ClamuModel.from_pretrained(volume)
    loaded.unmerge_task("user_1", data=tiny.tasks("text"))
    loaded.save_pretrained(volume)
    assert "user_1" not in ClamuModel.from_pretrained(volume).tasks
    assert not [path for path in [*volume.iterdir(), *volume.parent.iterdir()] if path.name.startswith(".")]


def test_a_mounted_folder_of_the_same_disk(tiny, folder, model, tmp_path):
    """A bind mount looks like any folder until it is renamed."""
    (tmp_path / "bound").mkdir()
    try:
        done = subprocess.run(["mount", "--bind", str(folder), str(tmp_path / "bound")], capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the mount command")
    if done.returncode != 0:
        pytest.skip("needs the right to mount")
    try:
        model.unmerge_task("user_1", data=tiny.tasks("text"))
        model.save_pretrained(tmp_path / "bound")
        assert "user_1" not in ClamuModel.from_pretrained(folder).tasks
    finally:
        subprocess.run(["umount", str(tmp_path / "bound")], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bound", "model"]


def test_a_private_model_stays_private(tiny, folder, model):
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    model.unmerge_task("user_1", data=tiny.tasks("text"))
    model.save_pretrained(folder)
    for path in [folder, *folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    bare = folder.parent / "bare"
    bare.mkdir()
    bare.chmod(0o700)
    model.save_pretrained(bare)
    assert stat.S_IMODE(bare.stat().st_mode) == 0o700


def test_long_names(model, tmp_path):
    place = tmp_path / ("m" * 250)
    model.save_pretrained(place)
    model.save_pretrained(place)
    assert ClamuModel.from_pretrained(place).tasks
    assert list(tmp_path.iterdir()) == [place]


def test_places_that_cannot_be_are_refused_before_anything_is_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    places = [tmp_path / "file", tmp_path / "file/m", tmp_path / ("m" * 300), tmp_path / "loop"]
    for place in places:
        with pytest.raises(OSError, match="Choose another place"):
            require_replaceable(place)
    require_replaceable(tmp_path / "x/y/z")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


# -- two who save ----------------------------------------------------------------------------------------------------


def test_a_save_does_not_bring_a_forgotten_task_back(tiny, folder):
    first, second = ClamuModel.from_pretrained(folder), ClamuModel.from_pretrained(folder)
    first.unmerge_task("user_1", data=tiny.tasks("text"))
    first.save_pretrained(folder)
    second.unmerge_task("user_2", data=tiny.tasks("text"))
    before = tiny.digests(folder)
    with pytest.raises(SaveConflictError, match="Load it again"):
        second.save_pretrained(folder)
    assert tiny.digests(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    again = ClamuModel.from_pretrained(folder).unmerge_task("user_2", data=tiny.tasks("text"))
    again.save_pretrained(folder)
    assert {"user_1", "user_2"}.isdisjoint(ClamuModel.from_pretrained(folder).tasks)
    second.save_pretrained(folder, overwrite=True)
    assert "user_1" in ClamuModel.from_pretrained(folder).tasks


def test_a_link_is_the_folder_that_it_leads_to(tiny, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    first, second = ClamuModel.from_pretrained(folder), ClamuModel.from_pretrained(tmp_path / "link")
    first.unmerge_task("user_1", data=tiny.tasks("text")).save_pretrained(folder)
    second.unmerge_task("user_2", data=tiny.tasks("text"))
    with pytest.raises(SaveConflictError):
        second.save_pretrained(folder)
    with pytest.raises(SaveConflictError):
        second.save_pretrained(tmp_path / "link")


def test_what_was_saved_last_is_known_and_what_is_to_be_saved_is_no_conflict(tiny, folder, tmp_path):
    model = ClamuModel.from_pretrained(folder)
    for task_id in ("user_1", "user_2"):
        model.unmerge_task(task_id, data=tiny.tasks("text")).save_pretrained(folder)
    same, other = ClamuModel.from_pretrained(folder), ClamuModel.from_pretrained(folder)
    for one in (same, other):
        one.unmerge_task("user_3", data=tiny.tasks("text")).save_pretrained(folder)
    other.save_pretrained(tmp_path / "fresh")
    with pytest.raises(SaveConflictError):
        model.save_pretrained(tmp_path / "fresh", overwrite=False)
    other.save_pretrained(tmp_path / "fresh", overwrite=False)


def test_verify_after_the_saved_folder_was_removed(tiny, folder, tmp_path):
    model = ClamuModel.from_pretrained(folder)
    folder.rename(tmp_path / "elsewhere")
    assert model.verify(data=tiny.tasks("text")).identical


def test_a_base_that_differs_is_never_written(tiny, folder, model):
    """Something changed a weight behind the switch's back; what it wrote could never be loaded again."""
    before = tiny.digests(folder)
    weight = next(iter(model.parameters()))
    version = weight._version
    raw = weight.detach().numpy().view("uint32").reshape(-1)
    raw[3] ^= 1
    assert weight._version == version
    with pytest.raises(Exception, match="weights") as caught:
        model.save_pretrained(folder)
    assert type(caught.value).__name__ == "WeightsChangedError"
    assert tiny.digests(folder) == before
