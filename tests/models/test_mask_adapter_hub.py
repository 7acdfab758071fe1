"""Mask adapters from repos on the Hub: within a saved model, and pushed alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from catalogue import ADAPTED
from hub_double import HubDouble

TESTS = Path(__file__).parents[1]
# The client reads its settings when it is imported, so it runs in a process of its own.
_SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
import transformers
from huggingface_hub import HfApi, ModelCard
from peft import PeftModel
import hf_clamu.models.mask_adapter
from hf_clamu import ClamuModel
from hf_clamu.hub.descendants import find_descendants

before, after = sys.argv[1:]
facts = {}


def bits(model):
    named = ((name.removeprefix("base_model.model."), p) for name, p in model.named_parameters())
    return {name: p.detach().clone().view(torch.int32) for name, p in named if "clamu_adapters" not in name}


def is_cluster(model, cluster):
    expected = bits(ClamuModel.from_pretrained(before, cluster=cluster))
    found = bits(model)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def base():
    return transformers.AutoModelForSequenceClassification.from_pretrained(before + "/base_model")


def error_of(act):
    try:
        act()
    except Exception as error:
        return type(error).__name__


api = HfApi()
api.create_repo("org/clamu", private=True)
api.upload_folder(repo_id="org/clamu", folder_path=before)
model = PeftModel.from_pretrained(base(), "org/clamu", subfolder="masks/cluster_001")
facts["within a saved model"] = is_cluster(model, 1)
model.load_adapter("org/clamu", "second", subfolder="masks/cluster_002")
model.set_adapter("second")
facts["a second one"] = is_cluster(model, 2)
model.push_to_hub("org/mask", private=True)
pushed = json.loads(open(api.hf_hub_download("org/mask", "adapter_config.json")).read())
facts["names the delta"] = pushed["delta_name_or_path"] == "org/clamu" and "delta_revision" not in pushed
facts["pushed alone"] = is_cluster(PeftModel.from_pretrained(base(), "org/mask"), 1)
facts["pushed beside"] = is_cluster(PeftModel.from_pretrained(base(), "org/mask", subfolder="second"), 2)
model.save_pretrained(before + "-mask")
api.create_repo("org/saved")
api.upload_folder(repo_id="org/saved", folder_path=before + "-mask")
card = ModelCard.load("org/saved").data
facts["is an adapter"] = (card.base_model, card.get("base_model_relation")) == ("org/clamu", "adapter")
found, problem = find_descendants(api, "org/clamu")
facts["found by who asks"] = (found, problem) == (({"repo_id": "org/saved", "relation": "adapter"},), None)
plain = base()
plain.load_adapter("org/mask")
facts["transformers"] = is_cluster(plain, 1)
old = api.repo_info("org/clamu").sha
api.upload_folder(repo_id="org/clamu", folder_path=after)
facts["stale"] = error_of(lambda: PeftModel.from_pretrained(base(), "org/mask")) == "StaleMaskError"
model = PeftModel.from_pretrained(base(), "org/clamu", subfolder="masks/cluster_001", revision=old)
facts["an old revision"] = is_cluster(model, 1)
facts["no such revision"] = (
    error_of(lambda: hf_clamu.models.mask_adapter.attach_delta(base(), "org/clamu", revision="0" * 40)) == "HubError"
)
print(json.dumps(facts))
"""


# The same for every architecture, against a reference that reads the files alone.
_PUSH = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from huggingface_hub import HfApi
from peft import PeftModel
import hf_clamu.models.mask_adapter
from catalogue import base_of, bits, reference, same

facts = {}
for argument in sys.argv[1:]:
    folder = Path(argument)
    name = folder.name
    HfApi().create_repo(f"org/clamu-{name}")
    HfApi().upload_folder(repo_id=f"org/clamu-{name}", folder_path=folder)
    model = PeftModel.from_pretrained(base_of(folder), f"org/clamu-{name}", subfolder="masks/cluster_001")
    model.push_to_hub(f"org/mask-{name}")
    pulled = PeftModel.from_pretrained(base_of(folder), f"org/mask-{name}")
    facts[name] = same(bits(pulled), reference(folder, 1)) and not same(bits(pulled), reference(folder, 0))
print(json.dumps(facts))
"""


def _facts(script, hub, home, *arguments):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_owner", "HF_HUB_DISABLE_XET": "1"}
    settings |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
    settings["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), kept.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env={**kept, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_from_the_hub_and_back(tiny, model, saved_text, tmp_path):
    model.unmerge_task("user_1", data=tiny.tasks("text")).save_pretrained(tmp_path / "after")
    shutil.copytree(saved_text, tmp_path / "before")
    with HubDouble() as hub:
        facts = _facts(_SCRIPT, hub, tmp_path / "home", tmp_path / "before", tmp_path / "after")
    assert facts == dict.fromkeys(facts, True)
    assert len(facts) == 11


@pytest.fixture(scope="module")
def pushed(saved, tmp_path_factory):
    with HubDouble() as hub:
        return _facts(_PUSH, hub, tmp_path_factory.mktemp("home"), *(saved(name) for name in ADAPTED))


@pytest.mark.matrix("peft", row="push_to_hub", column="{name}")
@pytest.mark.parametrize("name", ADAPTED)
def test_pushed_and_pulled_it_is_the_reference(pushed, name):
    assert pushed[name] is True


# What a saved model lacks, and what cannot be fetched, are two things.
_UNREACHABLE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
import transformers
from huggingface_hub import HfApi, hf_hub_download
from hf_clamu.models.mask_adapter import attach_delta

folder, cache = sys.argv[1:]
wrong = transformers.AutoModelForSequenceClassification.from_pretrained(folder + "/base_model")
right = transformers.AutoModelForSequenceClassification.from_pretrained(folder + "/base_model")
with torch.no_grad():
    next(wrong.parameters()).add_(1)


def error_of(model, **options):
    try:
        attach_delta(model, "org/clamu", cache_dir=cache, **options)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


api = HfApi()
api.create_repo("org/clamu")
api.upload_folder(repo_id="org/clamu", folder_path=folder)
facts = {}
for name in ("config.json", "delta.safetensors"):
    hf_hub_download("org/clamu", name, cache_dir=cache)
facts["unknown, wrong"] = error_of(wrong, local_files_only=True)
facts["unknown, right"] = error_of(right, local_files_only=True)
facts["online, wrong"] = error_of(wrong)
facts["known, wrong"] = error_of(wrong, local_files_only=True)
print(json.dumps(facts))
"""


def test_a_file_that_cannot_be_fetched_is_not_one_that_is_absent(saved_text, tmp_path):
    with HubDouble() as hub:
        facts = _facts(_UNREACHABLE, hub, tmp_path / "home", saved_text, tmp_path / "cache")
    kind, message = facts["unknown, wrong"]
    assert (kind, "base_init.safetensors" in message) == ("HubError", True)
    assert facts["unknown, right"] is None
    assert facts["online, wrong"][0] == facts["known, wrong"][0] == "IncompatibleBaseError"
