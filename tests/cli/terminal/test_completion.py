"""Tab: the protocol of each shell in a process of its own, and a real bash."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_clamu

PACKAGES = Path(hf_clamu.__file__).parents[1]
# Fails where something heavy was imported.
_PROGRAM = (
    "import atexit, sys\n"
    "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'datasets'}\n"
    "atexit.register(lambda: heavy & set(sys.modules) and sys.stderr.write('heavy imports'))\n"
    "from hf_clamu.cli import main\n"
    "sys.exit(main())\n"
)


def _offers(place: Path, *words: str, shell: str = "bash") -> list[str]:
    """Return what a shell would offer for the last of the words."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES), "_CLAMU_COMPLETE": f"complete_{shell}"}
    line = " ".join(["clamu", *words])
    if shell == "bash":
        environment |= {"COMP_WORDS": "\n".join(["clamu", *words]), "COMP_CWORD": str(len(words))}
    environment |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


@pytest.fixture(scope="module")
def place(trained, tmp_path_factory):
    """Models here and one folder below, folders that hold none, and a model whose ids are no plain words."""
    folder = tmp_path_factory.mktemp("completion")
    for name in ("text", "runs/first", "runs/second", ".hidden/old", "te;xt"):
        shutil.copytree(trained / "text", folder / name)
    (folder / "texts").mkdir()
    shutil.copy(trained / "text.yaml", folder)
    path = folder / "runs/second/ledger.json"
    ledger = json.loads(path.read_bytes())
    hostile = ["$(touch pwned)", "a b", "`id`", "x;y", "-rf", "*", "café", "user:1", "ok.1"]
    ledger["tasks"] = {task_id: {} for task_id in hostile}
    path.write_text(json.dumps(ledger), encoding="utf-8")
    path = folder / "runs/first/config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "task_ids": "hmac-sha256"}), encoding="utf-8")
    return folder


def test_commands_and_options(place):
    assert _offers(place, "ver") == ["verify"]
    assert _offers(place, "queue", "") == ["add", "list", "remove", "run"]
    assert _offers(place, "unmerge", "text", "--dry") == ["--dry-run"]
    assert _offers(place, "info", "text", "--format", "") == ["human", "json", "agent", "quiet"]
    assert _offers(place, "train", "text.yaml", "--preset", "a") == ["adapters"]


def test_folders_that_are_models(place):
    assert _offers(place, "info", "") == ["runs/first", "runs/second", "text"]
    assert _offers(place, "verify", "ru") == ["runs/first", "runs/second"]
    assert _offers(place, "push", "runs/s") == ["runs/second"]
    assert _offers(place, "audit", "text", "runs/f") == ["runs/first"]
    assert _offers(place, "attack", "text", "--before", "te") == ["text"]
    assert _offers(place, "info", ".hidden/") == [".hidden/old"]
    assert _offers(place, "info", f"{place}/te") == [f"{place}/text"]
    assert _offers(place, "info", "nowhere/") == []


def test_ids_of_tasks_and_names_of_clusters(place):
    everybody = ["user_0", "user_1", "user_2", "user_3"]
    assert _offers(place, "unmerge", "text", "") == everybody
    assert _offers(place, "unmerge", "text", "user_1", "user_3", "us") == ["user_0", "user_2"]
    assert _offers(place, "unmerge", "text", "--max-drop", "9", "user_1") == ["user_1"]
    assert _offers(place, "update", "text", "--new", "rows.jsonl", "user_3") == ["user_3"]
    assert _offers(place, "queue", "add", "text", "user_2") == ["user_2"]
    assert _offers(place, "prove", "text", "user_0") == ["user_0"]
    for command in ("predict", "evaluate", "info", "export", "attack"):
        assert _offers(place, command, "text", "--task", "") == everybody
    names = json.loads((place / "text/config.json").read_bytes())["cluster_names"]
    assert _offers(place, "predict", "text", "--cluster", "") == sorted(names)


def test_models_that_give_no_ids(place):
    assert _offers(place, "unmerge", "runs/first", "") == []  # keyed
    assert _offers(place, "unmerge", "runs/second", "") == ["café", "ok.1"]  # others are no plain words
    assert _offers(place, "unmerge", "nowhere", "") == []
    assert _offers(place, "unmerge", "org/name", "") == []  # asks no Hub
    assert _offers(place, "predict", "texts", "--task", "") == []


@pytest.mark.parametrize("content", ["[]", "{", '{"tasks": [1, null]}', '{"tasks": null}', "[" * 100_000])
def test_ledgers_that_are_none(place, tmp_path, content):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/ledger.json").write_text(content, encoding="utf-8")
    (tmp_path / "odd/config.json").write_text(content, encoding="utf-8")
    assert _offers(tmp_path, "unmerge", "odd", "") == []
    assert _offers(tmp_path, "predict", "odd", "--cluster", "") == []


def test_nothing_is_done_on_the_way(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _offers(place, "--version", "ver") == ["verify"]
    assert "verify" in _offers(place, "--install-extension", "ver")
    assert list(tmp_path.iterdir()) == []


def test_other_shells(place):
    assert _offers(place, "unmerge", "text", "user_1", shell="zsh") == ["_arguments '*: :((\"user_1\"))'"]
    assert _offers(place, "unmerge", "text", "user_1", shell="fish") == ["user_1"]


# -- a real bash -----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path):
    """A home with `clamu` and `hf-clamu` on the path."""
    for name in ("clamu", "hf-clamu"):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!{sys.executable}\n{_PROGRAM}", encoding="utf-8")
        script.chmod(0o755)
    return tmp_path


def _bash(home: Path, place: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(PACKAGES)}
    environment |= {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "SHELL": "/bin/bash"}
    command = ["bash", "--norc", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, check=False)


@pytest.mark.parametrize("name", ["clamu", "hf-clamu"])
def test_bash_installs_and_completes(home, place, name):
    # `:` keeps bash from replacing itself by the program, which asks for its parent's name.
    done = _bash(home, place, f"{name} --install-completion; :")
    assert done.returncode == 0, done.stderr
    assert f"bash completion installed in {home}/.bash_completions/{name}.sh" in done.stdout
    function = f"_{name.replace('-', '_')}_completion"
    script = (
        f"source ~/.bashrc\ncomplete -p {name}\nCOMP_WORDS=({name} unmerge text user_0 us)\nCOMP_CWORD=4\n"
        f"{function} {name}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = _bash(home, place, script)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"complete -o default -F {function} {name}",
        "user_1",
        "user_2",
        "user_3",
    ]
    shown = _bash(home, place, f"{name} --show-completion; :").stdout
    assert shown.strip() == (home / ".bash_completions" / f"{name}.sh").read_text(encoding="utf-8").strip()
