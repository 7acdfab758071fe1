"""What a type checker knows of a merged model in a user's code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USERS_CODE = """
from hf_clamu import ClamuModel, ClamuTrainer, TaskDataset

def serve(folder: str) -> None:
    model = ClamuModel.from_pretrained(folder)
    reveal_type(model.set_cluster(task="user_17"))
    reveal_type(model.unmerge_task("user_17"))
    reveal_type(model.tasks)
    reveal_type(model.save_pretrained(folder))
    reveal_type(model.num_parameters())
    model.set_cluster(task=17)

def train(tasks: TaskDataset) -> None:
    reveal_type(ClamuTrainer("openai-community/gpt2", tasks).train().clusters)

def merge() -> None:
    with ClamuModel.merge("base", {"user_17": "folder"}).serving(0) as model:
        reveal_type(model.num_parameters())
"""
A_MODEL = "hf_clamu.models.modeling_clamu.ClamuPreTrainedModel"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_a_merged_model_has_the_members_of_both_of_its_classes(tmp_path):
    file = tmp_path / "users_code.py"
    file.write_text(USERS_CODE, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stderr == ""
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert [kind.replace("builtins.", "") for kind in revealed] == [
        *(A_MODEL, A_MODEL, "tuple[str, ...]", "None", "int"),
        *("tuple[tuple[str, ...], ...]", "int"),
    ]
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1
    assert 'incompatible type "int"; expected "str | None"' in errors[0]
