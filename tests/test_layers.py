"""What may import what, what the root offers, and what importing it costs."""

from __future__ import annotations

import ast
import builtins
import collections
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_clamu
from hf_clamu import errors

ROOT = Path(hf_clamu.__file__).parent
CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"
# From the bottom up; what stands in one row may not import each other.
_LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("escaping", "known_names", "portability", "registration", "resources", "version", "yaml_values"),
    ("exact",),
    ("storage",),
    ("signing",),
    ("tasks",),
    ("training",),
    ("merging",),
    ("checkpoint",),
    ("hub",),
    ("base_models",),
    ("local_models",),
    ("operations",),
    ("models",),
    ("proofs", "serving"),
    ("evaluation", "prediction", "trainer"),
    ("recipe",),
    ("demo", "planning", "proposal"),
    ("desk",),
    ("cli", "__main__"),
)
_RANKS = {name: rank for rank, names in enumerate(_LAYERS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))
TESTS = Path(__file__).parent
# Of torch and transformers, which have the same names.
_OF_OTHERS = {"_attn_implementation", "_version"}


def _layer(module: str) -> str:
    part = module.split(".")[1]
    return "demo" if part.startswith("demo") else part


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> list[tuple[str, str | None]]:
    """Modules of hf_clamu that a file imports anywhere in it, with the name that is taken from them."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                is_module = (ROOT.parent / node.module.replace(".", "/") / f"{alias.name}.py").exists()
                found.append((f"{node.module}.{alias.name}", None) if is_module else (node.module, alias.name))
    return [(module, name) for module, name in found if module.split(".")[0] == "hf_clamu"]


def test_the_parser_sees_imports():
    found = {module for path in FILES for module, _ in _imports(path)}
    assert {"hf_clamu.errors", "hf_clamu.exact", "hf_clamu.tasks", "hf_clamu.training"} <= found


@pytest.mark.parametrize("path", [path for path in FILES if path != ROOT / "__init__.py"], ids=_module)
def test_imports_point_down(path):
    layer = _layer(_module(path))
    assert layer in _RANKS, f"{layer} has no layer yet: give it one"
    for module, _ in _imports(path):
        if module == "hf_clamu":
            pytest.fail(f"{path.name} imports from the root, which imports everything: name the module")
        other = _layer(module)
        assert other == layer or _RANKS[other] < _RANKS[layer], f"{_module(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_files_classes_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        limit = 300 if isinstance(node, ast.ClassDef) else 60
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < limit, (
                f"{path.name}:{node.lineno} {node.name} has over {limit} lines"
            )


def test_folders_are_small():
    sizes = collections.Counter(path.parent for path in FILES)
    assert {str(folder): size for folder, size in sizes.items() if size > 12} == {}


def _circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the strongly connected components of more than one module."""
    reach = {start: _reached(graph, start) for start in graph}
    components = {frozenset(other for other in graph if other in reach[one] and one in reach[other]) for one in graph}
    return [set(component) for component in components if len(component) > 1]


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen, todo = set(), [start]
    while todo:
        for other in graph.get(todo.pop(), ()):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen


def test_circles_are_found():
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


def test_no_circle():
    graph = {_module(path): {module for module, _ in _imports(path)} for path in FILES}
    del graph["hf_clamu"]  # lazy, and nobody imports from it
    assert _circles(graph) == []


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_nobody_takes_private_names(path):
    for module, name in _imports(path):
        private = [part for part in (*module.split("."), name or "") if re.match(r"_(?!_)", part)]
        assert not private, f"{_module(path)} takes {module}.{name}"


def test_tests_look_at_what_is_public():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    private = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            name = node.attr if stored else getattr(node, "name", None)
            if isinstance(name, str) and re.match(r"_(?!_)", name):
                private.add(name)
    assert {"_live", "_flips"} <= private
    odd = []
    for path in sorted(TESTS.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        odd += [f"{path.name}: {name}" for _, name in _imports(path) if re.match(r"_(?!_)", name or "")]
        own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_of_self(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in private - own - _OF_OTHERS:
                odd.append(f"{path.name}:{node.lineno}: {node.attr}")
    assert odd == []


def _is_of_self(node):
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


@pytest.mark.parametrize("package", ["exact", "storage", "signing", "tasks", "training", "merging"])
def test_packages_offer_what_they_say(package):
    module = __import__(f"hf_clamu.{package}", fromlist=["__all__"])
    assert len(set(module.__all__)) == len(module.__all__) > 0
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_all_names_exist(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    exported = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets)
    ]
    if not exported:
        return
    bound = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        for alias in getattr(node, "names", ())
        if isinstance(alias, ast.alias)
    }
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            bound.add(node.name)
        elif isinstance(node, ast.Assign):
            bound |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            bound.add(node.target.id)
    assert set(exported[0]) - bound == set()


