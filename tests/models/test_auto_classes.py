"""transformers' Auto classes load saved models, quietly, whichever package was imported first, and from the Hub."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hub_double import HubDouble

import hf_clamu
from hf_clamu import ClamuModel, IncompatibleBaseError
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.models.auto import AUTO_NAMES

TESTS = Path(__file__).parents[1]
HEADS = {
    "text": "AutoModelForSequenceClassification",
    "lm": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "words": "AutoModelForTokenClassification",
    "image": "AutoModelForImageClassification",
}


def _auto(name):
    return getattr(transformers, name)


def _same_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("kind", HEADS)
def test_each_head_is_loaded_by_its_auto_class(kind, saved_kind, exported):
    head = _auto(HEADS[kind])
    plain = {cluster: head.from_pretrained(exported(kind, cluster)) for cluster in (None, 1)}
    for auto in (head, transformers.AutoModel):
        model = auto.from_pretrained(saved_kind(kind))
        assert type(model).__bases__[1] is type(plain[None])
        assert isinstance(model, ClamuModel)
        assert not model.training
        assert _same_weights(model, plain[None])
        assert _same_weights(auto.from_pretrained(str(saved_kind(kind)), cluster=1), plain[1])
        assert model.config.id2label == plain[None].config.id2label
    assert not _same_weights(plain[None], plain[1])
    config = transformers.AutoConfig.from_pretrained(saved_kind(kind))
    assert type(config) is ClamuConfig
    assert (config.id2label, config.label2id) == (plain[None].config.id2label, plain[None].config.label2id)
    if kind != "image":
        tokenizer = transformers.AutoTokenizer.from_pretrained(saved_kind(kind))
        assert tokenizer("great 3").input_ids == model.processor("great 3").input_ids


@pytest.mark.parametrize("kind", ["text", "lm", "words", "image"])
def test_without_its_head_it_gives_hidden_states(kind, saved_kind, exported):
    inputs = {"pixel_values": torch.rand(2, 1, 8, 8)} if kind == "image" else {"input_ids": torch.tensor([[72, 105]])}
    name = "image-feature-extraction" if kind == "image" else "feature-extraction"
    processor = {} if kind == "image" else {"tokenizer": str(saved_kind(kind))}
    for cluster in (None, 2):
        plain = transformers.AutoModel.from_pretrained(exported(kind, cluster)).eval()
        model = transformers.AutoModel.from_pretrained(saved_kind(kind), cluster=cluster)
        copied = pickle.loads(pickle.dumps(model))
        with torch.no_grad():
            expected = plain(**inputs)[0]
            for each in (model, copied, model.set_cluster(0).set_cluster(cluster)):
                assert torch.equal(each(**inputs)[0], expected)
        if kind != "image":
            pipes = [
                transformers.pipeline(name, model=str(folder), device="cpu", **processor)
                for folder in (exported(kind, None), saved_kind(kind))
            ]
            ours = hf_clamu.pipeline(name, saved_kind(kind), device="cpu")
            assert ours("great 3") == pipes[0]("great 3") == pipes[1]("great 3")
            assert len(ours("great 3")[0][0]) == 16
    # The head is there all the same.
    model.export(exported(kind, None).parent / f"headless-{kind}", cluster=1)


@pytest.mark.parametrize("name", [name for name in AUTO_NAMES if name != "AutoModel"])
def test_another_head_is_refused_before_weights_are_read(name, saved_kind, monkeypatch):
    def fails(*args, **options):
        raise AssertionError("weights were read")

    monkeypatch.setattr(ClamuModel, "from_pretrained", fails)
    others = [kind for kind in HEADS if HEADS[kind] != name]
    assert len(others) == 4
    for kind in others:
        with pytest.raises(IncompatibleBaseError, match=rf"{name} was asked for, but .* is a \w+\. Load it with"):
            _auto(name).from_pretrained(saved_kind(kind))


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", [torch.bfloat16, "float16", "auto"], ids=str)
def test_the_type_is_honoured_under_both_names(name, value, saved_text, exported):
    head = transformers.AutoModelForSequenceClassification
    model = head.from_pretrained(saved_text, cluster=2, **{name: value})
    assert _same_weights(model, head.from_pretrained(exported("text", 2), dtype=value))
    assert model.set_cluster(0).dtype == model.dtype
    assert _same_weights(model, head.from_pretrained(exported("text", 0), dtype=value))


def test_options_of_a_plain_model_are_honoured(saved_text, exported):
    head = transformers.AutoModelForSequenceClassification
    names = {"id2label": {0: "no", 1: "yes", 2: "so so"}, "label2id": {"no": 0, "yes": 1, "so so": 2}}
    options = {"attn_implementation": "eager", "output_hidden_states": True, "output_attentions": True, **names}
    model = head.from_pretrained(saved_text, **options)
    plain = head.from_pretrained(exported("text", None), **options)
    for config in (model.config, plain.config):
        assert config._attn_implementation == "eager"
        assert (config.id2label, config.label2id) == tuple(names.values())
    ids = torch.tensor([[72, 105]])
    found, expected = model(ids), plain(ids)
    assert found.keys() == expected.keys() >= {"logits", "hidden_states", "attentions"}
    assert torch.equal(found.attentions[0], expected.attentions[0])
    # Said, but nothing new.
    assert head.from_pretrained(saved_text, num_labels=3).config.id2label[0] == "bad"
    quiet = {"trust_remote_code": False, "quantization_config": None, "low_cpu_mem_usage": True}
    assert _same_weights(head.from_pretrained(saved_text, use_safetensors=True, **quiet), model)


def test_the_configuration_may_be_given(saved_text):
    config = transformers.AutoConfig.from_pretrained(saved_text, output_hidden_states=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(saved_text, config=config)
    assert model.config.output_hidden_states
    assert model.config.model_type == "gpt2"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_labels": 2}, IncompatibleBaseError, "has 3 labels and its head is not made again for 2"),
        ({"id2label": {0: "a"}}, IncompatibleBaseError, "has 3 labels and its head is not made again for 1"),
        ({"quantization_config": {"load_in_8bit": True}}, TypeError, "the option 'quantization_config'"),
        ({"vocab_size": 9}, TypeError, "the option 'vocab_size'"),
        ({"dtype": "int8"}, ValueError, "floating-point type"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be_honoured_are_refused(options, error, message, saved_text):
    with pytest.raises(error, match=message):
        transformers.AutoModelForSequenceClassification.from_pretrained(saved_text, **options)


def test_a_subfolder_is_refused(saved_text):
    with pytest.raises(ValueError, match="a folder or repo of its own"):
        ClamuModel.from_pretrained(saved_text, subfolder="masks")


def test_no_model_is_made_from_the_configuration_alone(saved_text):
    config = transformers.AutoConfig.from_pretrained(saved_text)
    for name in AUTO_NAMES:
        with pytest.raises(IncompatibleBaseError, match="use from_pretrained"):
            _auto(name).from_config(config)


# -- other processes -------------------------------------------------------------------------------------------------

# Every log record and warning of plain and of saved models, as a list per folder.
_QUIET = """
import json, logging, pickle, sys, warnings
pickled, *folders = sys.argv[1:]
import transformers
from transformers import AutoModelForSequenceClassification, pipeline
import hf_clamu  # after the Auto classes; the tests of the Hub have it before
import torch

