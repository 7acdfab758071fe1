"""The template of a Space: its card, its files, and its program in a process of its own, with a double of the Hub."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from hub_double import HubDouble
from huggingface_hub import SpaceCard
from huggingface_hub._buckets import FilterMatcher

from hf_clamu.hub.pull import place_of_repo
from hf_clamu.operations.lifecycle.pending import journal_beside

SPACE = Path(__file__).parents[2] / "examples/space"
MODEL, FILES = "org/model", "org/desk-files"


class Space:
    """A Space's disk and variables.

    Args:
        home (`Path`): the disk.
        hub (`HubDouble`): the Hub.
    """

    def __init__(self, home: Path, hub: HubDouble) -> None:
        self.home, self.hub = home, hub
        self.port = _free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "CLAMU_"))}
        self.variables = {
            **kept,
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
            "HOME": str(home),
            "HF_HOME": str(home / "cache"),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_owner",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",  # of models, which the double takes as LFS; buckets know nothing else
            "PYTHONPATH": os.pathsep.join([str(SPACE.parents[1]), os.environ.get("PYTHONPATH", "")]),
            "PORT": str(self.port),
            "SPACE_ID": "org/desk",
            "SPACE_HOST": "org-desk.hf.space",
            "OPENID_PROVIDER_URL": hub.url,
            "OAUTH_CLIENT_ID": "id",
            "OAUTH_CLIENT_SECRET": "secret",
            "CLAMU_MODEL": MODEL,
            "CLAMU_USERS": "anna, office",
            "CLAMU_FILES": FILES,
        }
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.home.mkdir(exist_ok=True)
        with open(self.home / "log", "ab") as log:
            command = [sys.executable, str(SPACE / "app.py")]
            self.process = subprocess.Popen(command, env=self.variables, cwd=SPACE, stdout=log, stderr=log)
        self.wait_for(lambda: self.get("/")[0] != 0)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(timeout=60)

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body; 0 where nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def clamu(self, *words: str, folder: Path | None = None) -> str:
        """Run a command as the worker would."""
        command = [sys.executable, "-m", "hf_clamu.cli", *words]
        folder = self.home / "desk" if folder is None else folder
        done = subprocess.run(command, env=self.variables, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_for(self, what) -> None:
        deadline = time.monotonic() + 120
        while not what():
            assert self.process is None or self.process.poll() is None, (self.home / "log").read_text()
            assert time.monotonic() < deadline, (self.home / "log").read_text()
            time.sleep(0.2)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture
def space(tmp_path):
    with HubDouble() as hub:
        found = Space(tmp_path / "home", hub)
        yield found
        found.stop(signal.SIGKILL)


def test_the_card_is_one_of_a_space():
    data = SpaceCard.load(SPACE / "README.md").data
    assert (data.sdk, data.app_port, data.get("hf_oauth")) == ("docker", 7860, True)
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    values = yaml.safe_load(text.split("---")[1])
    known = {"title", "emoji", "colorFrom", "colorTo", "sdk", "app_port", "pinned", "suggested_hardware"}
    assert set(values) == known | {"hf_oauth", "hf_oauth_expiration_minutes"}
    # Every variable that the program reads is explained, and no other.
    program = (SPACE / "app.py").read_text(encoding="utf-8")
    named = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    read_elsewhere = {"CLAMU_SIGNING_PASSWORD", "CLAMU_TASK_ID_KEY"}
    assert {name for name in named if f'"{name}"' in program} == named - read_elsewhere
    assert "CLAMU_SIGNING_PASSWORD" in named


def test_the_image_has_what_it_runs():
    lines = (SPACE / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]}
    assert copied == {"requirements.txt", "app.py"}
    assert all((SPACE / name).is_file() for name in copied)
    assert lines[-1] == 'CMD ["python", "app.py"]'
    requirements = (SPACE / "requirements.txt").read_text(encoding="utf-8").split()
    assert "hf-clamu[desk,proof]" in requirements


@pytest.mark.parametrize("name", ["CLAMU_MODEL", "CLAMU_USERS", "CLAMU_FILES", "HF_TOKEN"])
def test_what_is_not_set_is_named(space, name):
    space.variables[name] = ""
    command = [sys.executable, str(SPACE / "app.py")]
    done = subprocess.run(command, env=space.variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{name} is not set. Set it in the settings of the Space; README.md says what it is.\n"


def test_a_public_bucket_is_refused(space):
    space.home.mkdir()
    script = f"from huggingface_hub import HfApi; HfApi().create_bucket({FILES!r})"
    subprocess.run([sys.executable, "-c", script], env=space.variables, check=True, capture_output=True)
    command = [sys.executable, str(SPACE / "app.py")]
    done = subprocess.run(command, env=space.variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{FILES} is public, and requests name people" in done.stderr


def test_a_restart_on_an_empty_disk_loses_no_request(space, trained):
    space.clamu("push", str(trained / "model"), MODEL, "--private", folder=trained)
    space.start()
    # Nothing is served to who has not signed in.
    for path in ("/", "/config", "/gradio_api/info"):
        status, body = space.get(path)
        assert (status, "Sign in with Hugging Face" in body) == (401, True), path
    assert space.hub.buckets[FILES].private
    space.clamu("queue", "add", MODEL, "user_7", "--id", "letter", "--received", "2026-03-02")
    space.wait_for(lambda: any("requests/" in name for name in space.hub.buckets[FILES].files))
    space.stop(signal.SIGKILL)
    shutil.rmtree(space.home / "desk")
    space.start()
    (found,) = json.loads(space.clamu("queue", "list", MODEL, "--json"))["requests"]
    assert (found["name"], found["tasks"]) == ("letter", ["user_7"])
    assert all(path.stat().st_mode & 0o077 == 0 for path in (space.home / "desk").rglob("*"))
    # What happens just before the Space is stopped is kept, too.
    before = dict(space.hub.buckets[FILES].files)
    space.clamu("queue", "remove", MODEL, "letter")
    space.stop()
    assert space.hub.buckets[FILES].files != before


def test_vectors_are_not_copied():
    program = runpy.run_path(str(SPACE / "app.py"))
    journal = journal_beside(place_of_repo(MODEL)).name
    kept = FilterMatcher(include_patterns=program["KEPT"], exclude_patterns=program["DROPPED"]).matches
    requests, receipts = f"requests/{place_of_repo(MODEL).name}", "receipts"
    found = (
        f"{requests}/requests/1.json",
        f"{requests}/findings/2.json",
        f"{receipts}/3.json",
        f"{journal}/note.json",
    )
    for name in found:
        assert kept(name), name
    for name in (f"{journal}/a.safetensors", f"{journal}/a-b.part", f"{requests}/changes.lock", "key.pem", "model/x"):
        assert not kept(name), name
