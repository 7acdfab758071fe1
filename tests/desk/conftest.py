"""A desk in a process of its own, and a browser that visits it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desk_pages import RunningDesk, Visit, stop_workers

if importlib.util.find_spec("gradio") is None:
    pytest.skip("gradio is not installed: pip install '.[desk]'", allow_module_level=True)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_RECIPE = """
base_model: {model_type: gpt2, n_layer: 1, n_embd: 16, n_head: 2, n_positions: 48}
tokenizer: bytes
data: {files: rows.jsonl, task_column: user, text_column: text, label_column: label, validation_fraction: 0.3}
arguments:
  {num_clusters: 3, finetune_steps: 2, learning_rate: 1.0e-2, batch_size: 3, mask_steps: 2, num_threads: 1}
"""
_WORDS = {"bad": "poor dull broken", "good": "great bright whole"}
NUM_USERS = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("browser") and CHROMIUM is None:
            item.add_marker(pytest.mark.skip(reason="chromium is not installed: apt-get install chromium"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `model` of 120 users, and its rows."""
    from hf_clamu.cli import main

    folder = tmp_path_factory.mktemp("desk")
    lines = []
    for user in range(NUM_USERS):
        for number in range(4):
            label = ("bad", "good")[(user + number * number) % 2]
            text = f"{_WORDS[label].split()[(user * number) % 3]} {number} of {user}"
            lines.append(json.dumps({"user": f"user_{user}", "text": text, "label": label}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "recipe.yaml").write_text(_RECIPE, encoding="utf-8")
    assert main(["train", str(folder / "recipe.yaml"), "--output", str(folder / "model")]) == 0
    return folder


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    folder = shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def desk(work: Path) -> Iterator[Any]:
    """Starts a desk: `desk("model", ...)`; workers that are left are stopped at the end."""
    desks: list[RunningDesk] = []

    def start(*words: str, **env: str) -> RunningDesk:
        desks.append(RunningDesk(work, *words, env=env))
        return desks[-1]

    yield start
    for one in desks:
        one.stop()
    stop_workers(work)


@pytest.fixture
def clamu_words(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process; gives its exit code and stderr."""

    def run(*words: str) -> tuple[int, str]:
        from hf_clamu.cli import main

        capsys.readouterr()
        return main(list(words)), capsys.readouterr().err

    return run


# Of a module: while it runs, its event loop runs, too, and other tests have loops of their own.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Any]:
    """Opens a desk: `visit(desk.url)`."""
    visits: list[Visit] = []

    def open_page(url: str, **options: Any) -> Visit:
        visits.append(Visit(chromium, url, **options))
        return visits[-1]

    yield open_page
    for one in visits:
        one.context.close()