def _fresh(code: str) -> dict:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return json.loads(done.stdout)


def test_importing_the_root_loads_nothing_heavy():
    code = "import hf_clamu as c, json, sys; c.__version__, dir(c); print(json.dumps(dict.fromkeys(sys.modules)))"
    loaded = {name.split(".")[0] for name in _fresh(code)}
    assert "hf_clamu" in loaded
    heavy = {"torch", "transformers", "peft", "datasets", "numpy", "accelerate", "sklearn", "huggingface_hub"}
    assert loaded & heavy == set()


@pytest.mark.parametrize("first", ["hf_clamu, peft", "peft, hf_clamu"])
def test_peft_knows_masks_whichever_comes_first(first):
    code = f"import json, {first}; from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known"
    assert "CLAMU_MASK" in _fresh(f"{code}; print(json.dumps(list(known)))")


def test_peft_knows_masks_after_somebody_asked_whether_it_is_installed():
    code = "import hf_clamu, json; from importlib.util import find_spec; assert find_spec('peft').name == 'peft'"
    code += "; import transformers, peft; from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known"
    assert "CLAMU_MASK" in _fresh(f"{code}; print(json.dumps(list(known)))")


def test_errors_and_recipe_load_no_framework():
    code = "import hf_clamu.errors, hf_clamu.recipe, json, sys; print(json.dumps(dict.fromkeys(sys.modules)))"
    assert {name.split(".")[0] for name in _fresh(code)} & {"torch", "transformers", "datasets", "numpy"} == set()


def test_all_of_the_root():
    assert sorted(hf_clamu.__all__) == dir(hf_clamu)
    assert len(set(hf_clamu.__all__)) == len(hf_clamu.__all__)
    for name in hf_clamu.__all__:
        value = getattr(hf_clamu, name)
        assert getattr(value, "__name__", name) == name
    with pytest.raises(AttributeError, match="no attribute 'ClamuModle'"):
        hf_clamu.ClamuModle  # noqa: B018


@pytest.mark.parametrize(
    ("module", "name"), [("hf_clamu.prediction", "predict"), ("hf_clamu.models.byte_tokenizer", "byte_tokenizer")]
)
def test_a_documented_name_that_moved_is_still_there(module, name):
    with pytest.warns(DeprecationWarning, match=f"from hf_clamu import {name}"):
        old = getattr(importlib.import_module(module), name)
    assert old is getattr(hf_clamu, name)


def test_every_error_is_exported_from_the_root():
    assert set(errors.__all__) <= set(hf_clamu.__all__)
    assert all(getattr(hf_clamu, name) is getattr(errors, name) for name in errors.__all__)


def test_the_tree_of_errors_lists_every_class():
    drawn = re.findall(r"^\s+[│├└ ]*(\w+Error)\b(?: \((\w+)\))?", errors.__doc__, flags=re.MULTILINE)
    assert sorted(name for name, _ in drawn) == sorted(errors.__all__)
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert defined == set(errors.__all__)
    for name, base in drawn:
        if base:
            assert issubclass(getattr(errors, name), getattr(builtins, base))


def test_the_tree_of_errors_is_drawn_as_it_is():
    drawn = re.findall(r"^    ([│├└ ]*)(\w+Error)\b", errors.__doc__, flags=re.MULTILINE)
    parents: list[str] = []
    for lines, name in drawn:
        depth = len(lines) // 2
        if depth:
            assert getattr(errors, parents[depth - 1]) in getattr(errors, name).__bases__
        parents[depth:] = [name]
    assert parents[0] == "ClamuError"


def test_version_is_the_newest_in_the_changelog():
    heading = re.search(r"^##\s+\[?v?(\d+\.\d+\.\d+[\w.]*)", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)
    assert heading is not None
    assert heading.group(1) == hf_clamu.__version__


def test_what_is_imported_is_declared():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11

    declared = tomllib.loads((CHANGELOG.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in declared["optional-dependencies"].values() for line in lines]
    names = {re.match(r"[\w-]+", line)[0].lower().replace("-", "_") for line in (*declared["dependencies"], *extras)}
    own_names = {"PIL": "pillow", "sklearn": "scikit_learn", "yaml": "pyyaml"}
    own_names |= {"cyclonedx": "cyclonedx_python_lib", "packageurl": "packageurl_python"}
    imported = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    foreign = {own_names.get(name, name) for name in imported - sys.stdlib_module_names - {"hf_clamu"}}
    # vLLM brings what it calls: its plugin is imported by vLLM alone.
    assert foreign - names == {"vllm"}
    needed = {re.match(r"[\w-]+", line)[0].lower().replace("-", "_") for line in declared["dependencies"]}
    assert needed - foreign == set()
