"""Bits that do not depend on the processor: the settings come before torch, and the fingerprint says so."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from hf_clamu import ClamuModel, EnvironmentMismatchError, RecipeError, use_portable_kernels
from hf_clamu.portability import PORTABLE_SETTINGS, is_portable
from hf_clamu.training import Environment

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the settings are for x86-64 processors, this is another one"
)


def _clamu(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "hf_clamu.cli", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    """A folder with a recipe that asks for portable bits, and what the command line makes of it."""
    folder = tmp_path_factory.mktemp("portable")
    rows = tiny.rows("text")
    lines = [json.dumps({key: rows[key][n] for key in ("user", "text", "label")}) for n in range(len(rows["user"]))]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = """
base_model: {model_type: gpt2, n_layer: 1, n_embd: 16, n_head: 2, n_positions: 48}
tokenizer: bytes
data: {files: rows.jsonl, task_column: user, text_column: text, label_column: label}
arguments: {num_clusters: 2, finetune_steps: 2, mask_steps: 2, num_threads: 1, portable: true}
"""
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    done = _clamu("train", "recipe.yaml", "--output", "model", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_command_line_sets_them_by_itself(built):
    environment = json.loads((built / "model/ledger.json").read_bytes())["environment"]
    assert (environment["device"], environment["cpu_capability"]) == ("cpu x86-64", "AVX2")
    assert environment["kernels"] == "portable"
    done = _clamu("verify", "model", cwd=built)
    assert done.returncode == 0, done.stderr


def test_where_torch_is_loaded_already_it_is_refused(built):
    assert not is_portable()
    with pytest.raises(RecipeError, match=r"loaded already.*MKL_CBWR=COMPATIBLE"):
        use_portable_kernels()
    with pytest.raises(RecipeError, match="loaded already"):
        Environment.capture(torch.device("cpu"), 1, portable=True)
    # Loading and serving need no such thing.
    model = ClamuModel.from_pretrained(built / "model")
    with pytest.raises(RecipeError, match="loaded already"):
        model.verify(data=built / "rows.jsonl")


def test_the_settings_alone_are_not_believed(monkeypatch):
    for name, value in PORTABLE_SETTINGS.items():
        monkeypatch.setenv(name, value)
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        pytest.skip("torch uses AVX2 on this processor by itself")
    with pytest.raises(RecipeError, match="needs torch's AVX2 kernels, but torch uses"):
        Environment.capture(torch.device("cpu"), 1, portable=True)


def test_in_python_before_torch():
    code = (
        "import hf_clamu; hf_clamu.use_portable_kernels(); import torch; from hf_clamu.training import Environment;"
        "print(Environment.capture(torch.device('cpu'), 1, portable=True).kernels)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.stdout == "portable\n", done.stderr


def test_portable_and_native_are_different_environments():
    native = Environment.capture(torch.device("cpu"), 1)
    assert native.kernels == "native"
    portable = Environment.from_dict({**native.to_dict(), "kernels": "portable"})
    with pytest.raises(EnvironmentMismatchError, match="kernels: 'portable' then, 'native' now"):
        native.require(portable)