said = []


class Keep(logging.Handler):
    def emit(self, record):
        said.append([record.levelname, record.getMessage()])


logging.getLogger().addHandler(Keep(logging.WARNING))
logging.getLogger("transformers").addHandler(Keep(logging.WARNING))
warnings.showwarning = lambda message, category, *rest: said.append([category.__name__, str(message)])
warnings.simplefilter("always")
found = []
for folder in folders:
    said.clear()
    transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    transformers.AutoModel.from_pretrained(folder)
    model(torch.tensor([[65, 66]]), labels=torch.tensor([1])).loss.backward()
    pipe = transformers.pipeline("text-classification", model=folder, device="cpu")
    answers = pipe(["great 3 of 4", "dull"], batch_size=2, top_k=None)
    found.append({"answers": answers, "class": type(model).__name__, "said": list(said)})
with open(pickled, "rb") as file:
    model = pickle.load(file)
logits = {cluster: model.set_cluster(cluster)(torch.tensor([[65, 66]])).logits.tolist() for cluster in (0, 2)}
print(json.dumps({"found": found, "logits": logits}))
"""


def _environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), **more}


def test_nothing_is_said_that_a_plain_model_would_not_say(model, saved_text, exported, tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model.set_cluster(1)))
    done = subprocess.run(
        [sys.executable, "-c", _QUIET, str(tmp_path / "model.pkl"), str(exported("text", None)), str(saved_text)],
        env=_environment(HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    plain, ours = facts["found"]
    assert (ours["class"], ours["answers"]) == (plain["class"], plain["answers"])
    assert len(plain["answers"]) == 2
    # AutoModel drops the head of a plain model, and says so.
    assert any("LOAD REPORT" in message for _, message in plain["said"])
    assert [line for line in ours["said"] if line not in plain["said"]] == []
    # A pickle of another process.
    for cluster, logits in facts["logits"].items():
        assert logits == model.set_cluster(int(cluster))(torch.tensor([[65, 66]])).logits.tolist()


# Which base is at org/base comes and goes; what was pushed names the commit of the first.
_HUB = """
import sys
import hf_clamu
assert "transformers" not in sys.modules
import json, logging, shutil, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from conftest import Tiny
import torch
import transformers
from huggingface_hub import HfApi
from hf_clamu import ClamuModel, HubError, IncompatibleBaseError, TaskNotFoundError
from hf_clamu.exact import canonical_json

