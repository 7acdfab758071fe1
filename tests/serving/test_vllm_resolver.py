"""The plugin answers vLLM's interface: an entry point, a registry, and a coroutine that names an adapter's folder.

vLLM needs a GPU build of its own of torch, so its interface is written down here as its documentation has it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_clamu.models.exports.routes import Routes
from hf_clamu.serving.vllm_resolver import adapter_folder
from hf_clamu.tasks.keyed_ids import keyed_id

INTERFACE = {
    "vllm/__init__.py": "",
    "vllm/lora/__init__.py": "",
    "vllm/lora/request.py": """
import dataclasses
@dataclasses.dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str
    def __post_init__(self):
        assert self.lora_int_id >= 1 and self.lora_path
""",
    "vllm/lora/resolver.py": """
import abc
class LoRAResolver(abc.ABC):
    @abc.abstractmethod
    async def resolve_lora(self, base_model_name, lora_name): ...
class _Registry:
    def __init__(self):
        self.resolvers = {}
    def register_resolver(self, resolver_name, resolver):
        assert isinstance(resolver, LoRAResolver)
        self.resolvers[resolver_name] = resolver
LoRAResolverRegistry = _Registry()
""",
}
# What vLLM does at its start, and for a request that names a model which it does not know.
ENGINE = """
import asyncio, sys
from importlib.metadata import entry_points
(plugin,) = [one for one in entry_points(group="vllm.general_plugins") if one.name == "clamu"]
plugin.load()()
from vllm.lora.resolver import LoRAResolverRegistry
for name in sys.argv[1:]:
    for resolver in LoRAResolverRegistry.resolvers.values():
        found = asyncio.run(resolver.resolve_lora("org/base", name))
        print(name, None if found is None else (found.lora_name, found.lora_path))
print(sorted(LoRAResolverRegistry.resolvers))
"""


@pytest.fixture
def adapters(tmp_path):
    """Routes of two clusters, one task in each."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    tasks = {"alice": "calm-otter-1f2", "bob": "kind-wren-0aa"}
    names = {"global": "global", "calm-otter-1f2": "cluster_000", "kind-wren-0aa": "cluster_001"}
    Routes(base_model="org/base", revision=None, adapters=names, tasks=tasks, keyed=False).write(folder)
    return folder


def _engine(tmp_path, *names, **environment):
    for name, text in INTERFACE.items():
        path = tmp_path / "interface" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    path = os.pathsep.join([str(tmp_path / "interface"), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", ENGINE, *names]
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_engine_finds_adapters_by_task_and_by_name(adapters, tmp_path):
    done = _engine(tmp_path, "alice", "kind-wren-0aa", "global", "carol", CLAMU_ADAPTERS=str(adapters))
    assert done.stdout.splitlines() == [
        f"alice ('alice', '{adapters}/cluster_000')",
        f"kind-wren-0aa ('kind-wren-0aa', '{adapters}/cluster_001')",
        f"global ('global', '{adapters}/global')",
        "carol None",
        "['Clamu Resolver']",
    ], done.stderr


def test_without_a_folder_nothing_is_registered(tmp_path):
    done = _engine(tmp_path, CLAMU_ADAPTERS="")
    assert done.stdout.splitlines() == ["[]"], done.stderr


def test_a_wrong_folder_shows_at_the_start(tmp_path):
    done = _engine(tmp_path, CLAMU_ADAPTERS=str(tmp_path))
    assert done.returncode == 1
    assert "routes.json is missing. Export the adapters again" in done.stderr.splitlines()[-1]


def test_keyed_ids_are_answered_with_the_key(adapters, monkeypatch):
    tasks = {keyed_id("secret", "alice"): "global"}
    Routes(base_model=None, revision=None, adapters={"global": "global"}, tasks=tasks, keyed=True).write(adapters)
    monkeypatch.delenv("CLAMU_TASK_ID_KEY", raising=False)
    assert adapter_folder(adapters, "alice") is None
    monkeypatch.setenv("CLAMU_TASK_ID_KEY", "secret")
    assert adapter_folder(adapters, "alice") == adapters / "global"


def test_another_base_model_gets_no_answer_and_a_new_export_counts_at_once(adapters, tmp_path):
    assert adapter_folder(adapters, "bob", "org/base") == adapter_folder(adapters, "bob", str(tmp_path))
    assert adapter_folder(adapters, "bob", "org/other") is None
    routes = Routes.read(adapters)
    routes.tasks.pop("bob")
    routes.write(adapters)
    assert adapter_folder(adapters, "bob", "org/base") is None


def test_nothing_of_vllm_is_imported_elsewhere():
    code = "import sys, hf_clamu.serving.vllm_resolver; print([one for one in sys.modules if one.startswith('vllm')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
