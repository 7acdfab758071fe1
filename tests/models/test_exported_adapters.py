"""Clusters leave as plain PEFT adapters: PEFT alone answers with them as the live model does, bit for bit."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from hf_clamu import ClamuModel, ClamuTrainer, TaskDataset
from hf_clamu.errors import CheckpointFormatError, ClusterNotFoundError, RecipeError, TaskNotFoundError
from hf_clamu.models.exports.routes import Routes
from hf_clamu.training import silent_progress

IDS = torch.tensor([[72, 105, 33, 9], [7, 1, 44, 250]])
LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA |= {"intermediate_size": 16, "vocab_size": 257}
LOHA = {"peft_type": "LOHA", "r": 2, "target_modules": ["q_proj", "down_proj"]}
# Loads every adapter of a folder onto the base model with PEFT, in a process that has never heard of us.
ALONE = """
import json, sys
import torch, transformers
from peft import PeftModel
from safetensors.torch import save_file
folder, base, auto = sys.argv[1:4]
routes = json.load(open(f"{folder}/routes.json"))
found = {}
for name, own in routes["adapters"].items():
    plain = getattr(transformers, auto).from_pretrained(base)
    model = PeftModel.from_pretrained(plain, f"{folder}/{own}").eval()
    with torch.no_grad():
        found[name] = model(torch.tensor(json.loads(sys.argv[4]))).logits.contiguous()