bases, scratch = Path(sys.argv[1]), Path(sys.argv[2])
token = "hf_owner"
api = HfApi(token=token)
facts = {}


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    left, right = bits(left), bits(right)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def error_of(act):
    try:
        act()
    except Exception as error:
        return type(error).__name__


api.create_repo("org/base")
api.upload_folder(repo_id="org/base", folder_path=bases / "first")
first = api.repo_info("org/base").sha
model = Tiny.train("text", base="org/base")
model.push_to_hub("org/reddit", private=True, token=token)
api.create_tag("org/reddit", tag="v1")
model.unmerge_task("user_1")
model.push_to_hub(token=token)
forgotten = model
head = transformers.AutoModelForSequenceClassification
pushed = ClamuModel.from_pretrained("org/reddit", revision="v1", token=token)
for cluster in (None, 0, 1, 2):
    pushed.export(scratch / f"v1-{cluster}", cluster=cluster)
    forgotten.export(scratch / f"main-{cluster}", cluster=cluster)


def exported(version, cluster):
    return head.from_pretrained(scratch / f"{version}-{cluster}")


# The base moves on; the merged model does not.
api.upload_folder(repo_id="org/base", folder_path=bases / "second")
moved = api.repo_info("org/base").sha
facts["the base moved"] = moved != first
old = {"revision": "v1", "token": token}
loaded = ClamuModel.from_pretrained("org/reddit", cluster=1, device_map="cpu", **old)
facts["cluster"] = same(loaded, exported("v1", 1)) and type(loaded).__name__ == "GPT2ForSequenceClassification"
facts["pinned"] = loaded.clamu_config.base_model["revision"] == first
by_task = ClamuModel.from_pretrained("org/reddit", task="user_1", **old)
facts["task"] = "user_1" in by_task.clusters[by_task.cluster] and same(by_task, exported("v1", by_task.cluster))
cache = scratch / "cache"
in_cache = {"token": token, "cache_dir": cache}
facts["cache_dir"] = same(ClamuModel.from_pretrained("org/reddit", **in_cache), exported("main", None))
facts["the cache has base and model"] = sorted(path.name for path in cache.glob("models--*")) == [
    "models--org--base",
    "models--org--reddit",
]
offline = ClamuModel.from_pretrained("org/reddit", local_files_only=True, dtype="bfloat16", **in_cache)
facts["local_files_only, dtype"] = same(offline, head.from_pretrained(scratch / "main-None", dtype=torch.bfloat16))
facts["nothing local"] = (
    error_of(lambda: ClamuModel.from_pretrained("org/reddit", cache_dir=scratch / "no", local_files_only=True))
    == "HubError"
)
facts["no token"] = error_of(lambda: ClamuModel.from_pretrained("org/reddit", cache_dir=scratch / "no")) == "HubError"
absent = {"revision": "v9", "token": token}
facts["no revision"] = error_of(lambda: ClamuModel.from_pretrained("org/reddit", **absent)) == "HubError"
for path in cache.rglob("blobs/*"):
    damaged = path.read_bytes()
    path.write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
