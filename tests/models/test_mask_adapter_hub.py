"""Mask adapters from repos on the Hub: within a saved model, and pushed alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hub_double import HubDouble

# The client reads its settings when it is imported, so it runs in a process of its own.
_SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
import transformers
from huggingface_hub import HfApi
from peft import PeftModel
import hf_clamu.models.mask_adapter
from hf_clamu import ClamuModel

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
plain = base()
plain.load_adapter("org/mask")
facts["transformers"] = is_cluster(plain, 1)
old = api.repo_info("org/clamu").sha
api.upload_folder(repo_id="org/clamu", folder_path=after)
facts["stale"] = error_of(lambda: PeftModel.from_pretrained(base(), "org/mask")) == "StaleMaskError"
model = PeftModel.from_pretrained(base(), "org/clamu", subfolder="masks/cluster_001", revision=old)
facts["an old revision"] = is_cluster(model, 1)
facts["no such revision"] = (
    error_of(lambda: hf_clamu.models.mask_adapter.attach_delta(base(), "org/clamu", revision="0" * 40))
    == "CheckpointFormatError"
)
print(json.dumps(facts))
"""


@pytest.fixture
def hub():
    with HubDouble() as double:
        yield double


def test_from_the_hub_and_back(tiny, model, saved_text, hub, tmp_path):
    model.unmerge_task("user_1", data=tiny.tasks("text")).save_pretrained(tmp_path / "after")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_owner"}
    settings |= {"HF_HUB_DISABLE_XET": "1", **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(saved_text), str(tmp_path / "after")],
        env={**kept, **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts == dict.fromkeys(facts, True)
    assert len(facts) == 9
