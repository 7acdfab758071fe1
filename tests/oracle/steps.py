"""Runs commands in this process and says what they wrote, answered and printed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.oracle.double import hub_files

__all__ = ["Bench", "say", "tidy"]

_RULES = (
    (re.compile(r"http://(127\.0\.0\.1|localhost):\d+"), "<hub>"),
    (re.compile(r"\b\d{8}T\d{6}\b"), "<stamp>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*(Z|\+00:00)?"), "<time>"),
    (re.compile(r"\b[0-9a-f]{40}\b"), "<commit>"),
    (re.compile(r"(?<=<stamp>)-(\w+)-[0-9a-f]{8}\b"), r"-\1-<hash>"),
    (re.compile(r"\b\d+(\.\d+)? ?(s|ms|min|seconds?|minutes?)\b"), "<duration>"),
    (re.compile(r"0x[0-9a-f]{6,}"), "<address>"),
)
# Other ones in each run.
_MEASURED = ("resources", "seconds", "time")


class Bench:
    """A folder in which steps run, and what they left.

    Args:
        root (`Path`): an empty folder for all cells.
        hub: the double, see `start_hub`.
    """

    def __init__(self, root: Path, hub: Any) -> None:
        self.root = root
        self.hub = hub
        self.record: dict[str, Any] = {"files": {}, "exits": {}, "answers": {}, "texts": {}, "seconds": {}}
        self._cell = ""
        self._before: dict[str, str] = {}

    def enter(self, name: str) -> Path:
        """Make a cell's folder the working directory; the Hub is empty again."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        with self.hub.lock:
            self.hub.repos.clear()
            self.hub.requests.clear()
        self._cell = name
        self._before = self._state()
        return folder

    def command(self, step: str, *arguments: str) -> int:
        """Run `clamu` with `--json`, and record it."""
        from hf_clamu.cli import main

        code: int | None = None
        out, err = io.StringIO(), io.StringIO()
        started = time.perf_counter()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                code = main([*arguments, "--json"])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException as error:  # a traceback is an answer, too
                code = 70
                traceback.print_exc()
                self._put("answers", step, {"raised": _kinds(error)})
        answer = _read_json(out.getvalue())
        if answer is not None:
            message = answer["error"].pop("message", None) if isinstance(answer.get("error"), dict) else None
            self._put("answers", step, self._tidied(answer))
            self._put("texts", f"{step} error", self._tidied(message))
        else:
            self._put("texts", f"{step} stdout", self._tidied(out.getvalue()))
        self._put("texts", f"{step} stderr", self._tidied(err.getvalue()))
        self._put("exits", step, code)
        self._put("seconds", step, round(time.perf_counter() - started, 2))
        self._changes(step)
        return code or 0

    def call(self, step: str, function: Callable[[], Any]) -> Any:
        """Call a function, and record what it gives or raises; returns its value, or None."""
        started = time.perf_counter()
        value = None
        err = io.StringIO()
        with contextlib.redirect_stdout(err), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                value = function()
                self._put("exits", step, 0)
            except Exception as error:
                self._put("exits", step, _kinds(error))
                self._put("texts", f"{step} error", self._tidied(str(error)))
        self._put("texts", f"{step} output", self._tidied(err.getvalue()))
        self._put("seconds", step, round(time.perf_counter() - started, 2))
        self._changes(step)
        return value

    def answer(self, step: str, value: Any) -> None:
        """Record a value."""
        self._put("answers", step, self._tidied(value))

    def _put(self, section: str, step: str, value: Any) -> None:
        if value not in (None, ""):
            self.record[section].setdefault(self._cell, {})[step] = value

    def _changes(self, step: str) -> None:
        now = self._state()
        changes = {name: digest for name, digest in now.items() if self._before.get(name) != digest}
        changes |= {name: "gone" for name in self._before if name not in now}
        self.record["files"].setdefault(self._cell, {})[step] = dict(sorted(changes.items()))
        self._before = now

    def _state(self) -> dict[str, str]:
        folder = self.root / self._cell
        found: dict[str, str] = {}
        drawn: list[tuple[str, str]] = []  # files with secrets in them, and perhaps in their names
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found[name] = f"link to {self._tidied(os.readlink(path))}"
            elif path.is_file():
                data = path.read_bytes()
                receipt = _read_json(data) if b"recipe_digest" in data and path.suffix != ".safetensors" else None
                if receipt is not None:
                    data = json.dumps(self._tidied(receipt), sort_keys=True).encode()
                mode = path.stat().st_mode & 0o777
                digest = hashlib.sha256(data).hexdigest() + ("" if mode == 0o644 else f" {mode:o}")
                if receipt is None:
                    found[name] = digest
                else:
                    drawn.append((tidy(name), digest))
            elif not any(path.iterdir()):
                found[f"{name}/"] = "empty"
        for name, digest in sorted(drawn):
            while name in found:
                name += "+"
            found[name] = digest
        return found | hub_files(self.hub)

    def _tidied(self, value: Any) -> Any:
        if isinstance(value, str):
            return tidy(value.replace(str(self.root.resolve()), "<root>").replace(str(self.root), "<root>"))
        if isinstance(value, dict):
            receipt = _without_secrets(value)
            return {tidy(str(k)): "<time>" if k in _MEASURED else self._tidied(v) for k, v in receipt.items()}
        if isinstance(value, (list, tuple)):
            return [self._tidied(part) for part in value]
        return value


def tidy(text: str) -> str:
    """Replace times, durations, ports and commits."""
    for pattern, name in _RULES:
        text = pattern.sub(name, text)
    return text


def _without_secrets(value: dict[str, Any]) -> dict[str, Any]:
    """Return a receipt with ids in place of the commitments, or nothing where it does not give them away."""
    effect = value.get("effect")
    if "recipe_digest" in value and isinstance(effect, dict):
        value = {**value, "effect": {**effect, **{key: _unnamed(effect.get(key)) for key in ("tasks", "clusters")}}}
    salts = (value.get("private") or {}).get("salts") if isinstance(value.get("private"), dict) else None
    if not isinstance(salts, dict):
        return value
    made = sorted(hashlib.sha256(bytes.fromhex(salt) + name.encode()).hexdigest() for name, salt in salts.items())
    tasks = sorted(salts) if made == value.get("tasks") else "commitments that do not fit the salts"
    return {**value, "tasks": tasks, "private": {"salts": sorted(salts)}}


def _read_json(text: str | bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _kinds(error: BaseException) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__ if kind not in (object, BaseException)]


def say(text: str) -> None:
    """Write a line of progress."""
    sys.__stderr__.write(text + "\n")  # type: ignore[union-attr]
    sys.__stderr__.flush()  # type: ignore[union-attr]


def _unnamed(entries: Any) -> Any:
    """Return what a receipt says of other tasks or clusters without the commitments, which also order it."""
    plain = [{key: value for key, value in one.items() if key not in ("task", "cluster")} for one in entries or ()]
    return sorted(plain, key=lambda one: json.dumps(one, sort_keys=True))
