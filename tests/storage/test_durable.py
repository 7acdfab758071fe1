"""Reading files of untrusted origin."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from hf_clamu.storage import parse_json, read_bounded, read_json

posix = pytest.mark.skipif(sys.platform == "win32", reason="has no such files")


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": [1, 2]}')
    assert read_json(path, 13) == {"a": [1, 2]}
    with pytest.raises(ValueError, match="it is too large: it has 13 bytes, and at most 12 are read"):
        read_json(path, 12)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # that no memory holds
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes"):
        read_bounded(path, 1 << 20)


def test_a_link_is_read_only_where_somebody_named_it(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "link.json").symlink_to("a.json")
    assert read_json(tmp_path / "link.json", 100, may_link=True) == [1]
    with pytest.raises(ValueError, match="it is a symbolic link"):
        read_json(tmp_path / "link.json", 100)
    (tmp_path / "a.json").unlink()
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "link.json", 100, may_link=True)


@posix
@pytest.mark.parametrize("may_link", [False, True])
def test_what_is_no_file_is_neither_read_nor_waited_for(tmp_path, monkeypatch, may_link):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    for name in ("pipe", "socket", "/dev/zero"):
        with pytest.raises(ValueError, match="it is no plain file"):
            read_bounded(Path(name), 100, may_link=may_link)
    with pytest.raises(ValueError, match="it is a folder"):
        read_bounded(tmp_path, 100, may_link=may_link)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "nothing", 100, may_link=may_link)


@pytest.mark.skipif(sys.platform != "linux", reason="has no file that grows whenever it is read")
def test_a_file_that_grows_while_it_is_read_is_refused():
    path = Path("/proc/self/status")
    assert path.stat().st_size == 0
    with pytest.raises(ValueError, match="changed while it was read"):
        read_bounded(path, 1 << 20)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"{", "line 1 column 2"),
        (b'{"a": "\xff"}', "it is no text in UTF-8, as its byte 8 shows"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": 1, "a": 1}', "it has the key 'a' twice"),
        (b"[" * 100_000 + b"]" * 100_000, "it is nested too deeply"),
    ],
)
def test_damaged_json_is_told_in_words(data, expected):
    with pytest.raises(ValueError, match=expected):
        parse_json(data)
