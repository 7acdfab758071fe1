"""Files of a snapshot come back as they were written, for their owner alone, or one sentence says why not."""

from __future__ import annotations

import secrets

import pytest
import torch

from hf_clamu import RecipeError, SnapshotError
from hf_clamu.storage import KEY_VARIABLE, Snapshot, snapshot_beside

TENSORS = {
    "train/input_ids": torch.arange(100_000, 100_400),
    "train/pixels": torch.full((7,), 0.25),
    "train/labels": torch.zeros(0, dtype=torch.int64),
}
# What the rows look like on disk if they are not encrypted.
ROWS = TENSORS["train/input_ids"].numpy().tobytes()
NAME = Snapshot.name("user_1", "a" * 64, None)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.fixture
def key(monkeypatch):
    pytest.importorskip("cryptography")
    value = secrets.token_hex(32)
    monkeypatch.setenv(KEY_VARIABLE, value)
    return value


@pytest.fixture
def snapshot(tmp_path):
    return Snapshot(tmp_path / "model.snapshot")


def _same(found):
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in found)


def _path(snapshot):
    (path,) = snapshot.folder.iterdir()
    return path


def test_rows_come_back_and_are_for_their_owner(snapshot):
    assert not snapshot.is_there
    snapshot.write(NAME, TENSORS)
    _same(snapshot.read(NAME, "user_1"))
    assert snapshot.folder.stat().st_mode & 0o777 == 0o700
    assert _path(snapshot).stat().st_mode & 0o777 == 0o600
    assert ROWS in _path(snapshot).read_bytes()
    assert b"user_1" not in _path(snapshot).read_bytes()


def test_a_name_follows_from_task_rows_and_cluster():
    others = {
        Snapshot.name(*of) for of in (("b", "a" * 64, None), ("user_1", "b" * 64, None), ("user_1", "a" * 64, "x"))
    }
    assert NAME not in others
    assert len(others) == 3


def test_a_folder_with_others_rights_is_closed(snapshot):
    snapshot.folder.mkdir(mode=0o755)
    snapshot.write(NAME, TENSORS)
    assert snapshot.folder.stat().st_mode & 0o777 == 0o700


def test_a_link_is_no_snapshot(snapshot, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    snapshot.folder.symlink_to(tmp_path / "elsewhere")
    assert not snapshot.is_there
    with pytest.raises(RecipeError, match="symbolic link"):
        snapshot.write(NAME, TENSORS)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_it_stands_beside_what_a_link_to_the_model_leads_to(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    assert snapshot_beside(tmp_path / "link") == snapshot_beside(tmp_path / "model") == tmp_path / "model.snapshot"


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"\xff" * 16 + data])
@pytest.mark.parametrize("is_encrypted", [False, True])
def test_a_damaged_file_is_named(snapshot, request, damage, is_encrypted):
    if is_encrypted:
        request.getfixturevalue("key")
    snapshot.write(NAME, TENSORS)
    path = _path(snapshot)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SnapshotError, match=f"rows of task 'user_1' in {path} cannot be used.*Nothing was changed"):
        snapshot.read(NAME, "user_1")


def test_a_missing_file_is_named(snapshot):
    with pytest.raises(SnapshotError, match="has no rows of task 'user_1' as it was merged"):
        snapshot.read(NAME, "user_1")


# -- encryption ------------------------------------------------------------------------------------------------------


def test_encrypted_rows_come_back_with_their_key_alone(snapshot, key, monkeypatch):
    snapshot.write(NAME, TENSORS)
    _same(snapshot.read(NAME, "user_1"))
    path = _path(snapshot)
    assert path.suffix == ".encrypted"
    assert path.stat().st_mode & 0o777 == 0o600
    first = path.read_bytes()
    assert ROWS[:64] not in first
    assert key.encode() not in first
    monkeypatch.setenv(KEY_VARIABLE, secrets.token_hex(32))
    with pytest.raises(SnapshotError, match="does not open it: it needs another one, or is damaged"):
        snapshot.read(NAME, "user_1")
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(SnapshotError, match=f"is encrypted, and {KEY_VARIABLE} is not set"):
        snapshot.read(NAME, "user_1")


def test_two_files_never_share_a_nonce(snapshot, key):
    names = [Snapshot.name(f"user_{number}", "a" * 64, None) for number in range(3)]
    for name in names:
        snapshot.write(name, TENSORS)
    written = [path.read_bytes() for path in snapshot.folder.iterdir()]
    assert len({data[:40] for data in written}) == 3


