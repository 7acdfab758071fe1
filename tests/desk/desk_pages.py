"""What tests of the desk share: a desk in a process of its own, its worker, and a page of it in a browser."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from hf_clamu.operations.intake.book import RequestBook
from hf_clamu.operations.intake.working import work_now


class RunningDesk:
    """A desk that answers.

    Args:
        folder (`Path`): its working directory.
        words: of its command line.
        env (*dict*): more variables.
    """

    def __init__(self, folder: Path, *words: str, env: dict[str, str]) -> None:
        self._folder, self._words, self._env = folder, words, {**os.environ, **env}
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "hf_clamu.cli", "desk", *self._words, "--port", "0", "--format", "quiet"]
        with open(self._folder / "desk.log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self._folder, env=self._env, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip().replace("0.0.0.0", "127.0.0.1")
        assert self.url, (self._folder / "desk.log").read_text(encoding="utf-8")

    def kill(self) -> None:
        self.process.kill()
        self._gone()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._gone()

    def _gone(self) -> None:
        self.process.wait(timeout=30)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def get(self, path: str = "/", **headers: str) -> tuple[int, str]:
        """Return status and body."""
        return self._open(urllib.request.Request(self.url + path, headers=headers))

    def post(self, path: str, value: Any, **headers: str) -> tuple[int, str]:
        """Return status and body."""
        data = json.dumps(value).encode("utf-8")
        sent = {"Content-Type": "application/json", **headers}
        return self._open(urllib.request.Request(self.url + path, data=data, headers=sent))

    def form(self, path: str, text: str, **headers: str) -> tuple[int, str, str]:
        """Return status, body and the cookies that are set."""
        request = urllib.request.Request(self.url + path, data=text.encode("utf-8"), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                cookies = [value.split(";")[0] for value in answer.headers.get_all("Set-Cookie") or ()]
                return answer.status, answer.read().decode("utf-8"), "; ".join(cookies)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode("utf-8", "replace"), ""

    @staticmethod
    def _open(request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode("utf-8", "replace")


def worker_of(work: Path) -> int | None:
    """Return the process of the worker, if one lives."""
    folder = RequestBook.of(str(work / "model")).folder
    found = work_now(folder)
    return None if found is None else found.pid


def stop_workers(work: Path) -> None:
    """End workers of a test: those whose command line names its folder or that its work file names."""
    for _ in range(20):
        pid = worker_of(work)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


class Visit:
    """A page of a desk in a browser, with what it asked for and what it complained of."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(urllib.parse.urlsplit(request.url).netloc))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.set_default_timeout(30_000)
        self.page.goto(url)
        self.page.wait_for_selector("#requests .desk-table, #requests p")

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def add(self, *tasks: str, name: str = "") -> None:
        self.page.fill("#tasks textarea", "\n".join(tasks))
        self.page.fill("#request-id input, #request-id textarea", name)
        self.page.click("#add")

    def said(self, words: str) -> str:
        """Wait until the page says something with these words, and return it all."""
        self.page.wait_for_function(
            "words => document.querySelector('#said')?.innerText.includes(words)", arg=words, timeout=30_000
        )
        return self.text("#said")

    def run(self) -> None:
        self.page.click("#run")
        self.page.click("#run-yes")
        self.said("given to the worker")

    def state_of(self, name: str) -> str:
        row = self.page.locator("#requests tr", has_text=name).first
        return str(row.locator(".word").inner_text())

    def wait_for_state(self, name: str, *words: str, seconds: float = 120) -> str:
        until = time.monotonic() + seconds
        while (found := self.state_of(name)) not in words:
            assert time.monotonic() < until, f"{name} is {found}: {self.text('#requests')}"
            time.sleep(0.2)
        return found