facts["a damaged cache"] = error_of(lambda: ClamuModel.from_pretrained("org/reddit", **in_cache)) in (
    "CheckpointFormatError",
    "IncompatibleBaseError",
)
said = []
keep = logging.Handler(logging.WARNING)
keep.emit = lambda record: said.append(record.getMessage())
logging.getLogger("transformers").addHandler(keep)
facts["Auto classes"] = all(
    same(auto.from_pretrained("org/reddit", cluster=0, token=token), exported("main", 0))
    and same(auto.from_pretrained("org/reddit", cluster=0, **old), exported("v1", 0))
    for auto in (head, transformers.AutoModel)
)
config = transformers.AutoConfig.from_pretrained("org/reddit", token=token)
facts["AutoConfig"] = type(config).__name__ == "ClamuConfig" and config.id2label[2] == "mixed"
facts["AutoTokenizer"] = len(transformers.AutoTokenizer.from_pretrained("org/reddit", token=token)) == 257
facts["another head"] = (
    error_of(lambda: transformers.AutoModelForCausalLM.from_pretrained("org/reddit", token=token))
    == "IncompatibleBaseError"
)


def plain_answers(version, cluster, texts):
    pipe = transformers.pipeline("text-classification", model=str(scratch / f"{version}-{cluster}"), device="cpu")
    return pipe(texts, top_k=None)


texts = ["great 3 of 4", "dull 1", "fair"]
pipe = transformers.pipeline("text-classification", model="org/reddit", token=token, device="cpu")
facts["transformers.pipeline"] = pipe(texts, top_k=None) == plain_answers("main", None, texts)
pipe = transformers.pipeline("text-classification", model="org/reddit", device="cpu", **old)
facts["at a revision"] = pipe(texts, top_k=None) == plain_answers("v1", None, texts)
pipe = hf_clamu.pipeline("text-classification", "org/reddit", cluster=1, device="cpu", **old)
facts["hf_clamu.pipeline"] = pipe(texts, top_k=None) == plain_answers("v1", 1, texts)
facts["forgotten"] = (
    error_of(lambda: hf_clamu.pipeline("text-classification", "org/reddit", task="user_1", token=token))
    == "TaskNotFoundError"
)
pipe = hf_clamu.pipeline(
    "text-classification", "org/reddit", task="user_1", fallback="global", token=token, device="cpu"
)
facts["fallback"] = pipe(texts, top_k=None) == plain_answers("main", None, texts)
facts["nothing is said"] = said == []

# Another commit of the base under the name that is recorded.
changed = scratch / "changed"
shutil.copytree(hf_clamu.hub.pull.download("org/reddit", token=token)[0], changed)
values = json.loads((changed / "config.json").read_bytes())
values["base_model"]["revision"] = moved
(changed / "config.json").unlink()
(changed / "config.json").write_bytes(canonical_json(values))
ledger = (changed / "ledger.json").read_bytes()
(changed / "ledger.json").unlink()
(changed / "ledger.json").write_bytes(ledger)
Tiny.reseal(changed)
facts["another base"] = error_of(lambda: ClamuModel.from_pretrained(changed)) == "IncompatibleBaseError"
facts["another base, by its Auto class"] = error_of(lambda: head.from_pretrained(changed)) == "IncompatibleBaseError"

loaded = ClamuModel.from_pretrained("org/reddit", token=token)
loaded.save_pretrained(scratch / "copy", push_to_hub=True, repo_id="org/copy", private=True, token=token)
copied = ClamuModel.from_pretrained("org/copy", token=token, force_download=True)
facts["pushed by save_pretrained"] = same(copied, exported("main", None)) and api.repo_info("org/copy").private
print(json.dumps(facts))
"""


def test_from_the_hub(tiny, tmp_path):
    for name, seed in (("first", 3), ("second", 4)):
        values = tiny.config("text")
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "bases" / name)
        tiny.processor("text").save_pretrained(tmp_path / "bases" / name)
    with HubDouble() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        settings |= {**dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", _HUB, str(tmp_path / "bases"), str(tmp_path)],
            env=_environment(**settings),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts == dict.fromkeys(facts, True)
    assert len(facts) == 24