def test_a_file_under_another_name_does_not_open(snapshot, key):
    snapshot.write(NAME, TENSORS)
    other = Snapshot.name("user_2", "a" * 64, None)
    _path(snapshot).rename(snapshot.folder / f"{other}.encrypted")
    with pytest.raises(SnapshotError, match="does not open"):
        snapshot.read(other, "user_2")


def test_no_plain_rows_come_into_an_encrypted_snapshot(snapshot, key, monkeypatch):
    snapshot.write(NAME, TENSORS)
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(SnapshotError, match="rows would be written as they are"):
        snapshot.write(Snapshot.name("user_2", "a" * 64, None), TENSORS)
    assert len(list(snapshot.folder.iterdir())) == 1


def test_no_plain_bytes_reach_the_disk(snapshot, key, monkeypatch):
    """Also not in a file that a killed process leaves: it is stopped just before the rename."""

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    monkeypatch.setattr("pathlib.Path.unlink", lambda self, missing_ok=False: None)
    with pytest.raises(KeyboardInterrupt):
        snapshot.write(NAME, TENSORS)
    left = [path.read_bytes() for path in snapshot.folder.iterdir()]
    assert len(left) == 1
    assert len(left[0]) > len(ROWS)
    assert ROWS[:64] not in left[0]


@pytest.mark.parametrize("value", ["secret", "0" * 63, "g" * 64])
def test_a_key_of_another_form_is_refused(snapshot, monkeypatch, value):
    monkeypatch.setenv(KEY_VARIABLE, value)
    with pytest.raises(RecipeError, match="64 hexadecimal digits") as raised:
        snapshot.write(NAME, TENSORS)
    assert value not in str(raised.value)


def test_a_plain_file_is_encrypted_once_there_is_a_key(snapshot, request):
    snapshot.write(NAME, TENSORS)
    request.getfixturevalue("key")
    assert not snapshot.is_kept(NAME)
    _same(snapshot.read(NAME, "user_1"))
    snapshot.copy_from(snapshot, NAME, "user_1")
    assert snapshot.is_kept(NAME)
    assert snapshot.destroy_others([NAME]) == 1
    assert _path(snapshot).suffix == ".encrypted"
    _same(snapshot.read(NAME, "user_1"))


def test_a_copy_of_an_encrypted_file_needs_no_key(snapshot, tmp_path, key, monkeypatch):
    snapshot.write(NAME, TENSORS)
    monkeypatch.delenv(KEY_VARIABLE)
    other = Snapshot(tmp_path / "other.snapshot")
    other.copy_from(snapshot, NAME, "user_1")
    monkeypatch.setenv(KEY_VARIABLE, key)
    _same(other.read(NAME, "user_1"))


# -- destruction -----------------------------------------------------------------------------------------------------


def test_all_others_are_overwritten_and_deleted(snapshot, tmp_path):
    gone = Snapshot.name("user_2", "a" * 64, None)
    for name in (NAME, gone):
        snapshot.write(name, TENSORS)
    partial = snapshot.folder / f".{gone}.safetensors.partial"
    partial.write_bytes(ROWS)
    own = snapshot.folder / "notes.txt"
    own.write_text("of the user")
    for number, path in enumerate((snapshot.folder / f"{gone}.safetensors", partial)):
        (tmp_path / f"witness_{number}").hardlink_to(path)
    assert snapshot.destroy_others([NAME]) == 2
    for number in range(2):
        assert set((tmp_path / f"witness_{number}").read_bytes()) == {0}
    assert sorted(path.name for path in snapshot.folder.iterdir()) == sorted([f"{NAME}.safetensors", "notes.txt"])
    assert snapshot.destroy_others([NAME]) == 0


def test_an_interrupted_destruction_is_finished(snapshot):
    snapshot.write(NAME, TENSORS)
    path = _path(snapshot)
    path.write_bytes(bytes(path.stat().st_size))
    assert snapshot.destroy_others([]) == 1
    assert list(snapshot.folder.iterdir()) == []


def test_what_no_snapshot_wrote_is_not_overwritten(snapshot, tmp_path):
    snapshot.make()
    strange = snapshot.folder / f"{NAME}.safetensors"
    strange.write_bytes(b"something else")
    with pytest.raises(OSError, match="no file of a snapshot"):
        snapshot.destroy_others([])
    assert strange.read_bytes() == b"something else"
    strange.unlink()
    (tmp_path / "other").write_bytes(b"of another")
    strange.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="no file of a snapshot"):
        snapshot.destroy_others([])
    assert (tmp_path / "other").read_bytes() == b"of another"
