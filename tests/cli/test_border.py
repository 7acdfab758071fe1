"""What happens at the border of the command line: help, terminals, faults of ours, and recipes that attack."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest
from terminals import on_a_terminal

COMMAND = [sys.executable, "-m", "hf_clamu.cli"]


# Those of containers, CI and `script` often do not say their size.
@pytest.mark.parametrize(("lines", "columns"), [(30, 100), (0, 0)], ids=["sized", "without a size"])
def test_a_terminal_shows_how_far_it_is(work, lines, columns):
    found = on_a_terminal("evaluate", "text", cwd=work, size=(lines, columns), stdout=False)
    assert found.code == 0
    assert "evaluate" in found.text, found.text
    assert "0/2 00:00, ? left" in found.text
    assert len(max(re.split(r"[\r\n]", found.text), key=len)) <= (columns or 80)


@pytest.mark.parametrize("words", [[], ["help"], ["-h"], ["--help"]])
def test_help_is_readable(clamu, words):
    found = clamu(*words)
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    assert lines[0] == "Usage: clamu [OPTIONS] COMMAND [ARGS]..."
    assert len(lines) > 30
    text = " ".join(found.out.split())
    assert "..." not in text.partition("Commands:")[2]
    assert "Show the whole story on real handwritten digits, without network: three minutes" in text


@pytest.mark.parametrize("words", [["help", "unmerge"], ["unmerge", "-h"]])
def test_help_of_a_command(clamu, words):
    found = clamu(*words)
    assert found.code == 0
    assert found.out.startswith("Usage: clamu unmerge [OPTIONS] {DIR} [TASK]...\n")
    assert "--no-" not in clamu("train", "--help").out


def test_usage_errors_name_the_command(clamu):
    assert clamu("train").error.endswith("See clamu train --help.")
    assert "Value error" not in clamu("unmerge", "m", "u", "--on-mismatch", "ignore").error


def test_a_fault_is_one_sentence_and_its_traceback_is_kept(clamu, work, monkeypatch, tmp_path):
    # What nobody foresaw, by a part that is not ours: the base model's own code.
    import transformers

    def broken(*args, **kwargs):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(transformers.GPT2ForSequenceClassification, "forward", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = clamu("predict", "text", "great 1", "--json")
    assert found.code == 3
    assert found.err.startswith("clamu: This is a fault of hf_clamu, please report it: ZeroDivisionError: of all thin")
    assert "Traceback" not in found.err
    assert found.json["error"]["type"] == "ZeroDivisionError"
    (kept,) = tmp_path.glob("clamu-fault-*.txt")
    assert str(kept) in found.err
    assert "Traceback" in kept.read_text(encoding="utf-8")
    assert kept.stat().st_mode & 0o077 == 0
    found = clamu("predict", "text", "great 1", "--debug")
    assert (found.code, "Traceback" in found.err) == (3, True)
    monkeypatch.setenv("CLAMU_DEBUG", "1")
    assert "Traceback" in clamu("predict", "text", "great 1").err
    assert len(list(tmp_path.glob("clamu-fault-*.txt"))) == 1


def test_memory_that_runs_out_is_no_fault(clamu, work, monkeypatch):
    import transformers

    def broken(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(transformers.GPT2ForSequenceClassification, "forward", broken)
    found = clamu("predict", "text", "great 1")
    assert found.code == 2
    assert "There is not enough memory" in found.error


def test_a_reader_that_has_read_enough(work):
    with subprocess.Popen(
        [*COMMAND, "info", "text"], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert err == b""


def test_names_that_are_no_text(clamu, work):
    found = clamu("info", "m\udcff", "--json")
    assert found.code == 2
    assert "m\udcff" in found.json["error"]["message"]


def _doubling(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


RECIPES = {
    "aliases of aliases": (_doubling(12), "with its aliases repeated"),
    "an alias of itself": ("data: &d {files: *d}\n", "contains itself"),
    "five thousand digits": (f"base_model: {{model_type: gpt2, n_layer: {'9' * 5000}}}\ndata: {{}}\n", "digits"),
    "a thousand levels": ("[" * 5000 + "]" * 5000, "nested too deeply"),
    "a novel": ("# " + "x" * 2_000_000, "characters"),
    "a key twice": ("base_model: a\ndata: {}\nbase_model: b\n", "line 3: the key 'base_model' is given twice"),
    "a month of its own": ("base_model: 2020-13-45\n", "month"),
    "not UTF-8": (b"base_model: \xff\n", "cannot be read"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_that_attack(clamu, tmp_path, monkeypatch, name):
    text, expected = RECIPES[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    started = time.process_time()
    found = clamu("train", "recipe.yaml", "--output", "out")
    assert (found.code, expected in found.error) == (2, True), found.err
    assert len(found.error) < 4000
    assert time.process_time() - started < 60  # such a recipe would take days


def test_numbers_are_read_as_everybody_writes_them(clamu, work):
    recipe = (work / "text.yaml").read_text(encoding="utf-8")
    (work / "text.yaml").write_text(recipe.replace("learning_rate: 1.0e-2", "learning_rate: 1e-2"), encoding="utf-8")
    assert clamu("train", "text.yaml", "--output", "again").code == 0
    assert clamu("info", "again", "--json").json["arguments"]["learning_rate"] == 0.01


def test_portable_bits_of_a_setting_need_no_recipe(tmp_path):
    code = (
        "import json, os, sys\nfrom hf_clamu.cli import main\n"
        "main(['merge', 'nowhere', '--base', 'nowhere', '--set', 'portable=true', '--output', 'out'])\n"
        "print(json.dumps(os.environ.get('MKL_CBWR')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout) == "COMPATIBLE"
