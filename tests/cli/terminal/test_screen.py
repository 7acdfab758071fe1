"""What a terminal shows: colours, tables that fit, bars; and what a pipe does not get."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
from terminals import on_a_terminal

from hf_clamu.cli.terminal.bars import seconds_left

# A command's answer without the seconds that it takes to load a model.
_ANSWER = """
from hf_clamu.cli.output import emit, table
from hf_clamu.cli.terminal.formats import use_format
use_format(sys.argv[1])
rows = [(f"user_{number}", str(number), "x" * 40 + str(number)) for number in range(3)]
text = lambda: "model: identical\\n\\n" + table(("task", "rows", "file"), rows, left=(0, 2))
ids = [row[0] for row in rows]
emit(False, {"rows": [{"task": one} for one in ids]}, text, quiet=ids, then=["clamu info 'a b'"])
"""
_BARS = """
import time
from hf_clamu.cli.output import emit_error, note
from hf_clamu.cli.terminal.bars import progress_bars, stop_bars
from hf_clamu.cli.terminal.formats import use_format
use_format(sys.argv[1])
def work():
    for item in progress_bars([1, 2], "outer [red]x[/red]"):
        for part in progress_bars([1, 2, 3], "inner"):
            time.sleep(0.3)
        note(f"done {item}")
        if item == 2:
            raise ValueError
try:
    work()
except ValueError:
    stop_bars()
    emit_error(False, "x", "broken")
