"""Files that browsers sent: how long they are kept, and how many."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from hf_clamu.desk.web import uploads
from hf_clamu.desk.web.uploads import UPLOADS_VARIABLE, BoundedUploads, private_uploads, read_upload, sweep
from hf_clamu.errors import TaskDataError


def _write(path, size, age=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_what_is_old_goes_and_what_is_new_stays(tmp_path):
    new = _write(tmp_path / "a" / "new.csv", 10, age=3000)
    # Of an event with a file, which gradio leaves; the clock was set back since; an hour has passed.
    _write(tmp_path / "tmpx", 0, age=100)
    _write(tmp_path / "b" / "future.csv", 10, age=-7200)
    _write(tmp_path / "b" / "old.csv", 10, age=3700)
    (tmp_path / "link").symlink_to(new)
    assert sweep(tmp_path) == (2, 10 + (tmp_path / "link").lstat().st_size)
    os.utime(tmp_path / "b", (0, 0))
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "link", "new.csv"]


def test_a_desk_sweeps_while_it_runs_and_after_one_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "_SECONDS_BETWEEN_SWEEPS", 0.01)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(UPLOADS_VARIABLE, raising=False)
    left = _write(tmp_path / "clamu-desk-left" / "evidence.html", 10, age=3700)
    marker = _write(left.with_name(uploads._MARKER), 0, age=3700)
    # A model of somebody who calls folders so, too.
    own = _write(tmp_path / "clamu-desk-demo" / "data.jsonl", 10, age=3700)
    with private_uploads():
        assert not left.exists()
        assert own.exists()
        assert marker.exists()
        (folder,) = [path for path in tmp_path.iterdir() if path not in (left.parent, own.parent)]
        assert folder.stat().st_mode & 0o777 == 0o700
        old, until = _write(folder / "old.csv", 10, age=3700), time.monotonic() + 10
        while old.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
    assert not folder.exists()
    assert UPLOADS_VARIABLE not in os.environ


def test_a_file_that_the_page_still_shows_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(UPLOADS_VARIABLE, str(tmp_path / "uploads"))
    image = _write(tmp_path / "uploads" / "a" / "image.png", 10, age=3000)
    assert read_upload(image, keep=True) == read_upload(image, keep=True) == ("image.png", b"x" * 10)
    assert time.time() - image.stat().st_mtime < 60
    with pytest.raises(TaskDataError, match="has 10 bytes; at most 5"):
        read_upload(image, 5, keep=True)
    with pytest.raises(TaskDataError, match=r"image.png is not here any longer.* Drop it again"):
        read_upload(image, keep=True)
    other = _write(tmp_path / "other.png", 10)
    (tmp_path / "uploads" / "link.png").symlink_to(other)
    folder = tmp_path / "uploads" / "a"
    for made_up in (other, tmp_path / "uploads" / ".." / "other.png", tmp_path / "uploads" / "link.png", folder, None):
        with pytest.raises(TaskDataError):
            read_upload(made_up, keep=True)
    assert other.exists()
    assert read_upload(_write(image, 10)) == ("image.png", b"x" * 10)
    assert not image.exists()


def _upload(app, parts, *headers):
    """Send a body in parts, and return the status of the answer."""
    sent, scope = [], {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers}
    left = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

    async def receive():
        return left.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], sent[-1].get("body", b"")


@pytest.fixture
def app(tmp_path):
    async def kept(scope, receive, send):
        """Write what comes to a file, as gradio does."""
        status = 200
        with open(tmp_path / f"tmp{len(list(tmp_path.iterdir()))}", "wb") as file:
            while (message := await receive())["type"] == "http.request" and message["body"]:
                file.write(message["body"])
            status = 200 if message["type"] == "http.request" else 499
        await send({"type": "http.response.start", "status": status})

    return BoundedUploads(kept, tmp_path)


def test_a_folder_that_is_full_takes_no_more(app, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "_MOST_BYTES_IN_ALL", 100)
    assert _upload(app, [b"x" * 60, b""], (b"Content-Length", b"60"))[0] == 200
    # One that says how long it is, and one that does not.
    status, text = _upload(app, [], (b"content-length", b"60"))
    assert (status, text[:46]) == (413, b"The desk holds as many files as it may. Each g")
    assert _upload(app, [b"x" * 30, b"x" * 30, b""])[0] == 499
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 100
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    assert _upload(app, [b"x" * 60, b""], (b"content-length", b"60"))[0] == 200
    monkeypatch.setattr(uploads, "_MOST_FILES", 1)
    assert _upload(app, [b"x", b""], (b"content-length", b"1"))[0] == 413
