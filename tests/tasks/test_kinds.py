"""The table of task kinds is the only place that knows them, and others can add to it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import transformers

import hf_clamu
from hf_clamu import RecipeError
from hf_clamu.tasks import TaskSpec, register_kind, task_kinds, traits_of

ROOT = Path(hf_clamu.__file__).parent
PIPELINES = {traits_of(kind).pipeline for kind in task_kinds()}


def test_the_table_names_what_transformers_has():
    from transformers.pipelines import PIPELINE_REGISTRY

    for traits in map(traits_of, task_kinds()):
        assert hasattr(transformers, traits.auto_class)
        # transformers 5 has no pipeline for encoder-decoders, so we bring one.
        assert traits.labels == "decoder" or traits.pipeline in PIPELINE_REGISTRY.get_supported_tasks()
        assert frozenset(traits.usual_columns) in traits.columns
        assert TaskSpec(kind=traits.name, task_column="task", **traits.usual_columns).kind == traits.name


def _texts_of(path: Path) -> set[str]:
    """The string constants of a file, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in prose)
    return {node.value for node in constants if isinstance(node.value, str)}


def test_nothing_else_names_a_kind():
    named = {path for path in ROOT.rglob("*.py") if _texts_of(path) & {*task_kinds(), *PIPELINES}}
    assert {path.relative_to(ROOT).as_posix() for path in named} == {
        "tasks/kinds.py",
        "tasks/encoding/images.py",
        "tasks/encoding/conversations.py",
        "tasks/encoding/texts.py",
        "tasks/encoding/words.py",
    }


def test_a_kind_is_registered_once():
    with pytest.raises(ValueError, match="There is a kind 'causal-lm' already"):
        register_kind(traits_of("causal-lm"))


def test_an_unknown_kind_is_refused():
    with pytest.raises(RecipeError, match=f"Unknown kind 'toy'; expected one of {', '.join(task_kinds())}"):
        TaskSpec(kind="toy", task_column="task", text_column="text", label_column="label")