assert "hf_clamu" not in sys.modules
save_file(found, f"{folder}/logits.safetensors")
"""


def _many(count):
    rows = [
        {"user": f"user_{user:02d}", "prompt": f"{n} of {user}:", "completion": f" is {(user * n) % 7}"}
        for user in range(count)
        for n in range(4)
    ]
    columns = {"task_column": "user", "prompt_column": "prompt", "completion_column": "completion"}
    return TaskDataset.from_dataset(Dataset.from_list(rows), **columns)


def _build(tiny, kind="lm", tasks=None, lora=True, trainer=None, base=None, **changes):
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn", "c_fc"]}
    return ClamuTrainer(
        tiny.config(kind) if base is None else base,
        tiny.tasks(kind) if tasks is None else tasks,
        tiny.arguments(**{"scaling": "sum", "learning_rate": 0.02, **changes}),
        processing_class=tiny.processor(kind),
        peft_config=adapter if lora is True else lora or None,
        progress=silent_progress,
        **(trainer or {}),
    ).train()


def _logits_of(folder, base, auto):
    command = [sys.executable, "-c", ALONE, str(folder), str(base), auto, json.dumps(IDS.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "logits.safetensors")


def _live(model, cluster):
    with torch.no_grad(), model.serving(cluster):
        return model.eval()(IDS).logits


@pytest.mark.parametrize(
    ("kind", "changes", "auto"),
    [
        ("lm", {"num_clusters": 20, "clustering": "random"}, "AutoModelForCausalLM"),
        ("lm", {"clustering": "none", "localization": "sift"}, "AutoModelForCausalLM"),
        ("text", {}, "AutoModelForSequenceClassification"),
    ],
    ids=["20-clusters", "a-task-each", "classifier"],
)
def test_peft_alone_answers_as_the_live_model(kind, changes, auto, tiny, tmp_path):
    count = changes.get("num_clusters", 8)
    tasks = _many(count + 3) if kind == "lm" else None
    model = _build(tiny, kind, tasks, **changes)
    found = model.export_adapters(tmp_path / "out", format="lora")
    assert [one.cluster for one in found.adapters] == [None, *range(len(model.clusters))]
    assert (len(model.clusters) == 20) or changes.get("num_clusters") is None
    alone = _logits_of(tmp_path / "out", tmp_path / "out/base_model", auto)
    assert torch.equal(alone.pop("global"), _live(model, None))
    for number, name in enumerate(model.cluster_names):
        assert torch.equal(alone.pop(name), _live(model, number)), name
    assert not alone
    different = {model_logits.numpy().tobytes() for model_logits in (_live(model, 0), _live(model, 1))}
    assert len(different) == 2
    routes = json.loads((tmp_path / "out/routes.json").read_bytes())
    assert routes["tasks"] == {task: model.cluster_names[model.cluster_of(task)] for task in model.tasks}
    config = json.loads((tmp_path / "out/cluster_000/adapter_config.json").read_bytes())
    assert config["r"] == found.rank == 2
    assert config["task_type"] == ("CAUSAL_LM" if kind == "lm" else "SEQ_CLS")
    assert config["target_modules"] == ["c_attn", "c_fc"]


def test_some_clusters_are_written_and_the_selection_stays(tiny, tmp_path):
    model = _build(tiny)
    model.set_cluster(2)
    name = model.cluster_names[1]
    model.export_adapters(tmp_path / "out", clusters=[name, 0])
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if (p / "adapter_config.json").exists()) == [
        "cluster_000", "cluster_001", "global",
    ]  # fmt: skip
    routes = Routes.read(tmp_path / "out")
    assert set(routes.tasks) == {*model.clusters[0], *model.clusters[1]}
    assert model.cluster == 2
    with pytest.raises(ClusterNotFoundError):
        model.export_adapters(tmp_path / "other", clusters=["nobody"])
    with pytest.raises(FileExistsError, match="not empty"):
        model.export_adapters(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("kind", "lora", "base"),
    [("lm", False, None), ("lm", False, LLAMA), ("text", False, None), ("lm", LOHA, LLAMA)],
    ids=["gpt2", "llama", "classifier", "loha"],
)
def test_whole_weights_are_approximated_and_the_loss_is_measured(kind, lora, base, tiny, tmp_path):
    # What no LoRA adapter of linear layers can stand for.
    others = ["*.wte.*", "*.wpe.*", "*.bias", "*.ln_*"] if base is None else ["*.embed_tokens.*", "*norm.weight"]
    model = _build(tiny, kind, lora=lora, base=base, freeze=[] if lora else others)
    few = model.export_adapters(tmp_path / "few", rank=1, format="lora")
    full = model.export_adapters(tmp_path / "full", rank=16)
    auto = "AutoModelForCausalLM" if kind == "lm" else "AutoModelForSequenceClassification"
    alone = _logits_of(tmp_path / "full", tmp_path / "full/base_model", auto)
    for one, other in zip(few.adapters, full.adapters, strict=True):
        assert one.name == other.name
        assert 0 < one.kept < 0.99 < 0.999999 < other.kept <= 1
        assert other.apart < 1e-4 < one.apart
        live = _live(model, one.cluster)
        assert (alone[one.name] - live).abs().max() < 1e-4 * live.abs().max()


def test_what_no_adapter_can_stand_for_counts_as_lost(tiny, tmp_path):
    model = _build(tiny, lora=False)
    (found, *_) = model.export_adapters(tmp_path / "out", rank=16).adapters
    base, live = (dict(one.state_dict()) for one in (_plain(model, None), _plain(model, "global")))
    change = {name: (live[name] - base[name]).double().square().sum().item() for name in base}
    linear = [name for name in change if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))]
    assert found.kept == pytest.approx(sum(change[name] for name in linear) / sum(change.values()), rel=1e-6)
    assert found.kept == pytest.approx(found.reachable)
    assert found.kept < 0.9


def _plain(model, which):
    with model.held():
        model.set_base() if which is None else model.set_cluster(None)
        return copy.deepcopy(model)


def test_what_cannot_be_an_adapter_is_refused(tiny, tmp_path):
    whole, lora = _build(tiny, lora=False), _build(tiny)
    loha = _build(tiny, lora=LOHA, base=LLAMA)
    with pytest.raises(RecipeError, match=r"whole weights and no adapters\. Give a rank .*clamu export DIR --cluster"):
        whole.export_adapters(tmp_path / "out")
    with pytest.raises(RecipeError, match="must be 1 or more, got 0"):
        whole.export_adapters(tmp_path / "out", rank=0)
    with pytest.raises(RecipeError, match="LoRA adapters as they are: leave the rank out"):
        lora.export_adapters(tmp_path / "out", rank=4)
    with pytest.raises(RecipeError, match="are LOHA adapters"):
        loha.export_adapters(tmp_path / "out", format="lora")
    with pytest.raises(RecipeError, match="got 'gguf'"):
        lora.export_adapters(tmp_path / "out", format="gguf")
    frozen = _build(tiny, lora=False, freeze=["*.weight"])
    with pytest.raises(RecipeError, match="no linear layer among the merged weights"):
        frozen.export_adapters(tmp_path / "out", rank=4)
    assert list(tmp_path.iterdir()) == []
    loha.export_adapters(tmp_path / "out")
    assert json.loads((tmp_path / "out/global/adapter_config.json").read_bytes())["peft_type"] == "LOHA"


def test_routes_of_keyed_ids_need_the_key(tiny, tmp_path):
    model = _build(tiny, trainer={"task_id_key": "secret"})
    model.export_adapters(tmp_path / "out")
    assert "user_" not in (tmp_path / "out/routes.json").read_text()
    routes = Routes.read(tmp_path / "out")
    expected = model.cluster_names[model.cluster_of("user_3")]
    assert routes.adapter_of("user_3", "secret") == expected
    assert routes.adapter_of(expected) == expected
    with pytest.raises(TaskNotFoundError, match="CLAMU_TASK_ID_KEY"):
        routes.adapter_of("user_3")
    with pytest.raises(TaskNotFoundError, match=r"'user_3'\.$"):
        routes.adapter_of("user_3", "other")


def test_a_task_that_is_called_like_an_adapter_is_not_answered_by_it():
    adapters = {"global": "global", "x": "cluster_000"}
    routes = Routes(base_model=None, revision=None, adapters=adapters, tasks={"global": "x", "x": "x"}, keyed=False)
    assert routes.adapter_of("x") == "x"
    with pytest.raises(TaskNotFoundError, match=r"'global' is an adapter, and a task .* by another one, 'x'\. Ask"):
        routes.adapter_of("global")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values | {"format": 2}, "expected format 1, found 2"),
        (lambda values: [], "expected format 1, found 'list'"),
        (lambda values: values | {"tasks": {"a": "nobody"}}, "tasks go to 'nobody'"),
        (lambda values: values | {"tasks": ["a"]}, "'tasks' must map"),
        (lambda values: values | {"adapters": {"x": "../x"}, "tasks": {}}, r"names the folder '\.\./x'"),
        (lambda values: values | {"adapters": {"x": ".."}, "tasks": {}}, r"names the folder '\.\.'"),
    ],
)
def test_damaged_routes_are_refused(change, said, tmp_path):
    Routes(base_model="a/b", revision=None, adapters={"x": "x"}, tasks={"a": "x"}, keyed=False).write(tmp_path)
    path = tmp_path / "routes.json"
    assert Routes.read(tmp_path).adapter_of("a") == "x"
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))
    with pytest.raises(CheckpointFormatError, match=said):
        Routes.read(tmp_path)
    path.write_text("{")
    with pytest.raises(CheckpointFormatError, match="is no JSON"):
        Routes.read(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointFormatError, match=r"is missing\. Export the adapters again"):
        Routes.read(tmp_path)


def test_a_forgotten_task_leaves_the_routes(tiny, tmp_path):
    tasks = tiny.tasks("lm")
    model = _build(tiny)
    model.save_pretrained(tmp_path / "m")
    gone = tasks.task_ids[0]
    left = ClamuModel.from_pretrained(tmp_path / "m").unmerge_task(gone, data=tasks)
    left.export_adapters(tmp_path / "after")
    _build(tiny, tasks=tasks.without([gone])).export_adapters(tmp_path / "without")
    assert tiny.digests(tmp_path / "after") == tiny.digests(tmp_path / "without")
    assert gone not in Path(tmp_path / "after/routes.json").read_text()