"""


def _answer(tmp_path, form="human", **options):
    shown = on_a_terminal(form, code=f"import sys{_ANSWER}", cwd=tmp_path, **options)
    assert shown.code == 0, shown.text
    return shown


def _bars(tmp_path, form="human", **options):
    shown = on_a_terminal(form, code=f"import sys{_BARS}", cwd=tmp_path, **options)
    assert shown.code == 0, shown.text
    assert shown.text.splitlines()[-1].startswith("{" if form == "json" else "clamu: broken")
    return shown


def _codes(raw: str) -> set[str]:
    return set(re.findall(r"\x1b\[[0-9;?]*[A-Za-z]", raw))


def test_a_terminal_gets_colours_and_a_pipe_does_not(tmp_path):
    shown = _answer(tmp_path)
    assert "\x1b[1mtask" in shown.raw
    assert "model: \x1b[32midentical\x1b[0m" in shown.raw
    assert "Next: \x1b[36mclamu info 'a b'\x1b[0m" in shown.raw
    assert "─────" in shown.text
    command = [sys.executable, "-c", f"import sys{_ANSWER}", "human"]
    environment = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "PYTHONPATH": ":".join(sys.path)}
    piped = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert "\x1b" not in piped
    assert "-----" in piped
    words = [word for word in piped.split() if set(word) != {"-"}]
    assert words == [word for word in shown.text.split() if set(word) != {"─"}]


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_who_wants_no_colours_gets_none(tmp_path, variables):
    shown = _answer(tmp_path, **variables)
    assert _codes(shown.raw) == set()
    assert ("─────" in shown.text) == ("NO_COLOR" in variables)


def test_other_formats_are_the_same_on_a_terminal(tmp_path):
    assert _answer(tmp_path, "quiet").raw == "user_0\r\nuser_1\r\nuser_2\r\n"
    shown = _answer(tmp_path, "agent").raw
    assert shown.splitlines() == ["next=[\"clamu info 'a b'\"]", "[rows]", "task", "user_0", "user_1", "user_2"]
    assert json.loads(_answer(tmp_path, "json").raw)["next"] == ["clamu info 'a b'"]


@pytest.mark.parametrize("columns", [20, 30, 60, 200])
def test_a_table_is_no_wider_than_the_terminal_and_cuts_nothing_off(tmp_path, columns):
    lines = _answer(tmp_path, size=(20, columns)).text.splitlines()[2:-1]
    assert max(map(len, lines)) <= columns
    rows = "".join(lines[[set(line) == {"─"} for line in lines].index(True) + 1 :]).replace(" ", "")
    expected = "".join(f"user_{number}{number}{'x' * 40}{number}" for number in range(3))
    assert sorted(rows) == sorted(expected)


def test_a_real_command_shows_a_table_and_an_error(trained):
    shown = on_a_terminal("info", "text", cwd=trained)
    assert (shown.code, "─────" in shown.text, "\x1b[1m" in shown.raw) == (0, True, True)
    shown = on_a_terminal("info", "nowhere", cwd=trained)
    assert shown.code == 2
    assert shown.raw.startswith("\x1b[1;31mclamu:\x1b[0m nowhere is not a folder.")
    assert shown.text == "clamu: nowhere is not a folder. Expected a saved ClAMU model.\n"


def test_what_users_wrote_is_shown_as_it_is_and_does_nothing(trained, tmp_path):
    """Requests whose names are markup, codes of terminals and several lines."""
    shutil.copytree(trained / "text", tmp_path / "text")
    names = ["[red]x[/red]", "a\x1b[2Jb\x9b31m", "line\nNext: rm -rf", ":smile:", "\u202egnorw"]
    requests = [{"id": name, "task": f"nobody_{number}"} for number, name in enumerate(names)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in requests), encoding="utf-8")
    shown = on_a_terminal("unmerge", "text", "--from", "asked.jsonl", cwd=tmp_path, size=(30, 200))
    assert shown.code == 2
    assert _codes(shown.raw) <= {f"\x1b[{code}m" for code in ("0", "1", "2", "1;31", "33", "36", "32")}
    assert not set(shown.raw) & set("\x9b\u202e")
    for name in ("[red]x[/red]", r"a\u001b[2Jb\u009b31m", r"line\u000aNext: rm -rf", ":smile:", r"\u202egnorw"):
        assert name in shown.text
    assert "\nNext: rm" not in shown.text


# -- bars ------------------------------------------------------------------------------------------------------------


def test_bars_say_how_many_are_done_and_how_long_it_takes(trained, tmp_path):
    shown = on_a_terminal("train", trained / "text.yaml", "--output", tmp_path / "new", cwd=trained)
    assert shown.code == 0
    assert re.search(r"finetune .*0/4 00:00, \? left", shown.text)
    assert "\x1b[?25l" not in shown.raw  # the cursor is never hidden, so a killed process leaves it there
    # The last bar is taken away before anything else is printed.
    assert "\x1b[2K" in shown.raw.rpartition(" left")[2].partition("Merged 4 tasks")[0]


def test_bars_within_bars_and_lines_above_them(tmp_path):
    shown = _bars(tmp_path)
    assert re.search(r"outer \[red\]x\[/red\] .*1/2 00:0\d, 00:0\d left", shown.text)
    assert re.search(r"inner .*2/3 00:0\d, 00:0\d left", shown.text)
    assert {"done 1", "done 2"} <= {line.strip() for line in re.split(r"[\r\n]", shown.text)}


@pytest.mark.parametrize(
    ("form", "variables"),
    [
        ("quiet", {}),
        ("agent", {}),
        ("human", {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}),
        ("human", {"TERM": "dumb"}),
        ("human", {"RANK": "1"}),
    ],
    ids=str,
)
def test_bars_that_nobody_wants(tmp_path, form, variables):
    shown = _bars(tmp_path, form, **variables)
    assert shown.text.splitlines()[:2] == ["done 1", "done 2"]
    assert "0/2" not in shown.text


def test_a_narrow_terminal(tmp_path):
    shown = _bars(tmp_path, "json", size=(10, 44))
    lines = re.split(r"[\r\n]", shown.text)
    assert "1/2" in shown.text
    assert max(len(line) for line in lines if "left" in line) <= 44


@pytest.mark.parametrize(
    ("done", "total", "ended", "elapsed", "left"),
    [(0, 5, 0.0, 9.0, None), (1, 5, 600.0, 600.0, 2400.0), (1, 5, 600.0, 660.0, 2340.0), (4, 5, 8.0, 20.0, 0.0)],
)
def test_the_time_left_counts_down_between_long_steps(done, total, ended, elapsed, left):
    assert seconds_left(done, total, ended, elapsed) == left


@pytest.mark.parametrize(("words", "code"), [("--version >&-", 0), ("dance 2>&-", 2), ("dance <&- >&- 2>&-", 2)])
def test_closed_streams_are_no_fault(words, code):
    command = ["sh", "-c", f"exec {sys.executable} -m hf_clamu.cli {words}"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == code
